"""The demo's pictures: a contact sheet of all answers, and one question in three tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from decaf_ros.io.results import write_png
from decaf_ros.io.viz import contact_sheet, heat_overlay
from decaf_ros.segmentation.overlap import mask_iou
from decaf_tabletop.demo.recording import Recording
from decaf_tabletop.demo.verdicts import Verdict
from decaf_tabletop.world.bag import GroundTruth

# The question that `write_question_picture` shows.
QUESTION = "the one that was dropped"
# Three pictures an answer, two answers a row.
_COLUMNS = 6

# Layout of the question picture in pixels, legible when shown at half its size.
_TILE_WH, _GAP, _BAND = (520, 390), 10, 64
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _DARK, _MASK_COLOR = (255, 255, 255), (24, 24, 28), (0, 225, 255)
_MASK_FILL = 0.4
# Clip seconds from the answer to the frame with the mask.
_SHOWN_AFTER_S = 1.0


class _Span(NamedTuple):
    """Stamps of a query in nanoseconds: received, answered, and replaced by the next query or the end of the clip."""

    received_ns: int
    answered_ns: int
    end_ns: int


def write_answers_sheet(recording: Recording, verdicts: Sequence[Verdict], path: Path) -> None:
    """Writes three pictures an answer: the attention on the last key frame, then two frames with masks.

    The frames are those in the middle and at the end of the time until the next query. Missing pictures are black.
    Raises ValueError without verdicts.
    """
    spans = _spans(recording)
    blank = np.zeros_like(next(iter(recording.overlays.values()), np.zeros((1, 1, 3), np.uint8)))
    images, captions = [], []
    for verdict in verdicts:
        span = spans[verdict.query_id]
        key_frames = _key_frames(recording, verdict.query_id, span)
        images.append(_attention(recording, verdict, key_frames[-1]) if key_frames else blank)
        captions.append(f"{verdict.query_id}: attention")
        stamps = [stamp_ns for stamp_ns in recording.overlays if span.answered_ns < stamp_ns <= span.end_ns]
        result = verdict.state.name if verdict.j is None else f"{verdict.masked}, J {verdict.j:.2f}"
        for place in ((len(stamps) - 1) // 2, -1):
            images.append(recording.overlays[stamps[place]] if stamps else blank)
            time = f"{recording.clip_time_s(stamps[place]):.1f} s: " if stamps else ""
            captions.append(f"{time}{result}, {'right' if verdict.right else 'WRONG'}")
    write_png(path, contact_sheet(images, _COLUMNS, captions))


def write_question_picture(recording: Recording, truth: GroundTruth, verdict: Verdict, path: Path) -> None:
    """Writes three tiles: the camera with the question, the attention over a past key frame, and the mask.

    The key frame is the last one before the target reached its final place, or simply the last one. The mask is shown
    1 s after the answer. Writes nothing if the query has no heatmaps.
    """
    span = _spans(recording)[verdict.query_id]
    key_frames = _key_frames(recording, verdict.query_id, span)
    if not key_frames:
        return
    (targets,) = [expression.targets for expression in truth.expressions if expression.text == verdict.text]
    truth_masks = {stamp_ns: np.isin(truth.labels[stamp_ns], np.array(targets) + 1) for stamp_ns in key_frames}
    moving = [
        k for k in key_frames if truth_masks[k].any() and mask_iou(truth_masks[k], truth_masks[key_frames[-1]]) < 0.5
    ]
    looked_ns = (moving or key_frames)[-1]
    captions = (f'"{verdict.text}"', "where the model looked", _answer_caption(verdict))
    asked_ns = max(stamp_ns for stamp_ns in recording.images if stamp_ns <= span.received_ns)
    shown_ns = min(
        (stamp_ns for stamp_ns in recording.labels if stamp_ns <= span.end_ns),
        key=lambda stamp_ns: abs(stamp_ns - span.answered_ns - _SHOWN_AFTER_S * 1e9),
    )
    tiles = [
        _enlarged(recording.images[asked_ns]),
        heat_overlay(
            _enlarged(recording.images[looked_ns]), _enlarged(recording.heatmaps[verdict.query_id, looked_ns])
        ),
        _masked(_enlarged(recording.images[shown_ns]), _enlarged((recording.labels[shown_ns] > 0).astype(np.float32))),
    ]
    times = [f"{recording.clip_time_s(stamp_ns):.1f} s" for stamp_ns in (asked_ns, looked_ns, shown_ns)]
    columns = [_captioned(*column) for column in zip(tiles, captions, times)]
    gap = np.full((columns[0].shape[0], _GAP, 3), _WHITE, np.uint8)
    write_png(path, np.hstack([columns[0], gap, columns[1], gap, columns[2]]))


def _answer_caption(verdict: Verdict) -> str:
    if verdict.j is None:
        return verdict.state.name
    return f"mask: {verdict.category or verdict.masked}, IoU {verdict.j:.2f}"


def _spans(recording: Recording) -> dict[str, _Span]:
    """By query id; queries without an answer are left out."""
    start_ns, end_ns = recording.published[0][0], recording.published[-1][0]
    received: dict[str, int] = {}
    answered: dict[str, int] = {}
    for state in recording.states:
        stamp_ns = start_ns + round(state.clip_s * 1e9)
        received.setdefault(state.query_id, stamp_ns)
        if state.state.is_answer:
            answered[state.query_id] = stamp_ns
    ends = [*list(received.values())[1:], end_ns]
    return {
        query_id: _Span(received_ns, answered[query_id], until_ns)
        for (query_id, received_ns), until_ns in zip(received.items(), ends)
        if query_id in answered
    }


def _key_frames(recording: Recording, query_id: str, span: _Span) -> list[int]:
    """Stamps of the query's heatmaps over images from before the query, in order."""
    return sorted(
        stamp_ns for owner, stamp_ns in recording.heatmaps if owner == query_id and stamp_ns <= span.received_ns
    )


