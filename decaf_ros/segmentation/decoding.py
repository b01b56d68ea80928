"""SAM 2's mask decoder for many clicks on one image.

Same result as `sam2.modeling.sam.mask_decoder.MaskDecoder.predict_masks`, with less work:

- The published decoder copies the image for every click. Here all clicks share it until the first layer's
  image-to-token attention makes it differ.
- It projects the image's thousands of places for each attention with a click's eight tokens. Here the tokens are
  projected instead.
- It computes four masks per click. Here only the best one is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import nn

# Some CPUs multiply subnormal numbers many times slower, and trained attention weights contain many.
_LEAST_WEIGHT = 1e-20
_SCORE_WITHOUT_HEAD = 10.0  # for models that predict no object score


def decode_clicks(
    decoder: MaskDecoder,
    image: torch.Tensor,
    position: torch.Tensor,
    high_res: Sequence[torch.Tensor],
    clicks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decodes P clicks: for each, the mask with the best predicted IoU of the three in the multimask output.

    Args:
        image: (1, C, h, w) features, including the "no mask prompt" embedding.
        position: (1, C, h, w), positional encoding of `image`.
        high_res: features at strides 4 and 8, (1, c, 4 h, 4 w) and (1, 2 c, 2 h, 2 w); empty for models without them.
        clicks: (P, n, C), embedded.

    Returns:
        Mask logits (P, 1, 4 h, 4 w), predicted IoU (P,) float32 and object score (P,) float32.
    """
    has_score = decoder.pred_obj_scores
    embeddings = [*([decoder.obj_score_token] if has_score else []), decoder.iou_token, decoder.mask_tokens]
    output_tokens = torch.cat([embedding.weight for embedding in embeddings])
    tokens = torch.cat([output_tokens.expand(len(clicks), -1, -1), clicks], dim=1)
    flat_image, flat_position = (part.flatten(2).transpose(1, 2) for part in (image, position))
    tokens, attended_image = _two_way(decoder.transformer, flat_image, flat_position, tokens, len(output_tokens))

    iou, best = decoder.iou_prediction_head(tokens[:, int(has_score)])[:, 1:].float().max(dim=1)
    mask_tokens = tokens[:, 1 + has_score :]
    multimask_mlps = list(enumerate(decoder.output_hypernetworks_mlps))[1:]
    kernels = torch.stack([mlp(mask_tokens[:, index]) for index, mlp in multimask_mlps], dim=1)
    kernels = kernels[torch.arange(len(best), device=best.device), best]
    logits = _masks(decoder, attended_image, image.shape[2:], high_res, kernels)
    if has_score:
        score = decoder.pred_obj_score_head(tokens[:, 0])[:, 0].float()
    else:
        score = torch.full_like(iou, _SCORE_WITHOUT_HEAD)
    return logits, iou, score


