"""The network with gradients: embeddings, clicks, and following objects through the memory.

The same calls as `decaf_ros.segmentation`, but for many clips at once, and without what only costs: masks are enlarged
for the one that is chosen. test/test_training_sam2.py holds both against each other.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import nn

from decaf_tabletop.training.cpu import attention
from decaf_tabletop.training.sam2_losses import Answers
from decaf_tabletop.training.sam2_model import IMAGE_SIZE, MEMORY_WIDTH, WIDTH


class Embeddings(NamedTuple):
    """Of N images. levels: (N, C, h, w) at strides 4, 8, 16. position: (1, C, h, w), of the last one."""

    levels: tuple[torch.Tensor, ...]
    position: torch.Tensor

    def of(self, images: torch.Tensor) -> Embeddings:
        """Of these images, (K,) int64, in this order."""
        return Embeddings(tuple(level[images] for level in self.levels), self.position)


class Tokens(NamedTuple):
    """What there is of K objects on a frame on the way to their masks. keys: (K, h w, C), the image in the decoder;
    conditioned: (K, h w, C), the image after memory attention; memory: (K, h w, c), what is remembered of the frame."""

    keys: torch.Tensor
    conditioned: torch.Tensor | None = None
    memory: torch.Tensor | None = None


class DenseHeads(nn.Module):
    """What only training has. It tells every pixel at once what a click tells slowly: which pixels belong together.

    From each level, per cell of the mask grid: object or not, and the way to the object's centre. From the coarsest
    level: which cells are of one object, by the product of two vectors. And from the `Tokens`: the mask itself, a first
    sketch that does not wait for all that follows to mean something. Without these the memory stays on a plateau.
    """

    def __init__(self) -> None:
        super().__init__()
        widths, self._cells = (WIDTH // 8, WIDTH // 4, WIDTH), (1, 2, 4)
        self.heads = nn.ModuleList(nn.Conv2d(width, 3 * side * side, 1) for width, side in zip(widths, self._cells))
        self.kinship = nn.Conv2d(WIDTH, 32, 1)
        self.kinship_scale = nn.Parameter(torch.tensor([5.0, -2.0]))
        self.sketch = nn.Linear(WIDTH, 16)
        self.expected = nn.Linear(WIDTH, 16)
        self.remembered = nn.Linear(MEMORY_WIDTH, 16)

    def forward(self, embeddings: Embeddings, wanted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """wanted: `dense_targets`; labels: (N, h w) of the cells of the coarsest level. The loss."""
        total = wanted.new_zeros(())
        inside = wanted[:, :1]
        for head, level, side in zip(self.heads, embeddings.levels, self._cells):
            maps = F.pixel_shuffle(head(level), side).float()
            there = F.binary_cross_entropy_with_logits(maps[:, :1], inside, weight=1 + 3 * inside)
            way = (F.smooth_l1_loss(maps[:, 1:], wanted[:, 1:], beta=0.1, reduction="none") * inside).sum()
            total = total + there + way / inside.sum().clamp(min=1)
        vectors = F.normalize(self.kinship(embeddings.levels[-1]).flatten(2).float(), dim=1)
        alike = vectors.transpose(1, 2) @ vectors * self.kinship_scale[0] + self.kinship_scale[1]
        same = labels[:, :, None] == labels[:, None]
        weight = ((labels > 0)[:, :, None] | (labels > 0)[:, None]).float() * (1 + 3 * same)
        kin = F.binary_cross_entropy_with_logits(alike, same.float(), weight=weight, reduction="sum")
        return total + 2 * kin / weight.sum().clamp(min=1)

    def sketches(self, tokens: Tokens) -> list[torch.Tensor]:
        """Mask logits (K, 1, GRID, GRID) of each kind of tokens."""
        heads = (self.sketch, self.expected, self.remembered)
        return [_spread(head(part)) for head, part in zip(heads, tokens) if part is not None]


def _spread(cells: torch.Tensor) -> torch.Tensor:
    """(K, h w, 16) to (K, 1, 4 h, 4 w)"""
    side = round(cells.shape[1] ** 0.5)
    return F.pixel_shuffle(cells.transpose(1, 2).unflatten(2, (side, side)), 4)


@contextlib.contextmanager
def cheap_attention() -> Iterator[None]:
    """Attention as two products in the meantime; the fused one's backward pass is half of the whole training."""
    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def embed(model: SAM2Base, pixels: torch.Tensor) -> Embeddings:
    """pixels: (N, 3, S, S) float32, normalised."""
    encoded = model.forward_image(pixels)
    levels = tuple(encoded["backbone_fpn"][-model.num_feature_levels :])
    return Embeddings(levels, encoded["vision_pos_enc"][-1][:1])


def click(model: SAM2Base, embeddings: Embeddings, points: torch.Tensor) -> tuple[Answers, Tokens]:
    """One positive click each. embeddings: of K images; points: (K, 2) pixels of the square input. Four masks: the
    single one and the three of the multimask output; and the tokens."""
    coarse = embeddings.levels[-1] + model.no_mem_embed.reshape(1, -1, 1, 1)
    labels = torch.ones((len(points), 1), dtype=torch.int32)
    logits, iou, _, score, keys = _decode(model, coarse, embeddings.levels[:-1], points[:, None], labels)
    return Answers(logits, iou, score[:, 0]), Tokens(keys)


