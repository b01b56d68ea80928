"""The examples, and the topics of the layouts, with the real node, on a bag with depth that the player plays."""
# ruff: noqa: E402

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

from geometry_msgs.msg import PoseStamped, TransformStamped
from layout_files import foxglove_topics, rviz_topics
from node_process import ROOT, Robot, SegmenterProcess, unused_domain, wait_for
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy
from rclpy.qos import qos_check_compatible as check_qos
from scipy.spatial.transform import Rotation

from decaf_ros.io.layouts import layout
from decaf_tabletop.world.bag import COMPRESSED_TOPIC, DEPTH_TOPIC, INFO_TOPIC, write_tabletop_bag
from decaf_tabletop.world.simulator import make_clip

# Not importorskip: that would import MuJoCo before the simulator sets MUJOCO_GL.
pytestmark = [pytest.mark.ros, pytest.mark.skipif(find_spec("mujoco") is None, reason="MuJoCo is not installed")]

EXAMPLES = ROOT / "examples"
STAND_IN = Path(__file__).parent / "tf2_stand_in"
TABLETOP = ROOT / "decaf_tabletop" / "config" / "tabletop.yaml"
CAMERA = COMPRESSED_TOPIC.removesuffix("/compressed")
FRAME = "camera_optical"
# Masks end at edges of pixels, and depth in the bag is in millimetres.
NEAR_M = 0.02
RED_MUG, BOTTLE = 0, 2


@pytest.fixture(scope="module")
def clip():
    """A red mug and an orange bottle that stand still, and a blue mug that moves."""
    return make_clip(990001, depth=True)


@pytest.fixture(scope="module")
def running(clip, tmp_path_factory):
    """The segmenter with the table's models, a bag that is played to it without an end, and a client."""
    folder = tmp_path_factory.mktemp("examples")
    write_tabletop_bag(folder / "bag", clip, compressed=True)
    parameters = yaml.safe_load(TABLETOP.read_text())["/**"]["ros__parameters"]
    parameters["space"] = {"enabled": True}
    # Answers within two seconds.
    parameters["window"] |= {"size": 4, "min_frames": 2}
    parameters["tracking"] = {"edges": "model"}
    parameters["regrounding"] = {"policy": "off"}
    parameters["node"] = {"image_transport": "compressed", "reliability": "reliable"}
    names = {f"image{each}": CAMERA + each for each in ("", "/compressed")}
    names |= {"depth": DEPTH_TOPIC, "camera_info": INFO_TOPIC}
    ros_args = ["-p", "use_sim_time:=true", *(part for pair in names.items() for part in ("-r", ":=".join(pair)))]
    with unused_domain() as domain_id, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain_id))
        patch.setenv("OMP_NUM_THREADS", "1")
        process = SegmenterProcess(domain_id, folder, parameters, *ros_args)
        topics = [COMPRESSED_TOPIC, DEPTH_TOPIC, INFO_TOPIC]
        command = [sys.executable, "-m", "decaf_ros.nodes.player", str(folder / "bag"), "--loop", "--rate", "0.5"]
        command += ["--wait-for", "/decaf/segmenter", "--topics", *topics]
        with open(folder / "player.txt", "w") as log:
            player = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        robot = Robot(domain_id)
        try:
            wait_for(lambda: robot.received["masks"] or not process.running, "masks of the bag", 60)
            yield robot
        finally:
            player.send_signal(signal.SIGINT)
            print(process.log[-3000:], (folder / "player.txt").read_text())
            robot.close()
            assert player.wait(10) == 0
            assert process.stop() == 0 and "Traceback" not in process.log


def _run(name: str, *arguments: str, pythonpath: Path | None = None, then=None) -> tuple[int, str, str]:
    """Runs an example like a user, and `then` while it runs. Returns exit status, output and errors."""
    environment = dict(os.environ)
    if pythonpath is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(pythonpath), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    try:
        if then is not None:
            then()
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    print(output, errors)
    return process.returncode, output, errors


def _place(output: str) -> np.ndarray:
    """The place in metres that an example printed."""
    found = re.search(rf"(-?\d+\.\d+) (-?\d+\.\d+) (-?\d+\.\d+) m in {FRAME}", output)
    assert found, output
    return np.array([float(each) for each in found.groups()])


def _middle(clip, index: int) -> np.ndarray:
    """The middle of the visible surface of object `index`, which does not move, in metres in the camera's frame."""
    rows, columns = np.nonzero(clip.mask((index,))[0])
    depth = clip.depth_m[0][rows, columns]
    rays = np.linalg.inv(clip.intrinsics) @ np.stack([columns + 0.0, rows + 0.0, np.ones(len(rows))])
    return (rays * depth).mean(axis=1)


def _distance_m(place: np.ndarray, clip, index: int) -> float:
    return float(np.linalg.norm(_middle(clip, index) - place))


def _received(robot: Robot, topic: str, kind=PoseStamped) -> list:
    messages: list = []
    robot.node.create_subscription(kind, topic, messages.append, 10)
    return messages


def test_the_consumer_moves_to_the_target(running, clip):
    code, output, _ = _run("move_to_target.py", "the", "red", "mug")
    assert code == 0 and "no arm listens to /decaf/arm_goal" in output
    assert _distance_m(_place(output), clip, RED_MUG) < NEAR_M


def test_the_consumer_says_that_nothing_was_found(running):
    code, output, errors = _run("move_to_target.py", "the", "white", "one")
    assert code == 1 and not output and "no target: not found" in errors


