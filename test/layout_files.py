"""The contents of the layouts for RViz and Foxglove: topics with the type and the QoS that they expect."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import yaml

# Message type of each display of RViz and each panel of Foxglove that has one topic; None: any.
RVIZ_TYPES = {
    "rviz_default_plugins/Image": "sensor_msgs/msg/Image",
    "rviz_default_plugins/MarkerArray": "visualization_msgs/msg/MarkerArray",
    "rviz_default_plugins/PointCloud2": "sensor_msgs/msg/PointCloud2",
    "rviz_default_plugins/Pose": "geometry_msgs/msg/PoseStamped",
}
RVIZ_WITHOUT_TOPIC = {"rviz_default_plugins/Axes", "rviz_default_plugins/TF"}
# Panels in 3D, by the settings that only they have.
_SPACE_TYPES = {
    "colorField": "sensor_msgs/msg/PointCloud2",
    "axisScale": "geometry_msgs/msg/PoseStamped",
}


class Shown(NamedTuple):
    """A topic that a layout shows. kind: its message type, None for any. qos: entries of RViz's `Topic`."""

    kind: str | None
    qos: dict[str, Any]


def rviz_topics(text: str) -> dict[str, Shown]:
    """By topic. Fails for a display of an unknown class."""
    found = {}
    for display in yaml.safe_load(text)["Visualization Manager"]["Displays"]:
        if display["Class"] not in RVIZ_WITHOUT_TOPIC:
            found[display["Topic"]["Value"]] = Shown(RVIZ_TYPES[display["Class"]], display["Topic"])
    return found


def foxglove_topics(text: str) -> dict[str, Shown]:
    """By topic. Fails for a panel of an unknown type, and for one that the layout does not place."""
    content = json.loads(text)
    placed = _leaves(content["layout"])
    assert sorted(placed) == sorted(content["configById"])
    found = {}
    for name, panel in content["configById"].items():
        match name.partition("!")[0]:
            case "Publish":
                found[panel["topicName"]] = Shown(panel["datatype"], {})
            case "Image":
                found[panel["imageMode"]["imageTopic"]] = Shown("sensor_msgs/msg/Image", {})
            case "3D":
                for topic, settings in panel["topics"].items():
                    kinds = [kind for key, kind in _SPACE_TYPES.items() if key in settings]
                    found[topic] = Shown(kinds[0] if kinds else None, {})
            case "RawMessages" | "Table":
                found[panel["topicPath"].partition(".")[0]] = Shown(None, {})
            case "StateTransitions":
                found |= {path["value"].partition(".")[0]: Shown(None, {}) for path in panel["paths"]}
            case "DiagnosticStatusPanel":
                found[panel["topicToRender"]] = Shown("diagnostic_msgs/msg/DiagnosticArray", {})
            case other:
                raise AssertionError(f"{other}: a panel whose topics are not known")
    return found


def message_paths(text: str) -> list[str]:
    """Paths into messages in a layout of Foxglove: a topic, a dot and fields."""
    panels = json.loads(text)["configById"].values()
    paths = [panel["topicPath"] for panel in panels if "topicPath" in panel]
    paths += [path["value"] for panel in panels for path in panel.get("paths", ())]
    return [path for path in paths if "." in path]


def _leaves(node: str | dict[str, Any]) -> list[str]:
    return [node] if isinstance(node, str) else [*_leaves(node["first"]), *_leaves(node["second"])]
