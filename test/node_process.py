"""A segmenter process under test, and a robot with camera, queries and subscriptions."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import domain_coordinator
import numpy as np
import pytest
import rclpy
import yaml
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from decaf_ros.action import Segment
from decaf_ros.io.messages import header, stamp_ns
from decaf_ros.msg import QueryStatus, TrackletArray
from decaf_ros.nodes.message_factory import make_message

ROOT = Path(__file__).parent.parent
PROFILE = ROOT / "config" / "fastdds_large_shm.xml"
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
TIMEOUT_S = 30.0
SIZE_HW = (96, 128)
LATCHED = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


def wait_for(condition: Callable[[], object], description: str, timeout_s: float = TIMEOUT_S) -> object:
    """Polls until `condition` returns a true value, and returns that value."""
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {timeout_s:g} s: {description}"
        time.sleep(0.01)
    return value


@contextlib.contextmanager
def unused_domain() -> Iterator[int]:
    """An unused DDS domain on this machine, with the Fast DDS profile of the package."""
    with pytest.MonkeyPatch.context() as patch, domain_coordinator.domain_id() as number:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        for name in PROFILE_VARIABLES:
            patch.setenv(name, str(PROFILE))
        yield number


def small_parameters(mllm_dir: Path, sam2_dir: Path) -> dict:
    """For tiny models: answers within seconds, and always with a target."""
    return {
        "mllm": {"checkpoint": str(mllm_dir), "local_files_only": True, "video_tokens": 16, "device": "cpu"},
        "sam2": {"checkpoint": str(sam2_dir), "local_files_only": True, "device": "cpu"},
        "grounding": {"mode": "fast"},
        "segmentation": {"max_points": 2, "fallback": "best"},
        "presence": {"threshold": 0},
        "window": {"size": 3, "min_frames": 2, "keyframe_period_s": 0.2},
        "regrounding": {"policy": "off"},
        "node": {"reliability": "reliable", "diagnostics_period_s": 0.1},
    }


class SegmenterProcess:
    """`python -m decaf_ros.nodes.segmenter` with a parameter file, or test/faulty_node.py with a folder of faults."""

    def __init__(
        self,
        domain_id: int,
        folder: Path,
        parameters: dict,
        *ros_args: str,
        namespace: str = "/decaf",
        faults: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        params_file = folder / "params.yaml"
        params_file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        self._log = folder / "log.txt"
        environment = os.environ | {"ROS_DOMAIN_ID": str(domain_id), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        program = ["-m", "decaf_ros.nodes.segmenter"]
        if faults is not None:
            program, environment["DECAF_FAULTS"] = [str(ROOT / "test" / "faulty_node.py")], str(faults)
        command = [sys.executable, *program, "--ros-args", "-r", f"__ns:={namespace}"]
        command += ["--params-file", str(params_file), *ros_args]
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        return self._process.wait(timeout_s)

    def stop(self, with_signal: int = signal.SIGINT, within_s: float = 10.0) -> int:
        """Stops the process and returns its exit code. Fails if it does not end in time."""
        if self.running:
            self._process.send_signal(with_signal)
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise


class Robot:
    """A client of every topic, service and action of a segmenter in /decaf, or of one of its cameras."""

    def __init__(self, domain_id: int, camera: str = "") -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self._camera_name, own = camera, f"{camera}/" if camera else ""
        self.node = rclpy.create_node(f"robot_{camera}", context=self._context, namespace="/decaf")
        self.received: dict[str, list] = {}
        for topic, kind, qos in (
            ("masks", Image, 50),
            ("target_mask", Image, 50),
            ("tracklets", TrackletArray, 50),
            ("heatmaps", Image, 50),
            ("overlay", Image, 50),
            ("status", QueryStatus, LATCHED),
            ("/diagnostics", DiagnosticArray, 10),
        ):
            self.received[topic] = []
            name = topic if topic.startswith("/") else own + topic
            self.node.create_subscription(kind, name, self.received[topic].append, qos)
        self._camera = self.node.create_publisher(Image, f"{own}image", 5)
        self._compressed = self.node.create_publisher(CompressedImage, f"{own}image/compressed", 5)
        self._query = self.node.create_publisher(String, f"{own}query", 100)
        self._set_parameters = self.node.create_client(SetParameters, "segmenter/set_parameters")
        self._change_state = self.node.create_client(ChangeState, "segmenter/change_state")
        self._get_state = self.node.create_client(GetState, "segmenter/get_state")
        self._action = ActionClient(self.node, Segment, f"{own}segment")
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._stopping = threading.Event()
        self._spinner = threading.Thread(target=self._spin)
        self._spinner.start()
        self.shown = 0

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        self._stopping.set()
        self._spinner.join()
        self._executor.shutdown()
        self._action.destroy()
        self.node.destroy_node()
        self._context.try_shutdown()

    # Camera and queries

    def wait_until_listened_to(self) -> None:
        both = (self._camera, self._query)
        wait_for(lambda: all(publisher.get_subscription_count() for publisher in both), "subscriptions")

    def show(self, frames: int, hz: float = 20.0, **changes) -> list[int]:
        """Publishes images of a moving square and returns their stamps. changes: message fields to override."""
        stamps = []
        for _ in range(frames):
            pixels = np.full((*SIZE_HW, 3), 50, np.uint8)
            left = 10 + self.shown % 80
            pixels[30:60, left : left + 30] = (220, 60, 20)
            stamps.append(time.time_ns())
            message = Image(height=SIZE_HW[0], width=SIZE_HW[1], encoding="rgb8", step=3 * SIZE_HW[1])
            message.header = header(make_message, stamps[-1], "camera_optical")
            message.data = array.array("B", pixels.tobytes())
            for name, value in changes.items():
                setattr(message, name, value)
            self._camera.publish(message)
            self.shown += 1
            time.sleep(1 / hz)
        return stamps

    def show_compressed(self) -> int:
        """Publishes one PNG and returns its stamp."""
        stamp = time.time_ns()
        message = CompressedImage(header=header(make_message, stamp, "camera_optical"), format="png")
        message.data = array.array("B", cv2.imencode(".png", np.zeros((*SIZE_HW, 3), np.uint8))[1].tobytes())
        wait_for(self._compressed.get_subscription_count, "subscription to compressed images")
        self._compressed.publish(message)
        return stamp

    def show_until(self, condition: Callable[[], object], description: str, **changes) -> None:
        until = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < until, f"not within {TIMEOUT_S:g} s: {description}"
            self.show(1, **changes)

    def send(self, text: str) -> None:
        """Publishes a query."""
        self._query.publish(String(data=text))

    def ask(self, text: str) -> str:
        """Publishes a query, waits until it is received and returns its id."""
        return self.ask_all([text])[0]

    def ask_all(self, texts: list[str]) -> list[str]:
        """Publishes queries back to back, waits until all are received and returns their ids."""
        before = {status.query_id for status in self.received["status"]}

        def new_ids() -> list[str]:
            statuses = [status for status in self.received["status"] if status.query in texts]  # not those of goals
            return list(dict.fromkeys(status.query_id for status in statuses if status.query_id not in before))

        for text in texts:
            self.send(text)
        wait_for(lambda: len(new_ids()) == len(texts), f"queries {texts}")
        return new_ids()

    def states(self, query_id: str) -> list[int]:
        return [status.state for status in self.received["status"] if status.query_id == query_id]

    def stamps(self, topic: str) -> list[int]:
        return [stamp_ns(message.header.stamp) for message in self.received[topic]]

    # Services

    def diagnosed(self) -> dict[str, str]:
        """The newest diagnostics of the segmenter, or of the camera, as a dict, with `level` and `message`."""
        name = f"/decaf/segmenter: decaf {self._camera_name}".rstrip()
        found = [one for message in self.received["/diagnostics"] for one in message.status if one.name == name]
        if not found:
            return {}
        status = found[-1]
        values = {value.key: value.value for value in status.values}
        return values | {"level": str(status.level[0]), "message": status.message}

    def _call(self, client, request):
        assert client.wait_for_service(TIMEOUT_S)
        future = client.call_async(request)
        wait_for(future.done, client.srv_name)
        return future.result()

    def call(self, kind, name: str, **fields):
        """Calls the service `name` of the segmenter's camera, of a type `kind`, and returns the response."""
        own = f"{self._camera_name}/" if self._camera_name else ""
        client = self.node.create_client(kind, f"segmenter/{own}{name}")
        response = self._call(client, kind.Request(**fields))
        self.node.destroy_client(client)
        return response

    def change_state(self, name: str) -> bool:
        transition = Transition(id=getattr(Transition, f"TRANSITION_{name.upper()}"))
        return self._call(self._change_state, ChangeState.Request(transition=transition)).success

    def state(self) -> str:
        return self._call(self._get_state, GetState.Request()).current_state.label

    def set_parameter(self, name: str, value: float | int | str | list[str]) -> tuple[bool, str]:
        if isinstance(value, list):
            content = ParameterValue(type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=value)
        elif isinstance(value, str):
            content = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)
        elif isinstance(value, float):
            content = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
        else:
            content = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
        request = SetParameters.Request(parameters=[ParameterMessage(name=name, value=content)])
        result = self._call(self._set_parameters, request).results[0]
        return result.successful, result.reason

    def send_goal(self, query: str, timeout_s: float = 0.0, policy: str = "") -> SentGoal:
        assert self._action.wait_for_server(TIMEOUT_S)
        feedback: list = []
        goal = Segment.Goal(query=query, timeout_s=timeout_s, policy=policy)
        future = self._action.send_goal_async(goal, feedback_callback=lambda one: feedback.append(one.feedback))
        wait_for(future.done, "answer to a goal")
        return SentGoal(future.result(), feedback)


class SentGoal:
    """An accepted or rejected goal of the action."""

    def __init__(self, handle, feedback: list) -> None:
        self.accepted = handle.accepted
        self.feedback = feedback
        self._handle = handle
        self._result = handle.get_result_async() if handle.accepted else None

    @property
    def done(self) -> bool:
        return self._result.done()

    def cancel(self) -> None:
        self._handle.cancel_goal_async()

    def result(self) -> tuple[str, Segment.Result]:
        """The final status (SUCCEEDED, ABORTED or CANCELED) and the result."""
        wait_for(self._result.done, "result of a goal")
        ends = {getattr(GoalStatus, f"STATUS_{name}"): name for name in ("SUCCEEDED", "ABORTED", "CANCELED")}
        return ends[self._result.result().status], self._result.result().result
