from __future__ import annotations

import pytest

from decaf_ros.config import DecafConfig, options, replace
from decaf_ros.io.messages import TOPICS
from decaf_ros.io.parameter_files import load_config


def test_every_option_is_documented_and_within_its_own_limits():
    seen = list(options(DecafConfig()))
    assert len({option.name for option in seen}) == len(seen) > 40
    for option in seen:
        assert option.doc, option.name
        if option.minimum is not None:
            assert option.minimum <= option.value <= option.maximum, option.name


def test_paper_defaults():
    config = DecafConfig()
    assert config.segmentation.point_threshold == config.segmentation.tracklet_threshold == 0.8
    assert config.window.size == 16 and config.mllm.video_tokens == 400 and config.mllm.frame_scale == 2
    assert config.segmentation.suppression_iou == 0.7 and config.segmentation.fill_holes_px == 8


def test_replace_by_dotted_name():
    config = replace(DecafConfig(), {"segmentation.point_threshold": 1, "window.size": 8})
    assert config.segmentation.point_threshold == 1.0 and type(config.segmentation.point_threshold) is float
    assert config.window.size == 8 and config.tracking == DecafConfig().tracking


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("segmentation.threshold", 0.5, "unknown option segmentation.threshold"),
        ("segmentation.point_threshold", 1.5, r"expected a value in \[0.0, 1.0\], got 1.5"),
        ("segmentation.point_threshold", float("nan"), r"expected a value in \[0.0, 1.0\], got nan"),
        ("segmentation.point_threshold", "0.8", "expected float, got '0.8' \\(str\\)"),
        ("window.size", True, "expected int, got True"),
        ("window.size", 2, r"expected at most window.size \(2\), got 4"),
        ("grounding.mode", "quick", "expected one of paper, fast, got 'quick'"),
    ],
)
def test_bad_values_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        replace(DecafConfig(), {name: value})


def test_cameras_have_names_of_their_own():
    assert replace(DecafConfig(), {"cameras": ["wrist", "head_2"]}).cameras == ("wrist", "head_2")
    for topic in (*TOPICS, "image", "query", "segment"):
        with pytest.raises(ValueError, match=f"cameras: expected another name than .*, got '{topic}'"):
            replace(DecafConfig(), {"cameras": [topic]})


@pytest.mark.parametrize("name", ["", "2nd", "_a", "a_", "a__b", "a/b", "a b", "käfer", "~"])
def test_a_name_that_ros_does_not_allow_is_no_camera(name):
    with pytest.raises(ValueError, match="cameras: expected names of letters, digits and single _"):
        replace(DecafConfig(), {"cameras": [name]})


@pytest.mark.parametrize("value", ["wrist", [1], None])
def test_cameras_are_a_list_of_names(value):
    with pytest.raises(ValueError, match="cameras: expected a list of names, got"):
        replace(DecafConfig(), {"cameras": value})


def test_load_config_reads_cameras(tmp_path):
    file = tmp_path / "robot.yaml"
    file.write_text("/**: {ros__parameters: {cameras: [wrist, head], window: {size: 8}}}\n")
    assert load_config(file).cameras == ("wrist", "head")
    file.write_text("/**: {ros__parameters: {cameras: [wrist, wrist]}}\n")
    with pytest.raises(ValueError, match=r"robot.yaml: cameras: expected each name once, got wrist, wrist"):
        load_config(file)


def test_load_config_reads_a_ros_parameter_file(tmp_path):
    file = tmp_path / "robot.yaml"
    file.write_text("/**:\n  ros__parameters:\n    window:\n      size: 8\n    grounding:\n      mode: fast\n")
    config = load_config(file)
    assert config.window.size == 8 and config.grounding.mode == "fast"
    assert config.window.min_frames == DecafConfig().window.min_frames


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\n",
        "- /**: {ros__parameters: {}}",
        "/**",
        "window:\n  size: 8\n",
        "a: {ros__parameters: 3}\n",
        "a: {}\nb: {}\n",
    ],
)
def test_load_config_refuses_other_yaml(tmp_path, text):
    file = tmp_path / "robot.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="expected a ROS parameter file"):
        load_config(file)


@pytest.mark.parametrize("parameters", ["{window: {length: 8}}", "{window.length: 8}"])
def test_load_config_names_an_unknown_option(tmp_path, parameters):
    file = tmp_path / "robot.yaml"
    file.write_text(f"/**: {{ros__parameters: {parameters}}}\n")
    with pytest.raises(ValueError, match="robot.yaml: unknown option window.length"):
        load_config(file)


def test_load_config_accepts_dotted_names_and_rclpy_parameters(tmp_path, caplog):
    file = tmp_path / "robot.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    use_sim_time: true\n    segmentation.point_threshold: 0.7\n"
        "    qos_overrides:\n      /parameter_events:\n        publisher: {depth: 5}\n"
    )
    config = load_config(file)
    assert config == replace(DecafConfig(), {"segmentation.point_threshold": 0.7})
    assert caplog.text == ""


def test_load_config_warns_about_unknown_parameters(tmp_path, caplog):
    """As the node: the section of all nodes may contain parameters of another node, or a misspelt stage."""
    file = tmp_path / "robot.yaml"
    file.write_text("/**: {ros__parameters: {frame_rate: 5, windows: {size: 8}, window: {size: 7}}}\n")
    assert load_config(file).window.size == 7
    assert "robot.yaml: parameters that decaf_ros does not know are ignored: frame_rate, windows.size" in caplog.text


def test_load_config_reads_the_sections_of_a_node(tmp_path):
    file = tmp_path / "robot.yaml"
    file.write_text(
        "/**: {ros__parameters: {window: {size: 8, min_frames: 3}}}\n"
        "/front/segmenter: {ros__parameters: {window: {size: 9}}}\n"
        "/camera: {ros__parameters: {window: {length: 3}}}\n"
    )
    assert [load_config(file, node=node).window.size for node in (None, "/rear/segmenter")] == [9, 8]


def test_load_config_names_a_file_that_is_not_yaml(tmp_path):
    file = tmp_path / "robot.yaml"
    file.write_text("/**: [1")
    with pytest.raises(ValueError, match=r"robot\.yaml: expected YAML"):
        load_config(file)
