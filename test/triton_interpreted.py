"""The Triton kernels, interpreted, against the PyTorch pass. test_rollout.py runs this in a separate process."""

from __future__ import annotations

import torch

from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.rollout import _attend, _ranges
from decaf_ros.grounding.rollout_triton import attend
from decaf_ros.stages import finish

generator = torch.Generator().manual_seed(0)
# Batch, heads, key heads, queries, tokens, head size, vectors: sizes that are no multiple of a block, and suffixes.
for batch, heads, key_heads, count, tokens, size, vectors in (
    (1, 4, 2, 70, 70, 16, 1),
    (2, 6, 2, 5, 133, 24, 2),
    (1, 2, 1, 130, 150, 16, 3),
):
    layer = LayerAttention(
        torch.randn(batch, heads, count, size, generator=generator),
        torch.randn(batch, key_heads, tokens, size, generator=generator),
        size**-0.5,
    )
    rows = torch.rand(vectors, batch, count, generator=generator)
    visual = torch.zeros(tokens, dtype=torch.bool)
    visual[3:40] = visual[50:60] = True
    expected = finish(_attend(layer, rows, _ranges(visual), 16))
    for ours, theirs in zip(attend(layer, rows, visual), expected):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)
    print("agree")
    strength, products, _ = attend(layer, rows, None, expected[2])
    assert strength is None
    torch.testing.assert_close(products, expected[1], atol=5e-6, rtol=1e-5)
    print("agree")
