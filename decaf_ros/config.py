"""The configuration: one frozen dataclass a stage, and the only place where a default stands.

Dotted field names (`segmentation.point_threshold`) are the ROS parameter names and the keys of the YAML files.
Every option says its meaning, its range and whether it may change while the node runs (`live`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_log = logging.getLogger(__name__)


class Option(NamedTuple):
    """One configuration field. live: may be changed while running; others take effect at configuration only."""

    name: str
    value: Any
    doc: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    live: bool


def _option(
    default: Any,
    doc: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
) -> Any:
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices, "live": live}
    return dataclasses.field(default=default, metadata=metadata)


class _Checked:
    """Checks every field's type, range and choices when the dataclass is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if dataclasses.is_dataclass(value):
                continue
            name = f"{type(self).__name__}.{field.name}"
            kind = type(field.default)
            if kind is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, field.name, value)
            if type(value) is not kind:
                raise ValueError(f"{name}: expected {kind.__name__}, got {value!r} ({type(value).__name__})")
            low, high, choices = (field.metadata[key] for key in ("minimum", "maximum", "choices"))
            if low is not None and not value >= low or high is not None and not value <= high:
                raise ValueError(f"{name}: expected a value in [{low}, {high}], got {value!r}")
            if choices and value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


PROMPT_VARIANTS = ("original", "v1", "v2", "v3")


