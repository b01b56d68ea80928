"""A checkpoint's config.json may decide: shapes and numbers of the model, its token ids, how its weights are
quantised. It may not decide which code computes it, where it runs, or from which files it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Methods whose code is in an installed package. Others, such as mxfp4, load kernels from the hub.
QUANTISED = ("awq", "bitsandbytes", "compressed-tensors", "gptq", "torchao")
# Settings of transformers that name code, devices or files.
_NOT_ITS_OWN = ("distributed_config", "fusion_config", "transformers_weights")
_EXPERTS = "_experts_implementation"


def restrain(settings: Any, name: str) -> None:
    """Takes from a configuration of transformers, and from its parts, what a checkpoint may not decide.

    name: begins the errors. Raises ValueError for another quantisation than QUANTISED.
    """
    # Also for the parts. config.json may name a kernel of the hub, which is code that transformers would load and run.
    settings._attn_implementation = "sdpa"
    for part in _parts(settings):
        for key in _NOT_ITS_OWN:
            part.__dict__.pop(key, None)
        if hasattr(type(part), _EXPERTS):  # since transformers 5
            setattr(part, _EXPERTS, "eager")
        quantisation = getattr(part, "quantization_config", None)
        if quantisation is not None and (method := _method(quantisation)) not in QUANTISED:
            raise ValueError(f"{name}: quant_method: expected one of {', '.join(QUANTISED)}, got {method!r}")


def _method(quantisation: Any) -> Any:
    if not isinstance(quantisation, dict):
        return quantisation
    is_old = quantisation.get("load_in_8bit") or quantisation.get("load_in_4bit")  # without a method
    return quantisation.get("quant_method", "bitsandbytes" if is_old else None)


def _parts(settings: Any) -> Iterator[Any]:
    yield settings
    for key in getattr(settings, "sub_configs", {}):
        part = getattr(settings, key, None)
        if part is not None:
            yield from _parts(part)
