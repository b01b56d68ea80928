"""Points as text: how Qwen2.5-VL and Qwen3-VL are asked for them, and the strict reading of their answers.

Both families answer with JSON, as their authors' documentation of grounding shows: a list of objects with `point_2d`
and `label`. Coordinates are pixels of the image as the model sees it (Qwen2.5-VL), or thousandths of its width and
height (Qwen3-VL).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import numpy as np

from decaf_ros.grounding.mllm import Answer, Layout, Mllm

# The published models alone: Qwen2-VL points in another format, and others in none.
PIXELS, THOUSANDTHS = "qwen2_5_vl", "qwen3_vl"
_FORMAT = '[{"point_2d": [x, y], "label": "name"}]'
_FENCE = re.compile(r"```(?:json)?\s+(.*?)\s*```", re.DOTALL)


class MalformedAnswerError(ValueError):
    """An answer that is not points in the format asked for."""


def point_prompt(query: str) -> str:
    """The question for the points of a query in one image."""
    return (
        f"{query.strip()}\nLocate every object in the image that this expression or question refers to, with one point "
        f"inside each. Output only the point coordinates in JSON format: {_FORMAT}"
    )


def describing_prompt(query: str) -> str:
    """The question about a video whose answer tells what to look for in one of its frames."""
    return (
        f"{query.strip()}\nWhich object or objects of the video does this expression or question refer to? Answer with "
        "one short phrase that tells them from all others by what they are, how they look and where they are in the "
        "first frame."
    )


def point_extent(mllm: Mllm, layout: Layout) -> tuple[float, float]:
    """(width, height) in the coordinates of the model's points, of an image with this layout.

    Raises ValueError for a family that has no format for points.
    """
    family = mllm.model.config.model_type
    if family == THOUSANDTHS:
        return 1000.0, 1000.0
    if family != PIXELS:
        raise ValueError(f"native grounding: expected a model of type {PIXELS} or {THOUSANDTHS}, got {family}")
    vision: Any = mllm.model.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    return float(layout.grid[2] * side), float(layout.grid[1] * side)


def read_points(answer: Answer, extent: tuple[float, float]) -> np.ndarray:
    """The points of an answer: (P, 2) float32 in [0, 1], x right, y down; P is 0 for an empty list.

    Accepted is one JSON value, alone or in one code fence: a list of objects, or one object. Each has `point_2d`, two
    finite numbers within the image, and possibly other entries; `label` is text.

    extent: (width, height) in the answer's coordinates.
    Raises MalformedAnswerError for anything else, also for an answer that was cut off, or with one bad point.
    """
    if not answer.finished:
        raise MalformedAnswerError(f"expected a whole answer, got one cut off: {_shown(answer.text)}")
    text = answer.text.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(
            fenced[1] if fenced else text, parse_constant=_refuse_constant, object_pairs_hook=_unique_entries
        )
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"expected JSON alone ({_shown(str(error))}), got {_shown(text)}") from error
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise MalformedAnswerError(f"expected a list of objects, got {_shown(text)}")
    points = [_point(item, extent) for item in items]
    return np.array(points, np.float32).reshape(-1, 2)


def _point(item: Any, extent: tuple[float, float]) -> tuple[float, ...]:
    if not isinstance(item, dict) or not isinstance(item.get("label", ""), str):
        raise MalformedAnswerError(f"expected an object with a text as label, got {_shown(str(item))}")
    pair = item.get("point_2d")
    # A bool is an int in Python; a number of JSON such as 1e999 is infinite.
    numbers = isinstance(pair, list) and all(type(one) in (int, float) and math.isfinite(one) for one in pair)
    if not isinstance(pair, list) or not numbers or len(pair) != 2:
        raise MalformedAnswerError(f"expected point_2d with two numbers, got {_shown(str(item))}")
    if not all(0 <= one <= size for one, size in zip(pair, extent)):
        raise MalformedAnswerError(f"expected a point within {extent[0]:g} x {extent[1]:g}, got {pair}")
    return tuple(one / size for one, size in zip(pair, extent))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _unique_entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("an entry twice")
    return dict(pairs)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