def _decode(
    model: SAM2Base, coarse: torch.Tensor, fine: tuple[torch.Tensor, ...], points: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Logits (K, 4, h, w), predicted IoU (K, 4), mask tokens (K, 4, C), object score (K, 1) and the image's tokens
    (K, h w, C)."""
    with torch.autocast("cpu", enabled=False):  # half a pixel of a place is lost in bfloat16
        sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
        position = model.sam_prompt_encoder.get_dense_pe()
    kept: list[torch.Tensor] = []
    hook = model.sam_mask_decoder.transformer.register_forward_hook(lambda module, given, made: kept.append(made[1]))
    decoded = model.sam_mask_decoder.predict_masks(
        image_embeddings=coarse,
        image_pe=position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=list(fine),
    )
    hook.remove()
    return (*decoded, kept[0])


def follow(
    model: SAM2Base,
    frames: list[Embeddings],
    prompts: torch.Tensor,
    truth: list[torch.Tensor] | None = None,
    present: list[torch.Tensor] | None = None,
    told: torch.Tensor | None = None,
) -> tuple[list[Answers], list[Tokens]]:
    """K objects from their masks on the first frame through the others: of each other frame three masks, and
    the tokens.

    frames: T embeddings, each of K images. prompts: (K, 1, S, S) float32, 0 or 1. For teacher forcing: truth, per frame
    (K, 1, S, S), 0 or 1, and present, per frame (K,) bool, go to the memory for the objects of which told, (K,) bool.
    """
    count = len(prompts)
    size = [(level.shape[2], level.shape[3]) for level in frames[0].levels]
    flat = [_flat(frame, count) for frame in frames]
    fine = [list(frame.levels[:-1]) for frame in frames]
    bank: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    pixels = frames[0].levels[-1]
    _, _, _, low, _, pointer, score = model._use_mask_as_output(pixels, fine[0], prompts)
    bank["cond_frame_outputs"][0] = _memory(model, flat[0], size, _enlarged(low), score, pointer, prompted=True)
    position = frames[0].position.flatten(2).permute(2, 0, 1).expand(-1, count, -1)
    answers, tokens_seen = [], []
    nowhere, padding = torch.zeros((count, 1, 2)), -torch.ones((count, 1), dtype=torch.int32)
    for index in range(1, len(frames)):
        conditioned = model._prepare_memory_conditioned_features(
            frame_idx=index,
            is_init_cond_frame=False,
            current_vision_feats=flat[index][-1:],
            current_vision_pos_embeds=[position],
            feat_sizes=size[-1:],
            output_dict=bank,
            num_frames=sys.maxsize,
        )
        logits, iou, tokens, score, keys = _decode(model, conditioned, frames[index].levels[:-1], nowhere, padding)
        logits, iou, tokens, score = logits[:, 1:].float(), iou[:, 1:], tokens[:, 1:], score.float()
        answers.append(Answers(logits, iou, score[:, 0]))
        best = iou.float().argmax(dim=1)
        each = torch.arange(count)
        seen = score > 0
        chosen = torch.where(seen[..., None, None], logits[each, best, None], NO_OBJ_SCORE)
        chosen = _enlarged(chosen)
        if told is not None:
            seen = torch.where(told[:, None], present[index][:, None], seen)
            chosen = torch.where(told[:, None, None, None], truth[index] * 20 - 10, chosen)
            score = torch.where(told[:, None], present[index][:, None] * 20.0 - 10, score)
        pointer = seen.float() * model.obj_ptr_proj(tokens[each, best]) + (1 - seen.float()) * model.no_obj_ptr
        entry = _memory(model, flat[index], size, chosen, score, pointer, prompted=False)
        bank["non_cond_frame_outputs"][index] = entry
        remembered = entry["maskmem_features"].flatten(2).transpose(1, 2)
        tokens_seen.append(Tokens(keys, conditioned.flatten(2).transpose(1, 2), remembered))
    return answers, tokens_seen


def _memory(
    model: SAM2Base,
    flat: list[torch.Tensor],
    size: list[tuple[int, int]],
    masks: torch.Tensor,
    score: torch.Tensor,
    pointer: torch.Tensor,
    prompted: bool,
) -> dict[str, Any]:
    features, positions = model._encode_new_memory(
        current_vision_feats=flat,
        feat_sizes=size,
        pred_masks_high_res=masks,
        object_score_logits=score,
        is_mask_from_pts=prompted,
    )
    return {"maskmem_features": features, "maskmem_pos_enc": positions, "obj_ptr": pointer}


def _enlarged(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits.float(), (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)


def _flat(embeddings: Embeddings, count: int) -> list[torch.Tensor]:
    """(h w, K, C) as `track_step` wants it."""
    return [level.expand(count, -1, -1, -1).flatten(2).permute(2, 0, 1) for level in embeddings.levels]
