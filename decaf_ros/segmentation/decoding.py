"""SAM 2's mask decoder for many clicks on one image.

The same sums as `sam2.modeling.sam.mask_decoder.MaskDecoder.predict_masks`, in another order. That repeats the image
for every click first, though until it has attended to the clicks, in the first layer, it is the same for all. It
projects the image's thousands of places for every attention with a click's eight tokens, where the tokens can be
projected instead. And it makes four masks of each click, of which one is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import nn

# With numbers too small to be normal ones some CPUs multiply many times as slowly, and trained attention has many.
_LEAST_WEIGHT = 1e-20
_NO_SCORE = 10.0  # of a model without a head for the object's presence


def decode_clicks(
    decoder: MaskDecoder,
    image: torch.Tensor,
    position: torch.Tensor,
    fine: Sequence[torch.Tensor],
    clicks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each of P clicks the mask with the best predicted IoU, among the three of the multimask output.

    image: (1, C, h, w), with the embedding of no mask prompt added. position: of the same shape, its positional
    encoding. fine: the features at strides 4 and 8, (1, c, 4 h, 4 w) and (1, 2 c, 2 h, 2 w); none for a model without.
    clicks: (P, n, C), embedded.
    Returns mask logits (P, 1, 4 h, 4 w), IoU (P,) and object score (P,), the last two float32.
    """
    scored = decoder.pred_obj_scores
    own = [*([decoder.obj_score_token] if scored else []), decoder.iou_token, decoder.mask_tokens]
    own = torch.cat([token.weight for token in own])
    tokens = torch.cat([own.expand(len(clicks), -1, -1), clicks], dim=1)
    flat = [part.flatten(2).transpose(1, 2) for part in (image, position)]
    tokens, seen = _two_way(decoder.transformer, *flat, tokens, len(own))

    iou, best = decoder.iou_prediction_head(tokens[:, int(scored)])[:, 1:].float().max(dim=1)
    masks = tokens[:, 1 + scored :]
    wanted = list(enumerate(decoder.output_hypernetworks_mlps))[1:]
    kernels = torch.stack([mlp(masks[:, place]) for place, mlp in wanted], dim=1)
    kernels = kernels[torch.arange(len(best), device=best.device), best]
    logits = _masks(decoder, seen, image.shape[2:], fine, kernels)
    score = decoder.pred_obj_score_head(tokens[:, 0])[:, 0].float() if scored else torch.full_like(iou, _NO_SCORE)
    return logits, iou, score


