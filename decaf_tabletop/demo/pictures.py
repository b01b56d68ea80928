"""The demo's contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from decaf_ros.io.results import PictureSheet, write_png
from decaf_ros.io.viz import contact_sheet
from decaf_tabletop.demo.recording import Recording
from decaf_tabletop.demo.verdicts import Verdict

# Three pictures of an answer, two answers in a row.
_COLUMNS = 6


def write_even_sheet(recording: Recording, path: Path) -> None:
    """Some frames and heatmaps, evenly in time."""
    pictures = PictureSheet()
    for stamp_ns, drawn in recording.overlays.items():
        pictures.add_frame(drawn, stamp_ns)
    for (_, stamp_ns), drawn in recording.heatmaps.items():
        pictures.add_heatmap(drawn, stamp_ns)
    pictures.write(path)


def write_answers_sheet(recording: Recording, verdicts: Sequence[Verdict], path: Path) -> None:
    """For each answer the attention on the last key frame that was looked at, and the frames in the middle and at the
    end of the time for which the answer stood. Raises ValueError for a recording without a picture."""
    start_ns, end_ns = recording.published[0][0], recording.published[-1][0]
    begins: dict[str, int] = {}
    answered: dict[str, int] = {}
    for state in recording.states:
        stamp_ns = start_ns + round(state.clip_s * 1e9)
        begins.setdefault(state.query_id, stamp_ns)
        if state.state.is_answer:
            answered[state.query_id] = stamp_ns
    queries = list(begins)
    nothing = np.zeros_like(next(iter(recording.overlays.values()), np.zeros((1, 1, 3), np.uint8)))
    images, captions = [], []
    for one in verdicts:
        looked_at = [
            stamp_ns
            for query_id, stamp_ns in recording.heatmaps
            if query_id == one.query_id and stamp_ns <= begins[query_id]
        ]
        images.append(recording.heatmaps[one.query_id, max(looked_at)] if looked_at else nothing)
        captions.append(f"{one.query_id}: where it looked")
        later = queries[queries.index(one.query_id) + 1 :]
        until_ns = begins[later[0]] if later else end_ns
        stood = [stamp_ns for stamp_ns in recording.overlays if answered[one.query_id] < stamp_ns <= until_ns]
        result = one.state.name if one.j is None else f"{one.masked}, J {one.j:.2f}"
        for place in ((len(stood) - 1) // 2, -1):
            images.append(recording.overlays[stood[place]] if stood else nothing)
            time = f"{(stood[place] - start_ns) / 1e9:.1f} s: " if stood else ""
            captions.append(f"{time}{result}, {'right' if one.right else 'WRONG'}")
    write_png(path, contact_sheet(images, _COLUMNS, captions))
