"""Chooses what converts raw images: the distribution's cv_bridge or the built-in conversion.

A cv_bridge that was compiled for another NumPy can be imported, and ends the process by SIGSEGV when it converts its
first image. So another process, `python -m decaf_ros.nodes.image_backend`, tries it on every encoding first. It is used
for those whose pixels are the built-in conversion's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from decaf_ros.io.images import ENCODINGS, Convert, PackedImage, builtin_rgb, packed
from decaf_ros.io.messages import shortened

_TRIAL_LIMIT_S = 60.0
# Begins the line with the result of the trial: libraries may print too.
_ANSWER = "encodings that cv_bridge converts: "
# Even, as 4:2:2 needs it, and no multiple of 4, so that the last pixels of a row take OpenCV's scalar path.
_TRIAL_SIZE_HW = (64, 94)


class UnusableError(Exception):
    """cv_bridge is not installed or cannot convert images; the text says why."""


def choose_converter(backend: str, log: Callable[[str, str], None]) -> Convert:
    """The conversion for `node.image_backend`. Logs one line. Takes about a second if there is a cv_bridge.

    Args:
        backend: "auto", "cv_bridge" or "builtin".
        log: called with level ("info", "warn") and text.

    Raises:
        RuntimeError: `backend` is "cv_bridge", which cannot be used.
    """
    if backend == "builtin":
        log("info", "images are converted by builtin (node.image_backend)")
        return builtin_rgb
    try:
        bridge = CvBridgeConverter()
    except UnusableError as error:
        if backend == "cv_bridge":
            raise RuntimeError(
                f"node.image_backend: expected a cv_bridge that converts images, got {error}; auto uses builtin instead"
            ) from error
        log("warn" if is_installed() else "info", f"images are converted by builtin: {error}")
        return builtin_rgb
    others = [encoding for encoding in ENCODINGS if encoding not in bridge.encodings]
    log("info", f"images are converted by cv_bridge{', except ' if others else ''}{', '.join(others)}")
    return bridge


def is_installed() -> bool:
    return importlib.util.find_spec("cv_bridge") is not None


class CvBridgeConverter:
    """Converts images by cv_bridge, see `decaf_ros.io.images.Convert`.

    encodings: those for which cv_bridge gives the pixels of `builtin_rgb`, which converts the others.

    Raises UnusableError.
    """

    def __init__(self) -> None:
        self.encodings = _tried_encodings()
        try:
            from cv_bridge import CvBridge, CvBridgeError

            self._bridge, self._error = CvBridge(), CvBridgeError
        except Exception as error:  # libraries of this process may be in its way
            raise UnusableError(f"a cv_bridge that cannot be imported: {type(error).__name__}: {error}") from error

    def __call__(self, image: PackedImage) -> np.ndarray:
        if image.encoding not in self.encodings:
            return builtin_rgb(image)
        try:
            return np.ascontiguousarray(self._bridge.imgmsg_to_cv2(image, "rgb8"))
        except self._error as error:
            raise ValueError(
                f"image: cv_bridge cannot convert {image.width} x {image.height} px of {image.encoding}: {error}"
            ) from error


def _tried_encodings() -> frozenset[str]:
    """The encodings that cv_bridge converted in another process as `builtin_rgb` does. Raises UnusableError."""
    if not is_installed():
        raise UnusableError("no cv_bridge is installed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        trial = subprocess.run(
            [sys.executable, "-m", "decaf_ros.nodes.image_backend"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRIAL_LIMIT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise UnusableError(f"a cv_bridge that converted no image within {_TRIAL_LIMIT_S:g} s") from error
    if trial.returncode < 0:
        said = shortened(" ".join(trial.stderr.split()))
        raise UnusableError(f"a cv_bridge that ends its process by {signal.Signals(-trial.returncode).name}: {said}")
    answers = [line.removeprefix(_ANSWER) for line in trial.stdout.splitlines() if line.startswith(_ANSWER)]
    if trial.returncode or not answers:
        errors = trial.stderr.strip().splitlines() or [f"exit status {trial.returncode}"]
        raise UnusableError(f"a cv_bridge that fails: {shortened(errors[-1])}")
    encodings = frozenset(json.loads(answers[0]))
    if not encodings:
        raise UnusableError("a cv_bridge that gives other pixels for every encoding")
    return encodings


def _try_cv_bridge() -> list[str]:
    """The encodings for which cv_bridge gives the pixels of `builtin_rgb` on noise."""
    from cv_bridge import CvBridge, CvBridgeError

    bridge, (height, width) = CvBridge(), _TRIAL_SIZE_HW
    noise, equal = np.random.default_rng(0), []
    for encoding, pixel_bytes in ENCODINGS.items():
        image = packed(height, width, encoding, noise.integers(0, 256, (height, width * pixel_bytes), np.uint8))
        try:
            pixels = bridge.imgmsg_to_cv2(image, "rgb8")
        except CvBridgeError:  # an encoding that this version does not know
            continue
        if np.array_equal(pixels, builtin_rgb(image)):
            equal.append(encoding)
    return equal


if __name__ == "__main__":
    sys.stdout.write(f"\n{_ANSWER}{json.dumps(_try_cv_bridge())}\n")
