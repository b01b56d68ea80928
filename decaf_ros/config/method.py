"""Options of the method and its models: MLLM, grounding, engine, SAM 2, segmentation, presence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from decaf_ros.config.fields import Checked, option

PROMPT_VARIANTS = ("original", "v1", "v2", "v3")
NUMBERS = ("any", "ask", "one", "several")


def _weight(default: float, part: str) -> Any:
    return option(default, f"weight of {part} in the presence score", 0.0, 1.0, live=True)


@dataclass(frozen=True)
class MllmConfig(Checked):
    """The multimodal LLM: any checkpoint of a supported family, by folder or hub name."""

    checkpoint: str = option(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Hugging Face hub name, or a folder (package://PACKAGE/PATH: in a ROS or Python package; ~: your home)",
    )
    revision: str = option("", "of a hub name: branch, tag or commit; empty: the newest of the main branch")
    local_files_only: bool = option(False, "never download: a missing checkpoint is an error at once")
    device: str = option("auto", "torch device; auto: cuda if available, else cpu")
    dtype: str = option(
        "auto",
        "type of weights and activations; auto: bfloat16 on cuda and on a CPU with matrix units for it (AMX), float32 "
        "elsewhere; cuda_bfloat16: bfloat16 on cuda, float32 elsewhere",
        choices=("auto", "float32", "bfloat16", "float16", "cuda_bfloat16"),
    )
    quantization: str = option(
        "none",
        "quantises the language model's layers at load time, not the vision tower; bnb_*: bitsandbytes (4 bit: NF4), "
        "torchao_int8: weights only",
        choices=("none", "bnb_4bit", "bnb_8bit", "torchao_int8"),
    )
    video_tokens: int = option(400, "video branch: max visual tokens per temporal pair of frames", 1, 16384)
    frame_scale: int = option(
        2,
        "frame branch of the Qwen families: height and width of its token grid, as a multiple of the video branch's",
        1,
        8,
    )
    frame_tiles: int = option(
        0,
        "frame branch of InternVL3 and LLaVA-OneVision: max tiles of a frame; 1: no tiling; 0: as many as published "
        "(InternVL3: 12)",
        0,
        64,
    )
    max_new_tokens: int = option(
        128, "max tokens decoded per answer (mode paper); an answer that is cut off is no category", 1, 1024
    )


@dataclass(frozen=True)
class GroundingConfig(Checked):
    """Attention rollout and fusion (Sec. 3.2, 3.3)."""

    mode: str = option(
        "paper",
        "paper: decode the target's category and use it in the background prompt; fast: no decoding, empty category",
        choices=("paper", "fast"),
    )
    object_prompt: str = option("original", "variant of the object prompt (App. B, F)", choices=PROMPT_VARIANTS)
    background_prompt: str = option("original", "background prompt's variant; mode fast: v3", choices=PROMPT_VARIANTS)
    choice_prompt: str = option("original", "variant of the category choice prompt", choices=PROMPT_VARIANTS)
    wording: str = option(
        "paper", "prompts as in the paper, or to the letter as its code sends them", choices=("paper", "published")
    )
    rollout: str = option("v_max", "how heads are combined (Tab. 5a)", choices=("v_max", "max", "mean"))
    start_layer: int = option(-1, "first layer of the rollout, from 0; -1: skip the first half (Tab. 5b)", -1, 256)
    number: str = option(
        "any",
        "how many objects an instruction means; any: as many as pass the thresholds (the paper's rule); ask: the model "
        "says, from the words alone, one or several",
        choices=NUMBERS,
        live=True,
    )
    contrast: bool = option(True, "subtract the background map (Tab. 4a)")
    branches: str = option("both", "branches to fuse (Tab. 4b)", choices=("both", "video", "frames"))
    rollout_kernel: str = option(
        "auto",
        "implementation of the rollout; auto: triton on cuda if it is faster, else torch",
        choices=("auto", "torch", "triton"),
    )
    query_block: int = option(
        0, "attention matrix rows that the torch rollout holds at once; 0: 64 on the cpu, 512 elsewhere", 0, 65536
    )


@dataclass(frozen=True)
class EngineConfig(Checked):
    """Caches, batch size and units of work of the multimodal LLM."""

    unit_ms: float = option(
        50.0,
        "live stream: how long a unit of a grounding may take while the camera waits, in ms; 0: units are not sized by "
        "measured times",
        0.0,
        10000.0,
    )
    ahead_share: float = option(
        -1.0,
        "live stream: most of the worker's time for preparing the window before a question comes; 0: off; -1: 0.25 on "
        "a cpu, 0.5 elsewhere",
        -1.0,
        1.0,
        live=True,
    )
    prefix_cache_mib: int = option(
        -1,
        "MiB for the prefix cache: keys, values and queries of visual tokens, reused by later prompts; 0: off; -1: "
        "what a window of each camera needs, at most half of the device's free memory",
        -1,
        1048576,
    )
    feature_cache_mib: int = option(1024, "MiB for cached vision features of frames; 0: off", 0, 1048576)
    map_cache_mib: int = option(64, "MiB for cached attention maps, per frame and prompt; 0: off", 0, 65536)
    batch_tokens: int = option(6400, "max tokens per model call when several frames share it", 1, 1048576)


@dataclass(frozen=True)
class Sam2Config(Checked):
    """SAM 2: a hub name, a folder as on the hub or with model.yaml and model.safetensors, or a .pt file."""

    checkpoint: str = option(
        "facebook/sam2.1-hiera-large",
        "hub name, folder (package://PACKAGE/PATH: in a ROS or Python package; ~: your home) or .pt file",
    )
    model_config: str = option(
        "", "for a .pt file of another name than the published: a configuration in the sam2 package, or a YAML file"
    )
    revision: str = option("", "of a hub name: branch, tag or commit; empty: the newest of the main branch")
    local_files_only: bool = option(False, "never download: a missing checkpoint is an error at once")
    device: str = option("auto", "torch device; auto: cuda if available, else cpu")
    autocast: bool = option(True, "use bfloat16 autocast on cuda; no effect on the cpu")
    blank_unseen: bool = option(
        False, "points that show nothing by their object score have empty masks, and stay candidates, as published"
    )
    embedding_cache: int = option(
        20, "frames with cached image embeddings; the key frames of the window are kept in any case", 1, 1024
    )
    point_batch: int = option(
        64, "points per mask decoder call; fewer need less memory; a large model on a cpu uses fewer by itself", 1, 1024
    )
    object_batch: int = option(16, "objects propagated over the key frames at once", 1, 1024)
    compile: bool = option(False, "torch.compile the image encoder: slow first frame, faster later frames")


@dataclass(frozen=True)
class SegmentationConfig(Checked):
    """From the fused attention map to tracklets (Sec. 3.4)."""

    prompt: str = option(
        "points",
        "prompts for SAM 2: points, each an object; box: per key frame one box, of the largest convex hull of the map "
        "above its mean, as in Loc-Head",
        choices=("points", "box"),
    )
    points: str = option(
        "threshold",
        "point prompts: threshold: all tokens with at least point_threshold (Eq. 5); top_k: the top_k per key frame",
        choices=("threshold", "top_k"),
    )
    point_threshold: float = option(
        0.8, "tau_pq: min fused attention of a token to become a point prompt", 0.0, 1.0, live=True
    )
    top_k: int = option(
        5, "max points per key frame with points = top_k, and max keypoints reported", 1, 1000, live=True
    )
    keypoint_distance: float = option(
        0.05, "min distance between two keypoints, in image diagonals", 0.0, 1.0, live=True
    )
    max_points: int = option(
        100000,
        "max point prompts per grounding; beyond it only the strongest are used, and the answer text reports it",
        1,
        100000,
        live=True,
    )
    tracklet_threshold: float = option(
        0.8, "tau_trk: a tracklet with a higher combined score is a target", 0.0, 1.0, live=True
    )
    several_attention: float = option(
        0.5,
        "if several objects are meant (grounding.number): min attention of a peak to become a point prompt too",
        0.0,
        1.0,
        live=True,
    )
    several_share: float = option(
        0.65,
        "if several objects are meant: min mean attention under a tracklet as a share of the best's, in place of "
        "tracklet_threshold",
        0.0,
        1.0,
        live=True,
    )
    negative_points: int = option(
        0,
        "for questions about parts: max tokens of low attention inside the mask of a point that become negative points "
        "beside it; 0: off",
        0,
        64,
        live=True,
    )
    negative_attention: float = option(
        0.3, "max fused attention of a token that becomes a negative point", 0.0, 1.0, live=True
    )
    suppression_iou: float = option(0.7, "masks with a higher IoU are one object", 0.0, 1.0, live=True)
    consistency: bool = option(True, "include attention consistency in the combined score (Tab. 7)")
    consistency_mask: str = option("mean", "per-frame attention threshold in Eq. 6 (Tab. 7)", choices=("mean", "otsu"))
    consistency_penalty: bool = option(True, "penalise mask area outside the attended region, Eq. 7 (Tab. 7)")
    fallback: str = option(
        "none",
        "answer if no tracklet passes tracklet_threshold: none (not found) or the single best",
        choices=("none", "best"),
        live=True,
    )
    verify: bool = option(
        False,
        "show the model close candidates, each one marked in the key frames, and ask which the instruction means: one "
        "more short prompt and its images for each",
        live=True,
    )
    verify_attention: float = option(
        0.4,
        "verify: min attention of a peak to become a point prompt too, so that weaker objects are candidates",
        0.0,
        1.0,
        live=True,
    )
    verify_close: float = option(
        0.6, "verify: candidates whose score is at most so much below the best are close", 0.0, 2.0, live=True
    )
    verify_prior: float = option(
        5.0,
        "verify: log-odds of an answer that outweigh a score higher by 1; 0: the answers alone decide",
        0.0,
        1000.0,
        live=True,
    )
    verify_most: int = option(4, "verify: max objects that the model is asked about", 2, 64, live=True)
    verify_frames: int = option(
        8, "verify: key frames that are shown, evenly spaced over the window; 0: all", 0, 1024, live=True
    )
    fill_holes_px: int = option(8, "fill mask holes up to this area, in pixels of SAM 2's mask grid; 0: off", 0, 100000)


@dataclass(frozen=True)
class PresenceConfig(Checked):
    """Whether the target is there at all (`decaf_ros.presence`)."""

    threshold: float = option(
        # Low, because it is not calibrated for most models: only weak evidence means "not found".
        0.3,
        "min presence score: below it, or if the model answers that there is no such object (mode paper), the state is "
        "NOT_FOUND; 0: both checks off; `decaf calibrate` fits it to your data",
        0.0,
        1.0,
        live=True,
    )
    ask: bool = option(
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
