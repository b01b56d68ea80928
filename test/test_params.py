"""Parameters of a real node, declared from the configuration."""
# ruff: noqa: E402

from __future__ import annotations

import pytest

rclpy = pytest.importorskip("rclpy")

from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from decaf_ros.config import DecafConfig, options, replace
from decaf_ros.nodes.params import Parameters

pytestmark = pytest.mark.ros


@pytest.fixture
def make(monkeypatch):
    """Makes a node with command line parameters, and its Parameters. `make.changes` records changes."""
    domain_coordinator = pytest.importorskip("domain_coordinator")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with domain_coordinator.domain_id() as domain_id:
        context, nodes = Context(), []
        rclpy.init(context=context, domain_id=domain_id)

        def make_parameters(*given: str) -> tuple[Node, Parameters]:
            cli_args = ["--ros-args", *(part for one in given for part in ("-p", one))]
            node = Node(
                "params", context=context, cli_args=cli_args, automatically_declare_parameters_from_overrides=True
            )
            nodes.append(node)
            return node, Parameters(node, make_parameters.changes.append)

        make_parameters.changes = []
        yield make_parameters
        for node in nodes:
            node.destroy_node()
        context.try_shutdown()


def _set(node: Node, **values) -> tuple[bool, str]:
    parameters = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
    result = node.set_parameters_atomically(parameters)
    return result.successful, result.reason


def test_every_option_is_declared_with_default_and_description(make):
    node, parameters = make()
    assert parameters.config == DecafConfig()
    for option in options(DecafConfig()):
        value = node.get_parameter(option.name).value
        assert (tuple(value) if isinstance(value, list) else value) == option.value
        descriptor = node.describe_parameter(option.name)
        assert descriptor.description == option.doc
        assert ("takes effect when the node is configured" in descriptor.additional_constraints) != option.live
        assert all(choice in descriptor.additional_constraints for choice in option.choices)
        ranges = [*descriptor.floating_point_range, *descriptor.integer_range]
        assert [(one.from_value, one.to_value) for one in ranges] == (
            [(option.minimum, option.maximum)] if option.minimum is not None else []
        )


def test_parameters_of_the_command_line_make_the_configuration(make):
    node, parameters = make(
        "segmentation.point_threshold:=0.5",
        "presence.threshold:=0",
        "window.size:=5",
        "grounding.mode:=fast",
        "use_sim_time:=false",
    )
    expected = {
        "segmentation.point_threshold": 0.5,
        "presence.threshold": 0.0,
        "window.size": 5,
        "grounding.mode": "fast",
    }
    assert parameters.config == replace(DecafConfig(), expected)
    # An integer is a valid value of a double, and is stored as one.
    assert node.get_parameter("presence.threshold").type_ == Parameter.Type.DOUBLE


@pytest.mark.parametrize(
    "given, error",
    [
        ("segmentation.point_treshold:=0.5", "unknown option segmentation.point_treshold"),
        ("segmentation.point_threshold:=1.5", "point_threshold: expected a value in [0.0, 1.0], got 1.5"),
        ("grounding.mode:=quick", "GroundingConfig.mode: expected one of paper, fast, got 'quick'"),
        ("window.size:=5.0", "WindowConfig.size: expected int, got 5.0 (float)"),
        ("cameras:=wrist", "cameras: expected a list of names, got 'wrist' (str)"),
        ("cameras:=[1, 2]", "cameras: expected a list of names, got [1, 2] (list)"),
        ("cameras:=[wrist, masks]", "cameras: expected another name than image, query, masks"),
        ("window.min_frames:=20", "window.min_frames: expected at most window.size (16), got 20"),
    ],
)
def test_a_bad_parameter_is_refused_at_the_start(make, given, error):
    with pytest.raises(ValueError) as caught:
        make(given)
    assert error in str(caught.value)


def test_a_live_option_changes_while_running(make):
    node, parameters = make()
    parameters.locked = True
    assert _set(node, segmentation__tracklet_threshold=0.25, presence__threshold=0) == (True, "")
    assert make.changes == [parameters.config]
    assert parameters.config.segmentation.tracklet_threshold == 0.25
    assert (parameters.config.presence.threshold, type(parameters.config.presence.threshold)) == (0.0, float)


def test_other_options_change_only_before_configuration(make):
    node, parameters = make()
    assert _set(node, window__size=8)[0]
    parameters.locked = True
    successful, reason = _set(node, window__size=9, segmentation__tracklet_threshold=0.25)
    assert not successful
    assert reason.startswith("window.size: takes effect only when the node is configured; deactivate it")
    assert (parameters.config.window.size, parameters.config.segmentation.tracklet_threshold) == (8, 0.8)
    assert node.get_parameter("window.size").value == 8
    # Setting a fixed option to its current value is allowed, so a whole parameter file can be loaded.
    assert _set(node, window__size=8, segmentation__tracklet_threshold=0.5)[0]


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("segmentation__tracklet_threshold", 1.5, "out of range"),
        ("segmentation__tracklet_threshold", 2, "expected a value in [0.0, 1.0], got 2"),
        ("segmentation__tracklet_threshold", "high", "expected float, got 'high' (str)"),
        ("segmentation__tracklet_threshold", float("nan"), "out of range"),
        ("segmentation__fallback", "worst", "expected one of none, best, got 'worst'"),
        ("window__min_frames", 17, "expected at most window.size (16), got 17"),
        ("window__min_frames", 0, "out of range"),
        ("grounding__contrast", 1, "Wrong parameter type"),
    ],
)
def test_a_bad_change_is_refused_and_changes_nothing(make, name, value, error):
    node, parameters = make()
    successful, reason = _set(node, **{name: value})
    assert not successful and error in reason
    assert parameters.config == DecafConfig() and make.changes == []


def test_cameras_are_named_before_configuration_only(make):
    node, parameters = make("cameras:=[wrist, head]")
    assert parameters.config.cameras == ("wrist", "head") and node.get_parameter("cameras").value == ["wrist", "head"]
    parameters.locked = True
    assert _set(node, cameras=["wrist", "head"])[0]
    successful, reason = _set(node, cameras=["wrist"])
    assert not successful and reason.startswith("cameras: takes effect only when the node is configured")
    parameters.locked = False
    successful, reason = _set(node, cameras=["wrist", "wrist"])
    assert not successful and reason == "cameras: expected each name once, got wrist, wrist"
    assert _set(node, cameras=[])[0] and parameters.config == DecafConfig()


def test_a_parameter_cannot_be_undeclared(make):
    node, parameters = make()
    for name in ("presence.threshold", "window.size"):
        assert not node.set_parameters([Parameter(name, Parameter.Type.NOT_SET)])[0].successful
        assert node.get_parameter(name).type_ != Parameter.Type.NOT_SET
    assert parameters.config == DecafConfig()


def test_parameters_of_other_nodes_are_left_alone(make):
    node, parameters = make("some_driver.gain:=3")
    assert parameters.config == DecafConfig()
    assert node.get_parameter("some_driver.gain").value == 3
    assert _set(node, some_driver__gain=4)[0] and make.changes == []
