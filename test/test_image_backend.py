"""The choice between cv_bridge and the built-in conversion, with packages `cv_bridge` that are broken in known ways."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from decaf_ros.io.images import ENCODINGS, builtin_rgb, packed
from decaf_ros.nodes.image_backend import choose_converter, is_installed

_CLASS = """
class CvBridgeError(TypeError):
    pass

class CvBridge:
    def imgmsg_to_cv2(self, message, encoding):
"""
# In the words of the real ones.
NUMPY_1 = "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.6 as it may crash."
CRASHES = (
    "import os, signal, sys"
    + _CLASS
    + f"        sys.stderr.write('{NUMPY_1}\\n\\n')\n        os.kill(os.getpid(), signal.SIGSEGV)\n"
)
BROKEN = {
    "a library is missing": (
        _CLASS + "        raise ImportError('libboost_python.so: cannot open shared object file')\n",
        "a cv_bridge that fails: ImportError: libboost_python.so: cannot open shared object file",
    ),
    "multiarray": (
        "raise ImportError('numpy.core.multiarray failed to import')",
        "a cv_bridge that fails: ImportError: numpy.core.multiarray failed to import",
    ),
    "array API": (
        "raise AttributeError('_ARRAY_API not found')",
        "a cv_bridge that fails: AttributeError: _ARRAY_API not found",
    ),
    "initialization": (
        "raise SystemError('initialization of cv_bridge_boost raised unreported exception')",
        "a cv_bridge that fails: SystemError: initialization of cv_bridge_boost raised unreported exception",
    ),
    "crash": (CRASHES, f"a cv_bridge that ends its process by SIGSEGV: {NUMPY_1}"),
    "exit": ("raise SystemExit(0)", "a cv_bridge that fails: exit status 0"),
    "other pixels": (
        "import numpy" + _CLASS + "        return numpy.zeros((message.height, message.width, 3), numpy.uint8)\n",
        "a cv_bridge that gives other pixels for every encoding",
    ),
    "only here": (
        "import sys\nif 'pytest' in sys.modules:\n    raise ImportError('static TLS block')\n"
        "from decaf_ros.io.images import builtin_rgb" + _CLASS + "        return builtin_rgb(message)\n",
        "a cv_bridge that cannot be imported: ImportError: static TLS block",
    ),
}


def write(folder: Path, source: str) -> None:
    package = folder / "cv_bridge"
    package.mkdir()
    (package / "__init__.py").write_text(source)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package cv_bridge with the given source first on the path."""
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "cv_bridge"}
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda source: write(tmp_path, source)
    sys.modules.pop("cv_bridge", None)
    sys.modules.update(real)


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_cv_bridge_is_one_line_or_an_error_if_demanded(source, reason, install):
    install(source)
    lines: list[tuple[str, str]] = []
    assert choose_converter("auto", lambda *line: lines.append(line)) is builtin_rgb
    assert lines == [("warn", f"images are converted by builtin: {reason}")]
    with pytest.raises(RuntimeError, match="node.image_backend: expected a cv_bridge .*, got") as error:
        choose_converter("cv_bridge", pytest.fail)
    assert reason in str(error.value)


def test_builtin_does_not_touch_cv_bridge(install):
    install("raise SystemExit(3)")
    assert choose_converter("builtin", lambda *line: None) is builtin_rgb


@pytest.mark.skipif(is_installed(), reason="cv_bridge is installed")
def test_no_cv_bridge():
    lines: list[tuple[str, str]] = []
    assert choose_converter("auto", lambda *line: lines.append(line)) is builtin_rgb
    assert lines == [("info", "images are converted by builtin: no cv_bridge is installed")]
    with pytest.raises(RuntimeError, match="got no cv_bridge is installed"):
        choose_converter("cv_bridge", pytest.fail)


def test_encodings_that_cv_bridge_converts_otherwise_are_left_to_builtin(install):
    """This one rounds mono16 down, does not know Bayer, and refuses images of its own size afterwards."""
    install(
        "import atexit, sys\nfrom decaf_ros.io.images import builtin_rgb\n"
        "if 'pytest' not in sys.modules:\n    sys.stdout.write('noise')\n    atexit.register(print, 'bye')"
        + _CLASS
        + "        if message.encoding.startswith('bayer'):\n            raise CvBridgeError('unknown')\n"
        + "        if message.height == 2:\n            raise CvBridgeError('too small')\n"
        + "        return builtin_rgb(message) // (2 if message.encoding == 'mono16' else 1)\n"
    )
    lines: list[tuple[str, str]] = []
    convert = choose_converter("cv_bridge", lambda *line: lines.append(line))
    others = [encoding for encoding in ENCODINGS if encoding.startswith("bayer") or encoding == "mono16"]
    assert [line for _, line in lines] == [f"images are converted by cv_bridge, except mono16, {', '.join(others[1:])}"]
    for encoding, size in ENCODINGS.items():
        image = packed(4, 4, encoding, np.arange(16 * size, dtype=np.uint8))
        np.testing.assert_array_equal(convert(image), builtin_rgb(image))
    with pytest.raises(ValueError, match="cv_bridge cannot convert 4 x 2 px of rgb8: too small"):
        convert(packed(2, 4, "rgb8", np.zeros(24, np.uint8)))


def test_a_working_cv_bridge_converts_the_common_encodings(cv_bridge):
    assert cv_bridge.encodings >= {"rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16"}


@pytest.mark.ros
def test_the_node_goes_on_with_a_cv_bridge_that_crashes(tmp_path, monkeypatch, tiny_mllm_dir, tiny_sam2_dir):
    pytest.importorskip("rclpy")
    pytest.importorskip("decaf_ros.msg")
    pytest.importorskip("domain_coordinator")
    from node_process import Robot, SegmenterProcess, small_parameters, unused_domain

    write(tmp_path, CRASHES)
    with unused_domain() as domain_id:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
        process = SegmenterProcess(domain_id, tmp_path / "node", small_parameters(tiny_mllm_dir, tiny_sam2_dir))
        robot = Robot(domain_id)
        try:
            robot.wait_until_listened_to()
            assert process.log.count("cv_bridge") == 1 and "Traceback" not in process.log
            assert "images are converted by builtin: a cv_bridge that ends its process by SIGSEGV" in process.log
            robot.show_until(lambda: robot.received["masks"], "masks")

            assert robot.change_state("deactivate") and robot.change_state("cleanup")
            assert robot.set_parameter("node.image_backend", "cv_bridge")[0]
            assert not robot.change_state("configure") and robot.state() == "unconfigured"
            assert "node.image_backend: expected a cv_bridge that converts images, got" in process.log
            assert robot.set_parameter("node.image_backend", "builtin")[0]
            assert robot.change_state("configure") and robot.change_state("activate")
            assert process.stop(signal.SIGINT) == 0
        finally:
            robot.close()
            process.stop(signal.SIGTERM)
