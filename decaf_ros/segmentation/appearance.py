"""Describes what masked objects look like, from the image features that SAM 2 computes anyway."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.segmentation.sam2 import FrameEmbedding


def describe(embedding: FrameEmbedding, masks: torch.Tensor) -> np.ndarray:
    """(K, C) float32 descriptors of K masked objects; their dot product is a similarity in [-1, 1].

    Per feature level: the mean feature inside the mask minus that of the image, as a unit vector; C concatenates the
    levels, scaled so that the dot product is the mean cosine. All zero for a mask smaller than a cell of the finest
    level.

    Args:
        embedding: of the frame.
        masks: (K, H, W) bool at the size of the frame, on the model's device.
    """
    soft = masks[:, None].float()
    parts = []
    large_enough = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
    for number, level in enumerate(embedding.features):
        features = level[0].float()
        weights = F.interpolate(soft, features.shape[-2:], mode="area")[:, 0]
        totals = weights.sum(dim=(1, 2))
        if number == 0:
            large_enough = totals >= 1
        inside = torch.einsum("khw,chw->kc", weights, features) / totals.clamp(min=1e-6)[:, None]
        parts.append(F.normalize(inside - features.mean(dim=(1, 2)), dim=1))
    found = torch.cat(parts, dim=1) / len(parts) ** 0.5
    return np.asarray((found * large_enough[:, None]).cpu().numpy(), np.float32)
