"""Memory that the configured models need, computed from their configurations, against what is free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from decaf_ros.config import DecafConfig
from decaf_ros.doctor.findings import NOT_CHECKED, OK, WRONG, Finding

if TYPE_CHECKING:
    import torch

# Bytes of a quantised weight with its scales: NF4 has a float32 scale for each 64 weights, which bitsandbytes does not
# quantise again here; the 8 bit kinds have one for each row.
_QUANTISED_BYTES = {"bnb_4bit": 0.5 + 4 / 64, "bnb_8bit": 1.0, "torchao_int8": 1.0}
_GIB = 2**30
_MIB = 2**20


class MllmNeed(NamedTuple):
    """Bytes that the multimodal LLM needs.

    Attributes:
        weights: all parameters, in their dtype or quantised.
        prefixes: keys, values and queries of the visual tokens of a whole window, for each camera.
        features: vision features of a whole window for each camera, at most `engine.feature_cache_mib`.
    """

    weights: int
    prefixes: int
    features: int


class Sam2Need(NamedTuple):
    """Bytes that SAM 2 needs: its parameters, and the cached embeddings of frames."""

    weights: int
    embeddings: int


def mllm_need(config: DecafConfig, size_hw: tuple[int, int]) -> MllmNeed:
    """Computes what the MLLM needs for windows of images of one size, from its configuration.

    Raises FileNotFoundError if its configuration or processor is not on this machine, ValueError for a checkpoint that
    is not supported, or a branch that its model does not have.
    """
    from decaf_ros.grounding.grounder import resolve_start_layer
    from decaf_ros.grounding.loading import local_folder, outline_mllm

    if local_folder(config.mllm) is None:
        raise FileNotFoundError(f"the configuration of {config.mllm.checkpoint} is not on this machine")
    mllm = outline_mllm(config.mllm)
    language = mllm.model.config.get_text_config()
    number_bytes = mllm.model.dtype.itemsize
    tokens = 0
    if config.grounding.branches != "frames":
        tokens += mllm.layout("video", config.window.size, size_hw).tokens
    if config.grounding.branches != "video":
        tokens += config.window.size * mllm.layout("frames", 1, size_hw).tokens
    tokens *= max(1, len(config.cameras))
    heads = language.num_attention_heads
    size = getattr(language, "head_dim", None) or language.hidden_size // heads
    recorded = mllm.layers - resolve_start_layer(config.grounding.start_layer, mllm.layers)
    # Keys and values of every layer; queries, and a float32 for each head, of those of the rollout.
    token_bytes = mllm.layers * 2 * language.num_key_value_heads * size * number_bytes
    token_bytes += recorded * heads * (size * number_bytes + 4)
    levels = 1 + len(getattr(mllm.model.config.vision_config, "deepstack_visual_indexes", None) or ())
    features = tokens * levels * language.hidden_size * number_bytes
    return MllmNeed(
        _weight_bytes(mllm.model, config.mllm.quantization),
        tokens * token_bytes,
        min(features, config.engine.feature_cache_mib * _MIB),
    )


def sam2_need(config: DecafConfig) -> Sam2Need:
    """Computes what SAM 2 needs from its configuration. Raises FileNotFoundError or ValueError, as `load_sam2`."""
    import torch

    from decaf_ros.segmentation.sam2_loading import model_config_of, read_model

    # Built with weights, because the package reads some of its own numbers while it builds.
    model = read_model(model_config_of(config.sam2)).eval().to("meta")
    with torch.inference_mode():
        image = torch.zeros(1, 3, model.image_size, model.image_size, device="meta")
        levels = model.forward_image(image)["backbone_fpn"]
    frames = max(config.sam2.embedding_cache, config.window.size)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return Sam2Need(weights, frames * sum(level.numel() * level.element_size() for level in levels))


def check_memory(config: DecafConfig, size_hw: tuple[int, int]) -> Iterator[Finding]:
    """Compares the need of both models with their devices, and with RAM while they are loaded."""
    from decaf_ros.devices import resolve_device
    from decaf_ros.grounding.mllm import MissingBranchError

    parts: dict[torch.device, dict[str, int]] = {}
    loading = 0
    for name, need in (("MLLM", lambda: mllm_need(config, size_hw)), ("SAM 2", lambda: sam2_need(config))):
        options: Any = config.mllm if name == "MLLM" else config.sam2
        try:
            device, bytes_by_part = resolve_device(options.device), need()._asdict()
        except MissingBranchError as error:
            yield Finding("grounding.branches", WRONG, _short(error), "set grounding.branches to frames")
            continue
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            yield Finding(f"memory of {name}", NOT_CHECKED, _short(error))
            continue
        parts.setdefault(device, {}).update({f"{name} {part}": size for part, size in bytes_by_part.items()})
        # Both are loaded into RAM first; SAM 2's file and network are there together.
        loading += bytes_by_part["weights"] * (1 if name == "MLLM" else 2)
    for device, sizes in parts.items():
        yield _compared(f"memory of {device}", device, sizes)
    if parts and all(device.type != "cpu" for device in parts):
        import torch

        yield _compared("RAM while loading", torch.device("cpu"), {"weights": loading})


def _compared(name: str, device: torch.device, sizes: dict[str, int]) -> Finding:
    from decaf_ros.devices import free_bytes

    needed = sum(sizes.values())
    try:
        free = free_bytes(device)
    except (RuntimeError, AssertionError):  # no such device: check_devices says why
        return Finding(name, NOT_CHECKED, f"{_gib(needed)} are needed, but the device does not work")
    listed = ", ".join(f"{part} {_gib(size)}" for part, size in sizes.items())
    text = f"{_gib(needed)} are needed ({listed}), and working memory; {_gib(free)} are free"
    if needed < free:
        return Finding(name, OK, text)
    weights = sum(size for part, size in sizes.items() if "weights" in part)
    mend = (
        "end other programs, choose smaller models, or set mllm.quantization to bnb_4bit"
        if weights >= free
        else "lower window.size, mllm.video_tokens or mllm.frame_scale; parts of a window that do not fit run again"
    )
    return Finding(name, WRONG, text, mend)


def _weight_bytes(model: Any, quantization: str) -> int:
    """Bytes of all parameters, tied ones once."""
    import torch

    from decaf_ros.grounding.loading import UNQUANTISED

    if hasattr(model.config, "quantization_config"):
        raise ValueError("the checkpoint is quantised already; its configuration does not tell its size")
    plain = {id(parameter): parameter for parameter in model.parameters()}
    quantised = 0
    if quantization != "none":
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and not name.startswith(UNQUANTISED):
                quantised += plain.pop(id(module.weight)).numel()
    size: int = sum(parameter.numel() * parameter.element_size() for parameter in plain.values())
    return size + round(quantised * _QUANTISED_BYTES.get(quantization, 0))


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.0f} MiB"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())
