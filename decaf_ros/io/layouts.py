"""The layouts for RViz and Foxglove, with the names of a namespace, a camera and a frame. Needs no ROS installation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from decaf_ros.config import camera_names
from decaf_ros.resources import find_resource

# The layouts by the program that shows them. In the files the names are those of a node in /decaf with one camera.
LAYOUTS = {"rviz": "rviz/decaf.rviz", "foxglove": "foxglove/decaf.json"}
_NAMESPACE, _NODE, _IMAGE = "/decaf", "/decaf/segmenter", "/decaf/image"
_TOKEN = r"[A-Za-z_]\w*"
# Views for a frame with z up, from behind and above: the files' views are for a camera's frame with z forward.
_RVIZ_UPRIGHT = {"Distance": 3.0, "Focal Point": {"X": 0.5, "Y": 0.0, "Z": 0.0}, "Pitch": 0.6, "Yaw": 3.14}
_FOXGLOVE_UPRIGHT = {"distance": 3.0, "targetOffset": [0.5, 0, 0], "phi": 55, "thetaOffset": 90}


def layout(program: str, namespace: str = "decaf", camera: str = "", image: str = "", fixed_frame: str = "") -> str:
    """Text of a layout.

    Args:
        program: one of LAYOUTS.
        namespace: that of the node, also with a leading slash.
        camera: one of the parameter `cameras`; empty for the only camera of a node.
        image: topic of the camera's raw images; default: NAMESPACE/CAMERA/image.
        fixed_frame: frame in which targets are shown. With "optical" in its name it has z forward, else z up. Default:
            that of the file in RViz, the message's in Foxglove.

    Raises:
        ValueError: an unknown program, or a name that ROS does not allow.
        FileNotFoundError: the layout is not installed.
    """
    if program not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {program!r}")
    if not re.fullmatch(rf"{_TOKEN}(/{_TOKEN})*", namespace.strip("/")):
        raise ValueError(f"namespace: expected names of letters, digits and _, such as decaf, got {namespace!r}")
    if camera:
        camera_names([camera])
    if image and not re.fullmatch(rf"/{_TOKEN}(/{_TOKEN})*", image):
        raise ValueError(f"image: expected the full name of a topic, such as /camera/image_raw, got {image!r}")
    own = f"/{namespace.strip('/')}"

    def renamed(text: str) -> str:
        if text == _IMAGE and image:
            return image
        if text.startswith(_NODE):  # the node and its statuses in the diagnostics
            return own + text.removeprefix(_NAMESPACE) + (f" {camera}" if camera and ":" in text else "")
        if text.startswith(f"{_NAMESPACE}/"):
            return own + (f"/{camera}" if camera else "") + text.removeprefix(_NAMESPACE)
        return text

    text = find_resource(LAYOUTS[program]).read_text(encoding="utf-8")
    content = _mapped(yaml.safe_load(text) if program == "rviz" else json.loads(text), renamed)
    if fixed_frame:
        _set_frame(content, fixed_frame)
    if program == "rviz":
        dumped: str = yaml.safe_dump(content, sort_keys=False)
        return dumped
    return json.dumps(content, indent=2) + "\n"


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with all texts, also those of keys, changed."""
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [_mapped(entry, change) for entry in value]
    return change(value) if isinstance(value, str) else value


def _set_frame(content: dict[str, Any], frame: str) -> None:
    is_upright = "optical" not in frame
    if "Visualization Manager" in content:
        manager = content["Visualization Manager"]
        manager["Global Options"]["Fixed Frame"] = frame
        manager["Views"]["Current"] |= _RVIZ_UPRIGHT if is_upright else {}
        return
    for name, panel in content["configById"].items():
        if name.startswith("3D!"):
            panel["followTf"] = frame
            panel["cameraState"] |= _FOXGLOVE_UPRIGHT if is_upright else {}