def _two_way(
    transformer: TwoWayTransformer, image: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor, wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first `wanted` of the tokens (P, n, C) and the image become; image and its position: (1, h w, C)."""
    queries = tokens
    for layer in transformer.layers:
        queries, image = _block(layer, queries, image, tokens, position)
    queries, tokens = queries[:, :wanted], tokens[:, :wanted]
    found = _read(transformer.final_attn_token_to_image, queries + tokens, image + position, image)
    return transformer.norm_final_attn(queries + found), image


def _block(
    layer: TwoWayAttentionBlock,
    queries: torch.Tensor,
    image: torch.Tensor,
    tokens: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    if layer.skip_first_layer_pe:
        queries = layer.self_attn(queries, queries, queries)
    else:
        own = queries + tokens
        queries = queries + layer.self_attn(own, own, queries)
    queries = layer.norm1(queries)
    placed = image + position
    queries = layer.norm2(queries + _read(layer.cross_attn_token_to_image, queries + tokens, placed, image))
    queries = layer.norm3(queries + layer.mlp(queries))
    return queries, layer.norm4(_told(layer.cross_attn_image_to_token, image, placed, queries + tokens, queries))


def _read(attention: Attention, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What tokens (P, n, C) find in the image, of each click (P, N, C) or one for all (1, N, C)."""
    query, heads = attention.q_proj(query), attention.num_heads
    if len(keys) == 1:
        query = query.unflatten(2, (heads, -1)).permute(2, 0, 1, 3)  # (heads, P, n, d)
        keys, values = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in (attention.k_proj(keys), attention.v_proj(values))
        )
        found = F.scaled_dot_product_attention(query.flatten(1, 2)[None], keys, values).view_as(query)
        return attention.out_proj(found.permute(1, 2, 0, 3).flatten(2))
    # A click has few tokens and its image many places: what the tokens ask for is projected, once a head, and not the
    # image. The bias of its keys is the same for all places, and makes no difference.
    weights = (_asked(attention.k_proj.weight, query, heads) @ keys.transpose(1, 2)).softmax(2)
    weights = weights.clamp_(min=_LEAST_WEIGHT)
    found = (weights @ values).unflatten(1, (heads, -1))  # (P, heads, n, C)
    found = found @ attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)
    return attention.out_proj(found.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def _told(
    attention: Attention, image: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """The image and what it finds in tokens (P, n, C). query: the image of each click (P, N, C), for which the tokens
    are projected as in `_read`, or one for all (1, N, C)."""
    heads, keys = attention.num_heads, attention.k_proj(keys)
    if len(query) == 1:
        query = attention.q_proj(query)[0].unflatten(1, (heads, -1)).permute(1, 2, 0)  # (heads, d, N)
        asked = keys.unflatten(2, (heads, -1)).permute(2, 0, 1, 3) * query.shape[1] ** -0.5  # (heads, P, n, d)
        logits = (asked.flatten(1, 2) @ query).view(*asked.shape[:3], -1).transpose(0, 1)
    else:
        offset = _asked(attention.q_proj.bias[:, None], keys, heads)
        logits = torch.baddbmm(offset, _asked(attention.q_proj.weight, keys, heads), query.transpose(1, 2))
        logits = logits.unflatten(1, (heads, -1))
    weights = _softmax(logits).flatten(1, 2)  # (P, heads * n, N)
    values = attention.v_proj(values).unflatten(2, (heads, -1)).transpose(1, 2)
    values = values @ attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # (P, heads, n, C)
    # Each head's weights sum to 1, so the bias can go along with the values.
    values = values + attention.out_proj.bias / heads
    return image + weights.transpose(1, 2) @ values.flatten(1, 2)


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over dimension 2; on a CPU in place, where that of torch takes longer but for a last dimension."""
    if not logits.is_cpu:
        return logits.softmax(2)
    if logits.element_size() < 4:  # as softmax is under autocast
        logits = logits.float()
    weights = logits.sub_(logits.amax(2, keepdim=True)).clamp_(min=math.log(_LEAST_WEIGHT)).exp_()
    return weights.div_(weights.sum(2, keepdim=True))


def _asked(weight: torch.Tensor, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """Projected tokens (P, n, D), each head's with that head's rows of a weight (D, C): (P, heads * n, C), scaled."""
    tokens = tokens.unflatten(2, (heads, -1)).transpose(1, 2)
    return ((tokens * tokens.shape[-1] ** -0.5) @ weight.unflatten(0, (heads, -1))).flatten(1, 2)


def _masks(
    decoder: MaskDecoder, image: torch.Tensor, size: torch.Size, fine: Sequence[torch.Tensor], kernels: torch.Tensor
) -> torch.Tensor:
    """Mask logits (P, 1, 4 h, 4 w) of an image (P, h w, C) of size h, w and a kernel (P, c) for each.

    Stride and kernel of the transposed convolutions are equal, so they are linear maps of a place to 2 x 2 finer ones;
    these stay side by side, and only the masks are put in order.
    """
    first, norm, activation, second, last = decoder.output_upscaling
    grid = image.unflatten(1, tuple(size))
    finer, finest = first.bias, second.bias
    if decoder.use_high_res_features:
        finer, finest = _beside(fine[1], 1) + finer, _beside(fine[0], 2) + finest
    halves = _finer(first, grid).add_(finer)
    halves = activation(F.layer_norm(halves, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    quarters = last(_finer(second, halves).add_(finest))  # (P, h, w, 2, 2, 2, 2, c)
    logits = (kernels[:, None] @ quarters.flatten(1, -2).transpose(1, 2)).view(quarters.shape[:-1])
    # The last two of each row stay beside each other: they are moved as one number of twice the size.
    pairs = logits.view({2: torch.int32, 4: torch.int64, 8: torch.complex128}[logits.element_size()])
    pairs = pairs.permute(0, 1, 3, 5, 2, 4, 6).contiguous()
    return pairs.view(logits.dtype).view(len(image), 1, 4 * size[0], 4 * size[1])


def _finer(up: nn.ConvTranspose2d, places: torch.Tensor) -> torch.Tensor:
    """(..., C) to (..., 2, 2, c), without the bias."""
    weight = up.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * c, C)
    return F.linear(places, weight).unflatten(-1, (2, 2, -1))


def _beside(fine: torch.Tensor, halvings: int) -> torch.Tensor:
    """(1, c, H, W) to (1, h, w, 2, 2, c), or halved twice to (1, h, w, 2, 2, 2, 2, c). In that order in memory too: it
    is added to every click's."""
    parts = fine.permute(0, 2, 3, 1)
    if halvings == 1:
        return parts.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4, 5).contiguous()
    parts = parts.unflatten(2, (-1, 2, 2)).unflatten(1, (-1, 2, 2))
    return parts.permute(0, 1, 4, 2, 5, 3, 6, 7).contiguous()
