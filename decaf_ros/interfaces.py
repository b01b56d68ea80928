"""The text of this package's message and action definitions, for tools that write bags without a ROS installation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MESSAGES = ("Keypoint", "QueryStatus", "StageTime", "Tracklet", "TrackletArray")
ACTIONS = ("Segment",)


def interface_text(name: str) -> str:
    """The definition of `name`, one of MESSAGES or ACTIONS, as it stands in the .msg or .action file.

    Raises ValueError for another name, FileNotFoundError for a broken installation.
    """
    if name not in MESSAGES + ACTIONS:
        raise ValueError(f"unknown interface {name!r}; expected one of {', '.join(MESSAGES + ACTIONS)}")
    file = f"action/{name}.action" if name in ACTIONS else f"msg/{name}.msg"
    folders = list(_candidate_folders(Path(__file__).absolute()))
    for folder in folders:
        if (folder / file).is_file():
            return (folder / file).read_text(encoding="utf-8")
    raise FileNotFoundError(f"{file}: not found in any of {', '.join(map(str, folders))}; install decaf_ros again")


def _candidate_folders(module: Path) -> Iterator[Path]:
    """Where msg/ and action/ may lie, seen from this module's path.

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
