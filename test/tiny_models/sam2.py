"""A tiny SAM 2 of the real architecture for tests and benchmarks: random weights, some set by hand.

Nothing is learnt, so it does not show the accuracy of SAM 2. Purely random weights would give masks that cover
everything or nothing. With the hand-set weights a point's mask is a ragged blob around the point, and a mask keeps its
place in the image from frame to frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base

from decaf_ros.segmentation.sam2_loading import build_model
from decaf_tabletop.training.sam2_shape import Sam2Shape, sam2_config

IMAGE_SIZE, WIDTH, MEMORY_WIDTH = 256, 64, 32

# Channels (of 64) used by the hand-set weights: 16 sines and 16 cosines of the random position code, and two others.
# HERE is positive where the object is (image tokens); MARKER is large in the token of a point.
POSITION = (*range(16), *range(32, 48))
HERE, MARKER = 16, 17


def model_config() -> dict[str, Any]:
    """The `model` section of sam2.1_hiera_t, smaller in every configurable dimension."""
    return sam2_config(
        Sam2Shape(
            width=WIDTH,
            memory_width=MEMORY_WIDTH,
            trunk_widths=(16, 32, 64, 128),
            stages=(1, 1, 2, 1),
            windows=(8, 4, 8, 4),
            global_blocks=(3,),
            feedforward=2 * WIDTH,
            fuser_layers=1,
            layer_scale=1e-6,
            memories=7,
            image_size=IMAGE_SIZE,
        )
    )


def write_tiny_sam2(folder: Path, seed: int = 0) -> Path:
    """Writes model.yaml and model.safetensors (5.5 MB, image_size 256), and returns the folder, for `load_sam2`."""
    config = model_config()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config).eval()
        _wire_prompts(model)
        _wire_memory(model)
        _wire_masks(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": config}, sort_keys=False), encoding="utf-8")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def _wire_prompts(model: SAM2Base) -> None:
    """A point writes to HERE around itself: image tokens attend to tokens of similar position and read MARKER there."""
    prompts, decoder = model.sam_prompt_encoder, model.sam_mask_decoder
    for level in model.image_encoder.neck.convs:
        _clear_rows(level.conv, [*POSITION, HERE])
    tokens = (decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens, prompts.not_a_point_embed)
    for embedding in (*tokens, prompts.point_embeddings[1], prompts.no_mask_embed):
        embedding.weight[:, [*POSITION, HERE, MARKER]] = 0
    model.no_mem_embed[..., [*POSITION, HERE]] = 0
    prompts.point_embeddings[1].weight[:, MARKER] = 8
    heads = torch.tensor(POSITION).reshape(2, 8, 2).permute(1, 0, 2).reshape(-1)  # 8 heads of 2 sines and 2 cosines
    for layer, seen in zip(decoder.transformer.layers, (1.0, 0.0)):
        self_attention = layer.self_attn
        for projection in (
            self_attention.q_proj,
            self_attention.k_proj,
            self_attention.v_proj,
            self_attention.out_proj,
        ):
            _set(projection, torch.eye(WIDTH) * 1.5)  # a token attends to itself, so the point's token keeps its value
        cross = layer.cross_attn_image_to_token
        select = torch.zeros(len(heads), WIDTH)
        select[torch.arange(len(heads)), heads] = 2.5
        _set(cross.q_proj, select)
        _set(cross.k_proj, select)
        read, write = torch.zeros(len(heads), WIDTH), torch.zeros(WIDTH, len(heads))
        read[::4, MARKER] = 1
        write[HERE, ::4] = seen / 8
        _set(cross.v_proj, read)
        _set(cross.out_proj, write, -3.6 * seen * torch.eye(WIDTH)[HERE])


def _wire_memory(model: SAM2Base) -> None:
    """The first channel of the memory is the mask, -1 or 1; memory attention copies it to HERE at the same place."""
    encoder = model.memory_encoder
    flat = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1).expand(-1, 1, IMAGE_SIZE, IMAGE_SIZE) * 10
    inside, outside = encoder.mask_downsampler(flat)[:, :, 8, 8]
    contrast = inside - outside
    encoder.pix_feat_proj.weight *= 0.1
    encoder.out_proj.weight[0, :, 0, 0] = 2 * contrast / contrast.square().sum()
    encoder.out_proj.bias[0] = -((inside + outside) @ contrast) / contrast.square().sum()
    # The second channel separates frames (100) from object pointers (0), which have no position.
    _clear_rows(encoder.out_proj, [1])
    encoder.out_proj.bias[1] = 100
    _clear_rows(model.obj_ptr_proj.layers[-1], range(WIDTH))
    _clear_rows(model.obj_ptr_tpos_proj, [1])
    for layer in model.memory_attention.layers:
        attention = layer.cross_attn_image
        # Constant queries and keys, so only the rotary encoding matters: the fast rotations of x and of y. The mask
        # downsampler's strides are 7.5 of 16 pixels up and left of a cell's centre; the queries compensate for this.
        pairs = torch.tensor([*range(6), *range(WIDTH // 4, WIDTH // 4 + 6)])
        phase = 7.5 / 16 * 10000.0 ** (-(pairs % (WIDTH // 4)) / (WIDTH // 4))
        query, key = torch.zeros(WIDTH), torch.zeros(WIDTH)
        query[2 * pairs], query[2 * pairs + 1], key[2 * pairs] = 6 * phase.cos(), 6 * phase.sin(), 6
        _set(attention.q_proj, torch.zeros_like(attention.q_proj.weight), query)
        _set(attention.k_proj, key[:, None] * torch.eye(MEMORY_WIDTH)[1] / 100)
        read, write = torch.zeros_like(attention.v_proj.weight), torch.zeros_like(attention.out_proj.weight)
        read[0, 0] = 1
        write[HERE, 0] = 8
        _set(attention.v_proj, read)
        _set(attention.out_proj, write, 3.8 * torch.eye(WIDTH)[HERE])


def _wire_masks(model: SAM2Base) -> None:
    """A mask covers HERE above a threshold, roughened by random image features; every object is visible."""
    decoder = model.sam_mask_decoder
    coarse, _, _, fine, _ = decoder.output_upscaling
    for layer, source in ((coarse, HERE), (fine, 0)):
        layer.weight[:, 0] = 0
        layer.weight[source, 0] = 1
        layer.bias[0] = 0
    fine.weight[:, 7] = 0
    fine.bias[7] = 1
    _clear_rows(decoder.conv_s1, [0])
    _clear_rows(decoder.conv_s0, [0, 7])
    for threshold, network in zip((1.0, 0.8, 1.2, 1.6), decoder.output_hypernetworks_mlps):
        network.layers[-1].bias[0] = 2
        network.layers[-1].bias[7] = -2 * threshold
    decoder.iou_prediction_head.layers[-1].weight *= 8
    decoder.iou_prediction_head.layers[-1].bias.fill_(2)
    decoder.pred_obj_score_head.layers[-1].bias.fill_(4)


def _set(layer: torch.nn.Linear, weight: torch.Tensor, bias: torch.Tensor | float = 0.0) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(torch.as_tensor(bias))


def _clear_rows(layer: torch.nn.Module, rows: Iterable[int]) -> None:
    """Sets the output channels `rows` to 0."""
    layer.weight[list(rows)] = 0
    layer.bias[list(rows)] = 0
