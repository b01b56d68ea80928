"""Corrects the edges of a stream's published masks by the image (`tracking.edges`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from decaf_ros.config import TrackingConfig
from decaf_ros.online.targets import label_image
from decaf_ros.segmentation.edges import Edges
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.types import FrameResult, TargetState

# SAM 2 decodes masks at a quarter of its input's side.
_GRID_STEP = 4


class ImageEdges:
    """Knows each target's colours. SAM 2's memory and the targets' states keep the masks as they were."""

    def __init__(self, sam2: Sam2) -> None:
        self._sam2 = sam2
        # By target and its memory in the tracker: a new memory, as of a target that is found again, begins anew.
        self._known: dict[tuple[int, int], Edges] = {}

    def correct(
        self, result: FrameResult, evidence: Mapping[int, tuple[int, bool]], config: TrackingConfig
    ) -> FrameResult:
        """The result on the next frame with corrected masks; as it is with `tracking.edges: model`.

        evidence: as of `Targets.evidence`.
        """
        if config.edges == "model":
            self._known = {}
            return result
        cell_px = max(result.frame.size_hw) * _GRID_STEP / self._sam2.image_size
        known, targets = {}, []
        for target in result.targets:
            if target.state is not TargetState.LOST:
                key, is_sure = evidence[target.id]
                edges = known[target.id, key] = self._known.get((target.id, key)) or Edges(cell_px)
                frame = result.frame
                target = replace(target, mask=edges.correct(frame.image, target.mask, frame.stamp_ns, is_sure))
            targets.append(target)
        self._known = known
        return replace(result, labels=label_image(result.frame.size_hw, targets), targets=tuple(targets))
