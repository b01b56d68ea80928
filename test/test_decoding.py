"""The decoder for many clicks against the published one, in all variants of SAM 2."""

from __future__ import annotations

import pytest
import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import Attention, TwoWayTransformer

from decaf_ros.segmentation.decoding import decode_clicks

WIDTH, H, W = 32, 5, 6


def random_decoder(high_res: bool, has_score: bool, favourite: int, sharpness: float) -> MaskDecoder:
    """favourite: mask with the best predicted IoU for most clicks, 1..3. sharpness: scale of attention logits."""
    torch.manual_seed(0)
    decoder = MaskDecoder(
        transformer_dim=WIDTH,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=4, mlp_dim=64),
        num_multimask_outputs=3,
        iou_prediction_use_sigmoid=True,
        use_high_res_features=high_res,
        pred_obj_scores=has_score,
        pred_obj_scores_mlp=has_score,
    )
    with torch.no_grad():
        for part in decoder.parameters():  # untrained norms (1, 0) and zero biases would hide errors
            part += 0.2 * torch.randn_like(part)
        decoder.iou_prediction_head.layers[-1].bias[favourite] += 3
        for part in decoder.modules():
            if isinstance(part, Attention):
                part.q_proj.weight *= sharpness
    return decoder.double().eval()


@pytest.mark.parametrize(("high_res", "has_score", "favourite"), [(True, True, 1), (True, False, 2), (False, True, 3)])
@pytest.mark.parametrize(("count", "sharpness"), [(1, 1), (7, 1), (7, 100)])
@torch.inference_mode()
def test_clicks_equal_the_published_decoder(high_res, has_score, favourite, count, sharpness):
    decoder = random_decoder(high_res, has_score, favourite, sharpness)
    image, position = torch.randn(2, 1, WIDTH, H, W, dtype=torch.float64)
    levels = [torch.randn(1, WIDTH // 8, 4 * H, 4 * W), torch.randn(1, WIDTH // 4, 2 * H, 2 * W)] if high_res else []
    levels = [level.double() for level in levels]
    clicks = torch.randn(count, 2, WIDTH, dtype=torch.float64)
    copies = [part.clone() for part in (image, position, clicks, *levels)]
    logits, iou, score = decode_clicks(decoder, image, position, levels, clicks)
    assert all(torch.equal(*pair) for pair in zip(copies, (image, position, clicks, *levels))), "inputs were modified"
    no_mask_prompt = torch.zeros(count, WIDTH, H, W, dtype=torch.float64)
    masks, all_iou, _, expected_score = decoder(image, position, clicks, no_mask_prompt, True, True, levels)
    best = all_iou.argmax(dim=1)
    assert favourite - 1 in best
    torch.testing.assert_close(logits[:, 0], masks[torch.arange(count), best])
    torch.testing.assert_close(iou.double(), all_iou.amax(dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(score.double(), expected_score[:, 0].double(), atol=1e-6, rtol=1e-6)
