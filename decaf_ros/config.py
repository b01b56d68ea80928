"""The configuration: one frozen dataclass per stage, and the only place that defines defaults.

Dotted field names (`segmentation.point_threshold`) are the ROS parameter names and the keys of the YAML files.
Every option has a description, a range and a flag: may it change while the node runs (`live`)?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One configuration field. live: may change while running; others take effect when the node is configured."""

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


def _weight(default: float, part: str) -> Any:
    return _option(default, f"weight of {part} in the presence score", 0.0, 1.0, live=True)


@dataclass(frozen=True)
class _Checked:
    """Base class that checks every field's type, range and choices on construction."""

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
POLICIES = ("hold", "refresh", "off")
QUERY_MODES = ("replace", "add")
NUMBERS = ("any", "ask", "one", "several")


@dataclass(frozen=True)
class MllmConfig(_Checked):
    """The multimodal LLM: any checkpoint of a supported family, by folder or hub name."""

    checkpoint: str = _option(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Hugging Face hub name, or a folder (package://PACKAGE/PATH: in a ROS or Python package; ~: your home)",
    )
    local_files_only: bool = _option(False, "never download: a missing checkpoint is an error at once")
    device: str = _option("auto", "torch device; auto: cuda if available, else cpu")
    dtype: str = _option(
        "auto",
        "type of weights and activations; auto: bfloat16 on cuda and on a CPU with matrix units for it (AMX), float32 "
        "elsewhere; cuda_bfloat16: bfloat16 on cuda, float32 elsewhere",
        choices=("auto", "float32", "bfloat16", "float16", "cuda_bfloat16"),
    )
    quantization: str = _option(
        "none",
        "quantises the language model's layers at load time, not the vision tower; bnb_*: bitsandbytes (4 bit: NF4), "
        "torchao_int8: weights only",
        choices=("none", "bnb_4bit", "bnb_8bit", "torchao_int8"),
    )
    video_tokens: int = _option(400, "video branch: max visual tokens per temporal pair of frames", 1, 16384)
    frame_scale: int = _option(
        2, "frame branch: height and width of its token grid, as a multiple of the video branch's", 1, 8
    )
    max_new_tokens: int = _option(
        128, "max tokens decoded per answer (mode paper); an answer that is cut off is no category", 1, 1024
    )


@dataclass(frozen=True)
class GroundingConfig(_Checked):
    """Attention rollout and fusion (Sec. 3.2, 3.3)."""

    mode: str = _option(
        "paper",
        "paper: decode the target's category and use it in the background prompt; fast: no decoding, empty category",
        choices=("paper", "fast"),
    )
    object_prompt: str = _option("original", "variant of the object prompt (App. B, F)", choices=PROMPT_VARIANTS)
    background_prompt: str = _option("original", "background prompt's variant; mode fast: v3", choices=PROMPT_VARIANTS)
    choice_prompt: str = _option("original", "variant of the category choice prompt", choices=PROMPT_VARIANTS)
    wording: str = _option(
        "paper", "prompts as in the paper, or to the letter as its code sends them", choices=("paper", "published")
    )
    rollout: str = _option("v_max", "how heads are combined (Tab. 5a)", choices=("v_max", "max", "mean"))
    start_layer: int = _option(-1, "first layer of the rollout, from 0; -1: skip the first half (Tab. 5b)", -1, 256)
    number: str = _option(
        "any",
        "how many objects an instruction means; any: as many as pass the thresholds (the paper's rule); ask: the model "
        "says, from the words alone, one or several",
        choices=NUMBERS,
        live=True,
    )
    contrast: bool = _option(True, "subtract the background map (Tab. 4a)")
    branches: str = _option("both", "branches to fuse (Tab. 4b)", choices=("both", "video", "frames"))
    rollout_kernel: str = _option(
        "auto",
        "implementation of the rollout; auto: triton on cuda if it is faster, else torch",
        choices=("auto", "torch", "triton"),
    )
    query_block: int = _option(
        0, "attention matrix rows that the torch rollout holds at once; 0: 64 on the cpu, 512 elsewhere", 0, 65536
    )


@dataclass(frozen=True)
class EngineConfig(_Checked):
    """Caches, batch size and units of work of the multimodal LLM."""

    unit_ms: float = _option(
        50.0,
        "live stream: how long a unit of a grounding may take while the camera waits, in ms; 0: units are not sized by "
        "measured times",
        0.0,
        10000.0,
    )
    ahead_share: float = _option(
        -1.0,
        "live stream: most of the worker's time for preparing the window before a question comes; 0: off; -1: 0.25 on "
        "a cpu, 0.5 elsewhere",
        -1.0,
        1.0,
        live=True,
    )
    prefix_cache_mib: int = _option(
        -1,
        "MiB for the prefix cache: keys, values and queries of visual tokens, reused by later prompts; 0: off; -1: "
        "what a window needs, at most half of the device's free memory",
        -1,
        1048576,
    )
    feature_cache_mib: int = _option(1024, "MiB for cached vision features of frames; 0: off", 0, 1048576)
    map_cache_mib: int = _option(64, "MiB for cached attention maps, per frame and prompt; 0: off", 0, 65536)
    batch_tokens: int = _option(6400, "max tokens per model call when several frames share it", 1, 1048576)


@dataclass(frozen=True)
class Sam2Config(_Checked):
    """SAM 2: a hub name, a folder as on the hub or with model.yaml and model.safetensors, or a .pt file."""

    checkpoint: str = _option(
        "facebook/sam2.1-hiera-large",
        "hub name, folder (package://PACKAGE/PATH: in a ROS or Python package; ~: your home) or .pt file",
    )
    model_config: str = _option(
        "", "for a .pt file of another name than the published: a configuration in the sam2 package, or a YAML file"
    )
    local_files_only: bool = _option(False, "never download: a missing checkpoint is an error at once")
    device: str = _option("auto", "torch device; auto: cuda if available, else cpu")
    autocast: bool = _option(True, "use bfloat16 autocast on cuda; no effect on the cpu")
    blank_unseen: bool = _option(
        False, "points that show nothing by their object score have empty masks, and stay candidates, as published"
    )
    embedding_cache: int = _option(
        20, "frames with cached image embeddings; the key frames of the window are kept in any case", 1, 1024
    )
    point_batch: int = _option(
        64, "points per mask decoder call; fewer need less memory; a large model on a cpu uses fewer by itself", 1, 1024
    )
    object_batch: int = _option(16, "objects propagated over the key frames at once", 1, 1024)
    compile: bool = _option(False, "torch.compile the image encoder: slow first frame, faster later frames")


@dataclass(frozen=True)
class SegmentationConfig(_Checked):
    """From the fused attention map to tracklets (Sec. 3.4)."""

    points: str = _option(
        "threshold",
        "point prompts: threshold: all tokens with at least point_threshold (Eq. 5); top_k: the top_k per key frame",
        choices=("threshold", "top_k"),
    )
    point_threshold: float = _option(
        0.8, "tau_pq: min fused attention of a token to become a point prompt", 0.0, 1.0, live=True
    )
    top_k: int = _option(
        5, "max points per key frame with points = top_k, and max keypoints reported", 1, 1000, live=True
    )
    keypoint_distance: float = _option(
        0.05, "min distance between two keypoints, in image diagonals", 0.0, 1.0, live=True
    )
    max_points: int = _option(
        100000,
        "max point prompts per grounding; beyond it only the strongest are used, and the answer text reports it",
        1,
        100000,
        live=True,
    )
    tracklet_threshold: float = _option(
        0.8, "tau_trk: a tracklet with a higher combined score is a target", 0.0, 1.0, live=True
    )
    several_attention: float = _option(
        0.5,
        "if several objects are meant (grounding.number): min attention of a peak to become a point prompt too",
        0.0,
        1.0,
        live=True,
    )
    several_share: float = _option(
        0.65,
        "if several objects are meant: min mean attention under a tracklet as a share of the best's, in place of "
        "tracklet_threshold",
        0.0,
        1.0,
        live=True,
    )
    suppression_iou: float = _option(0.7, "masks with a higher IoU are one object", 0.0, 1.0, live=True)
    consistency: bool = _option(True, "include attention consistency in the combined score (Tab. 7)")
    consistency_mask: str = _option("mean", "per-frame attention threshold in Eq. 6 (Tab. 7)", choices=("mean", "otsu"))
    consistency_penalty: bool = _option(True, "penalise mask area outside the attended region, Eq. 7 (Tab. 7)")
    fallback: str = _option(
        "none",
        "answer if no tracklet passes tracklet_threshold: none (not found) or the single best",
        choices=("none", "best"),
        live=True,
    )
    fill_holes_px: int = _option(
        8, "fill mask holes up to this area, in pixels of SAM 2's mask grid; 0: off", 0, 100000
    )


@dataclass(frozen=True)
class PresenceConfig(_Checked):
    """Whether the target is there at all (`decaf_ros.presence`)."""

    threshold: float = _option(
        # Low, because it is not calibrated for most models: only weak evidence means "not found".
        0.3,
        "min presence score: below it, or if the model answers that there is no such object (mode paper), the state is "
        "NOT_FOUND; 0: both checks off; `decaf calibrate` fits it to your data",
        0.0,
        1.0,
        live=True,
    )
    ask: bool = _option(
        True, "ask the model whether the target is there: one more short prompt about the video per grounding"
    )
    # The weight of the question is a guess. The others are proportional to a fit on the simulated table.
    weight_asked: float = _weight(1.0, "the model's answer to the question (presence.ask)")
    weight_contrast: float = _weight(0.1, "contrast of object and background map")
    weight_separation: float = _weight(0.2, "separation of object and background map")
    weight_consistency: float = _weight(0.01, "attention consistency of the best candidate")
    weight_agreement: float = _weight(0.06, "agreement of the two branches")
    weight_iou: float = _weight(0.01, "SAM 2's predicted IoU of the best candidate")
    weight_object_presence: float = _weight(0.02, "SAM 2's object-presence score of the best candidate")

    @property
    def weights(self) -> dict[str, float]:
        """The weights by part."""
        prefix = "weight_"
        names = [field.name for field in dataclasses.fields(self) if field.name.startswith(prefix)]
        return {name.removeprefix(prefix): getattr(self, name) for name in names}


@dataclass(frozen=True)
class WindowConfig(_Checked):
    """The recent past that a query is grounded in."""

    size: int = _option(16, "max key frames in the window", 1, 256)
    clip_rounding: str = _option(
        "nearest", "offline: rounding of a key frame's position between two frames", choices=("nearest", "down")
    )
    keyframe_period_s: float = _option(0.5, "seconds between key frames", 0.0, 3600.0, live=True)
    min_frames: int = _option(4, "min key frames in the window before a query is grounded", 1, 256, live=True)
    patience_s: float = _option(
        30.0,
        "a query that has waited this many seconds for min_frames key frames is answered with FAILED and what is "
        "missing; by the times of arrival of the images (as recorded in a replay), by the wall clock while none comes",
        0.1,
        1e9,
        live=True,
    )
    jump_back_s: float = _option(
        0.2, "a stamp at least this many seconds before the last one restarts the stream (a looping bag)", 0.0, 3600.0
    )
    max_side: int = _option(
        2304,
        "images with a longer side (px) are kept as smaller copies; results have the camera's size; 0: no bound",
        0,
        65536,
    )
    buffer_frames: int = _option(600, "max frames buffered for the catch-up", 1, 100000)
    buffer_mib: float = _option(
        512.0, "max MiB of buffered frames and key frames; at least min_frames key frames stay", 1.0, 1048576.0
    )


@dataclass(frozen=True)
class TrackingConfig(_Checked):
    """Tracking targets from the window to the newest frame (catch-up) and onwards."""

    catch_up_frames: int = _option(
        64, "max frames that the catch-up tracks through; if more are buffered, an even subset", 1, 10000, live=True
    )
    confirm_frames: int = _option(
        3, "frames on which a tentative target must be visible to become tracked", 1, 1000, live=True
    )
    lost_after_s: float = _option(
        5.0, "seconds without being visible after which a target is lost", 0.0, 3600.0, live=True
    )
    object_score: float = _option(
        0.0, "a target is visible if SAM 2's object-presence logit is higher", 0.0, 20.0, live=True
    )
    appearance_margin: float = _option(
        0.12, "a mask less similar to its target than usual by this is rejected: occluded; 2: off", 0.0, 2.0, live=True
    )
    max_targets: int = _option(16, "max targets at once; the best are kept", 1, 255)


@dataclass(frozen=True)
class RegroundingConfig(_Checked):
    """Grounding the same query again as the window moves on."""

    policy: str = _option(
        "hold",
        "hold: keep the answer and ground again only to find hidden or lost targets; refresh: also ground every "
        "stride, so new objects may join; off: never ground again",
        choices=POLICIES,
        live=True,
    )
    search_after_s: float = _option(
        1.0, "seconds without being visible after which a target is searched for", 0.0, 3600.0, live=True
    )
    stride: int = _option(8, "min key frames between two groundings of a query", 1, 10000, live=True)
    anchors: int = _option(
        4, "key frames of the first answer that later groundings see besides the newest ones; 0: none", 0, 64, live=True
    )
    match_iou: float = _option(
        0.5, "min mask IoU for a new tracklet to continue an existing target", 0.0, 1.0, live=True
    )
    max_misses: int = _option(
        2, "consecutive groundings without a match after which a hidden target is lost", 1, 1000, live=True
    )


@dataclass(frozen=True)
class QueriesConfig(_Checked):
    """How many queries a stream has at once."""

    mode: str = _option(
        "replace",
        "what a new query does to the present ones; replace: ends them; add: they go on, each with its own answer",
        choices=QUERY_MODES,
        live=True,
    )
    most: int = _option(
        8,
        "mode add: most queries at once; beyond it the oldest one of the lowest priority ends",
        1,
        64,
        live=True,
    )


@dataclass(frozen=True)
class NodeConfig(_Checked):
    """The ROS node alone."""

    autostart: bool = _option(True, "configure and activate at start-up; false: wait for a lifecycle manager")
    image_transport: str = _option(
        "raw", "subscribe to topic image (raw) or image/compressed (compressed)", choices=("raw", "compressed")
    )
    image_backend: str = _option(
        "auto",
        "conversion of raw images to RGB; auto: cv_bridge for the encodings for which it gives the pixels of builtin, "
        "if it works; cv_bridge: the same, and an error when the node is configured if it does not",
        choices=("auto", "cv_bridge", "builtin"),
    )
    reliability: str = _option(
        "best_effort", "QoS reliability of the image subscription", choices=("best_effort", "reliable")
    )
    drop_frames: bool = _option(True, "keep only the newest waiting image; false: queue all, for evaluation only")
    max_image_mpx: float = _option(
        50.0,
        "images with more megapixels are rejected, by their header, before they are decoded; also in bags and videos",
        0.001,
        1e6,
        live=True,
    )
    max_query_chars: int = _option(1000, "max length of a query in characters; longer ones are refused", 1, 1000000)
    diagnostics_period_s: float = _option(1.0, "seconds between diagnostics messages", 0.05, 3600.0)


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
    queries: QueriesConfig = QueriesConfig()
    node: NodeConfig = NodeConfig()

    def __post_init__(self) -> None:
        if self.window.min_frames > self.window.size:
            raise ValueError(
                f"window.min_frames: expected at most window.size ({self.window.size}), got {self.window.min_frames}"
            )


def options(config: DecafConfig) -> Iterator[Option]:
    """Every option of the configuration, in order, by dotted name."""
    for stage in dataclasses.fields(config):
        section = getattr(config, stage.name)
        for field in dataclasses.fields(section):
            yield Option(f"{stage.name}.{field.name}", getattr(section, field.name), **field.metadata)


def replace(config: DecafConfig, changes: Mapping[str, Any]) -> DecafConfig:
    """A copy with the dotted names in `changes` set. Raises ValueError for an unknown name or a bad value."""
    known = {option.name for option in options(config)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; docs/parameters.md lists all options")
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        stage, _, field = name.partition(".")
        sections.setdefault(stage, {})[field] = value
    return dataclasses.replace(
        config, **{stage: dataclasses.replace(getattr(config, stage), **fields) for stage, fields in sections.items()}
    )
