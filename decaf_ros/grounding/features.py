"""Vision features of views, encoded in batches and cached by unit."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from decaf_ros.grounding.caches import ByteCache
from decaf_ros.grounding.mllm import Features, Layout, Mllm
from decaf_ros.grounding.pace import Pace
from decaf_ros.grounding.views import View
from decaf_ros.stages import Steps
from decaf_ros.types import Frame


def view_features(
    mllm: Mllm,
    views: Sequence[View],
    cache: ByteCache[Hashable, Features],
    keep: bool,
    batch_tokens: int,
    pace: Pace,
) -> Steps[list[list[Features]]]:
    """The features of every unit of every view. Units without cached features are encoded in batches.

    Args:
        mllm: the model.
        views: views of one layout.
        cache: features by unit.
        keep: cache new features, where they fit.
        batch_tokens: most tokens per batch, unless one unit has more.
        pace: bounds a batch by its time, too.
    """
    layout = views[0].layout
    units = {_unit_key(layout, unit): unit for view in views for unit in view.units}
    found: dict[Hashable, Features] = {}
    missing: list[Hashable] = []
    for key in units:
        cached = cache.get(key)
        if cached is None:
            missing.append(key)
        else:
            found[key] = cached
    tokens_per_unit = max(1, layout.tokens // layout.units)
    most = max(1, batch_tokens // tokens_per_unit)
    start = 0
    while start < len(missing):
        fitting = pace.size("vision", (len(missing) - start) * tokens_per_unit) // tokens_per_unit
        keys = missing[start : start + max(1, min(most, fitting))]
        start += len(keys)
        images = np.stack([np.stack([frame.image for frame in units[key]]) for key in keys])
        with pace.measured("vision", len(keys) * tokens_per_unit):
            encoded = mllm.encode(layout, images)
        for key, (tokens, deep) in zip(keys, encoded):
            # Clone: a cached slice would keep the whole batch's tensor.
            features = found[key] = Features(tokens.clone(), tuple(part.clone() for part in deep))
            tensors = (features.tokens, *features.deep)
            if keep:
                cache.put(key, features, sum(part.numel() * part.element_size() for part in tensors))
        yield
    return [[found[_unit_key(layout, unit)] for unit in view.units] for view in views]


def _unit_key(layout: Layout, unit: tuple[Frame, ...]) -> Hashable:
    return layout.kind, layout.size_hw, layout.grid[1:], tuple(frame.digest for frame in unit)
