"""`decaf doctor` with a real camera node in another process than the doctor."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

from camera_driver import INFO, SIZE_HW, TOPIC, Driver  # noqa: E402
from doctor_runs import TABLETOP, named, parameters, run_doctor, wrong  # noqa: E402
from node_process import PROFILE_VARIABLES, unused_domain  # noqa: E402
from sensor_msgs.msg import CameraInfo  # noqa: E402

from decaf_ros.config import replace  # noqa: E402
from decaf_ros.doctor.ros import camera_topics, check_ros  # noqa: E402
from decaf_ros.io.parameter_files import load_config  # noqa: E402

pytestmark = pytest.mark.ros


@contextlib.contextmanager
def driver(reliability="best_effort", hz=20.0, info=None, **changes):
    """Runs a driver in a domain of its own; yields the environment for the doctor."""
    with unused_domain() as domain:
        running = Driver(domain, reliability, hz, info, **changes)
        try:
            yield {"ROS_DOMAIN_ID": str(domain)}
        finally:
            running.stop()


def calibrated(**changes) -> CameraInfo:
    height, width = SIZE_HW
    info = CameraInfo(height=height, width=width, distortion_model="plumb_bob")
    info.k = [60.0, 0.0, 32.0, 0.0, 60.0, 24.0, 0.0, 0.0, 1.0]
    info.header.frame_id = "camera_optical"
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def command(env, file=TABLETOP):
    """The whole command, about this camera."""
    status, findings, errors = run_doctor("--params", file, "--image", TOPIC, "--watch", "1", env=env)
    assert "Traceback" not in errors, errors
    return status, findings


def examined(env, *topics, target="", **options):
    """The part of ROS, in the process that the command starts."""
    config = replace(load_config(TABLETOP), {name.replace("__", "."): value for name, value in options.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", env["ROS_DOMAIN_ID"])
        cameras = camera_topics(config, "decaf", topics or [TOPIC])
        return list(check_ros(config, cameras, target, 1.0))


def test_a_good_set_up():
    with driver(info=calibrated()) as env:
        status, findings = command(env)
    found = named(findings)
    assert wrong(findings) == [] and status == 0
    assert found["messages"].text.startswith("serialised and read with NumPy ")
    assert found["RMW"].text == f"rmw_fastrtps_cpp, domain {env['ROS_DOMAIN_ID']}"
    assert "fastdds_large_shm.xml: segment of 16384 KiB" in found["shared memory"].text
    assert found[TOPIC].text == "sensor_msgs/msg/Image from /camera_driver"
    assert found[f"QoS of {TOPIC}"].text == "camera_driver offers best_effort, the segmenter asks for best_effort"
    assert found[f"encoding of {TOPIC}"].text == "rgb8, 64 x 48 px"
    assert re.fullmatch(r"\d+ in 1 s, \d+\.\d Hz", found[f"images of {TOPIC}"].text)
    assert found[INFO].text == "64 x 48 px, plumb_bob, frame camera_optical"
    assert found["frames"].text == "images have the frame camera_optical"


def test_qos_mismatch(tmp_path):
    """The segmenter asks for reliable delivery, the driver offers best effort: ROS then delivers nothing."""
    file = parameters(tmp_path / "reliable.yaml", node__reliability="reliable")
    with driver("best_effort") as env:
        status, findings = command(env, file)
    found = named(findings)
    assert status == 1 and wrong(findings) == [f"QoS of {TOPIC}"]
    text = found[f"QoS of {TOPIC}"].text
    assert text.startswith("camera_driver offers best_effort, the segmenter asks for reliable: no image will come")
    assert found[f"QoS of {TOPIC}"].mend.startswith("set node.reliability to best_effort")
    assert found[f"images of {TOPIC}"].text == "the QoS of no publisher fits"
    with driver("reliable") as env:
        assert wrong(examined(env, node__reliability="reliable")) == []


def test_no_images():
    with driver(hz=0) as env:
        status, findings = command(env)
    assert status == 1 and wrong(findings) == [f"images of {TOPIC}"]
    assert named(findings)[f"images of {TOPIC}"].text == "none came in 1 s"


def test_images_that_are_lost_on_the_way():
    """Large ones, published without Fast DDS's profile: hardly one arrives, and the driver does not know."""
    with unused_domain() as domain:
        plain = {name: value for name, value in os.environ.items() if name not in PROFILE_VARIABLES}
        program = Path(__file__).with_name("camera_driver.py")
        arguments = [sys.executable, program, str(domain), "best_effort", "10", "2160", "3840"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(arguments, env=plain, text=True, **pipes) as process:
            assert process.stdout.readline() == "running\n"
            findings = examined({"ROS_DOMAIN_ID": str(domain)})
    assert f"images of {TOPIC}" in wrong(findings)
    assert "give config/fastdds_large_shm.xml to the camera driver" in named(findings)[f"images of {TOPIC}"].mend


def test_a_topic_without_images():
    with driver() as env:
        findings = examined(env, "/nowhere", TOPIC)
    assert wrong(findings) == ["/nowhere"]
    nowhere = named(findings)["/nowhere"]
    assert nowhere.text == "nobody publishes images here"
    assert nowhere.mend.startswith(f"images are on {TOPIC}; start the camera driver, or name its topic")


def test_a_topic_of_the_other_transport():
    with driver() as env:
        findings = examined(env, node__image_transport="compressed")
    missing = named(findings)[f"{TOPIC}/compressed"]
    assert (missing.text, missing.mend) == (
        "nobody publishes images here",
        "set node.image_transport to raw: that topic is published",
    )


def test_a_topic_of_another_type():
    with driver(info=calibrated()) as env:
        findings = examined(env, INFO)
    assert named(findings)[INFO].text == "expected sensor_msgs/msg/Image, got sensor_msgs/msg/CameraInfo"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encoding": "32FC1"}, "expected one of the encodings mono8, .*got '32FC1'"),
        ({"step": 10}, "expected a step of at least 192 bytes"),
    ],
)
def test_a_wrong_encoding(changes, text):
    with driver(**changes) as env:
        findings = examined(env)
    assert wrong(findings) == [f"encoding of {TOPIC}"]
    assert re.search(text, named(findings)[f"encoding of {TOPIC}"].text)


