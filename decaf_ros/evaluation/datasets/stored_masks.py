"""Ground truth of a clip as it is stored, decoded frame by frame. Both kinds are `ObjectMasks`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from decaf_ros.evaluation.datasets.mask_file import decode_rle, read_entry, size_of


@dataclass(frozen=True, eq=False)
class RleMasks:
    """Tracks of run-length encoded masks. Several masks on a frame mean their union, none a frame without the object.

    Attributes:
        sources: file, video and entry of each track, for errors.
        tracks: K tracks of F frames.
        frames: F.
        size_hw: size of every mask.
        mend: what to do, for errors.

    Raises ValueError for a mask of another size.
    """

    sources: tuple[str, ...]
    tracks: tuple[tuple[Sequence[Mapping[str, Any]], ...], ...]
    frames: int
    size_hw: tuple[int, int]
    mend: str

    def __post_init__(self) -> None:
        for source, track in zip(self.sources, self.tracks):
            for index, encoded in enumerate(track):
                for rle in encoded:
                    with _named(source, index, self.mend):
                        if size_of(rle) != self.size_hw:
                            raise ValueError(
                                f"expected {self.size_hw} (height, width) as the image, got {size_of(rle)}"
                            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.tracks), self.frames, *self.size_hw

    def at(self, frame: int, objects: Sequence[int]) -> np.ndarray:
        """See `ObjectMasks.at`. Raises ValueError for a mask that cannot be decoded."""
        masks = np.zeros((len(objects), *self.size_hw), bool)
        for place, index in enumerate(objects):
            with _named(self.sources[index], frame, self.mend):
                for rle in self.tracks[index][frame]:
                    masks[place] |= decode_rle(rle)
        return masks


@contextlib.contextmanager
def _named(source: str, index: int, mend: str) -> Iterator[None]:
    """Names a track's mask in a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}, mask {index}: {error}; {mend}") from error


def rle_masks(
    file: Path, video: str, keys: Sequence[str], frames: int, size_hw: tuple[int, int], mend: str, within: str = ""
) -> RleMasks:
    """The tracks with these keys of a JSON file: each a list with a mask, a list of masks or null for each frame.

    video: for errors. mend: what to do, for errors. within: the list is this entry of the value. Raises ValueError,
    naming the file, if a track is missing or has another number of masks than `frames`, or masks are of another size.
    """
    tracks = []
    for key in keys:
        track = read_entry(file, key, mend)
        track = track.get(within) if within and isinstance(track, dict) else track
        if not isinstance(track, list) or len(track) != frames:
            got = len(track) if isinstance(track, list) else type(track).__name__
            raise ValueError(
                f"{file}, video {video}, entry {key!r}: expected {frames} masks, one a frame, got {got}; {mend}"
            )
        tracks.append(tuple(rle if isinstance(rle, list) else [] if rle is None else [rle] for rle in track))
    sources = tuple(f"{file}, video {video}, entry {key!r}" for key in keys)
    return RleMasks(sources, tuple(tracks), frames, size_hw, mend)


@dataclass(frozen=True, eq=False)
class PngMasks:
    """Masks in PNG files; None is a frame without the object.

    Attributes:
        files: K tracks of F files. Objects may share a file.
        values: for each object its value in the file; 0: every pixel that is not 0.
        frames: F.
        size_hw: size of every mask.
    """

    files: tuple[tuple[Path | None, ...], ...]
    values: tuple[int, ...]
    frames: int
    size_hw: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.files), self.frames, *self.size_hw

    def at(self, frame: int, objects: Sequence[int]) -> np.ndarray:
        """See `ObjectMasks.at`. Raises ValueError, naming the file, if it cannot be read or has another size."""
        masks = np.zeros((len(objects), *self.size_hw), bool)
        labels: dict[Path, np.ndarray] = {}
        for place, index in enumerate(objects):
            file = self.files[index][frame]
            if file is not None:
                if file not in labels:
                    labels[file] = _read(file, self.size_hw)
                image = labels[file]
                masks[place] = image == self.values[index] if self.values[index] else image != 0
        return masks


def _read(file: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W): the values of a PNG file; for one with a palette, its indices."""
    try:
        with Image.open(file) as picture:
            if picture.mode not in ("P", "L", "1", "I", "I;16"):
                raise ValueError(f"expected a palette or grey values, got the mode {picture.mode}")
            values = np.asarray(picture)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a mask: {error}; unpack or download it again") from error
    if values.shape != size_hw:
        raise ValueError(f"{file}: expected {size_hw} (height, width) as the image, got {values.shape}")
    return values
