"""The arithmetic of Loc-Head (Kang et al., "Your Large Vision-Language Model Only Needs A Few Attention Heads For
Visual Grounding", CVPR 2025): the maps of single heads, and the two criteria by which heads are selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.mllm import Prompt

# Lines of the image whose heads may be left out: they attend to it whatever is asked (visual attention sink).
EDGES: Mapping[str, tuple[Any, ...]] = {
    "bottom": np.s_[..., -1, :],
    "right": np.s_[..., :, -1],
    "left": np.s_[..., :, 0],
}
_NEIGHBOURS = np.ones((3, 3), int)


def head_maps(prompt: Prompt, prefix: Sequence[LayerAttention], suffix: Sequence[LayerAttention]) -> list[np.ndarray]:
    """Attention of the prompt's last token to the visual tokens, by layer and head, for each of B sequences.

    A reader of `Engine.read`. Returns B arrays (L, H, t, h, w) float32; the attention to all tokens sums to 1.
    Raises ValueError if no layer was recorded.
    """
    if not prefix or len(prefix) != len(suffix):
        raise ValueError(f"loc-head: expected recorded attention, got {len(prefix)} and {len(suffix)} layers")
    rows = []
    for before, after in zip(prefix, suffix):
        query = after.query[:, :, -1].float() * after.scaling
        key = torch.cat([before.key, after.key], dim=2).float()
        batch, heads, size = query.shape
        # Query heads of one key head share its keys.
        scores = query.reshape(batch, key.shape[1], -1, size) @ key.transpose(2, 3)
        rows.append(scores.softmax(dim=-1)[..., prompt.cells].reshape(batch, heads, *prompt.grid))
    return list(torch.stack(rows, dim=1).cpu().numpy())


def elbow(values: np.ndarray) -> float:
    """The value where the sorted values bend most: the farthest below the chord from the least to the largest.

    values: (N,), at least one.
    """
    ordered = np.sort(values)
    chord = np.linspace(ordered[0], ordered[-1], len(ordered))
    return float(ordered[np.argmax(chord - ordered)])


def spatial_entropy(attention: np.ndarray) -> float:
    """Entropy of the sizes of the connected regions above the map's mean; neighbours may touch at a corner.

    Low for a head that attends to one compact place: 0 for a single region. Infinite for a constant map.
    attention: (h, w).
    """
    labels, count = ndimage.label(attention > attention.mean(), _NEIGHBOURS)
    if not count:
        return float("inf")
    share = np.bincount(labels.ravel())[1:] / np.count_nonzero(labels)
    return float(-(share * np.log(share)).sum()) + 0.0


def looks_at_edge(attention: np.ndarray, edges: Sequence[str]) -> bool:
    """Whether the strongest token of a map (h, w) lies in one of these lines, keys of EDGES."""
    return any(attention[EDGES[edge]].max() == attention.max() for edge in edges)


def entropies(maps: np.ndarray, edges: Sequence[str]) -> np.ndarray:
    """Spatial entropy of every head's map, infinite for those that look at an edge: (L, H). maps: (L, H, h, w)."""
    values = [
        float("inf") if looks_at_edge(one, edges) else spatial_entropy(one) for one in maps.reshape(-1, *maps.shape[2:])
    ]
    return np.array(values).reshape(maps.shape[:2])


def votes(entropy: np.ndarray, attention_sum: np.ndarray, passed: np.ndarray, most: int) -> np.ndarray:
    """The heads with the lowest entropy in one image: (N,) bool.

    Args:
        entropy: (N,); infinite: never chosen.
        attention_sum: (N,) of this image; of equal entropies (many heads have a single region) the larger one counts.
        passed: (N,) bool, heads that pass the first criterion.
        most: number of heads to choose.
    """
    order = np.lexsort((-attention_sum, np.where(passed, entropy, np.inf)))[:most]
    chosen = np.zeros(len(entropy), bool)
    chosen[order] = True
    chosen &= passed & np.isfinite(entropy)
    return chosen
