"""The demo SAM 2: the published classes in a tiny configuration, how its training starts, and how it is stored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base
from torch import nn

from decaf_ros.segmentation.sam2 import build_model

IMAGE_SIZE, WIDTH, MEMORY_WIDTH = 256, 96, 32
TRUNK_WIDTHS = (32, 64, 128, 256)


def model_config() -> dict[str, Any]:
    """The `model` section: the settings of sam2.1_hiera_t, every width and depth smaller, five memories for seven."""
    package = "sam2.modeling"
    grid = IMAGE_SIZE // 16

    def position(features: int) -> dict[str, Any]:
        target = f"{package}.position_encoding.PositionEmbeddingSine"
        return {"_target_": target, "num_pos_feats": features, "normalize": True, "scale": None, "temperature": 10000}

    def attention(**extra: Any) -> dict[str, Any]:
        return {
            "_target_": f"{package}.sam.transformer.RoPEAttention",
            "rope_theta": 10000.0,
            "feat_sizes": [grid, grid],
            "embedding_dim": WIDTH,
            "num_heads": 1,
            "downsample_rate": 1,
            "dropout": 0.0,
            **extra,
        }

    return {
        "_target_": f"{package}.sam2_base.SAM2Base",
        "image_encoder": {
            "_target_": f"{package}.backbones.image_encoder.ImageEncoder",
            "scalp": 1,
            "trunk": {
                "_target_": f"{package}.backbones.hieradet.Hiera",
                "embed_dim": TRUNK_WIDTHS[0],
                "num_heads": 1,
                "stages": [1, 2, 4, 1],
                "window_spec": [8, 8, 8, 8],
                "global_att_blocks": [4, 6],
                "window_pos_embed_bkg_spatial_size": [7, 7],
            },
            "neck": {
                "_target_": f"{package}.backbones.image_encoder.FpnNeck",
                "position_encoding": position(WIDTH),
                "d_model": WIDTH,
                "backbone_channel_list": list(reversed(TRUNK_WIDTHS)),
                "fpn_top_down_levels": [2, 3],
                "fpn_interp_model": "nearest",
            },
        },
        "memory_attention": {
            "_target_": f"{package}.memory_attention.MemoryAttention",
            "d_model": WIDTH,
            "pos_enc_at_input": True,
            "num_layers": 2,
            "layer": {
                "_target_": f"{package}.memory_attention.MemoryAttentionLayer",
                "activation": "relu",
                "dim_feedforward": 4 * WIDTH,
                "dropout": 0.0,
                "d_model": WIDTH,
                "pos_enc_at_attn": False,
                "pos_enc_at_cross_attn_keys": True,
                "pos_enc_at_cross_attn_queries": False,
                "self_attention": attention(),
                "cross_attention": attention(rope_k_repeat=True, kv_in_dim=MEMORY_WIDTH),
            },
        },
        "memory_encoder": {
            "_target_": f"{package}.memory_encoder.MemoryEncoder",
            "in_dim": WIDTH,
            "out_dim": MEMORY_WIDTH,
            "position_encoding": position(MEMORY_WIDTH),
            "mask_downsampler": {
                "_target_": f"{package}.memory_encoder.MaskDownSampler",
                "embed_dim": WIDTH,
                "kernel_size": 3,
                "stride": 2,
                "padding": 1,
            },
            "fuser": {
                "_target_": f"{package}.memory_encoder.Fuser",
                "num_layers": 2,
                "layer": {
                    "_target_": f"{package}.memory_encoder.CXBlock",
                    "dim": WIDTH,
                    "kernel_size": 7,
                    "padding": 3,
                    "layer_scale_init_value": 0.1,
                    "use_dwconv": True,
                },
            },
        },
        "num_maskmem": 5,
        "image_size": IMAGE_SIZE,
        "sigmoid_scale_for_mem_enc": 20.0,
        "sigmoid_bias_for_mem_enc": -10.0,
        "use_mask_input_as_output_without_sam": True,
        "directly_add_no_mem_embed": True,
        "no_obj_embed_spatial": True,
        "use_high_res_features_in_sam": True,
        "multimask_output_in_sam": True,
        "iou_prediction_use_sigmoid": True,
        "use_obj_ptrs_in_encoder": True,
        "add_tpos_enc_to_obj_ptrs": True,
        "proj_tpos_enc_in_obj_ptrs": True,
        "use_signed_tpos_enc_to_obj_ptrs": True,
        "only_obj_ptrs_in_the_past_for_eval": True,
        "pred_obj_scores": True,
        "pred_obj_scores_mlp": True,
        "fixed_no_obj_ptr": True,
        "multimask_output_for_tracking": True,
        "use_multimask_token_for_obj_ptr": True,
        "multimask_min_pt_num": 0,
        "multimask_max_pt_num": 1,
        "use_mlp_for_obj_ptr_proj": True,
    }


def fresh_model(seed: int) -> SAM2Base:
    """The network before training. It stays in evaluation mode throughout: it has no dropout, and so what is trained
    is what runs later, to the choice of the mask and the binarised memory of a prompt.

    Two starts make the difference at this size. Weights are drawn with deviation 1/sqrt(fan_in). And attention begins
    by place: queries and keys between prompts and image start equal, so that a click looks at its own place, and
    those between image and memory share a constant, which their rotary encoding turns into nearness.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build_model(model_config()).eval()
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                fan_in = module.weight[0].numel()
                if isinstance(module, nn.ConvTranspose2d):  # kernel 2, stride 2: an output sees one input pixel
                    fan_in = module.in_channels
                nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(fan_in), a=-2.0, b=2.0)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(model.image_encoder.trunk.pos_embed_window, std=0.2)
        transformer = model.sam_mask_decoder.transformer
        for attention in (
            *(layer.cross_attn_token_to_image for layer in transformer.layers),
            *(layer.cross_attn_image_to_token for layer in transformer.layers),
            transformer.final_attn_token_to_image,
        ):
            attention.k_proj.weight.copy_(attention.q_proj.weight)
        for layer in model.memory_attention.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            for projection in (layer.cross_attn_image.q_proj, layer.cross_attn_image.k_proj):
                projection.bias[::2] = 3.0
        decoder = model.sam_mask_decoder
        for network in decoder.output_hypernetworks_mlps:
            network.layers[-1].weight *= 0.3
        decoder.iou_prediction_head.layers[-1].weight *= 0.3
        decoder.pred_obj_score_head.layers[-1].weight *= 0.3
    return model


def write_model(folder: Path, model: SAM2Base) -> None:
    """Writes what `load_sam2` reads: model.yaml, and model.safetensors in half precision, which it reads as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": model_config()}, sort_keys=False), encoding="utf-8")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
