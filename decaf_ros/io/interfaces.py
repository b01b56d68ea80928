"""The text of this package's message and action definitions, for tools that write bags without a ROS installation."""

from __future__ import annotations

from decaf_ros.resources import find_resource

MESSAGES = ("Keypoint", "QueryStatus", "StageTime", "Tracklet", "TrackletArray")
ACTIONS = ("Segment",)


def interface_text(name: str) -> str:
    """The definition of `name`, one of MESSAGES or ACTIONS, as it stands in the .msg or .action file.

    Raises ValueError for another name, FileNotFoundError for a broken installation.
    """
    if name not in MESSAGES + ACTIONS:
        raise ValueError(f"unknown interface {name!r}; expected one of {', '.join(MESSAGES + ACTIONS)}")
    file = f"action/{name}.action" if name in ACTIONS else f"msg/{name}.msg"
    return find_resource(file).read_text(encoding="utf-8")
