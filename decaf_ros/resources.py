"""Files that are installed beside the package: definitions, parameter files, the demo's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def find_resource(name: str, module: Path | None = None) -> Path:
    """The file or folder `name`, such as "decaf_tabletop/config/tabletop.yaml", of this installation.

    module: a file of the package from which to look; by default this one.
    Raises FileNotFoundError, which lists the folders, where there is none.
    """
    folders = list(_candidate_folders((module or Path(__file__)).absolute()))
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name}: not found in any of {', '.join(map(str, folders))}; install decaf_ros again")


def resolve_path(path: str) -> str:
    """A path or name as it stands in a configuration. `package://decaf_ros/NAME` is a file of this installation; every
    other one is returned as it is. Raises FileNotFoundError for a file that this installation does not have."""
    inside = path.removeprefix(_PACKAGE)
    return path if inside == path else str(find_resource(inside))


_PACKAGE = "package://decaf_ros/"


def _candidate_folders(module: Path) -> Iterator[Path]:
    """Where msg/, config/ and the like may lie, seen from a module's path.

    In a source checkout (or an editable install) they lie beside the Python package. pip and colcon both install
    them into PREFIX/share/decaf_ros, and the package some levels below the same PREFIX: how many differs
    (lib/python3.X/site-packages, local/lib/python3.X/dist-packages, a --target folder). `module` is not resolved:
    colcon's --symlink-install links into the checkout.
    """
    checkout = module.parents[1]
    if (checkout / "package.xml").is_file():
        yield checkout
    for prefix in module.parents[1:]:
        yield prefix / "share" / "decaf_ros"
