"""Files that are installed with the package: message definitions and parameter files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_OURS = "decaf_ros"
_URL = re.compile(r"package://([^/]+)/(.+)")


def find_resource(name: str, module: Path | None = None) -> Path:
    """The file or folder `name`, such as "config/decaf.yaml", of this installation.

    Args:
        name: path relative to the checkout, or to share/decaf_ros of an installation.
        module: the search starts at this file of the package; default: this one.

    Raises:
        FileNotFoundError: it is in none of the folders, which the text lists.
    """
    return _first_of(_candidate_folders((module or Path(__file__)).absolute()), name)


def resolve_path(path: str) -> str:
    """A path or hub name from a configuration, with `~` expanded and `package://PACKAGE/NAME` replaced by that path.

    PACKAGE is decaf_ros, a ROS package of the sourced workspaces (NAME in its share folder), or a Python package (NAME
    in its folder). Other texts are returned unchanged. Raises FileNotFoundError for a package or file that is missing.
    """
    url = _URL.fullmatch(path)
    if not url:
        return os.path.expanduser(path)
    package, name = url.groups()
    return str(find_resource(name) if package == _OURS else _first_of(_package_folders(package), name))


def _first_of(folders: Iterator[Path], name: str) -> Path:
    searched = list(folders)
    for folder in searched:
        if (folder / name).exists():
            return folder / name
    if not searched:
        raise FileNotFoundError(f"{name}: its package is not installed")
    raise FileNotFoundError(f"{name}: not found in any of {', '.join(map(str, searched))}")


def _candidate_folders(module: Path) -> Iterator[Path]:
    """Folders that may hold msg/, config/ and the like, seen from a module's path.

    In a source checkout (or an editable install) they lie beside the Python package. pip and colcon both install them
    into PREFIX/share/decaf_ros, and the package some levels below the same PREFIX; the number of levels differs
    (lib/python3.X/site-packages, local/lib/python3.X/dist-packages, a --target folder). `module` is not resolved:
    colcon's --symlink-install links into the checkout.
    """
    checkout = module.parents[1]
    if (checkout / "package.xml").is_file():
        yield checkout
    for prefix in module.parents[1:]:
        yield prefix / "share" / _OURS


def _package_folders(package: str) -> Iterator[Path]:
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix and (share := Path(prefix, "share", package)).is_dir():
            yield share
    spec = find_spec(package) if package.isidentifier() else None
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder)
