"""The example of an SROS2 policy against the graph of the real node."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")

from node_process import Robot, SegmenterProcess, small_parameters, unused_domain, wait_for  # noqa: E402
from rclpy.node import NodeNameNonExistentError  # noqa: E402

from decaf_ros.config.transports import DEPTH_TRANSPORTS, IMAGE_TRANSPORTS  # noqa: E402
from decaf_ros.io.vision_messages import VISION_TOPICS  # noqa: E402
from decaf_ros.nodes.message_factory import CLASSES  # noqa: E402

POLICY = Path(__file__).parents[1] / "config" / "sros2_policy.xml"
NAMESPACE, NODE = "/decaf", "segmenter"
# Allowed for what not every configuration or installation has: the other transports, transforms, simulated time.
OPTIONAL = {
    *(f"{NAMESPACE}/image{end}" for end in IMAGE_TRANSPORTS.values()),
    *(f"{NAMESPACE}/depth{end}" for end in DEPTH_TRANSPORTS.values()),
    *(f"{NAMESPACE}/{topic}" for topic, kind in VISION_TOPICS.items() if kind not in CLASSES),
    *("/tf", "/tf_static", "/clock"),
}
pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def robot(tiny_mllm_dir, tiny_sam2_dir, tmp_path_factory) -> Iterator[Robot]:
    parameters = small_parameters(tiny_mllm_dir, tiny_sam2_dir)
    parameters["space"] = {"enabled": True}
    with unused_domain() as domain:
        process = SegmenterProcess(domain, tmp_path_factory.mktemp("secure"), parameters)
        robot = Robot(domain)
        robot.wait_until_listened_to()
        yield robot
        robot.close()
        process.stop()


@pytest.mark.parametrize(
    ("element", "kind", "graph"),
    [
        ("topics[@publish='ALLOW']", "topic", "get_publisher_names_and_types_by_node"),
        ("topics[@subscribe='ALLOW']", "topic", "get_subscriber_names_and_types_by_node"),
        ("services[@reply='ALLOW']", "service", "get_service_names_and_types_by_node"),
    ],
)
def test_the_policy_allows_what_the_node_has_and_no_more(robot, element, kind, graph):
    allowed = _allowed(element, kind)
    actions = {f"{name}/_action/" for name in _allowed("actions[@execute='ALLOW']", "action")}

    def found() -> set[str]:
        try:
            names = {name for name, _ in getattr(robot.node, graph)(NODE, NAMESPACE)}
        except NodeNameNonExistentError:  # not discovered yet
            return set()
        return {name for name in names if not any(name.startswith(action) for action in actions)}

    wait_for(lambda: found() | OPTIONAL >= allowed, f"{graph}: {sorted(allowed - found() - OPTIONAL)}")
    assert found() <= allowed


def test_the_policy_is_of_the_nodes_name_and_action(robot):
    (profile,) = ET.parse(POLICY).getroot().iter("profile")
    assert profile.attrib == {"ns": NAMESPACE, "node": NODE}
    services = {name for name, _ in robot.node.get_service_names_and_types_by_node(NODE, NAMESPACE)}
    goals = {name.removesuffix("/_action/send_goal") for name in services if name.endswith("/_action/send_goal")}
    assert _allowed("actions[@execute='ALLOW']", "action") == goals


def _allowed(element: str, kind: str) -> set[str]:
    """Names with their namespaces; ~ is that of the node."""
    (found,) = ET.parse(POLICY).getroot().iterfind(f".//profile/{element}")
    names = [entry.text or "" for entry in found.findall(kind)]
    whole = [name.replace("~", f"{NODE}/") if name.startswith("~") else name for name in names]
    return {name if name.startswith("/") else f"{NAMESPACE}/{name}" for name in whole}
