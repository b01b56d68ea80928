"""Pictures of long evaluations: watched clips and curves over time. All images are (H, W, 3) uint8, RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from decaf_ros.evaluation.pictures import FOUND_COLOR, TRUTH_COLOR, enlarged, legend, outline
from decaf_ros.io.viz import PALETTE, contact_sheet
from decaf_ros.types import FrameResult

_COLUMNS, _TILE_WIDTH = 8, 256
_DARK, _GREY, _WHITE = (16, 16, 16), (170, 170, 170), (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_COLORS = (PALETTE[0], PALETTE[1], PALETTE[3])


def watched_strip(results: Sequence[tuple[int, FrameResult]], truth: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Frames with the outlines of truth and result.

    Args:
        results: Place and result of each frame to show.
        truth: (F, H, W) bool, the targets, by index of the frame.
        seconds: (N,) time since the answer, by place.
    """
    tiles: list[np.ndarray] = []
    for place, result in results:
        image = enlarged(result.frame.image)
        outline(image, truth[result.frame.index], TRUTH_COLOR, 3)
        outline(image, result.labels > 0, FOUND_COLOR, 2)
        if not tiles:
            legend(image)
        text = f"{seconds[place]:.1f} s"
        at = (_TILE_WIDTH - 70, image.shape[0] - 8)
        cv2.putText(image, text, at, _FONT, 0.5, _DARK, 3, cv2.LINE_AA)
        cv2.putText(image, text, at, _FONT, 0.5, _WHITE, 1, cv2.LINE_AA)
        tiles.append(image)
    return contact_sheet(tiles, _COLUMNS, tile_width=_TILE_WIDTH)


def over_time_picture(curves: Mapping[str, Sequence[tuple[float, float]]], title: str) -> np.ndarray:
    """Draws up to three curves of (seconds, share in [0, 1]) points. Raises ValueError without any point."""
    end_s = max((seconds for points in curves.values() for seconds, _ in points), default=None)
    if end_s is None:
        raise ValueError("over_time_picture: expected points, got none")
    width, height, left, top = 720, 360, 60, 66
    image = np.full((height + top + 60, width + left + 30, 3), _WHITE, np.uint8)

    def at(seconds: float, share: float) -> tuple[int, int]:
        return round(left + seconds / end_s * width), round(top + (1 - share) * height)

    def write(text: str, x: int, y: int, color: tuple[int, int, int] = _DARK, size: float = 0.45) -> None:
        cv2.putText(image, text, (x, y), _FONT, size, color, 1, cv2.LINE_AA)

    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        cv2.line(image, at(0, share), at(end_s, share), _GREY, 1)
        write(f"{100 * share:.0f} %", left - 46, at(0, share)[1] + 5)
    for seconds in np.arange(0, end_s + 1e-6, 10 if end_s > 30 else 2):
        cv2.line(image, at(seconds, 0), at(seconds, 1), _GREY, 1)
        write(f"{seconds:.0f}", at(seconds, 0)[0] - 8, top + height + 18)
    for number, ((name, points), color) in enumerate(zip(curves.items(), _COLORS)):
        line = np.array([at(*point) for point in points], np.int32).reshape(-1, 1, 2)
        cv2.polylines(image, [line], False, color, 2, cv2.LINE_AA)
        write(name, left + 240 * number, 46, color)
    write(title, left, 22, size=0.5)
    write("seconds since the answer", left + width // 2 - 80, top + height + 42)
    return image
