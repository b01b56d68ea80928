"""Reads a folder of numbered images, as video datasets have them, like a video."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from decaf_ros.io.bag_files import natural_key
from decaf_ros.io.images import picture_to_rgb
from decaf_ros.types import Frame

_log = logging.getLogger(__name__)

# Without the dot, in lower case; the names of one format.
_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG"}
DEFAULT_FPS = 24.0


def image_files(folder: Path) -> list[Path]:
    """The JPEG or PNG files of a folder in the order of their numbers (2 before 10); other files are ignored.

    If there are both, those of the format with more files; if there are as many, JPEG: PNG files of the same names are
    the masks of a dataset.
    """
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    images = {file: _FORMATS.get(file.suffix[1:].lower(), "") for file in files}
    counts = Counter(kind for kind in images.values() if kind)
    if not counts:
        return []
    chosen = max(counts, key=lambda kind: (counts[kind], kind == "JPEG"))
    return sorted((file for file, kind in images.items() if kind == chosen), key=lambda file: natural_key(file.stem))


def read_images(
    folder: Path,
    fps: float = DEFAULT_FPS,
    frame_id: str = "camera",
    reject: Callable[[str], None] | None = None,
    max_mpx: float = math.inf,
) -> Iterator[Frame]:
    """The images of a folder as frames, RGB, in the order of their numbers, indices from 0, `fps` in a second.

    A gap in the numbers is none in time: datasets number the frames that they kept.

    reject: called with a text for each image that cannot be decoded, which is skipped together with its index; default:
    the log. max_mpx: images of more megapixels are not decoded, but rejected.

    Raises ValueError for a folder without an image that can be decoded, or a rate that is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps: expected a positive rate, got {fps}")
    reject = reject or _log.warning
    files = image_files(folder)
    found = False
    for index, file in enumerate(files):
        try:
            image = picture_to_rgb(file.read_bytes(), max_mpx)
        except (OSError, ValueError) as error:
            reject(f"{file}: {error}")
            continue
        found = True
        yield Frame(image, round(index * 1e9 / fps), frame_id, index)
    if not found:
        raise ValueError(f"{folder}: expected JPEG or PNG images, got {len(files)}, none of which can be decoded")
