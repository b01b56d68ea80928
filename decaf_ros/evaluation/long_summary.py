"""Aggregates the scores of watched clips by the time since the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from decaf_ros.evaluation.long import FOUND_AGAIN_S, Return, Watched
from decaf_ros.evaluation.metrics import mean
from decaf_ros.evaluation.summary import percentiles

# Bounds of the stretches of time since the answer, in seconds.
EDGES_S = (0.0, 5.0, 20.0, 60.0, math.inf)
# Width of the steps of the curves.
_STEP_S = 2.0


def long_summary(watched: Sequence[Watched]) -> dict[str, Any]:
    """The content of the JSON file: shares in [0, 1], None if nothing was measured. All frames count equally."""
    stretches = {
        f"{start:.0f}-{end:.0f} s" if end < math.inf else f"over {start:.0f} s": _stretch(watched, start, end)
        for start, end in zip(EDGES_S, EDGES_S[1:])
    }
    return {
        "questions": len(watched),
        "answered": sum(one.answered for one in watched),
        "overall": _stretch(watched, 0.0, math.inf),
        "by_time": {name: scores for name, scores in stretches.items() if scores["frames"]},
        "frame_cpu_ms": percentiles(1000 * np.concatenate([one.cpu_s for one in watched])) if watched else {},
        "first_mask_s": percentiles([one.first_mask_s for one in watched if not math.isnan(one.first_mask_s)]),
        "watched": [_entry(one) for one in watched],
    }


def curves(watched: Sequence[Watched]) -> dict[str, list[tuple[float, float]]]:
    """Points (seconds since the answer, mean) of the curves of a report."""
    seconds = np.concatenate([one.seconds for one in watched])
    step = np.ceil(seconds / _STEP_S - 1e-6).astype(int)
    found = {}
    for name, values in (
        ("J while visible", np.concatenate([one.j for one in watched])),
        ("wrong object", np.concatenate([one.wrong for one in watched]).astype(float)),
        ("TRACKED, but wrong", np.concatenate([one.false_tracked for one in watched]).astype(float)),
    ):
        known = ~np.isnan(values)
        steps = np.unique(step[known])
        found[name] = [((one - 0.5) * _STEP_S, float(values[known & (step == one)].mean())) for one in steps.tolist()]
    return found


def _stretch(watched: Sequence[Watched], start_s: float, end_s: float) -> dict[str, Any]:
    """Scores of the frames with start_s < time <= end_s."""
    inside = [(one.seconds > start_s) & (one.seconds <= end_s) for one in watched]

    def pooled(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name)[mask] for one, mask in zip(watched, inside)] or [np.zeros(0)])

    j = pooled("j")
    # A frame lasts from the previous one on; the answer is at 0.
    lasting = [np.diff(one.seconds, prepend=0.0)[mask].sum() for one, mask in zip(watched, inside)]
    minutes = float(sum(lasting)) / 60
    returns = [back for one in watched for back in one.returns if start_s < back.seconds <= end_s]
    return {
        "frames": len(j),
        "minutes": minutes,
        "j": mean(j[~np.isnan(j)].tolist()),
        "wrong_object": mean(pooled("wrong").tolist()),
        "false_tracked": mean(pooled("false_tracked").tolist()),
        "id_switches_a_minute": float(pooled("switches").sum()) / minutes if minutes else None,
        "returns": _returns(returns),
        "groundings_a_minute": float(pooled("groundings").sum()) / minutes if minutes else None,
        "cpu_seconds_a_minute": float(pooled("cpu_s").sum()) / minutes if minutes else None,
    }


def _returns(returns: Sequence[Return]) -> dict[str, Any]:
    delays = [back.delay_s for back in returns if back.delay_s is not None]
    return {
        "count": len(returns),
        "found_again": mean(back.delay_s is not None for back in returns),
        "found_in_time": mean(back.delay_s is not None and back.delay_s <= FOUND_AGAIN_S for back in returns),
        "median_delay_s": float(np.median(delays)) if delays else None,
    }


def _entry(one: Watched) -> dict[str, Any]:
    return {
        "clip": one.clip,
        "text": one.text,
        "kind": one.kind,
        "asked_s": one.asked_s,
        "answered": one.answered,
        **_stretch([one], 0.0, math.inf),
    }
