"""SAM 2's mask decoder for many clicks on one image.

The same sums as `sam2.modeling.sam.mask_decoder.MaskDecoder.predict_masks`, with less done twice: that repeats the
image for every click first, though until it has attended to the clicks, in the first layer, it is the same for all;
and it makes four masks of each, of which one is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer

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
    own = [decoder.obj_score_token] * scored + [decoder.iou_token, decoder.mask_tokens]
    own = torch.cat([token.weight for token in own])
    tokens = torch.cat([own.expand(len(clicks), -1, -1), clicks], dim=1)
    flat = [part.flatten(2).transpose(1, 2) for part in (image, position)]
    tokens, seen = _two_way(decoder.transformer, *flat, tokens)

    iou, best = decoder.iou_prediction_head(tokens[:, int(scored)])[:, 1:].float().max(dim=1)
    masks = tokens[:, 1 + scored : 1 + scored + decoder.num_mask_tokens]
    kernels = torch.stack([mlp(masks[:, place]) for place, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    kernels = kernels[torch.arange(len(best)), best + 1]
    upscaled = _upscaled(decoder, seen.transpose(1, 2).unflatten(2, image.shape[2:]), fine)
    logits = (kernels[:, None] @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    score = decoder.pred_obj_score_head(tokens[:, 0])[:, 0].float() if scored else torch.full_like(iou, _NO_SCORE)
    return logits, iou, score


def _two_way(
    transformer: TwoWayTransformer, image: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the tokens (P, n, C) and the image become; image and its position: (1, h w, C)."""
    queries, keys = tokens, image
    for layer in transformer.layers:
        queries, keys = _block(layer, queries, keys, tokens, position)
    attended = _attend(transformer.final_attn_token_to_image, queries + tokens, keys + position, keys)
    return transformer.norm_final_attn(queries + attended), keys


def _block(
    layer: TwoWayAttentionBlock, queries: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if layer.skip_first_layer_pe:
        queries = _attend(layer.self_attn, queries, queries, queries)
    else:
        placed = queries + tokens
        queries = queries + _attend(layer.self_attn, placed, placed, queries)
    queries = layer.norm1(queries)
    placed = keys + position
    queries = layer.norm2(queries + _attend(layer.cross_attn_token_to_image, queries + tokens, placed, keys))
    queries = layer.norm3(queries + layer.mlp(queries))
    keys = layer.norm4(keys + _attend(layer.cross_attn_image_to_token, placed, queries + tokens, queries))
    return queries, keys


def _attend(attention: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Of batches of P or of 1, which then counts for all: repeated after its projection, and without a copy."""
    projections = (attention.q_proj(query), attention.k_proj(key), attention.v_proj(value))
    heads = [part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in projections]
    count = max(len(part) for part in heads)
    attended = F.scaled_dot_product_attention(*(part.expand(count, -1, -1, -1) for part in heads))
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _upscaled(decoder: MaskDecoder, image: torch.Tensor, fine: Sequence[torch.Tensor]) -> torch.Tensor:
    """(P, C, h, w) to (P, c, 4 h, 4 w)."""
    if not decoder.use_high_res_features:
        return decoder.output_upscaling(image)
    first, norm, activation, second, last = decoder.output_upscaling
    return last(second(activation(norm(first(image) + fine[1]))) + fine[0])
