"""Corrects the edges of a stream's published masks by the image (`tracking.edges`)."""

from __future__ import annotations

from dataclasses import replace

from decaf_ros.config import TrackingConfig
from decaf_ros.online.targets import label_image
from decaf_ros.segmentation.edges import Edges
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.types import FrameResult

# SAM 2 decodes masks at a quarter of its input's side.
_GRID_STEP = 4


class ImageEdges:
    """What is known of each target's colours. SAM 2's memory and the targets' states keep the masks as they were."""

    def __init__(self, sam2: Sam2) -> None:
        self._sam2 = sam2
        self._by_target: dict[int, Edges] = {}

    def correct(self, result: FrameResult, config: TrackingConfig) -> FrameResult:
        """The result on the next frame with corrected masks; as it is with `tracking.edges: model`."""
        if config.edges == "model":
            self._by_target = {}
            return result
        cell_px = max(result.frame.size_hw) * _GRID_STEP / self._sam2.image_size
        # A target that is lost begins anew when it is found again.
        self._by_target = {one.id: self._by_target.get(one.id) or Edges(cell_px) for one in result.targets}
        targets = tuple(
            replace(one, mask=self._by_target[one.id].correct(result.frame.image, one.mask)) for one in result.targets
        )
        return replace(result, labels=label_image(result.frame.size_hw, targets), targets=targets)