@dataclass(frozen=True)
class MllmConfig(_Checked):
    """The multimodal LLM. Any checkpoint of a supported family, by folder or hub name."""

    checkpoint: str = _option(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "folder (package://decaf_ros/PATH: of this installation), or name on the Hugging Face hub",
    )
    local_files_only: bool = _option(False, "never download: a missing checkpoint is an error at once")
    device: str = _option("auto", "torch device; auto: cuda where there is one, else cpu")
    dtype: str = _option(
        "auto",
        "weights and activations; auto: bfloat16 on cuda, float32 elsewhere",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str = _option(
        "none",
        "of the language model's layers, on loading; bnb_*: bitsandbytes (4 bit: NF4), torchao_int8: weights alone; "
        "the vision tower keeps its dtype",
        choices=("none", "bnb_4bit", "bnb_8bit", "torchao_int8"),
    )
    video_tokens: int = _option(400, "most visual tokens of one temporal pair of frames in the video branch", 1, 16384)
    frame_scale: int = _option(2, "frame branch's token grid is the video branch's times this, both ways", 1, 8)
    max_new_tokens: int = _option(16, "longest answer that is decoded (mode paper)", 1, 256)


@dataclass(frozen=True)
class GroundingConfig(_Checked):
    """Attention rollout and fusion (Sec. 3.2, 3.3)."""

    mode: str = _option(
        "paper",
        "paper: decodes the category, prompts as set below; fast: expression-only prompts, decodes nothing",
        choices=("paper", "fast"),
    )
    object_prompt: str = _option("original", "wording of the object prompt (App. B, F)", choices=PROMPT_VARIANTS)
    background_prompt: str = _option(
        "original", "wording of the background prompt; fast uses v3", choices=PROMPT_VARIANTS
    )
    choice_prompt: str = _option("original", "wording of the category choice prompt", choices=PROMPT_VARIANTS)
    rollout: str = _option("v_max", "head weights of the rollout (Tab. 5a)", choices=("v_max", "max", "mean"))
    start_layer: int = _option(-1, "first layer of the rollout, from 0; -1: half of the layers (Tab. 5b)", -1, 256)
    contrast: bool = _option(True, "subtract the background map (Tab. 4a)")
    branches: str = _option("both", "which branches are fused (Tab. 4b)", choices=("both", "video", "frames"))
    rollout_kernel: str = _option(
        "auto",
        "what computes the rollout; auto: torch, or triton on cuda where it is faster",
        choices=("auto", "torch", "triton"),
    )
    query_block: int = _option(
        0, "rows of the attention matrix that torch holds at once; 0: 64 on the cpu, 512 elsewhere", 0, 65536
    )


@dataclass(frozen=True)
class EngineConfig(_Checked):
    """What is kept of the multimodal LLM's work, and how much goes through it at once."""

    prefix_cache_mib: int = _option(
        4096,
        "keys, values and queries of visual tokens that later prompts go on from; what does not fit runs again",
        0,
        1048576,
    )
    feature_cache_mib: int = _option(1024, "vision features of frames and temporal pairs", 0, 1048576)
    map_cache_mib: int = _option(64, "finished maps, by frame and prompt", 0, 65536)
    batch_tokens: int = _option(6400, "tokens of several frames that go through a model at once", 1, 1048576)


@dataclass(frozen=True)
class Sam2Config(_Checked):
    """SAM 2. A hub name, a folder with model.yaml and model.safetensors, or a .pt file together with its config."""

    checkpoint: str = _option(
        "facebook/sam2.1-hiera-large", "hub name, folder (package://decaf_ros/PATH: of this installation), or .pt file"
    )
    model_config: str = _option("", "for a .pt file: name of a config of the sam2 package, or a YAML file")
    local_files_only: bool = _option(False, "never download: a missing checkpoint is an error at once")
    device: str = _option("auto", "torch device; auto: cuda where there is one, else cpu")
    autocast: bool = _option(True, "bfloat16 autocast on cuda (no effect on the cpu)")
    embedding_cache: int = _option(
        20,
        "frames whose image embeddings are kept, key frames before others; under window.size they are made again",
        1,
        1024,
    )
    point_batch: int = _option(
        64,
        "points that go through the mask decoder at once, in less memory if fewer; of a large model fewer on a cpu",
        1,
        1024,
    )
    object_batch: int = _option(16, "objects that are followed over the key frames at once", 1, 1024)
    compile: bool = _option(False, "torch.compile the image encoder: the first frame takes long, those after it less")


@dataclass(frozen=True)
class SegmentationConfig(_Checked):
    """From the fused map to tracklets (Sec. 3.4)."""

    points: str = _option(
        "threshold",
        "point prompts: all tokens over point_threshold (Eq. 5), or the strongest top_k of each key frame",
        choices=("threshold", "top_k"),
    )
    point_threshold: float = _option(
        0.8, "tau_pq: fused attention from which a token is a point prompt", 0.0, 1.0, live=True
    )
    top_k: int = _option(
        5, "points a key frame for points = top_k, and keypoints that are reported", 1, 1000, live=True
    )
    keypoint_distance: float = _option(0.05, "least distance of two keypoints, in image diagonals", 0.0, 1.0, live=True)
    max_points: int = _option(
        100000,
        "most point prompts of one grounding; the strongest are kept and the answer says so",
        1,
        100000,
        live=True,
    )
    tracklet_threshold: float = _option(
        0.8, "tau_trk: mean score over which a tracklet is a target", 0.0, 1.0, live=True
    )
    suppression_iou: float = _option(0.7, "masks that overlap more are one object", 0.0, 1.0, live=True)
    consistency: bool = _option(True, "use the attention consistency score (Tab. 7)")
    consistency_mask: str = _option("mean", "per-frame threshold of Eq. 6 (Tab. 7)", choices=("mean", "otsu"))
    consistency_penalty: bool = _option(True, "negative attention outside the mask, Eq. 7 (Tab. 7)")
    fallback: str = _option(
        "none", "when no tracklet passes: none (not found) or the single best", choices=("none", "best"), live=True
    )
    fill_holes_px: int = _option(
        8, "holes of a mask up to this area are filled, in pixels of SAM 2's mask grid", 0, 100000
    )


@dataclass(frozen=True)
class PresenceConfig(_Checked):
    """The honest "not found" (`decaf_ros.presence`)."""

    threshold: float = _option(
        # Low, for models on which it was not calibrated: only what hardly any evidence speaks for is not there.
        0.3,
        "presence score under which the answer is NOT_FOUND, as it is where the model names the category none "
        "(mode paper); 0 switches both off; calibrate it for your model",
        0.0,
        1.0,
        live=True,
    )


@dataclass(frozen=True)
class WindowConfig(_Checked):
    """The past that a query looks back over."""

    size: int = _option(16, "key frames in the window", 1, 256)
    keyframe_period_s: float = _option(0.5, "time between key frames", 0.0, 3600.0, live=True)
    min_frames: int = _option(4, "key frames before a query is grounded", 1, 256, live=True)
    jump_back_s: float = _option(
        0.2, "a stamp that is earlier than the last one by this much starts the stream anew (a bag loop)", 0.0, 3600.0
    )
    buffer_frames: int = _option(600, "frames kept for the catch-up", 1, 100000)
    buffer_mib: float = _option(512.0, "memory of the kept frames", 1.0, 1048576.0)


@dataclass(frozen=True)
class TrackingConfig(_Checked):
    """Carrying targets from the window to now and on."""

    catch_up_frames: int = _option(
        64, "most frames that the catch-up steps through; more are thinned out evenly", 1, 10000, live=True
    )
    confirm_frames: int = _option(
        3, "frames on which a tentative target must be seen to be tracked", 1, 1000, live=True
    )
    lost_after_s: float = _option(5.0, "a target that is hidden for longer is lost", 0.0, 3600.0, live=True)
    object_score: float = _option(0.0, "object-presence logit over which SAM 2 sees the target", 0.0, 20.0, live=True)
    max_targets: int = _option(16, "most targets at once; the best are kept", 1, 255)


@dataclass(frozen=True)
class RegroundingConfig(_Checked):
    """Asking the same question again as the window moves on."""

    enabled: bool = _option(True, "ground a query again while it is tracked, and let go doubles of a target", live=True)
    stride: int = _option(8, "key frames between two groundings of one query", 1, 10000, live=True)
    match_iou: float = _option(0.5, "mask IoU from which a new tracklet continues a living target", 0.0, 1.0, live=True)
    max_misses: int = _option(2, "groundings in a row without a match after which a target is lost", 1, 1000, live=True)


@dataclass(frozen=True)
class NodeConfig(_Checked):
    """What only the ROS node uses."""

    autostart: bool = _option(True, "configure and activate at start-up, without a lifecycle manager")
    image_transport: str = _option(
        "raw", "raw: topic image; compressed: topic image/compressed", choices=("raw", "compressed")
    )
    reliability: str = _option("best_effort", "of the image subscription", choices=("best_effort", "reliable"))
    drop_frames: bool = _option(True, "keep only the newest waiting image; false queues them all, for evaluation only")
    max_query_chars: int = _option(1000, "longer queries are refused", 1, 1000000)
    diagnostics_period_s: float = _option(1.0, "time between two diagnostics", 0.05, 3600.0)


@dataclass(frozen=True)
class DecafConfig(_Checked):
    """The whole configuration."""

    mllm: MllmConfig = MllmConfig()
    grounding: GroundingConfig = GroundingConfig()
    engine: EngineConfig = EngineConfig()
    sam2: Sam2Config = Sam2Config()
    segmentation: SegmentationConfig = SegmentationConfig()
    presence: PresenceConfig = PresenceConfig()
    window: WindowConfig = WindowConfig()
    tracking: TrackingConfig = TrackingConfig()
    regrounding: RegroundingConfig = RegroundingConfig()
    node: NodeConfig = NodeConfig()

    def __post_init__(self) -> None:
        if self.window.min_frames > self.window.size:
            raise ValueError(
                f"window.min_frames: expected at most window.size ({self.window.size}), got {self.window.min_frames}"
            )


def options(config: DecafConfig) -> Iterator[Option]:
    """Every option of the configuration, in order, under its dotted name."""
    for stage in dataclasses.fields(config):
        section = getattr(config, stage.name)
        for field in dataclasses.fields(section):
            yield Option(f"{stage.name}.{field.name}", getattr(section, field.name), **field.metadata)


def replace(config: DecafConfig, changes: Mapping[str, Any]) -> DecafConfig:
    """A copy with the dotted names in `changes` set. Raises ValueError for an unknown name or a bad value."""
    known = {option.name for option in options(config)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; known options of a stage: see docs/parameters.md")
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        stage, _, field = name.partition(".")
        sections.setdefault(stage, {})[field] = value
    return dataclasses.replace(
        config, **{stage: dataclasses.replace(getattr(config, stage), **fields) for stage, fields in sections.items()}
    )


# What every node of rclpy declares by itself, and takes from the same files.
OF_RCLPY = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def load_config(path: str | Path, base: DecafConfig | None = None) -> DecafConfig:
    """Reads a ROS parameter file over `base`, by default the defaults, as the node does.

    Of the file's sections that of all nodes (`/**`) counts, and over it those whose name ends in `segmenter`. Names may
    be nested or dotted. Parameters of none of our stages are another node's, or mistyped: logged, and ignored.
    Raises FileNotFoundError, or ValueError for a file of another form or without such a section, an unknown option of
    one of our stages or a bad value.
    """
    with open(path, encoding="utf-8") as stream:
        try:
            document = yaml.safe_load(stream)
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: expected YAML: {error}") from error
    sections = dict(_sections(document)) if isinstance(document, Mapping) else {}
    if not sections or not all(isinstance(section, Mapping) for section in sections.values()):
        raise ValueError(f"{path}: expected a ROS parameter file, '/**: ros__parameters: STAGE: FIELD: VALUE'")
    ours = [name for name in sections if name.endswith("segmenter")]
    if "/**" not in sections and not ours:
        raise ValueError(f"{path}: expected a section '/**' or one that ends in 'segmenter', got {', '.join(sections)}")
    given: dict[str, Any] = {}
    for name in ("/**", *ours):
        given.update(_flat(sections.get(name, {})))
    base = base or DecafConfig()
    stages = {stage.name for stage in dataclasses.fields(base)}
    foreign = sorted(name for name in given if name.split(".")[0] not in stages)
    strange = [name for name in foreign if not name.startswith(OF_RCLPY)]
    if strange:
        _log.warning("%s: parameters that decaf_ros does not know are ignored: %s", path, ", ".join(strange))
    try:
        return replace(base, {name: value for name, value in given.items() if name not in foreign})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _sections(document: Mapping[Any, Any], namespace: str = "") -> Iterator[tuple[str, Any]]:
    """Each node's name and parameters. Namespaces may be nested, or stand in the name."""
    for key, value in document.items():
        name = f"{namespace}/{key}" if namespace else str(key)
        if isinstance(value, Mapping) and "ros__parameters" in value:
            yield name, value["ros__parameters"]
        elif isinstance(value, Mapping):
            yield from _sections(value, name)


def _flat(parameters: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value under its dotted name."""
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
