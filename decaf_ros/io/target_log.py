"""The targets of a stream, frame by frame, for the results that people and `decaf compare` read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from decaf_ros.io.files import write_text
from decaf_ros.types import FrameResult


class TargetLog:
    """Collects the targets of each frame.

    frames: one entry a frame, in order: `index`, `stamp_ns`, `size_hw`, and `targets` with `id`, `label`, `state` and
        `area` (pixels).
    """

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._targets: dict[int, dict[str, Any]] = {}

    def add(self, result: FrameResult) -> None:
        """Adds the next frame."""
        frame = result.frame
        self._digest.update(frame.digest)
        targets = []
        for target in result.targets:
            state = target.state.name
            targets.append({"id": target.id, "label": target.label, "state": state, "area": target.area_px})
            known = self._targets.setdefault(target.id, {"states": Counter(), "areas": [], "seen": []})
            known |= {"category": target.category, "score": target.scores.combined}
            known["states"][state] += 1
            if target.area_px:
                known["areas"].append(target.area_px)
                known["seen"].append(frame.stamp_ns)
        size_hw = list(result.labels.shape)
        self.frames.append({"index": frame.index, "stamp_ns": frame.stamp_ns, "size_hw": size_hw, "targets": targets})

    @property
    def digest(self) -> str:
        """A hash over the pixels of all frames: equal for results of the same images."""
        return self._digest.hexdigest()

    def targets(self) -> list[dict[str, Any]]:
        """Each target by id, with all that is known of it: seconds count from the first frame."""
        start_ns = self.frames[0]["stamp_ns"] if self.frames else 0
        return [
            {
                "id": number,
                "category": known["category"],
                "score": round(known["score"], 4),
                "first_seen_s": round((known["seen"][0] - start_ns) / 1e9, 3) if known["seen"] else None,
                "last_seen_s": round((known["seen"][-1] - start_ns) / 1e9, 3) if known["seen"] else None,
                "frames_visible": len(known["seen"]),
                "mean_area_px": round(float(np.mean(known["areas"])), 1) if known["areas"] else 0.0,
                "states": dict(known["states"]),
            }
            for number, known in sorted(self._targets.items())
        ]

    def areas(self) -> dict[int, list[tuple[float, float | None]]]:
        """Points (seconds since the first frame, area in pixels) of each target; None where it is not on a frame."""
        start_ns = self.frames[0]["stamp_ns"] if self.frames else 0
        curves: dict[int, list[tuple[float, float | None]]] = {number: [] for number in sorted(self._targets)}
        for frame in self.frames:
            areas = {target["id"]: float(target["area"]) for target in frame["targets"]}
            for number, curve in curves.items():
                curve.append(((frame["stamp_ns"] - start_ns) / 1e9, areas.get(number)))
        return curves

    def write(self, path: Path) -> None:
        """Writes `frames` as JSON, one frame a line."""
        lines = ",\n".join(json.dumps(frame, separators=(",", ":")) for frame in self.frames)
        write_text(path, f"[\n{lines}\n]\n")
