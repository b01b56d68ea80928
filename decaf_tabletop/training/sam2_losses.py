"""What the demo SAM 2 is trained with."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from decaf_tabletop.training.sam2_data import FINE, GRID, Targets


class Answers(NamedTuple):
    """Of K prompts: logits (K, M, GRID, GRID) of M masks; iou (K, M) predicted, in [0, 1]; object_score (K,) logit."""

    logits: torch.Tensor
    iou: torch.Tensor
    object_score: torch.Tensor


class Losses(NamedTuple):
    """mask, iou, presence: scalars to be minimised. best_iou: the real IoU of the masks with the best predicted one,
    mean over the objects that are there; for the log."""

    mask: torch.Tensor
    iou: torch.Tensor
    presence: torch.Tensor
    best_iou: float


def losses(answers: Answers, wanted: Targets, absent_weight: float = 1.0) -> Losses:
    """Mask: per mask cross entropy and dice in the box around the object, sampled finely, so that small objects and
    outlines count, and cross entropy over the whole grid, for objects that are there. The mean of the masks counts
    fully, the best a third as much: a click means one whole object here, so masks that specialise, as the best alone
    would make them, only give the predicted IoU a choice to get wrong. IoU: squared error, 0 is wanted where nothing
    is. Presence: cross entropy, in which an object that is not there counts absent_weight."""
    logits = answers.logits.float()
    there = wanted.present == 1
    judged = ~wanted.present.isnan()
    fine = F.grid_sample(logits, _grid(wanted.box), mode="bilinear", padding_mode="border", align_corners=False)
    masks = _mask_losses(logits, fine, wanted)
    mask = (masks.mean(dim=1) + masks.min(dim=1).values / 3)[there]
    real = _real_iou(logits, fine, wanted)
    iou = (answers.iou.float() - real).square().mean(dim=1)[judged]
    score = answers.object_score.float()[judged]
    presence = F.binary_cross_entropy_with_logits(score, wanted.present[judged], reduction="none")
    presence = presence * torch.where(wanted.present[judged] == 0, absent_weight, 1.0)
    chosen = real.gather(1, answers.iou.float().argmax(dim=1, keepdim=True))[:, 0][there]
    return Losses(_mean(mask), _mean(iou), _mean(presence), float(_mean(chosen.detach())))


def mask_loss(logits: torch.Tensor, wanted: Targets) -> torch.Tensor:
    """Of one mask each, (K, 1, GRID, GRID), as in `losses`: a scalar."""
    logits = logits.float()
    fine = F.grid_sample(logits, _grid(wanted.box), mode="bilinear", padding_mode="border", align_corners=False)
    return _mean(_mask_losses(logits, fine, wanted)[wanted.present == 1])


def _mask_losses(logits: torch.Tensor, fine: torch.Tensor, wanted: Targets) -> torch.Tensor:
    """(K, M)"""
    count = logits.shape[1]
    outline = wanted.fine[:, None].expand(-1, count, -1, -1)
    cross = F.binary_cross_entropy_with_logits(fine, outline, reduction="none").mean((2, 3))
    share = fine.sigmoid()
    dice = 1 - (2 * (share * outline).sum((2, 3)) + 1) / (share.sum((2, 3)) + outline.sum((2, 3)) + 1)
    everywhere = wanted.coarse[:, None].expand(-1, count, -1, -1)
    far = F.binary_cross_entropy_with_logits(logits, everywhere, reduction="none").mean((2, 3))
    return cross + dice + 3 * far


@torch.no_grad()
def _real_iou(logits: torch.Tensor, fine: torch.Tensor, wanted: Targets) -> torch.Tensor:
    """(K, M): in the box by its fine samples, beside it by whole cells."""
    mask, true = fine > 0, wanted.fine[:, None] > 0.5
    size = (wanted.box[:, 2:] - wanted.box[:, :2]).prod(1, keepdim=True)
    shared = (mask & true).float().mean((2, 3)) * size
    union = (mask | true).float().mean((2, 3)) * size
    cells = (torch.arange(GRID) + 0.5) / GRID
    x0, y0, x1, y1 = wanted.box[:, :, None].unbind(1)
    across, down = (cells > x0) & (cells < x1), (cells > y0) & (cells < y1)
    beside = ~(down[:, :, None] & across[:, None, :])
    union = union + ((logits > 0) & beside[:, None]).float().mean((2, 3))
    return shared / union.clamp(min=1e-6)


def _grid(box: torch.Tensor) -> torch.Tensor:
    """(K, FINE, FINE, 2): sample places in [-1, 1] for `grid_sample`."""
    steps = (torch.arange(FINE) + 0.5) / FINE
    x = box[:, None, 0] + (box[:, 2] - box[:, 0])[:, None] * steps
    y = box[:, None, 1] + (box[:, 3] - box[:, 1])[:, None] * steps
    x, y = x[:, None, :].expand(-1, FINE, -1), y[:, :, None].expand(-1, -1, FINE)
    return torch.stack([x, y], dim=-1) * 2 - 1


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.sum() / max(1, len(values))
