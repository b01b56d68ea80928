"""The output folder of `decaf segment`: a page, the film, masks, contact sheet and summary."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.files import UNFINISHED, mark_unfinished, write_bytes, write_text
from decaf_ros.io.film import VideoWriter
from decaf_ros.io.output_bag import OutputBag
from decaf_ros.io.result_page import result_page
from decaf_ros.io.sizes import nearest
from decaf_ros.io.target_log import TargetLog
from decaf_ros.io.viz import contact_sheet, heat_overlay, overlay, shrunk
from decaf_ros.types import FrameResult, Heatmap, Notice, Output, QueryEvent, Segmentation

FORMATS = ("png", "bag", "both")
_SHEET_FRAMES, _SHEET_HEATMAPS, _SHEET_COLUMNS = 8, 4, 4
_PAGE_HEATMAPS = 8
_TILE_WIDTH = 480

# All files and folders that a run may create; NAME.part is half a file, which a kill has left. The mark is last.
_FILES = ("overlay.webm", "contact_sheet.png", "frames.json", "summary.json", "index.html")
_PARTS = (
    *("masks", "coarse_masks", "outputs_bag"),
    *(f"{name}{end}" for name in _FILES for end in ("", ".part")),
    UNFINISHED,
)


class PictureSheet:
    """Contact sheet of a stream of any length, in bounded memory: frames evenly spread in time, then heatmaps."""

    def __init__(self) -> None:
        self._frames = _EvenSample(_SHEET_FRAMES)
        self._heatmaps = _EvenSample(_SHEET_HEATMAPS)

    def add_frame(self, image: np.ndarray, stamp_ns: int) -> None:
        """image: (H, W, 3) uint8, RGB, from `overlay`."""
        self._frames.add(image, stamp_ns)

    def add_heatmap(self, image: np.ndarray, stamp_ns: int) -> None:
        """image: (H, W, 3) uint8, RGB, from `heat_overlay`."""
        self._heatmaps.add(image, stamp_ns)

    def heatmaps(self, count: int) -> list[tuple[np.ndarray, int]]:
        """Up to `count` heatmaps, evenly spread in time, with their stamps."""
        return self._heatmaps.chosen(count)

    def write(self, path: Path) -> None:
        """Writes a PNG. Raises ValueError if nothing was added."""
        frames, heatmaps = self._frames.chosen(), self._heatmaps.chosen()
        start_ns = min((stamp_ns for _, stamp_ns in [*frames, *heatmaps]), default=0)
        captions = [
            f"{(stamp_ns - start_ns) / 1e9:.2f} s{label}"
            for chosen, label in ((frames, ""), (heatmaps, ", attention"))
            for _, stamp_ns in chosen
        ]
        write_png(path, contact_sheet([image for image, _ in [*frames, *heatmaps]], _SHEET_COLUMNS, captions))


class _EvenSample:
    """At most `count` images evenly spread over a stream. Stores up to 4 * count; doubles its step when full."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[tuple[np.ndarray, int]] = []
        self._step = 1
        self._seen = 0

    def add(self, image: np.ndarray, stamp_ns: int) -> None:
        if self._seen % self._step == 0:
            self._kept.append((shrunk(image, _TILE_WIDTH), stamp_ns))
            if len(self._kept) > 4 * self._count:
                self._kept = self._kept[::2]
                self._step *= 2
        self._seen += 1

    def chosen(self, count: int = 0) -> list[tuple[np.ndarray, int]]:
        """The stored images nearest to `count` evenly spaced points in time; 0: as many as were asked for."""
        count = count or self._count
        if len(self._kept) <= count:
            return self._kept
        stamps = np.array([stamp_ns for _, stamp_ns in self._kept])
        indices = {int(np.abs(stamps - time).argmin()) for time in np.linspace(stamps[0], stamps[-1], count)}
        return [self._kept[index] for index in sorted(indices)]


