"""SAM 2 (Ravi et al., 2024) through the `sam2` package: image embeddings with a cache, and point prompts."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base

from decaf_ros.config import Sam2Config
from decaf_ros.devices import avoid_planned_attention
from decaf_ros.segmentation.decoding import decode_clicks
from decaf_ros.segmentation.holes import fill_holes
from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.stages import Steps, finish
from decaf_ros.types import Frame

# Bytes of image features per decoder call on a CPU: they should fit its caches, larger batches are slower.
CPU_BATCH_BYTES = 16 * 2**20
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class FrameEmbedding:
    """A frame's image features, shared by prompting, propagation and tracking.

    size_hw: size of the original image.
    features: finest first, each (1, C, h, w), at strides 4, 8, 16 of the square input.
    position: (1, C, h, w), positional encoding of the coarsest level.
    """

    size_hw: tuple[int, int]
    features: tuple[torch.Tensor, ...]
    position: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return sum(level.nbytes for level in self.features)


# Mask logits (P, h, w), predicted IoU (P,) and object score (P,) of prompts (P, n, 2), pixels of the square input.
_Decode = Callable[[FrameEmbedding, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class _Owner:
    """Holds frames for a `holding` block."""


class PointMasks(NamedTuple):
    """Masks of P points, on the model's device.

    logits: (P, h, w) float32 on the mask grid, > 0 inside.
    iou: (P,) float32, predicted IoU in [0, 1].
    object_score: (P,) float32, object-presence logit, > 0: present.
    size_hw: size of the original image.
    """

    logits: torch.Tensor
    iou: torch.Tensor
    object_score: torch.Tensor
    size_hw: tuple[int, int]

    @property
    def masks(self) -> torch.Tensor:
        """(P, H, W) bool at the original image size, made at each call."""
        return masks_of_size(self.logits, self.size_hw)


class Sam2:
    """A SAM 2 model and its cache of image embeddings. Not thread-safe; the model must not change.

    model: the published network, in evaluation mode.
    fill_holes_px: mask holes up to this area are filled, in pixels of the mask grid (a quarter of image_size); 0: none.
    """

    def __init__(self, model: SAM2Base, config: Sam2Config, fill_holes_px: int = 8) -> None:
        self.model = model
        self.fill_holes_px = fill_holes_px
        self.image_size: int = model.image_size
        self.device: torch.device = model.device
        avoid_planned_attention(self.device)
        self._autocast = config.autocast and self.device.type == "cuda"
        self._point_batch = config.point_batch
        self.blank_unseen = config.blank_unseen
        self.object_batch = config.object_batch
        self._cache_size = config.embedding_cache
        # Frames are keys by identity; the cache keeps them alive, so an identity cannot be reused.
        self._cache: OrderedDict[Frame, FrameEmbedding] = OrderedDict()
        # Frames whose features are kept, until their owner is gone.
        self._held: WeakKeyDictionary[object, frozenset[Frame]] = WeakKeyDictionary()
        self._mean = torch.tensor(IMAGE_MEAN, device=self.device)[:, None, None]
        self._std = torch.tensor(IMAGE_STD, device=self.device)[:, None, None]
        self._position: torch.Tensor | None = None

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Inference mode, with bfloat16 autocast if configured and on a GPU."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            yield

    def embed(self, frame: Frame) -> FrameEmbedding:
        """The image features of a frame, from an LRU cache of config.embedding_cache frames. Frames of `hold` and
        `holding` are not evicted: with more of them the cache grows to their number, and one for the newest frame."""
        embedding = self._cache.pop(frame, None)
        if embedding is None:
            embedding = self._encode(frame.image)
        self._cache[frame] = embedding
        self._evict()
        return embedding

    def has(self, frame: Frame) -> bool:
        """Whether the features of a frame are cached."""
        return frame in self._cache

    def hold(self, owner: object, frames: Iterable[Frame]) -> None:
        """Replaces the frames whose cached features are kept for one owner, such as a stream: its key frames are
        reused, while most camera frames between them are embedded once.

        owner: anything that can be referred to weakly.
        """
        self._held.pop(owner, None)
        if kept := frozenset(frames):
            self._held[owner] = kept
        self._evict()

    @property
    def held(self) -> frozenset[Frame]:
        """The frames that are kept for any owner."""
        return frozenset[Frame]().union(*self._held.values())

    @contextlib.contextmanager
    def holding(self, frames: Iterable[Frame]) -> Iterator[None]:
        """Keeps the cached features of these frames until the end of the block, or of the task that contains it."""
        owner = _Owner()
        self.hold(owner, frames)
        try:
            yield
        finally:
            self.hold(owner, ())

    def _evict(self) -> None:
        """Drops the least recently used frames over the limit, but no kept frame and not the newest one."""
        excess = len(self._cache) - self._cache_size
        if excess > 0:
            kept = self.held
            droppable = [frame for frame in list(self._cache)[:-1] if frame not in kept]
            for frame in droppable[:excess]:
                del self._cache[frame]

    def forget(self) -> None:
        """Clears the cache of image features."""
        self._cache.clear()

    def normalised(self, image: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 RGB to the network's input (1, 3, image_size, image_size) float32.

        As SAM2ImagePredictor: antialiased bilinear resizing to a square, normalised by ImageNet's mean and deviation.
        """
        pixels = torch.from_numpy(np.array(image, order="C")).to(self.device).permute(2, 0, 1)[None].float() / 255
        square = (self.image_size, self.image_size)
        pixels = F.interpolate(pixels, square, mode="bilinear", align_corners=False, antialias=True)
        return (pixels - self._mean) / self._std

    def _encode(self, image: np.ndarray) -> FrameEmbedding:
        with self.inference():
            encoded = self.model.forward_image(self.normalised(image))
            levels = encoded["backbone_fpn"][-self.model.num_feature_levels :]
            if self._position is None:  # identical for all frames
                self._position = encoded["vision_pos_enc"][-1]
        return FrameEmbedding((image.shape[0], image.shape[1]), tuple(levels), self._position)

    def masks_at_points(self, embedding: FrameEmbedding, xy: np.ndarray) -> PointMasks:
        """As `point_steps`, at once."""
        return finish(self.point_steps(embedding, xy))

    def point_steps(
        self, embedding: FrameEmbedding, xy: np.ndarray, negative_xy: np.ndarray | None = None
    ) -> Steps[PointMasks]:
        """One mask per point; each point is a positive click on a separate object.

        Takes the mask with the best predicted IoU of the three in the multimask output, whatever its object score,
        which equals SAM2ImagePredictor, except for filled holes. With config.blank_unseen a mask without a positive
        object score is empty, as in the video predictor. Decodes config.point_batch points at once, fewer for a large
        model on a CPU.

        Args:
            embedding: the frame.
            xy: (P, 2) in [0, 1], x right, y down.
            negative_xy: (P, N, 2) in [0, 1], negative clicks beside each point.

        Raises:
            ValueError: another shape, or points outside [0, 1].
        """
        if negative_xy is None:
            negative_xy = np.zeros((len(xy), 0, 2), np.float32)
        for name, value, shape in (("xy", xy, "(P, 2)"), ("negative_xy", negative_xy, "(P, N, 2)")):
            fits = value.ndim == shape.count(",") + 1 and value.shape[-1] == 2 and len(value) == len(xy)
            if not fits or not ((value >= 0) & (value <= 1)).all():
                raise ValueError(
                    f"{name}: expected shape {shape} with values in [0, 1], got shape {value.shape} with values {value}"
                )
        clicks = np.concatenate([xy[:, None], negative_xy], axis=1)
        return (yield from self._prompt_steps(embedding, clicks, self._decode))

    def box_steps(self, embedding: FrameEmbedding, boxes: np.ndarray) -> Steps[PointMasks]:
        """One mask per box, the single one of SAM 2's decoder, as SAM2ImagePredictor with multimask_output=False.

        boxes: (P, 4) in [0, 1]: left, top, right, bottom. Raises ValueError for another shape or boxes outside.
        """
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not ((boxes >= 0) & (boxes <= 1)).all():
            raise ValueError(f"boxes: expected shape (P, 4) with values in [0, 1], got {boxes.shape} with {boxes}")
        return (yield from self._prompt_steps(embedding, boxes.reshape(-1, 2, 2), self._decode_boxes))

    def _prompt_steps(self, embedding: FrameEmbedding, corners: np.ndarray, decode: _Decode) -> Steps[PointMasks]:
        """Decodes P prompts of n points each, (P, n, 2) in [0, 1], in batches."""
        points = torch.as_tensor(corners, dtype=torch.float32, device=self.device) * self.image_size
        if len(points) == 0:
            no_scores = torch.zeros(0, device=self.device)
            no_masks = no_scores.view(0, *(side // 4 for side in (self.image_size, self.image_size)))
            return PointMasks(no_masks, no_scores, no_scores, embedding.size_hw)
        parts: list[tuple[torch.Tensor, ...]] = []
        for chunk in torch.split(points, self._batch_size(embedding)):
            if parts:
                yield
            with self.inference():  # not across a yield
                parts.append(decode(embedding, chunk))
        logits, iou, object_score = (torch.cat(part) for part in zip(*parts))
        return PointMasks(logits, iou, object_score, embedding.size_hw)

    def _batch_size(self, embedding: FrameEmbedding) -> int:
        """Points per decoder call."""
        if self.device.type != "cpu":
            return self._point_batch
        return min(self._point_batch, max(1, CPU_BATCH_BYTES // embedding.features[-1].nbytes))

    def _decode(
        self, embedding: FrameEmbedding, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mask logits (P, h, w), IoU (P,) and object score (P,) at points (P, 1 + N, 2) float32, in pixels of the
        square input: in each row the first one is a positive click, the others are negative."""
        model = self.model
        *high_res, coarse = embedding.features
        if model.directly_add_no_mem_embed:
            coarse = coarse + model.no_mem_embed.reshape(1, -1, 1, 1)
        labels = torch.zeros(points.shape[:2], dtype=torch.int32, device=self.device)
        labels[:, 0] = 1
        sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
        logits, iou, object_score = decode_clicks(
            model.sam_mask_decoder, coarse + dense[:1], model.sam_prompt_encoder.get_dense_pe(), high_res, sparse
        )
        if self.blank_unseen:
            logits = torch.where(object_score[:, None, None, None] > 0, logits, NO_OBJ_SCORE)
        return self.filled(logits.float())[:, 0], iou, object_score

    def _decode_boxes(
        self, embedding: FrameEmbedding, corners: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `_decode`, in boxes (P, 2, 2): two corners each."""
        model = self.model
        *high_res, coarse = embedding.features
        if model.directly_add_no_mem_embed:
            coarse = coarse + model.no_mem_embed.reshape(1, -1, 1, 1)
        # SAM 2's labels of a box's corners.
        labels = torch.tensor([[2, 3]], dtype=torch.int32, device=self.device).expand(len(corners), -1)
        sparse, dense = model.sam_prompt_encoder(points=(corners, labels), boxes=None, masks=None)
        logits, iou, _, object_score = model.sam_mask_decoder(
            image_embeddings=coarse,
            image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=True,
            high_res_features=high_res or None,
        )
        score = object_score[:, 0].float()
        if self.blank_unseen:
            logits = torch.where(score[:, None, None, None] > 0, logits, NO_OBJ_SCORE)
        return self.filled(logits.float())[:, 0], iou[:, 0].float(), score

    def filled(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask logits (K, 1, h, w) float32 with small holes filled (`fill_holes`)."""
        return fill_holes(logits, self.fill_holes_px)
