"""Text of this package's message and action definitions, for writing bags without a ROS installation."""

from __future__ import annotations

from decaf_ros.resources import find_resource

MESSAGES = ("Keypoint", "Mask", "QueryStatus", "StageTime", "Tracklet", "TrackletArray")
ACTIONS = ("Segment",)


def interface_text(name: str) -> str:
    """Text of the .msg or .action file of `name`, one of MESSAGES or ACTIONS.

    Raises ValueError for another name, FileNotFoundError if the installation lacks the file.
    """
    if name not in MESSAGES + ACTIONS:
        raise ValueError(f"interface: expected one of {', '.join(MESSAGES + ACTIONS)}, got {name!r}")
    file = f"action/{name}.action" if name in ACTIONS else f"msg/{name}.msg"
    return find_resource(file).read_text(encoding="utf-8")
