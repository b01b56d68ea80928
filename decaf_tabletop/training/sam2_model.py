"""The table's SAM 2: the published classes in a small configuration, its initialisation, and its files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base
from torch import nn

from decaf_ros.segmentation.sam2_loading import build_model
from decaf_tabletop.training.sam2_shape import Sam2Shape, sam2_config

IMAGE_SIZE, WIDTH, MEMORY_WIDTH = 256, 96, 32
TRUNK_WIDTHS = (32, 64, 128, 256)


def model_config() -> dict[str, Any]:
    """The `model` section: sam2.1_hiera_t with smaller widths and depths, and five memories instead of seven."""
    return sam2_config(
        Sam2Shape(
            width=WIDTH,
            memory_width=MEMORY_WIDTH,
            trunk_widths=TRUNK_WIDTHS,
            stages=(1, 2, 4, 1),
            windows=(8, 8, 8, 8),
            global_blocks=(4, 6),
            feedforward=4 * WIDTH,
            fuser_layers=2,
            layer_scale=0.1,
            memories=5,
            image_size=IMAGE_SIZE,
        )
    )


def fresh_model(seed: int) -> SAM2Base:
    """The network before training.

    It stays in evaluation mode: it has no dropout, and training then runs the same code as the node, including the
    choice of the mask and the binarised memory of a prompt.

    Two initialisations matter at this size. Weights have standard deviation 1/sqrt(fan_in). Attention is local at
    first: queries and keys between prompts and image start equal, so a click attends to its own position, and those
    between image and memory share a constant bias, which the rotary encoding turns into proximity. This leaves little
    attention for the object pointers, which carry next to nothing in the trained checkpoint.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build_model(model_config()).eval()
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                fan_in = module.weight[0].numel()
                if isinstance(module, nn.ConvTranspose2d):  # kernel 2, stride 2: one input pixel per output
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
    """Writes model.yaml and model.safetensors, in half precision, for `load_sam2`, which reads them as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": model_config()}, sort_keys=False), encoding="utf-8")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
