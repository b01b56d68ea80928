"""SAM 2 (Ravi et al., 2024) through the `sam2` package: loading, image embeddings with a cache, point prompts."""

from __future__ import annotations

import contextlib
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import sam2
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from yaml import YAMLError

from decaf_ros.config import Sam2Config
from decaf_ros.devices import resolve_device
from decaf_ros.resources import resolve_path
from decaf_ros.segmentation.decoding import decode_clicks
from decaf_ros.segmentation.holes import fill_holes
from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.types import Frame

# Bytes of image features per decoder call on a CPU: they should fit its caches, larger batches are slower.
CPU_BATCH_BYTES = 16 * 2**20
# All that a model.yaml may instantiate: the modules of the published configurations. Hydra imports a dotted name and
# walks its attributes, so a prefix is no guard: sam2.build_sam.torch.load is reachable through the imports of sam2.
_MODULES = "sam2.modeling"
_CLASSES = frozenset(
    f"{_MODULES}.{name}"
    for name in (
        "backbones.hieradet.Hiera",
        "backbones.image_encoder.FpnNeck",
        "backbones.image_encoder.ImageEncoder",
        "memory_attention.MemoryAttention",
        "memory_attention.MemoryAttentionLayer",
        "memory_encoder.CXBlock",
        "memory_encoder.Fuser",
        "memory_encoder.MaskDownSampler",
        "memory_encoder.MemoryEncoder",
        "position_encoding.PositionEmbeddingSine",
        "sam.transformer.RoPEAttention",
        "sam2_base.SAM2Base",
    )
)
# Names of weights in a folder: ours, and the published ones with the configuration of each in the sam2 package.
_WEIGHTS = ("model.safetensors", "model.pt")
_PUBLISHED = {weights: config for config, weights in HF_MODEL_ID_TO_FILENAMES.values()}
# Hiera unpickles the further file that the first one names; the others change what Hydra makes of a section.
_REFUSED_ENTRIES = ("weights_path", "_args_", "_partial_", "_recursive_")
_EXTRAS = "sam_mask_decoder_extra_args"
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

    def hold(self, owner: object, frames: Iterable[Frame]) -> None:
        """Replaces the frames whose cached features are kept for one owner, such as a stream: its key frames are
        reused, while most camera frames between them are embedded once.

        owner: anything that can be referred to weakly.
        """
        self._held.pop(owner, None)
        if kept := frozenset(frames):
            self._held[owner] = kept
        self._evict()

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
            kept = frozenset[Frame]().union(*self._held.values())
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
        """One mask per point; each point is a positive click on a separate object.

        Takes the mask with the best predicted IoU of the three in the multimask output, whatever its object score,
        which equals SAM2ImagePredictor, except for filled holes. With config.blank_unseen a mask without a positive
        object score is empty, as in the video predictor. Decodes config.point_batch points at once, fewer for a large
        model on a CPU.

        xy: (P, 2) in [0, 1], x right, y down. Raises ValueError for another shape or points outside [0, 1].
        """
        if xy.ndim != 2 or xy.shape[1] != 2 or not ((xy >= 0) & (xy <= 1)).all():
            raise ValueError(f"xy: expected shape (P, 2) with values in [0, 1], got shape {xy.shape} with values {xy}")
        points = torch.as_tensor(xy, dtype=torch.float32, device=self.device)[:, None] * self.image_size
        if len(points) == 0:
            no_scores = torch.zeros(0, device=self.device)
            no_masks = no_scores.view(0, *(side // 4 for side in (self.image_size, self.image_size)))
            return PointMasks(no_masks, no_scores, no_scores, embedding.size_hw)
        with self.inference():
            parts = [self._decode(embedding, chunk) for chunk in torch.split(points, self._batch_size(embedding))]
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
        """Mask logits (P, h, w), IoU (P,) and object score (P,) at points (P, 1, 2) float32, in pixels of the square
        input."""
        model = self.model
        *high_res, coarse = embedding.features
        if model.directly_add_no_mem_embed:
            coarse = coarse + model.no_mem_embed.reshape(1, -1, 1, 1)
        labels = torch.ones(points.shape[:2], dtype=torch.int32, device=self.device)
        sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
        logits, iou, object_score = decode_clicks(
            model.sam_mask_decoder, coarse + dense[:1], model.sam_prompt_encoder.get_dense_pe(), high_res, sparse
        )
        if self.blank_unseen:
            logits = torch.where(object_score[:, None, None, None] > 0, logits, NO_OBJ_SCORE)
        return self.filled(logits.float())[:, 0], iou, object_score

    def filled(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask logits (K, 1, h, w) float32 with small holes filled (`fill_holes`)."""
        return fill_holes(logits, self.fill_holes_px)


def load_sam2(config: Sam2Config, fill_holes_px: int = 8) -> Sam2:
    """Loads SAM 2 with the settings of the published video predictor.

    config.checkpoint is a hub name (facebook/sam2-hiera-*, facebook/sam2.1-hiera-*), a folder with model.yaml and
    model.safetensors or model.pt, a folder as on the hub, or a .pt file. The configuration of a .pt file is
    config.model_config; for a published file name the published one.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
        ValueError: an invalid model configuration, unreadable weights, or weights that do not fit the configuration.
    """
    yaml_path, weights_path = _locate(config)
    try:
        model = build_model(_read_model_config(yaml_path))
    except InstantiationException as error:
        raise ValueError(f"{yaml_path}: expected the configuration of a SAM 2 model: {error}") from error
    try:
        model.load_state_dict(_read_weights(weights_path), strict=True)
    except RuntimeError as error:
        raise ValueError(f"sam2.checkpoint: {weights_path} does not fit {yaml_path}: {error}") from error
    model = model.to(resolve_device(config.device)).eval()
    if config.compile:
        # The first pass fills a cache of positional encodings, after which a compiled encoder would be compiled again.
        with torch.inference_mode():
            model.image_encoder(torch.zeros(1, 3, model.image_size, model.image_size, device=model.device))
        # Only the encoder: the later parts change their batch and memory sizes at every step and would recompile.
        model.image_encoder.compile(dynamic=False)
    return Sam2(model, config, fill_holes_px)


def build_model(model_config: dict[str, Any]) -> SAM2Base:
    """Builds the network of a `model` section, with random weights and the published video predictor's settings: fall
    back to multimask output if the single mask is unstable, and binarise prompted masks before memory encoding."""
    stability = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    decoder = {**(model_config.get(_EXTRAS) or {}), **stability}
    extras = {_EXTRAS: decoder, "binarize_mask_from_pts_for_mem_enc": True}
    return instantiate({**model_config, **extras}, _convert_="all")


def _locate(config: Sam2Config) -> tuple[Path, Path]:
    """Paths of the configuration (YAML) and the weights."""
    package, checkpoint = Path(sam2.__file__).parent, Path(resolve_path(config.checkpoint))
    if checkpoint.is_dir():
        model_config = checkpoint / "model.yaml"
        weights = next((path for path in (checkpoint / name for name in _WEIGHTS) if path.is_file()), None)
        if model_config.is_file() and weights is not None:
            return model_config, weights
        weights = _published_weights(checkpoint)
    elif checkpoint.is_file():
        weights = checkpoint
    elif config.checkpoint in HF_MODEL_ID_TO_FILENAMES:
        name, weights_name = HF_MODEL_ID_TO_FILENAMES[config.checkpoint]
        return package / name, _download(config, weights_name)
    else:
        raise FileNotFoundError(
            f"sam2.checkpoint: expected a folder with model.yaml and model.safetensors, a .pt file or one of the hub "
            f"names {', '.join(HF_MODEL_ID_TO_FILENAMES)}; got {config.checkpoint!r}"
        )
    published = _PUBLISHED.get(weights.name)
    if config.model_config or published is None:
        return _locate_config(config.model_config, package), weights
    beside = weights.with_name(Path(published).name)
    return beside if beside.is_file() else package / published, weights


def _published_weights(folder: Path) -> Path:
    """The one published .pt file in a folder as on the hub. (Its model.safetensors is another library's.)"""
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if name in _PUBLISHED]
    if len(found) == 1:
        return folder / found[0]
    expected = "model.yaml and model.safetensors or model.pt, or one published file such as sam2.1_hiera_large.pt,"
    raise FileNotFoundError(f"sam2.checkpoint: expected {expected} in {folder}, found {', '.join(names) or 'nothing'}")


def _locate_config(name: str, package: Path) -> Path:
    if not name:
        raise ValueError(
            "sam2.model_config: a .pt file needs its configuration: expected a name such as sam2.1_hiera_l or a YAML "
            "file, got ''"
        )
    known = {Path(config).stem: package / config for config in _PUBLISHED.values()}
    for path in (Path(resolve_path(name)), package / name, known.get(name)):
        if path is not None and path.is_file():
            return path
    raise FileNotFoundError(
        f"sam2.model_config: expected a YAML file or one of the sam2 package's {', '.join(known)}; got {name!r}"
    )


def _download(config: Sam2Config, filename: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(config.checkpoint, filename, local_files_only=config.local_files_only))
    except OSError as error:
        raise FileNotFoundError(
            f"sam2.checkpoint: cannot get {filename} of {config.checkpoint} ({type(error).__name__}: {error}). With "
            f"network access, set sam2.local_files_only to false or run `hf download {config.checkpoint}` once. "
            f"Without, copy {filename} to this machine, set sam2.checkpoint to its path and sam2.model_config to "
            f"{Path(HF_MODEL_ID_TO_FILENAMES[config.checkpoint][0]).stem}"
        ) from error


def _read_model_config(path: Path) -> dict[str, Any]:
    try:
        document = OmegaConf.to_container(OmegaConf.load(path), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{path}: expected the configuration of a SAM 2 model: {error}") from error
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict) or model.get("_target_") != f"{_MODULES}.sam2_base.SAM2Base":
        raise ValueError(f"{path}: expected a section `model` with _target_ {_MODULES}.sam2_base.SAM2Base")
    _check_entries(path, model)
    extras = model.get(_EXTRAS)
    if extras is not None and not isinstance(extras, dict):
        raise ValueError(f"{path}: {_EXTRAS}: expected a section, got {extras!r}")
    return model


def _check_entries(path: Path, section: Any) -> None:
    """Raises ValueError for anything in a nested section that could run code when it is instantiated."""
    if isinstance(section, dict):
        target = section.get("_target_")
        if target is not None and (not isinstance(target, str) or target not in _CLASSES):
            names = ", ".join(sorted(name.rpartition(".")[2] for name in _CLASSES))
            raise ValueError(f"{path}: expected only the classes {names} of {_MODULES} as _target_, got {target}")
        for name in _REFUSED_ENTRIES:
            if section.get(name) is not None:
                raise ValueError(f"{path}: expected no entry {name}, got {section[name]!r}")
    if isinstance(section, str) and "${" in section:
        # An escaped interpolation, which the instantiation would resolve again, to any other section.
        raise ValueError(f"{path}: expected plain values, got {section!r}")
    children = section.values() if isinstance(section, dict) else section if isinstance(section, list) else ()
    for child in children:
        _check_entries(path, child)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).partition(". ")[0]  # the rest of PyTorch's text advises to run the file's code
        raise ValueError(f"{path}: expected the weights of a SAM 2 model, got an unreadable file: {reason}") from error
    if not isinstance(document, dict) or "model" not in document:
        raise ValueError(f"{path}: expected a checkpoint with an entry 'model', as in SAM 2's published .pt files")
    weights: dict[str, torch.Tensor] = document["model"]
    return weights
