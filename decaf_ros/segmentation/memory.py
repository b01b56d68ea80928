"""Follows K objects prompted on one frame with SAM 2's memory attention, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.segmentation.sam2 import FrameEmbedding, Sam2
from decaf_ros.stages import Steps, finish
from decaf_ros.types import Frame


class StepMasks(NamedTuple):
    """Result of one step, on the model's device.

    logits: (K, h, w) float32 on the mask grid, > 0 inside; masks may overlap.
    object_score: (K,) float32, object-presence logit, > 0: seen.
    size_hw: size of the image.
    """

    logits: torch.Tensor
    object_score: torch.Tensor
    size_hw: tuple[int, int]

    @property
    def masks(self) -> torch.Tensor:
        """(K, H, W) bool at the image size, empty for an unseen object; made at each call."""
        return masks_of_size(self.logits, self.size_hw)


class ObjectMemory:
    """SAM 2's memory of K objects, conditioned on their masks on one frame and batched through the network.

    Reproduces SAM2VideoPredictor's `add_new_mask` and `propagate_in_video` without the whole clip in memory: a frame's
    memory is dropped once no later step can attend to it. Two uses:

    - Stream: steps go forwards without end; the last `reach` frames are kept.
    - Clip of known length: step to its end, `rewind`, then step backwards from the conditioning frame to the first
      frame. Backward steps attend to forward memories, so the first `reach` of these are kept until then.
    """

    def __init__(self, sam2: Sam2, size_hw: tuple[int, int], index: int, num_frames: int | None) -> None:
        """Use `start` instead."""
        self._sam2 = sam2
        self._size_hw = size_hw
        self._source = self._index = index
        self._num_frames = num_frames
        self._reverse = False
        model = sam2.model
        self._feature_reach = model.num_maskmem * model.memory_temporal_stride_for_eval
        self.reach: int = max(self._feature_reach, model.max_obj_ptrs_in_encoder)
        self._bank: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        self._position: torch.Tensor  # set by `_condition`
        self.latest: StepMasks

    @classmethod
    def start(
        cls,
        sam2: Sam2,
        embedding: FrameEmbedding,
        masks: torch.Tensor,
        index: int = 0,
        num_frames: int | None = None,
    ) -> ObjectMemory:
        """Prompts SAM 2 with masks on one frame; `latest` then holds its masks for that frame.

        Args:
            masks: (K, H, W) bool, K >= 1, at the size of the embedded image; an empty mask is an unseen object.
            index: the frame's index in the clip; 0 for a stream.
            num_frames: length of the clip; None for a stream.

        Raises:
            TypeError: masks are not bool.
            ValueError: masks of another shape, or an index outside the clip.
        """
        if masks.dtype != torch.bool:
            raise TypeError(f"masks: expected a bool tensor, got {masks.dtype}")
        if masks.ndim != 3 or len(masks) == 0 or tuple(masks.shape[1:]) != embedding.size_hw:
            raise ValueError(f"masks: expected shape (K >= 1, {embedding.size_hw}), got {tuple(masks.shape)}")
        if not 0 <= index < (num_frames or sys.maxsize):
            raise ValueError(f"index: expected a frame of the clip of {num_frames} frames, got {index}")
        memory = cls(sam2, embedding.size_hw, index, num_frames)
        memory._condition(embedding, masks)
        return memory

    def __len__(self) -> int:
        return len(self.latest.logits)

    def step(self, embedding: FrameEmbedding) -> StepMasks:
        """Follows the objects to the next frame, after `rewind` to the previous one.

        Raises ValueError for an image of another size and beyond the ends of the clip.
        """
        index = self._index - 1 if self._reverse else self._index + 1
        if not 0 <= index < (self._num_frames or sys.maxsize):
            raise ValueError(f"step: frame {index} lies outside the clip of {self._num_frames} frames")
        if embedding.size_hw != self._size_hw:
            raise ValueError(f"step: expected an image of size {self._size_hw}, got {embedding.size_hw}")
        with self._sam2.inference():
            output = self._track(embedding, index, mask_prompts=None)
            self._index = index
            entry = self._entry(output["maskmem_features"], output["maskmem_pos_enc"], output["obj_ptr"])
            self._bank["non_cond_frame_outputs"][index] = entry
            self._forget()
            logits = self._sam2.filled(output["pred_masks"])
            self._set_latest(logits, output["object_score_logits"])
        return self.latest

    def rewind(self) -> None:
        """Returns to the conditioning frame; `step` then goes backwards. Raises ValueError for a stream or twice."""
        if self._num_frames is None or self._reverse:
            raise ValueError("rewind: expected a clip that has not been rewound yet")
        self._reverse = True
        self._index = self._source
        self._forget()

    def keep(self, objects: Sequence[int]) -> None:
        """Drops all but these objects, given by their batch index (0..K-1); at least one."""
        with torch.inference_mode():
            chosen = torch.tensor(objects, device=self._sam2.device)
            for entry in (*self._bank["cond_frame_outputs"].values(), *self._bank["non_cond_frame_outputs"].values()):
                entry.update({name: entry[name][chosen] for name in ("maskmem_features", "obj_ptr") if name in entry})
                entry["maskmem_pos_enc"] = [self._position.expand(len(chosen), -1, -1, -1)]
            latest = self.latest
            self.latest = StepMasks(latest.logits[chosen], latest.object_score[chosen], self._size_hw)

    def reject(self, objects: Sequence[int]) -> None:
        """Replaces the memory of the last step by that of the step before, for these objects (0..K-1)."""
        outputs = self._bank["non_cond_frame_outputs"]
        latest = outputs.get(self._index)
        if latest is None:
            return
        before = outputs.get(self._index - 1) or self._bank["cond_frame_outputs"][self._source]
        with torch.inference_mode():
            for name in ("maskmem_features", "obj_ptr"):
                if name in before:
                    latest[name] = latest[name].clone()
                    latest[name][list(objects)] = before[name][list(objects)]

    def _condition(self, embedding: FrameEmbedding, masks: torch.Tensor) -> None:
        """As the published predictor's `add_new_mask` and the memory encoding at the start of its propagation: from the
        binarised low-resolution mask."""
        sam2, model = self._sam2, self._sam2.model
        square = (sam2.image_size, sam2.image_size)
        with sam2.inference():
            resized = partial(F.interpolate, size=square, mode="bilinear", align_corners=False, antialias=True)
            # One by one: as numbers, the masks take four times their memory.
            prompts = torch.cat([resized(mask[None, None].float()) for mask in masks])
            output = self._track(embedding, self._index, (prompts >= 0.5).float())
            logits = sam2.filled(output["pred_masks"])
            features, positions = model._encode_new_memory(
                current_vision_feats=_batched(embedding, len(masks)),
                feat_sizes=_sizes(embedding),
                pred_masks_high_res=F.interpolate(logits, square, mode="bilinear", align_corners=False),
                object_score_logits=output["object_score_logits"],
                is_mask_from_pts=True,
            )
            self._position = positions[-1][:1].clone()
            self._bank["cond_frame_outputs"][self._index] = self._entry(features, positions, output["obj_ptr"])
            self._set_latest(logits, output["object_score_logits"])

    def _track(self, embedding: FrameEmbedding, index: int, mask_prompts: torch.Tensor | None) -> dict[str, Any]:
        """One `track_step` of all objects. Encodes the memory, except on the conditioning frame."""
        count = len(self) if mask_prompts is None else len(mask_prompts)
        features = _batched(embedding, count)
        position = embedding.position.flatten(2).permute(2, 0, 1).expand(-1, count, -1)
        output: dict[str, Any] = self._sam2.model.track_step(
            frame_idx=index,
            is_init_cond_frame=mask_prompts is not None,
            current_vision_feats=features,
            current_vision_pos_embeds=[position],
            feat_sizes=_sizes(embedding),
            point_inputs=None,
            mask_inputs=mask_prompts,
            output_dict=self._bank,
            num_frames=self._num_frames or sys.maxsize,
            track_in_reverse=self._reverse,
            run_mem_encoder=mask_prompts is None,
        )
        return output

    def _entry(self, features: torch.Tensor, positions: list[torch.Tensor], pointer: torch.Tensor) -> dict[str, Any]:
        """One frame's input to memory attention. Features in bfloat16, as in the published predictor; all frames and
        objects share one copy of the position encoding."""
        position = self._position.expand(len(features), -1, -1, -1)
        return {"maskmem_features": features.bfloat16(), "maskmem_pos_enc": [position], "obj_ptr": pointer}

    def _forget(self) -> None:
        """Drops frames that no later step attends to, and the features where only the object pointer is still used."""
        outputs = self._bank["non_cond_frame_outputs"]
        for index in list(outputs):
            distance = abs(index - self._index)
            if self._num_frames is not None and not self._reverse:
                distance = min(distance, index - self._source)  # backward steps begin at the source
            if distance >= self.reach:
                del outputs[index]
            elif distance >= self._feature_reach:
                outputs[index].pop("maskmem_features", None)

    def _set_latest(self, logits: torch.Tensor, object_score: torch.Tensor) -> None:
        self.latest = StepMasks(logits[:, 0].float(), object_score.float()[:, 0], self._size_hw)


def propagate(sam2: Sam2, frames: Sequence[Frame], source: int, masks: torch.Tensor) -> torch.Tensor:
    """As `propagate_steps`, at once."""
    return finish(propagate_steps(sam2, frames, source, masks))


def propagate_steps(sam2: Sam2, frames: Sequence[Frame], source: int, masks: torch.Tensor) -> Steps[torch.Tensor]:
    """Follows K objects over a clip, forwards from the source frame, then backwards; sam2.object_batch at a time.

    A unit is one frame.

    Args:
        frames: T frames of one size, in time order.
        source: index of the prompted frame.
        masks: (K, H, W) bool, the prompts.

    Returns:
        Mask logits (K, T, h, w) float32 on the mask grid, on the model's device; see `masks_of_size`.

    Raises:
        TypeError, ValueError: as `ObjectMemory.start`.
    """
    tracks = []
    for prompts in torch.split(masks, sam2.object_batch):
        memory = ObjectMemory.start(sam2, sam2.embed(frames[source]), prompts, source, len(frames))
        steps = [memory.latest.logits]
        for index in range(source + 1, len(frames)):
            yield
            steps.append(memory.step(sam2.embed(frames[index])).logits)
        memory.rewind()
        for index in reversed(range(source)):
            yield
            steps.insert(0, memory.step(sam2.embed(frames[index])).logits)
        tracks.append(torch.stack(steps, dim=1))
    return torch.cat(tracks)


def _batched(embedding: FrameEmbedding, count: int) -> list[torch.Tensor]:
    """Feature maps as (h w, count, C), the layout of `track_step`: views that share memory among objects."""
    return [level.flatten(2).permute(2, 0, 1).expand(-1, count, -1) for level in embedding.features]


def _sizes(embedding: FrameEmbedding) -> list[tuple[int, int]]:
    return [(level.shape[2], level.shape[3]) for level in embedding.features]