def _two_way(
    transformer: TwoWayTransformer, image: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor, num_outputs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`TwoWayTransformer.forward`: the first num_outputs of the tokens (P, n, C), and the image, both attended.

    image, position: (1, h w, C).
    """
    queries = tokens
    for layer in transformer.layers:
        queries, image = _block(layer, queries, image, tokens, position)
    queries, tokens = queries[:, :num_outputs], tokens[:, :num_outputs]
    attended = _tokens_to_image(transformer.final_attn_token_to_image, queries + tokens, image + position, image)
    return transformer.norm_final_attn(queries + attended), image


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
        positioned_queries = queries + tokens
        queries = queries + layer.self_attn(positioned_queries, positioned_queries, queries)
    queries = layer.norm1(queries)
    positioned = image + position
    attended = _tokens_to_image(layer.cross_attn_token_to_image, queries + tokens, positioned, image)
    queries = layer.norm2(queries + attended)
    queries = layer.norm3(queries + layer.mlp(queries))
    image = _image_to_tokens(layer.cross_attn_image_to_token, image, positioned, queries + tokens, queries)
    return queries, layer.norm4(image)


def _tokens_to_image(
    attention: Attention, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attention of tokens (P, n, C) to the image. keys, values: one image per click (P, N, C), or a shared one
    (1, N, C). Returns (P, n, C)."""
    query, heads = attention.q_proj(query), attention.num_heads
    output: torch.Tensor
    if len(keys) == 1:
        query = torch.unflatten(query, 2, (heads, -1)).permute(2, 0, 1, 3)  # (heads, P, n, d)
        keys, values = (
            torch.unflatten(part, 2, (heads, -1)).transpose(1, 2)
            for part in (attention.k_proj(keys), attention.v_proj(values))
        )
        attended = F.scaled_dot_product_attention(query.flatten(1, 2)[None], keys, values).view_as(query)
        output = attention.out_proj(attended.permute(1, 2, 0, 3).flatten(2))
        return output
    # Few tokens attend to many places: project the queries by the key weights, not the image. The key bias adds the
    # same to the logits of all places, so softmax cancels it.
    weights = (_project_per_head(attention.k_proj.weight, query, heads) @ keys.transpose(1, 2)).softmax(2)
    weights = weights.clamp_(min=_LEAST_WEIGHT)
    attended = torch.unflatten(weights @ values, 1, (heads, -1))  # (P, heads, n, C)
    attended = attended @ torch.unflatten(attention.v_proj.weight, 0, (heads, -1)).transpose(1, 2)
    output = attention.out_proj(attended.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return output


def _image_to_tokens(
    attention: Attention, image: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attention of the image to tokens (P, n, C), added to the image. Returns (P, N, C).

    query: the image with its position, one per click (P, N, C) or a shared one (1, N, C). With one per click the tokens
    are projected instead of the image, as in `_tokens_to_image`.
    """
    heads, keys = attention.num_heads, attention.k_proj(keys)
    if len(query) == 1:
        query = torch.unflatten(attention.q_proj(query)[0], 1, (heads, -1)).permute(1, 2, 0)  # (heads, d, N)
        scaled = torch.unflatten(keys, 2, (heads, -1)).permute(2, 0, 1, 3) * query.shape[1] ** -0.5  # (heads, P, n, d)
        logits = (scaled.flatten(1, 2) @ query).view(*scaled.shape[:3], -1).transpose(0, 1)
    else:
        offset = _project_per_head(attention.q_proj.bias[:, None], keys, heads)
        projected = _project_per_head(attention.q_proj.weight, keys, heads)
        logits = torch.unflatten(torch.baddbmm(offset, projected, query.transpose(1, 2)), 1, (heads, -1))
    weights = _softmax(logits).flatten(1, 2)  # (P, heads * n, N)
    values = torch.unflatten(attention.v_proj(values), 2, (heads, -1)).transpose(1, 2)
    values = values @ torch.unflatten(attention.out_proj.weight, 1, (heads, -1)).permute(1, 2, 0)  # (P, heads, n, C)
    # Each head's weights sum to 1, so the output bias can be added to the values.
    values = values + attention.out_proj.bias / heads
    return image + weights.transpose(1, 2) @ values.flatten(1, 2)


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over dimension 2. On a CPU in place: torch's is slow there for all but the last dimension."""
    if not logits.is_cpu:
        return logits.softmax(2)
    if logits.element_size() < 4:  # autocast computes softmax in float32
        logits = logits.float()
    weights = logits.sub_(logits.amax(2, keepdim=True)).clamp_(min=math.log(_LEAST_WEIGHT)).exp_()
    return weights.div_(weights.sum(2, keepdim=True))


def _project_per_head(weight: torch.Tensor, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """Multiplies each head's part of projected tokens (P, n, D) by that head's rows of `weight` (D, C).

    Scaled by the inverse square root of the head's width. Returns (P, heads * n, C).
    """
    tokens = torch.unflatten(tokens, 2, (heads, -1)).transpose(1, 2)
    scaled: torch.Tensor = tokens * tokens.shape[-1] ** -0.5
    return (scaled @ torch.unflatten(weight, 0, (heads, -1))).flatten(1, 2)


def _masks(
    decoder: MaskDecoder, image: torch.Tensor, size: torch.Size, high_res: Sequence[torch.Tensor], kernels: torch.Tensor
) -> torch.Tensor:
    """Mask logits (P, 1, 4 h, 4 w) from images (P, h w, C) of size (h, w), with one kernel (P, c) each.

    The transposed convolutions have stride = kernel size, so each maps one place linearly to 2 x 2 finer places. These
    stay grouped by place, and only the final logits are rearranged into rows.
    """
    first, norm, activation, second, last = decoder.output_upscaling
    grid = torch.unflatten(image, 1, tuple(size))
    half_offset, quarter_offset = first.bias, second.bias
    if decoder.use_high_res_features:
        half_offset = _group_by_place(high_res[1], 1) + half_offset
        quarter_offset = _group_by_place(high_res[0], 2) + quarter_offset
    halves = _upsample(first, grid).add_(half_offset)
    halves = activation(F.layer_norm(halves, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    quarters = last(_upsample(second, halves).add_(quarter_offset))  # (P, h, w, 2, 2, 2, 2, c)
    logits: torch.Tensor = (kernels[:, None] @ quarters.flatten(1, -2).transpose(1, 2)).view(quarters.shape[:-1])
    # The last two values of a group stay neighbours in the row: move them as one number of twice the size.
    pairs = logits.view({2: torch.int32, 4: torch.int64, 8: torch.complex128}[logits.element_size()])
    pairs = pairs.permute(0, 1, 3, 5, 2, 4, 6).contiguous()
    return pairs.view(logits.dtype).view(len(image), 1, 4 * size[0], 4 * size[1])


def _upsample(convolution: nn.ConvTranspose2d, places: torch.Tensor) -> torch.Tensor:
    """(..., C) to (..., 2, 2, c), without the bias."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * c, C)
    return torch.unflatten(F.linear(places, weight), -1, (2, 2, -1))


def _group_by_place(features: torch.Tensor, halvings: int) -> torch.Tensor:
    """(1, c, H, W) to (1, h, w, 2, 2, c), with two halvings to (1, h, w, 2, 2, 2, 2, c).

    Contiguous, because it is added to every click's features.
    """
    parts = features.permute(0, 2, 3, 1)
    if halvings == 1:
        parts = torch.unflatten(torch.unflatten(parts, 2, (-1, 2)), 1, (-1, 2))
        return parts.permute(0, 1, 3, 2, 4, 5).contiguous()
    parts = torch.unflatten(torch.unflatten(parts, 2, (-1, 2, 2)), 1, (-1, 2, 2))
    return parts.permute(0, 1, 4, 2, 5, 3, 6, 7).contiguous()
