"""Compares a checkpoint as this package runs it with the model's own code: `decaf doctor --checkpoint-check`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from decaf_ros.config import DecafConfig
from decaf_ros.doctor.findings import NOT_CHECKED, OK, WRONG, Finding

if TYPE_CHECKING:
    from decaf_ros.grounding.mllm import Mllm
    from decaf_ros.grounding.views import View

_TEXT = "Name one thing that stands on a table."
_PICTURE_TEXT = "What is in this picture?"
_TOKENS = 8
# Largest difference of two maps, as a share of their peak: both kernels sum in float32, in another order.
_KERNEL_TOLERANCE = 1e-2
_MEND = (
    "a near tie may flip in bfloat16: try --set mllm.dtype=float32; if it stays, report the checkpoint and its versions"
)


def check_checkpoint(config: DecafConfig) -> Iterator[Finding]:
    """Loads the MLLM. End token, answers and next tokens against its own `generate` and forward pass, with a text and
    with a picture; on CUDA also the rollout in Triton against the one in torch.

    Raises FileNotFoundError or ValueError for a checkpoint that cannot be loaded.
    """
    from decaf_ros.grounding.loading import load_mllm
    from decaf_ros.grounding.mllm import end_tokens

    mllm = load_mllm(replace(config.mllm, local_files_only=True))
    ends = mllm.tokenizer.convert_ids_to_tokens(end_tokens(mllm))
    yield Finding("end token", OK, ", ".join(ends))
    prompt = mllm.prompt(None, _TEXT)
    yield from _compared(mllm, None, _TEXT, {"input_ids": prompt.ids[None]}, "text")
    view = _view(mllm)
    inputs = _processed(mllm, view, _PICTURE_TEXT)
    ours = mllm.prompt(view.layout, _PICTURE_TEXT).ids
    if inputs["input_ids"].shape[1] != len(ours) or not bool((inputs["input_ids"][0] == ours).all()):
        reason = f"{type(mllm).__name__} shows the model fewer tokens than its processor does, on purpose"
        yield Finding("answer to a picture", NOT_CHECKED, reason)
    else:
        yield from _compared(mllm, view, _PICTURE_TEXT, inputs, "picture")
    yield from _kernels(mllm, view)


def _compared(mllm: Mllm, view: View | None, text: str, inputs: dict[str, Any], kind: str) -> Iterator[Finding]:
    """Next token and greedy answer. inputs: of the model's own code."""
    import torch

    from decaf_ros.config import EngineConfig
    from decaf_ros.grounding.engine import Engine
    from decaf_ros.grounding.mllm import forward
    from decaf_ros.grounding.views import ReadOptions
    from decaf_ros.stages import finish

    model: Any = mllm.model
    prompt = mllm.prompt(view.layout if view else None, text)
    features = [mllm.encode(view.layout, _images(view))] if view else [()]
    ours = forward(model, mllm.embed(prompt.ids, prompt.slots, features), prompt.positions, None, mllm.layers, True)
    assert ours.logits is not None
    with torch.inference_mode():
        theirs = model(**inputs, logits_to_keep=1).logits[:, -1]
        attended = {"attention_mask": torch.ones_like(inputs["input_ids"])} | inputs
        tokens = model.generate(**attended, max_new_tokens=_TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    decode = mllm.tokenizer.decode
    yield _equal(f"next token after a {kind}", decode(ours.logits.argmax()), decode(theirs.argmax()))
    engine = Engine(mllm, EngineConfig())
    if view is None:
        answer = finish(engine.answer(text, _TOKENS)).text
    else:
        options = ReadOptions(mllm.layers // 2, max_new_tokens=_TOKENS)
        answer = finish(engine.ask([view], [text], options))[0][0].answer
    yield _equal(f"answer to a {kind}", answer, _one_line(decode(tokens, skip_special_tokens=True)))


def _equal(name: str, ours: str, theirs: str) -> Finding:
    if ours == theirs:
        return Finding(name, OK, f"{ours!r}, as the model's own code gives it")
    return Finding(name, WRONG, f"expected the model's own {theirs!r}, got {ours!r}", _MEND)


def _one_line(text: str) -> str:
    """As `decode` cleans an answer."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _view(mllm: Mllm) -> View:
    """One frame in exactly the size that the model sees, so that nothing is resized: noise over a gradient."""
    from decaf_ros.grounding.views import View
    from decaf_ros.types import Frame

    vision: Any = mllm.model.config.vision_config
    if hasattr(vision, "spatial_merge_size"):
        side = vision.patch_size * vision.spatial_merge_size
        size = (480, 640)
        # The grid of a picture of just this grid's size may be another one; after a few steps it is the largest.
        for _ in range(10):
            size = _scaled(mllm.layout("frames", 1, size).grid, side)
    else:
        # One tile.
        tile = vision.image_size[0] if isinstance(vision.image_size, (list, tuple)) else vision.image_size
        size = (tile, tile)
    rows, columns = size
    rng = np.random.default_rng(0)
    picture = np.linspace(0, 200, columns)[None, :, None] + rng.integers(0, 56, (rows, columns, 3))
    return View(mllm.layout("frames", 1, (rows, columns)), (Frame(picture.astype(np.uint8), 1),))


def _scaled(grid: tuple[int, int, int], side: int) -> tuple[int, int]:
    return grid[1] * side, grid[2] * side


def _images(view: View) -> np.ndarray:
    return np.stack([np.stack([frame.image for frame in unit]) for unit in view.units])


def _processed(mllm: Any, view: View, text: str) -> dict[str, Any]:
    """The output of the family's processor for the view and the text, on the model's device."""
    import torch

    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    system = getattr(sys.modules[type(mllm).__module__], "SYSTEM_PROMPT", None)
    if system is not None:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    chat = mllm.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    picture = torch.from_numpy(view.frames[0].image).permute(2, 0, 1)
    # The processors of the Qwen families have bounds of their own.
    as_it_is = {"do_resize": False} if hasattr(mllm.model.config.vision_config, "spatial_merge_size") else {}
    inputs = mllm.processor(text=[chat], images=[picture], return_tensors="pt", **as_it_is).to(mllm.model.device)
    if mllm.prompt(None, text).positions.ndim == 1:
        # Unused with one-dimensional positions, and `generate` refuses it.
        inputs.pop("mm_token_type_ids", None)
    return {
        name: value.to(mllm.model.dtype) if torch.is_floating_point(value) else value for name, value in inputs.items()
    }


def _kernels(mllm: Mllm, view: View) -> Iterator[Finding]:
    """The rollout's two implementations on the same attention."""
    from decaf_ros.config import EngineConfig
    from decaf_ros.grounding.engine import Engine
    from decaf_ros.grounding.views import ReadOptions
    from decaf_ros.stages import finish

    name = "Triton against torch"
    if mllm.model.device.type != "cuda":
        yield Finding(name, NOT_CHECKED, f"the model is on {mllm.model.device}; Triton needs CUDA")
        return
    maps = [
        # An engine of its own: a prefix keeps the statistics of its first rollout.
        finish(Engine(mllm, EngineConfig()).ask([view], [_PICTURE_TEXT], ReadOptions(mllm.layers // 2, kernel=kernel)))[
            0
        ][0].map
        for kernel in ("torch", "triton")
    ]
    difference = float(np.abs(maps[0] - maps[1]).max() / maps[0].max())
    text = f"largest difference {difference:.1e} of the peak"
    if difference <= _KERNEL_TOLERANCE:
        yield Finding(name, OK, text)
    else:
        yield Finding(name, WRONG, text, "set grounding.rollout_kernel to torch, and report GPU, driver and versions")
