"""A tiny model, random frames and views of them, and records of the engine's work."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import Mllm, forward
from decaf_ros.grounding.views import View
from decaf_ros.types import Frame

TEXTS = ["What is meant by the red ball?", "Describe the surroundings of it, and nothing else."]


def load_tiny(folder: Path) -> Mllm:
    options = {"local_files_only": True, "device": "cpu", "video_tokens": 48, "dtype": "float32"}
    return load_mllm(MllmConfig(str(folder), **options))


def random_frames() -> tuple[Frame, ...]:
    rng = np.random.default_rng(0)
    return tuple(Frame(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), i + 1, "cam", i) for i in range(9))


def views(mllm, frames, kind):
    """One view of all frames (video), or one of each (frames)."""
    if kind == "video":
        return [View(mllm.layout("video", len(frames), frames[0].size_hw), frames)]
    layout = mllm.layout("frames", 1, frames[0].size_hw)
    return [View(layout, (frame,)) for frame in frames]


def record_encoding(monkeypatch, mllm):
    """Records every call of the vision tower as (kind, number of units)."""
    calls, encode = [], mllm.encode

    def recording_encode(layout, images):
        calls.append((layout.kind, len(images)))
        return encode(layout, images)

    monkeypatch.setattr(mllm, "encode", recording_encode)
    return calls


def record_passes(monkeypatch):
    """Records the length of every pass through the language model, prefix or suffix."""
    lengths = []

    def counted(model, inputs, *args, **kwargs):
        lengths.append(inputs["inputs_embeds"].shape[1])
        return forward(model, inputs, *args, **kwargs)

    monkeypatch.setattr("decaf_ros.grounding.prefix.forward", counted)
    return lengths