def _attention(recording: Recording, verdict: Verdict, stamp_ns: int) -> np.ndarray:
    return heat_overlay(recording.images[stamp_ns], recording.heatmaps[verdict.query_id, stamp_ns], verdict.text)


def _enlarged(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, _TILE_WH, interpolation=cv2.INTER_CUBIC)


def _masked(image: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Tints the image where coverage (H, W) float32 is above 0.5 and outlines that region."""
    mask = coverage > 0.5
    image[mask] = (image[mask] * (1 - _MASK_FILL) + np.array(_MASK_COLOR) * _MASK_FILL).astype(np.uint8)
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for color, line in ((_DARK, 7), (_MASK_COLOR, 4)):
        cv2.drawContours(image, contours, -1, color, line, cv2.LINE_AA)
    return image


def _captioned(tile: np.ndarray, caption: str, time: str) -> np.ndarray:
    """The tile with its clip time in a corner, above a dark band with the caption."""
    width, height = _TILE_WH
    image = np.full((height + _BAND, width, 3), _DARK, np.uint8)
    image[:height] = tile
    (time_width, time_height), _ = cv2.getTextSize(time, _FONT, 0.9, 2)
    cv2.rectangle(image, (0, 0), (time_width + 24, time_height + 22), _DARK, cv2.FILLED)
    cv2.putText(image, time, (12, time_height + 11), _FONT, 0.9, _WHITE, 2, cv2.LINE_AA)
    scale = 1.25
    while scale > 0.5 and cv2.getTextSize(caption, _FONT, scale, 2)[0][0] > width - 24:
        scale -= 0.05
    (text_width, text_height), _ = cv2.getTextSize(caption, _FONT, scale, 2)
    place = (width - text_width) // 2, height + (_BAND + text_height) // 2
    cv2.putText(image, caption, place, _FONT, scale, _WHITE, 2, cv2.LINE_AA)
    return image
