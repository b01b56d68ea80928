"""The methods of the evaluation by name. To add one: a line in METHODS, and its module in this folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    # They import torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.config import DecafConfig
    from decaf_ros.evaluation.baselines.method import Method, Models

DECAF = "decaf"


class Entry(NamedTuple):
    """A method.

    Attributes:
        text: one line for people.
        factory: MODULE:FUNCTION in this folder; the function is called as `make_method` is.
        needs_heads: whether it reads a file of localization heads.
    """

    text: str
    factory: str
    needs_heads: bool = False


METHODS: Mapping[str, Entry] = {
    DECAF: Entry("the paper's method", "rollouts:make_decaf"),
    "rollout-mean": Entry("DecAF with the rollout of Abnar and Zuidema (2020), Tab. 5a", "rollouts:make_mean"),
    "rollout-max": Entry("DecAF with the rollout of VL-SAM (Lin et al., 2024), Tab. 5a", "rollouts:make_max"),
    "tam": Entry("the activation map of the answer's first token (Li et al., 2025)", "tam:make"),
    "native-all-frames": Entry("points that Qwen names on every frame, Tab. 9", "native:make_all_frames"),
    "native-first-frame": Entry("points on the first frame, propagated, Tab. 9", "native:make_first_frame"),
    "native-reference": Entry("points on the first key frame for what all show, Tab. 9", "native:make_reference"),
    "native-key-frames": Entry("points on each key frame, as DecAF prompts, Tab. 9", "native:make_key_frames"),
    "tam-best": Entry("TAM with the answer's best token by the truth, an upper bound (App. C)", "tam:make_best"),
    "loc-head": Entry(
        "maps of localization heads (Kang et al., 2025), DecAF's points for SAM 2", "loc_head:make", True
    ),
    "loc-head-box": Entry("Loc-Head with its own prompts, a box per key frame", "loc_head:make_box", True),
}


@dataclass(frozen=True)
class MethodSpec:
    """A method and its own settings. Picklable: workers make the method from it.

    Attributes:
        name: a key of METHODS.
        heads: file of localization heads, or a folder with NAME.yaml for each checkpoint; None: that in the
            checkpoint's folder.

    Raises:
        ValueError: another name, or heads for a method that reads none.
    """

    name: str = DECAF
    heads: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"--method: expected one of {', '.join(METHODS)}, got {self.name!r}")
        if self.heads is not None and not METHODS[self.name].needs_heads:
            raise ValueError(f"--heads: the method {self.name} reads none")

    @property
    def is_decaf(self) -> bool:
        """Whether it is the paper's own method, which alone has variants and runs on a live stream."""
        return self.name == DECAF

    def identity(self) -> dict[str, Any]:
        """JSON values that tell runs of this method from others; empty for DecAF."""
        if self.is_decaf:
            return {}
        if self.heads is None or not self.heads.is_file():
            return {"method": self.name}
        return {"method": self.name, "heads_sha256": hashlib.sha256(self.heads.read_bytes()).hexdigest()}


DECAF_SPEC = MethodSpec()


def make_method(models: Models, config: DecafConfig, spec: MethodSpec) -> Method:
    """The method with these models. A baseline always answers: "not found" is no part of it.

    Raises ValueError or OSError if it cannot run: a configuration, family or file that it needs is not there.
    """
    from decaf_ros.config import replace

    if not spec.is_decaf:
        config = replace(config, {"segmentation.fallback": "best", "presence.threshold": 0.0})
    module, _, function = METHODS[spec.name].factory.partition(":")
    make: Callable[[Models, DecafConfig, MethodSpec], Method] = getattr(
        import_module(f"decaf_ros.evaluation.baselines.{module}"), function
    )
    return make(models, config, spec)


def load_models(config: DecafConfig) -> Models:
    """Loads both models. Raises the same errors as `load_mllm` and `load_sam2`."""
    from decaf_ros.evaluation.baselines.method import Models
    from decaf_ros.grounding.loading import load_mllm
    from decaf_ros.segmentation.sam2_loading import load_sam2

    return Models(load_mllm(config.mllm), load_sam2(config.sam2, config.segmentation.fill_holes_px))