def test_the_behaviour_tree_finds_and_approaches(running, clip):
    pytest.importorskip("py_trees")
    goals = _received(running, "arm_goal")
    code, output, _ = _run("behaviour_tree.py", "the", "small", "orange", "bottle")
    assert code == 0 and _distance_m(_place(output), clip, BOTTLE) < NEAR_M
    assert re.search(r"find the target: RUNNING \w+ \d+%", output), "feedback while it runs"
    wait_for(lambda: goals, "the arm's goal")
    (goal,) = goals
    where = goal.pose.position
    assert np.allclose([where.x, where.y, where.z], _place(output), atol=1e-3)


def test_the_robot_drives_in_front_of_the_target(running, clip):
    """With a stand-in of tf2_ros, which tells two transforms."""
    sent = {FRAME: ([1.0, 2.0, 0.5], [-0.5, 0.5, -0.5, 0.5]), "base_link": ([1.0, 2.2, 0.0], [0.0, 0.0, 0.0, 1.0])}

    def send_transforms() -> None:
        publisher = running.node.create_publisher(TransformStamped, "tf_stand_in", 10)
        wait_for(publisher.get_subscription_count, "the example's listener")
        for source, (shift, turn) in sent.items():
            message = TransformStamped(child_frame_id=source)
            message.header.frame_id = "map"
            where, rotation = message.transform.translation, message.transform.rotation
            where.x, where.y, where.z = shift
            rotation.x, rotation.y, rotation.z, rotation.w = turn
            publisher.publish(message)
        publisher.wait_for_all_acked()
        running.node.destroy_publisher(publisher)

    goals = _received(running, "/goal_pose")
    arguments = ["the", "red", "mug", "--frame", "map", "--stand-off", "0.4"]
    code, _, _ = _run("nav2_goal.py", *arguments, pythonpath=STAND_IN, then=send_transforms)
    wait_for(lambda: goals, "the goal")
    assert code == 0 and len(goals) == 1 and goals[0].header.frame_id == "map"
    shift, turn = sent[FRAME]
    target = Rotation.from_quat(turn).apply(_middle(clip, RED_MUG)) + shift
    goal = goals[0].pose
    assert np.hypot(target[0] - goal.position.x, target[1] - goal.position.y) == pytest.approx(0.4, abs=NEAR_M)
    assert goal.position.z == pytest.approx(0)
    yaw = 2 * np.arctan2(goal.orientation.z, goal.orientation.w)
    assert yaw == pytest.approx(np.arctan2(target[1] - 2.2, target[0] - 1.0), abs=0.05)
    assert (goal.orientation.x, goal.orientation.y) == pytest.approx((0, 0), abs=1e-9)


def test_without_a_map_the_goal_is_before_the_camera(clip):
    """As if it looked level, although it looks down at the table here."""
    functions = runpy.run_path(str(EXAMPLES / "nav2_goal.py"))
    seen = PoseStamped()
    seen.header.frame_id = FRAME
    target = _middle(clip, RED_MUG)
    seen.pose.position.x, seen.pose.position.y, seen.pose.position.z = target.tolist()
    goal = functions["make_goal"](None, seen, "", "base_link", 0.3)
    place = np.array([goal.pose.position.x, goal.pose.position.y, goal.pose.position.z])
    orientation = goal.pose.orientation
    turn = Rotation.from_quat([orientation.x, orientation.y, orientation.z, orientation.w])
    ahead, _, up = turn.as_matrix().T
    assert goal.header.frame_id == FRAME and place[1] == pytest.approx(0) and np.allclose(up, [0, -1, 0])
    assert np.allclose((place + 0.3 * ahead)[[0, 2]], target[[0, 2]])
    with pytest.raises(ValueError, match="target: expected one beside the robot"):
        functions["in_front_of"](target, target + up, up, 0.3)


@pytest.mark.parametrize(("program", "read"), [("rviz", rviz_topics), ("foxglove", foxglove_topics)])
def test_the_topics_of_a_layout_are_those_of_the_node(running, program, read):
    """With their types, and RViz's QoS, which would otherwise receive nothing without a word."""
    node = running.node
    published = dict(node.get_publisher_names_and_types_by_node("segmenter", "/decaf"))
    taken = dict(node.get_subscriber_names_and_types_by_node("segmenter", "/decaf"))
    shown = read(layout(program, image=COMPRESSED_TOPIC.removesuffix("/compressed")))
    # The node takes the compressed images of the bag, RViz would show raw ones.
    taken[CAMERA] = ["sensor_msgs/msg/Image"] if COMPRESSED_TOPIC in taken else []
    for topic, (kind, qos) in shown.items():
        kinds = published.get(topic) or taken.get(topic)
        assert kinds and kind in (None, *kinds), f"{topic}: expected {kind}, got {kinds}"
        if topic in published and qos:
            (offered,) = node.get_publishers_info_by_topic(topic)
            wanted = QoSProfile(
                history=HistoryPolicy[qos["History Policy"].upper().replace(" ", "_")],
                depth=qos["Depth"],
                reliability=ReliabilityPolicy[qos["Reliability Policy"].upper().replace(" ", "_")],
                durability=DurabilityPolicy[qos["Durability Policy"].upper().replace(" ", "_")],
                liveliness=LivelinessPolicy.AUTOMATIC,  # as everywhere
            )
            assert check_qos(offered.qos_profile, wanted) == (QoSCompatibility.OK, ""), topic
