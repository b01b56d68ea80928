"""Small configurations of SAM 2's published classes: sam2.1_hiera_t in other sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sam2Shape:
    """Sizes of the network.

    Attributes:
        width: channels of the image embedding.
        memory_width: channels of a memory.
        trunk_widths: channels of Hiera's four stages.
        stages: blocks in each stage.
        windows: attention window of each stage.
        global_blocks: indices of the blocks with global attention.
        feedforward: hidden channels of a memory attention layer.
        fuser_layers: layers of the memory encoder's fuser.
        layer_scale: initial layer scale of the fuser.
        memories: number of remembered frames.
        image_size: side of the square input in pixels.
    """

    width: int
    memory_width: int
    trunk_widths: tuple[int, int, int, int]
    stages: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    feedforward: int
    fuser_layers: int
    layer_scale: float
    memories: int
    image_size: int = 256


def sam2_config(shape: Sam2Shape) -> dict[str, Any]:
    """The `model` section of a checkpoint's model.yaml."""
    package = "sam2.modeling"
    grid = shape.image_size // 16

    def position(features: int) -> dict[str, Any]:
        target = f"{package}.position_encoding.PositionEmbeddingSine"
        return {"_target_": target, "num_pos_feats": features, "normalize": True, "scale": None, "temperature": 10000}

    def attention(**extra: Any) -> dict[str, Any]:
        return {
            "_target_": f"{package}.sam.transformer.RoPEAttention",
            "rope_theta": 10000.0,
            "feat_sizes": [grid, grid],
            "embedding_dim": shape.width,
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
                "embed_dim": shape.trunk_widths[0],
                "num_heads": 1,
                "stages": list(shape.stages),
                "window_spec": list(shape.windows),
                "global_att_blocks": list(shape.global_blocks),
                "window_pos_embed_bkg_spatial_size": [7, 7],
            },
            "neck": {
                "_target_": f"{package}.backbones.image_encoder.FpnNeck",
                "position_encoding": position(shape.width),
                "d_model": shape.width,
                "backbone_channel_list": list(reversed(shape.trunk_widths)),
                "fpn_top_down_levels": [2, 3],
                "fpn_interp_model": "nearest",
            },
        },
        "memory_attention": {
            "_target_": f"{package}.memory_attention.MemoryAttention",
            "d_model": shape.width,
            "pos_enc_at_input": True,
            "num_layers": 2,
            "layer": {
                "_target_": f"{package}.memory_attention.MemoryAttentionLayer",
                "activation": "relu",
                "dim_feedforward": shape.feedforward,
                "dropout": 0.0,
                "d_model": shape.width,
                "pos_enc_at_attn": False,
                "pos_enc_at_cross_attn_keys": True,
                "pos_enc_at_cross_attn_queries": False,
                "self_attention": attention(),
                "cross_attention": attention(rope_k_repeat=True, kv_in_dim=shape.memory_width),
            },
        },
        "memory_encoder": {
            "_target_": f"{package}.memory_encoder.MemoryEncoder",
            "in_dim": shape.width,
            "out_dim": shape.memory_width,
            "position_encoding": position(shape.memory_width),
            "mask_downsampler": {
                "_target_": f"{package}.memory_encoder.MaskDownSampler",
                "embed_dim": shape.width,
                "kernel_size": 3,
                "stride": 2,
                "padding": 1,
            },
            "fuser": {
                "_target_": f"{package}.memory_encoder.Fuser",
                "num_layers": shape.fuser_layers,
                "layer": {
                    "_target_": f"{package}.memory_encoder.CXBlock",
                    "dim": shape.width,
                    "kernel_size": 7,
                    "padding": 3,
                    "layer_scale_init_value": shape.layer_scale,
                    "use_dwconv": True,
                },
            },
        },
        "num_maskmem": shape.memories,
        "image_size": shape.image_size,
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
