"""Layouts for RViz and Foxglove: topics that exist, and the names of a namespace, a camera and a frame."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from layout_files import foxglove_topics, message_paths, rviz_topics

from decaf_ros.cli.main import main
from decaf_ros.io.interfaces import interface_text
from decaf_ros.io.layouts import LAYOUTS, layout
from decaf_ros.io.messages import TOPICS
from decaf_ros.io.space_messages import SPACE_TOPICS
from decaf_ros.io.vision_messages import VISION_TOPICS
from decaf_ros.resources import find_resource

# test_examples.py compares with what a running node subscribes to and publishes.
INPUTS = {"image": "sensor_msgs/msg/Image", "query": "std_msgs/msg/String"}
KINDS = {f"/decaf/{name}": kind for name, kind in (TOPICS | VISION_TOPICS | SPACE_TOPICS | INPUTS).items()}
KINDS["/diagnostics"] = "diagnostic_msgs/msg/DiagnosticArray"
SHOWN = {"rviz": rviz_topics, "foxglove": foxglove_topics}


@pytest.mark.parametrize("program", LAYOUTS)
def test_the_topics_exist_and_have_the_types_that_are_shown(program):
    shown = SHOWN[program](find_resource(LAYOUTS[program]).read_text())
    assert {name: kind for name, (kind, _) in shown.items() if kind not in (None, KINDS.get(name))} == {}
    assert set(shown) - set(KINDS) == set()
    seen = {"overlay", "heatmaps", "target_mask", "points", "markers", "target_pose"}
    assert {f"/decaf/{name}" for name in seen} <= set(shown)


def test_foxglove_asks_and_shows_answers():
    text = layout("foxglove")
    assert {"/decaf/query", "/decaf/status", "/decaf/tracklets", "/diagnostics"} <= set(foxglove_topics(text))
    publish = json.loads(text)["configById"]["Publish!query"]
    assert list(json.loads(publish["value"])) == ["data"], "a std_msgs/String"
    paths = message_paths(text)
    assert paths
    for path in paths:
        topic, _, field = path.partition(".")
        definition = interface_text(KINDS[topic].rpartition("/")[2])
        assert re.search(rf"^\S+ {field}\b", definition, re.MULTILINE), path


@pytest.mark.parametrize("program", LAYOUTS)
def test_other_names_are_put_into_a_layout(program):
    own = layout(program)
    assert SHOWN[program](own) == SHOWN[program](find_resource(LAYOUTS[program]).read_text())
    changed = layout(program, "/robot/eyes", "wrist", "/wrist/image_raw")
    expected = {
        {"/decaf/image": "/wrist/image_raw"}.get(name, name.replace("/decaf/", "/robot/eyes/wrist/"))
        for name in SHOWN[program](own)
    }
    assert set(SHOWN[program](changed)) == expected
    assert "/decaf" not in changed


def test_the_diagnostics_of_a_camera_are_shown():
    """As `decaf_ros/nodes/diagnostics.py` names them."""
    for arguments, name in ((("decaf",), "/decaf/segmenter: decaf"), (("a/b", "left"), "/a/b/segmenter: decaf left")):
        panel = json.loads(layout("foxglove", *arguments))["configById"]["DiagnosticStatusPanel!segmenter"]
        assert (panel["selectedHardwareId"], panel["selectedName"]) == (name.partition(":")[0], name)


@pytest.mark.parametrize(("frame", "is_upright"), [("", False), ("left_optical", False), ("base", True)])
def test_the_view_fits_the_frame(frame, is_upright):
    """From behind: in a camera's frame from below z, in an upright frame from above."""
    manager = yaml.safe_load(layout("rviz", fixed_frame=frame))["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == (frame or "camera_color_optical_frame")
    assert (manager["Views"]["Current"]["Pitch"] > 0) == is_upright
    panel = json.loads(layout("foxglove", fixed_frame=frame))["configById"]["3D!space"]
    assert panel.get("followTf", "") == frame
    assert (panel["cameraState"]["phi"] < 90) == is_upright


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"program": "rqt"}, "layout: expected one of rviz, foxglove, got 'rqt'"),
        ({"namespace": "a b"}, "namespace: expected names of letters"),
        ({"namespace": "/"}, "namespace: expected names of letters"),
        ({"camera": "left camera"}, "cameras: expected names of letters"),
        (
            {"image": "image_raw"},
            "image: expected the full name of a topic, such as /camera/image_raw, got 'image_raw'",
        ),
    ],
)
def test_bad_names(arguments, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        layout(**{"program": "rviz"} | arguments)


def test_the_command(tmp_path, capsys):
    file = tmp_path / "wrist.rviz"
    arguments = ["layout", "rviz", "--camera", "wrist", "--image", "/wrist/image_raw", "--fixed-frame", "base"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed == layout("rviz", camera="wrist", image="/wrist/image_raw", fixed_frame="base")
    assert main([*arguments, "--out", str(file)]) == 0
    assert file.read_text() == printed
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(file)])
    assert ended.value.code == 2 and "expected a new file" in capsys.readouterr().err


def test_the_panels_of_rviz_have_places():
    """RViz places panels by their names; others float. scripts/rviz_docks.py makes the places."""
    content = yaml.safe_load(layout("rviz"))
    places = bytes.fromhex(content["Window Geometry"]["QMainWindow State"])
    displays = content["Visualization Manager"]["Displays"]
    names = [each["Name"] for each in displays if each["Class"] == "rviz_default_plugins/Image"]
    for name in names + [each["Name"] for each in content["Panels"]]:
        assert name.encode("utf-16-be") in places, name
