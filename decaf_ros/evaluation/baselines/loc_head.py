"""Loc-Head as a method: the summed maps of a few selected heads, on every key frame by itself.

The heads' maps are smoothed as their paper does it, with DecAF's kernel of the same size (7 tokens, deviation 1), and
summed. `loc-head` prompts SAM 2 with DecAF's points, as Tab. 2 does; `loc-head-box` with its authors' box, that of the
largest convex hull. The mask of the map alone is that hull.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.evaluation.baselines.head_files import HeadFile, check_fits, find_heads, read_heads
from decaf_ros.evaluation.baselines.loc_head_maps import head_maps
from decaf_ros.evaluation.baselines.method import Models
from decaf_ros.evaluation.baselines.registry import MethodSpec
from decaf_ros.grounding.fusion import FRAME_KERNEL, fuse, min_max, smooth
from decaf_ros.grounding.grounder import Grounder, OtherQueries, frame_views
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.grounding.prompts import object_prompt
from decaf_ros.grounding.views import ReadOptions
from decaf_ros.pipeline import Decaf
from decaf_ros.resources import resolve_path
from decaf_ros.segmentation.hulls import hull_masks
from decaf_ros.stages import StageClock, Steps
from decaf_ros.types import AttentionMaps, Grounding, Window


class LocHead(Grounder):
    """Grounds queries with the maps of selected heads. found: the heads, of this model."""

    def __init__(self, mllm: Mllm, config: EngineConfig, found: HeadFile) -> None:
        super().__init__(mllm, config)
        self.heads = found.heads
        self.lowest = min(head.layer for head in found.heads)

    def ground(
        self, window: Window, query: str, config: DecafConfig, clock: StageClock, others: OtherQueries = tuple
    ) -> Steps[Grounding]:
        """As `Grounder.ground`, from the frame branch alone, without an answer. Each frame's map is scaled to [0, 1]
        by itself. Raises ValueError as it does, or if the family records no attention."""
        options = config.grounding
        text = object_prompt(query, options.object_prompt, options.wording)
        views = frame_views(self.mllm, window)
        self.engine.new_round(views, text)
        maps = yield from clock.run("frames_object", self.engine.read(views, text, ReadOptions(self.lowest), head_maps))
        if options.number == "ask":
            clock.start("questions")
        means_several = self.means_several(query, options)
        clock.start("fusion")
        fused = fuse(None, min_max(np.stack([self.combined(one) for one in maps]), per_frame=True), len(window))
        clock.pause()
        return Grounding(AttentionMaps(fused), means_several=means_several)

    def combined(self, maps: np.ndarray) -> np.ndarray:
        """The sum of the selected heads' smoothed maps, (h, w) float32. maps: (L, H, 1, h, w), from the lowest layer
        with a selected head."""
        chosen = np.stack([maps[head.layer - self.lowest, head.head, 0] for head in self.heads])
        return np.asarray(smooth(chosen, FRAME_KERNEL).sum(axis=0))


def model_shape(mllm: Mllm) -> tuple[str, int, int]:
    """Type of a model, number of its layers and of the heads in each."""
    model: Any = mllm.model
    text = model.get_decoder().config
    return str(model.config.model_type), mllm.layers, int(text.num_attention_heads)


def heads_of(mllm: Mllm, config: DecafConfig, given: Path | None) -> HeadFile:
    """The heads of the configured checkpoint. Raises FileNotFoundError or ValueError as `read_heads`, `check_fits`."""
    file = find_heads(given, Path(resolve_path(config.mllm.checkpoint)))
    found = read_heads(file)
    check_fits(file, found, *model_shape(mllm))
    return found


def make(models: Models, config: DecafConfig, spec: MethodSpec) -> Decaf:
    """Loc-Head with DecAF's prompting of SAM 2."""
    grounder = LocHead(models.mllm, config.engine, heads_of(models.mllm, config, spec.heads))
    return Decaf(models.mllm, models.sam2, config, grounder, hull_masks)


def make_box(models: Models, config: DecafConfig, spec: MethodSpec) -> Decaf:
    """Loc-Head with its own box prompts."""
    return make(models, replace(config, {"segmentation.prompt": "box"}), spec)
