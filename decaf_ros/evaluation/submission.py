"""Writes masks as the servers of MeViS and Ref-YouTube-VOS expect them: a zip file with a PNG file for each frame.

VIDEO/EXPRESSION/FRAME.png, for Ref-YouTube-VOS in the folder Annotations; 8 bit grey, 255 on the target, 0 elsewhere.
Documented at https://github.com/henghuiding/MeViS (README, "CodaLab Evaluation Submission Guideline") and
https://github.com/wjn922/ReferFormer (docs/Ref-Youtube-VOS.md).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from decaf_ros.evaluation.datasets.clips import EvaluationClip


def frame_files(clip: EvaluationClip, labels: np.ndarray) -> dict[str, bytes]:
    """PNG files by name of the frame. labels: (F, H, W) uint8, 0 is the background."""
    names = clip.frame_names or tuple(f"{index:05d}" for index in range(len(clip.frames)))
    files = {}
    for name, image in zip(names, labels):
        written, data = cv2.imencode(".png", np.where(image > 0, 255, 0).astype(np.uint8))
        assert written, "OpenCV writes every grey image"
        files[name] = data.tobytes()
    return files


class Submission:
    """A context manager that writes a submission. The file has its name only when it is complete.

    Args:
        file: the zip file, which is replaced.
        folder: folder in it, see `DatasetSource.submission`.

    Raises OSError if it cannot be written, and ValueError for an expression that comes twice.
    """

    def __init__(self, file: Path, folder: str) -> None:
        self._file, self._folder = file, folder
        self._part = file.with_name(file.name + ".part")
        self._expressions: set[tuple[str, str]] = set()

    def __enter__(self) -> Submission:
        # PNG files are compressed already.
        self._zip = zipfile.ZipFile(self._part, "w", zipfile.ZIP_STORED)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._zip.close()
        if kind is None:
            os.replace(self._part, self._file)
        else:
            self._part.unlink()

    def add(self, clip: str, expression: str, masks: Mapping[str, bytes]) -> None:
        """Adds the masks of all frames. masks: from `frame_files`."""
        if (clip, expression) in self._expressions:
            raise ValueError(f"submission: expected each expression once, got {clip}/{expression} again")
        self._expressions.add((clip, expression))
        for frame, data in masks.items():
            self._zip.writestr(f"{self._folder}{clip}/{expression}/{frame}.png", data)

    @property
    def count(self) -> int:
        """Number of expressions so far."""
        return len(self._expressions)