def test_stamps_that_do_not_move():
    with driver(stamps=False) as env:
        findings = examined(env)
    assert "but their stamps do not move" in named(findings)[f"images of {TOPIC}"].text


def test_a_camera_that_is_too_slow():
    with driver() as env:
        findings = examined(env, window__keyframe_period_s=0.01)
    assert "fewer than key frames, one each 0.01 s" in named(findings)[f"images of {TOPIC}"].text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 640}, "for 640 x 48 px, images have 64 x 48 px"),
        ({"k": [0.0] * 9}, "no focal length (the camera is not calibrated)"),
    ],
)
def test_a_camera_info_that_does_not_fit(changes, text):
    with driver(info=calibrated(**changes)) as env:
        findings = examined(env)
    assert wrong(findings) == [INFO] and named(findings)[INFO].text == text


def test_frames():
    """tf2_ros is optional; where it is, nobody knows this frame."""
    with driver() as env:
        findings = examined(env, target="base_link")
    found = named(findings)["frames"]
    if find_spec("tf2_ros") is None:
        assert found.text == "camera_optical to base_link: tf2_ros is not installed"
    else:
        assert found.text == "no transform from camera_optical to base_link in 1 s"
    assert named(findings)[INFO].text.startswith("nobody publishes it")


@pytest.mark.parametrize(
    ("content", "state", "text"),
    [
        (None, "not checked", "is not set in this shell"),
        ("<dds/>", "wrong", "no shared-memory segment larger than 512 KiB"),
        ("no XML", "wrong", "syntax error"),
    ],
)
def test_profiles(content, state, text, tmp_path, monkeypatch):
    """The check alone: Fast DDS itself must not read these files."""
    from decaf_ros.nodes.doctor import check_middleware

    for variable in PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    if content is not None:
        (tmp_path / "profile.xml").write_text(content)
        monkeypatch.setenv(PROFILE_VARIABLES[0], str(tmp_path / "profile.xml"))
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    rmw, shared_memory = check_middleware()
    assert shared_memory.state == state and text in shared_memory.text and "docs/workspace.md" in shared_memory.mend


def write_cv_bridge(folder: Path, source: str) -> Path:
    (folder / "cv_bridge").mkdir(parents=True)
    (folder / "cv_bridge" / "__init__.py").write_text(source)
    return folder


def test_a_cv_bridge_for_another_numpy(tmp_path, monkeypatch):
    """It asks NumPy for the interface of NumPy 1, as code does that was compiled for it."""
    clash = "from numpy.core._multiarray_umath import _ARRAY_API\n"
    folder = write_cv_bridge(tmp_path / "first", clash)
    monkeypatch.syspath_prepend(folder)
    with driver() as env:
        findings = examined(env)
    found = named(findings)["cv_bridge"]
    assert wrong(findings) == ["cv_bridge"]
    assert found.text.startswith("a cv_bridge that fails: ") and "(NumPy " in found.text
    assert found.mend.endswith("or set node.image_backend to builtin")
