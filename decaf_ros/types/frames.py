"""Images of a camera: one frame, and the window of key frames in which a query is grounded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from decaf_ros.types.checks import check_array


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera image.

    image: (H, W, 3) uint8, RGB.
    stamp_ns: exposure time, as stamped by the camera driver.
    frame_id: coordinate frame of the camera.
    index: order of arrival, unique within one stream.
    camera_hw: size of the camera's image, of which `image` may be a smaller copy (`decaf_ros.io.sizes`).
    """

    image: np.ndarray
    stamp_ns: int
    frame_id: str = ""
    index: int = 0
    camera_hw: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        check_array("Frame.image", self.image, np.uint8, (None, None, 3))
        if 0 in self.image.shape:
            raise ValueError(f"Frame.image: expected a non-empty image, got shape {self.image.shape}")
        if not any(self.camera_hw):
            object.__setattr__(self, "camera_hw", self.size_hw)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def digest(self) -> bytes:
        """Hash of the image: a cache key shared by frames with identical pixels."""
        return blake2b(np.ascontiguousarray(self.image).data, digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class Window:
    """The T key frames in which a query is grounded: one image size, strictly increasing stamps."""

    frames: tuple[Frame, ...]

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("Window: expected at least one frame, got none")
        sizes = {frame.size_hw for frame in self.frames}
        if len(sizes) > 1:
            raise ValueError(f"Window: expected frames of one size, got {sorted(sizes)}")
        stamps = [frame.stamp_ns for frame in self.frames]
        if any(later <= earlier for earlier, later in zip(stamps, stamps[1:])):
            raise ValueError(f"Window: expected strictly increasing stamps, got {stamps}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.frames[0].size_hw

    @property
    def images(self) -> np.ndarray:
        """(T, H, W, 3) uint8, RGB."""
        return np.stack([frame.image for frame in self.frames])
