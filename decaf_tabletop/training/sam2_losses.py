"""Losses of the table's SAM 2."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from decaf_tabletop.training.sam2_data import FINE, GRID, Targets


class Predictions(NamedTuple):
    """Outputs for K prompts with M masks each.

    Attributes:
        logits: (K, M, GRID, GRID) mask logits.
        iou: (K, M) predicted IoU in [0, 1].
        object_score: (K,) logit that the object is visible.
    """

    logits: torch.Tensor
    iou: torch.Tensor
    object_score: torch.Tensor


class Losses(NamedTuple):
    """Scalar losses.

    Attributes:
        mask: loss of the masks.
        iou: loss of the predicted IoU.
        presence: loss of the object score.
        best_iou: for the log, mean true IoU of the masks with the highest predicted IoU, over visible objects.
    """

    mask: torch.Tensor
    iou: torch.Tensor
    presence: torch.Tensor
    best_iou: float


def losses(predictions: Predictions, targets: Targets, absent_weight: float = 1.0) -> Losses:
    """Losses of the predictions.

    Mask: for visible objects, cross entropy and dice on fine samples of the box around the object, so that small
    objects and outlines count, plus 3 times the cross entropy over the whole grid. Mean over the masks plus a third of
    the best: a click means one whole object here; with the best alone the masks specialise, and the predicted IoU
    chooses among them no better than chance. IoU: squared error, target 0 without an object. Presence: cross entropy,
    absent objects weighted by `absent_weight`.
    """
    logits = predictions.logits.float()
    visible = targets.present == 1
    judged = ~targets.present.isnan()
    fine = F.grid_sample(logits, _grid(targets.box), mode="bilinear", padding_mode="border", align_corners=False)
    masks = _mask_losses(logits, fine, targets)
    mask = (masks.mean(dim=1) + masks.min(dim=1).values / 3)[visible]
    true_iou = _true_iou(logits, fine, targets)
    iou = (predictions.iou.float() - true_iou).square().mean(dim=1)[judged]
    score = predictions.object_score.float()[judged]
    presence = F.binary_cross_entropy_with_logits(score, targets.present[judged], reduction="none")
    presence = presence * torch.where(targets.present[judged] == 0, absent_weight, 1.0)
    chosen = true_iou.gather(1, predictions.iou.float().argmax(dim=1, keepdim=True))[:, 0][visible]
    return Losses(_mean(mask), _mean(iou), _mean(presence), float(_mean(chosen.detach())))


def mask_loss(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Scalar mask loss of `losses` for logits (K, 1, GRID, GRID)."""
    logits = logits.float()
    fine = F.grid_sample(logits, _grid(targets.box), mode="bilinear", padding_mode="border", align_corners=False)
    return _mean(_mask_losses(logits, fine, targets)[targets.present == 1])


def _mask_losses(logits: torch.Tensor, fine: torch.Tensor, targets: Targets) -> torch.Tensor:
    """(K, M) cross entropy, dice and 3 times the grid's cross entropy."""
    count = logits.shape[1]
    outline = targets.fine[:, None].expand(-1, count, -1, -1)
    cross = F.binary_cross_entropy_with_logits(fine, outline, reduction="none").mean((2, 3))
    share = fine.sigmoid()
    dice = 1 - (2 * (share * outline).sum((2, 3)) + 1) / (share.sum((2, 3)) + outline.sum((2, 3)) + 1)
    coarse = targets.coarse[:, None].expand(-1, count, -1, -1)
    whole_grid = F.binary_cross_entropy_with_logits(logits, coarse, reduction="none").mean((2, 3))
    return cross + dice + 3 * whole_grid


@torch.no_grad()
def _true_iou(logits: torch.Tensor, fine: torch.Tensor, targets: Targets) -> torch.Tensor:
    """(K, M): from the fine samples inside the box, from whole cells outside."""
    mask, true = fine > 0, targets.fine[:, None] > 0.5
    size = (targets.box[:, 2:] - targets.box[:, :2]).prod(1, keepdim=True)
    shared = (mask & true).float().mean((2, 3)) * size
    union = (mask | true).float().mean((2, 3)) * size
    cells = (torch.arange(GRID) + 0.5) / GRID
    x0, y0, x1, y1 = targets.box[:, :, None].unbind(1)
    across, down = (cells > x0) & (cells < x1), (cells > y0) & (cells < y1)
    outside = ~(down[:, :, None] & across[:, None, :])
    union = union + ((logits > 0) & outside[:, None]).float().mean((2, 3))
    return shared / union.clamp(min=1e-6)


def _grid(box: torch.Tensor) -> torch.Tensor:
    """(K, FINE, FINE, 2): sample positions in [-1, 1] for `grid_sample`."""
    steps = (torch.arange(FINE) + 0.5) / FINE
    x = box[:, None, 0] + (box[:, 2] - box[:, 0])[:, None] * steps
    y = box[:, None, 1] + (box[:, 3] - box[:, 1])[:, None] * steps
    x, y = x[:, None, :].expand(-1, FINE, -1), y[:, :, None].expand(-1, -1, FINE)
    return torch.stack([x, y], dim=-1) * 2 - 1


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.sum() / max(1, len(values))