class ResultFolder:
    """Writes outputs to a folder as they arrive; a context manager. Call `write_summary` last.

    While it is open, and after an error, the folder contains a file UNFINISHED, and the next run may replace the
    contents.

    - masks/: one PNG label image per frame (0 background, k the target with label k), named by frame index.
    - coarse_masks/: key-frame masks from the attention alone, 0 or 255, see `write_coarse_masks`.
    - outputs_bag/: the node's topics (mcap).
    - index.html (film, heatmaps, targets, answers and presence score in one file), overlay.webm, contact_sheet.png,
      frames.json (the targets of each frame) and summary.json: always written.

    output_format: "png" (masks/ and coarse_masks/), "bag" (outputs_bag/) or "both".

    Raises ValueError for a format not in FORMATS, FileExistsError and NotADirectoryError as in `check_new_folder`.
    """

    def __init__(self, folder: Path, output_format: str = "png") -> None:
        if output_format not in FORMATS:
            raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {output_format!r}")
        check_new_folder(folder)
        self.folder = folder
        remove_unfinished(folder)
        folder.mkdir(parents=True, exist_ok=True)
        mark_unfinished(folder)
        self._masks = folder / "masks" if output_format != "bag" else None
        if self._masks:
            self._masks.mkdir()
        self._files = ExitStack()
        self._output_bag: OutputBag | None = None
        if output_format != "png":
            self._output_bag = OutputBag(self._files.enter_context(BagWriter(folder / "outputs_bag")))
        self._video = self._files.enter_context(VideoWriter(folder / "overlay.webm"))
        self._sheet = PictureSheet()
        self._log = TargetLog()
        self._events: list[QueryEvent] = []
        self._notices: list[str] = []
        self._stamps_ns: list[int] = []
        self._frames_with_target = 0

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._files.__exit__(kind, *error)
        if kind is None:
            (self.folder / UNFINISHED).unlink()

    @property
    def last_event(self) -> QueryEvent | None:
        """The last change of the query's state."""
        return self._events[-1] if self._events else None

    def write(self, output: Output) -> None:
        """Writes one output."""
        if self._output_bag:
            self._output_bag.write(output)
        if isinstance(output, FrameResult):
            self._write_frame(output)
        elif isinstance(output, Heatmap):
            drawn = heat_overlay(output.frame.image, output.values, output.query.text)
            self._sheet.add_heatmap(drawn, output.frame.stamp_ns)
        elif isinstance(output, QueryEvent):
            self._events.append(output)
        elif isinstance(output, Notice):
            self._notices.append(f"{output.level}: {output.text}")

    def write_coarse_masks(self, segmentation: Segmentation) -> None:
        """Writes the masks from the attention alone, without SAM 2 (paper, Tab. 1)."""
        if self._masks and segmentation.coarse_masks is not None:
            folder = self.folder / "coarse_masks"
            folder.mkdir()
            for frame, mask in zip(segmentation.window.frames, segmentation.coarse_masks):
                write_png(folder / f"{frame.index:06d}.png", nearest(mask, frame.camera_hw) * np.uint8(255))

    def write_summary(self, **details: Any) -> Path:
        """Ends the film and writes contact sheet, page, frames.json and summary.json, which starts with `details`.

        Returns the path of summary.json. Raises ValueError if no frame was written, OSError if a file is not all there.
        """
        if not self._stamps_ns:
            raise ValueError(f"{self.folder}: expected at least one frame, got none")
        self._video.close()
        self._sheet.write(self.folder / "contact_sheet.png")
        self._log.write(self.folder / "frames.json")
        answer = self.last_event
        document = {
            **details,
            "answer": answer.text if answer else "",
            "state": answer.state.name if answer else None,
            "category": answer.category if answer else "",
            "presence": dataclasses.asdict(answer.presence) if answer and answer.presence else None,
            "stage_ms": {stage: round(ms, 1) for stage, ms in answer.stage_ms} if answer else {},
            "frames": len(self._stamps_ns),
            "frames_with_target": self._frames_with_target,
            "frames_digest": self._log.digest,
            "targets": self._log.targets(),
            "states": list(map(_event_entry, self._events)),
            "notices": self._notices,
            "stamps_ns": self._stamps_ns,
        }
        start_ns = self._stamps_ns[0]
        heatmaps = [(image, (stamp_ns - start_ns) / 1e9) for image, stamp_ns in self._sheet.heatmaps(_PAGE_HEATMAPS)]
        page = result_page(document, self._log, self._video.path, heatmaps)
        write_text(self.folder / "index.html", page)
        path = self.folder / "summary.json"
        write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return path

    def _write_frame(self, result: FrameResult) -> None:
        event = self.last_event
        drawn = overlay(result, event.state.name if event else "", event.query.text if event else "")
        self._video.write(drawn, result.frame.stamp_ns)
        self._sheet.add_frame(drawn, result.frame.stamp_ns)
        if self._masks:
            write_png(self._masks / f"{result.frame.index:06d}.png", result.labels)
        self._log.add(result)
        self._stamps_ns.append(result.frame.stamp_ns)
        self._frames_with_target += bool(result.labels.any())


def check_new_folder(folder: Path) -> None:
    """Raises FileExistsError unless `folder` is absent, empty or left by an unfinished run; NotADirectoryError for a
    file."""
    if not folder.exists():
        return
    found = {file.name for file in folder.iterdir()}
    if found and (UNFINISHED not in found or found - set(_PARTS)):
        raise FileExistsError(f"{folder}: exists and is not empty; name another folder or remove it")


def remove_unfinished(folder: Path) -> None:
    """Removes the files of an unfinished run from `folder`. Does nothing for any other folder."""
    if not (folder / UNFINISHED).exists():
        return
    for name in _PARTS:  # the UNFINISHED mark goes last, so an interrupted removal can be repeated
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_png(path: Path, image: np.ndarray) -> None:
    """image: (H, W) or (H, W, 3) uint8, RGB. Raises OSError if it cannot be written."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    # Not `imwrite`: it reports no error if the disk is full when the file is closed.
    encoded, data = cv2.imencode(".png", bgr)
    if not encoded:
        raise ValueError(f"{path}: expected an image that PNG can hold, got {image.shape} {image.dtype}")
    write_bytes(path, data.data)


def _event_entry(event: QueryEvent) -> dict[str, Any]:
    return {"state": event.state.name, "text": event.text, "stamp_ns": event.stamp_ns, "query_id": event.query.id}
