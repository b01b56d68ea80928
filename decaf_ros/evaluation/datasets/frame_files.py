"""Frames of a clip as files, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload
from weakref import WeakValueDictionary

from decaf_ros.io.image_folder import DEFAULT_FPS
from decaf_ros.io.images import picture_to_rgb
from decaf_ros.types import Frame

# Decoded frames kept per clip; those beyond are decoded again each time.
KEPT_BYTES = 2 << 30


class FrameFiles(Sequence[Frame]):
    """The frames of image files: RGB, indices from 0, DEFAULT_FPS in a second. Pickled as paths.

    A frame is one and the same object as long as anything holds it: SAM 2's image embeddings are kept by object.

    Args:
        files: JPEG or PNG files of one size, in time order.

    Reading a frame raises ValueError, naming the file, if it is missing, cannot be decoded or has another size.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._indices = range(len(self._files))
        self._decoded = _Decoded()

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> Frame: ...
    @overload
    def __getitem__(self, place: slice) -> FrameFiles: ...

    def __getitem__(self, place: int | slice) -> Frame | FrameFiles:
        if isinstance(place, slice):
            part = FrameFiles(self._files)
            part._indices, part._decoded = self._indices[place], self._decoded
            return part
        return self._decoded.frame(self._files, self._indices[place])

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_part, (self._files, self._indices)


def _of_part(files: tuple[Path, ...], indices: range) -> FrameFiles:
    return FrameFiles(files)[indices.start : indices.stop : indices.step]


class _Decoded:
    """Keeps the first decoded frames up to KEPT_BYTES. An eviction would help no pass over a longer clip."""

    def __init__(self) -> None:
        self._kept: dict[int, Frame] = {}
        self._alive: WeakValueDictionary[int, Frame] = WeakValueDictionary()
        self._kept_bytes = 0
        self._size_hw: tuple[int, int] | None = None

    def frame(self, files: tuple[Path, ...], index: int) -> Frame:
        frame = self._alive.get(index)
        if frame is None:
            frame = replace(_read(files[index]), stamp_ns=round(index * 1e9 / DEFAULT_FPS), index=index)
            self._size_hw = self._size_hw or frame.size_hw
            if frame.size_hw != self._size_hw:
                raise ValueError(
                    f"{files[index]}: expected {self._size_hw} (height, width) as the other frames, got {frame.size_hw}"
                )
            self._alive[index] = frame
            if self._kept_bytes + frame.image.nbytes <= KEPT_BYTES:
                self._kept[index] = frame
                self._kept_bytes += frame.image.nbytes
        return frame


def _read(file: Path) -> Frame:
    try:
        return Frame(picture_to_rgb(file.read_bytes()), 0)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}; unpack or download it again") from error
