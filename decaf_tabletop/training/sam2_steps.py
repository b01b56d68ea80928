"""The network with gradients: embeddings, clicks, and following objects through the memory.

The same calls as `decaf_ros.segmentation`, but for many clips at once, and only the chosen mask is enlarged.
test/test_training_sam2.py compares both.
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
from decaf_tabletop.training.sam2_losses import Predictions
from decaf_tabletop.training.sam2_model import IMAGE_SIZE, MEMORY_WIDTH, WIDTH


class Embeddings(NamedTuple):
    """Embeddings of N images. levels: (N, C, h, w) at strides 4, 8, 16. position: (1, C, h, w), of the last level."""

    levels: tuple[torch.Tensor, ...]
    position: torch.Tensor

    def select(self, images: torch.Tensor) -> Embeddings:
        """The embeddings of `images`, (K,) int64 indices, in this order."""
        return Embeddings(tuple(level[images] for level in self.levels), self.position)


class Tokens(NamedTuple):
    """Intermediate tokens of K objects on a frame.

    Attributes:
        keys: (K, h w, C) image tokens of the mask decoder.
        conditioned: (K, h w, C) image tokens after memory attention.
        memory: (K, h w, c) memory of the frame.
    """

    keys: torch.Tensor
    conditioned: torch.Tensor | None = None
    memory: torch.Tensor | None = None


class AuxiliaryHeads(nn.Module):
    """Training-only heads with dense targets, which teach grouping of pixels faster than clicks.

    From each level, per cell of the mask grid: objectness and offset to the object's centre. From the coarsest level:
    which cells belong to one object, as a product of two vectors. From the `Tokens`: rough masks. Without these, clicks
    and memory stay on a plateau: with them, clicks rose from IoU 0.26 to 0.60 within 80 steps.
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

    def forward(self, embeddings: Embeddings, targets: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The dense loss. targets, labels: from `dense_targets`."""
        total = targets.new_zeros(())
        inside = targets[:, :1]
        for head, level, side in zip(self.heads, embeddings.levels, self._cells):
            maps = F.pixel_shuffle(head(level), side).float()
            objectness = F.binary_cross_entropy_with_logits(maps[:, :1], inside, weight=1 + 3 * inside)
            offset = (F.smooth_l1_loss(maps[:, 1:], targets[:, 1:], beta=0.1, reduction="none") * inside).sum()
            total = total + objectness + offset / inside.sum().clamp(min=1)
        vectors = F.normalize(self.kinship(embeddings.levels[-1]).flatten(2).float(), dim=1)
        logits = vectors.transpose(1, 2) @ vectors * self.kinship_scale[0] + self.kinship_scale[1]
        same = labels[:, :, None] == labels[:, None]
        weight = ((labels > 0)[:, :, None] | (labels > 0)[:, None]).float() * (1 + 3 * same)
        grouping = F.binary_cross_entropy_with_logits(logits, same.float(), weight=weight, reduction="sum")
        return total + 2 * grouping / weight.sum().clamp(min=1)

    def rough_masks(self, tokens: Tokens) -> list[torch.Tensor]:
        """Mask logits (K, 1, GRID, GRID) from each kind of tokens that is given."""
        heads = (self.sketch, self.expected, self.remembered)
        return [_cells_to_map(head(part)) for head, part in zip(heads, tokens) if part is not None]


def _cells_to_map(cells: torch.Tensor) -> torch.Tensor:
    """(K, h w, 16) to (K, 1, 4 h, 4 w)."""
    side = round(cells.shape[1] ** 0.5)
    return F.pixel_shuffle(cells.transpose(1, 2).unflatten(2, (side, side)), 4)


@contextlib.contextmanager
def cheap_attention() -> Iterator[None]:
    """Replaces the fused attention by two products: its backward pass took half of the training time."""
    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def embed(model: SAM2Base, pixels: torch.Tensor) -> Embeddings:
    """Embeds pixels (N, 3, S, S) float32, normalised."""
    encoded = model.forward_image(pixels)
    levels = tuple(encoded["backbone_fpn"][-model.num_feature_levels :])
    return Embeddings(levels, encoded["vision_pos_enc"][-1][:1])


def click(model: SAM2Base, embeddings: Embeddings, points: torch.Tensor) -> tuple[Predictions, Tokens]:
    """Four masks for one positive click on each of K images, the single mask and three multimasks, and the tokens.

    embeddings: of K images. points: (K, 2) pixels of the square input.
    """
    coarse = embeddings.levels[-1] + model.no_mem_embed.reshape(1, -1, 1, 1)
    labels = torch.ones((len(points), 1), dtype=torch.int32)
    logits, iou, _, score, keys = _decode(model, coarse, embeddings.levels[:-1], points[:, None], labels)
    return Predictions(logits, iou, score[:, 0]), Tokens(keys)


def _decode(
    model: SAM2Base, coarse: torch.Tensor, fine: tuple[torch.Tensor, ...], points: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Logits (K, 4, h, w), predicted IoU (K, 4), mask tokens (K, 4, C), object score (K, 1), image tokens
    (K, h w, C)."""
    with torch.autocast("cpu", enabled=False):  # bfloat16 would lose half a pixel of a position
        sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
        position = model.sam_prompt_encoder.get_dense_pe()
    captured: list[torch.Tensor] = []
    hook = model.sam_mask_decoder.transformer.register_forward_hook(
        lambda module, inputs, output: captured.append(output[1])
    )
    decoded = model.sam_mask_decoder.predict_masks(
        image_embeddings=coarse,
        image_pe=position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=list(fine),
    )
    hook.remove()
    return (*decoded, captured[0])


def follow(
    model: SAM2Base,
    frames: list[Embeddings],
    prompts: torch.Tensor,
    truth: list[torch.Tensor] | None = None,
    present: list[torch.Tensor] | None = None,
    forced: torch.Tensor | None = None,
) -> tuple[list[Predictions], list[Tokens]]:
    """Follows K objects from their masks on the first frame: three masks and the tokens for each other frame.

    Args:
        model: the network.
        frames: T embeddings, each of K images.
        prompts: (K, 1, S, S) float32, 0 or 1.
        truth: for teacher forcing, true masks of each frame, as `prompts`.
        present: for teacher forcing, (K,) bool for each frame, whether the object is visible.
        forced: (K,) bool, the objects whose memory gets `truth` and `present`.
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
    predictions, tokens_seen = [], []
    no_point, padding = torch.zeros((count, 1, 2)), -torch.ones((count, 1), dtype=torch.int32)
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
        logits, iou, tokens, score, keys = _decode(model, conditioned, frames[index].levels[:-1], no_point, padding)
        logits, iou, tokens, score = logits[:, 1:].float(), iou[:, 1:], tokens[:, 1:], score.float()
        predictions.append(Predictions(logits, iou, score[:, 0]))
        best = iou.float().argmax(dim=1)
        each = torch.arange(count)
        visible = score > 0
        chosen = torch.where(visible[..., None, None], logits[each, best, None], NO_OBJ_SCORE)
        chosen = _enlarged(chosen)
        if forced is not None:
            visible = torch.where(forced[:, None], present[index][:, None], visible)
            chosen = torch.where(forced[:, None, None, None], truth[index] * 20 - 10, chosen)
            score = torch.where(forced[:, None], present[index][:, None] * 20.0 - 10, score)
        pointer = visible.float() * model.obj_ptr_proj(tokens[each, best]) + (1 - visible.float()) * model.no_obj_ptr
        entry = _memory(model, flat[index], size, chosen, score, pointer, prompted=False)
        bank["non_cond_frame_outputs"][index] = entry
        remembered = entry["maskmem_features"].flatten(2).transpose(1, 2)
        tokens_seen.append(Tokens(keys, conditioned.flatten(2).transpose(1, 2), remembered))
    return predictions, tokens_seen


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
    """Levels as (h w, K, C), as `track_step` expects."""
    return [level.expand(count, -1, -1, -1).flatten(2).permute(2, 0, 1) for level in embeddings.levels]
