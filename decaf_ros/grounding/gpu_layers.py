"""Makes layers of a multimodal LLM faster on a GPU; results differ by rounding only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Widths that tensor cores multiply at full speed. Others fall back to kernels that load two numbers at once.
_WIDTH = 64
_ALIGNED = 8


def speed_up(model: nn.Module) -> None:
    """Changes a model in evaluation mode in place: `pad_feedforward`, `fuse_norms`."""
    pad_feedforward(model)
    fuse_norms(model)


def pad_feedforward(model: nn.Module) -> int:
    """Widens gated feedforward layers whose width is odd for tensor cores, as 3420 in the vision tower of Qwen2.5-VL,
    with zeros: act(0) * 0 adds nothing. Returns how many."""
    count = 0
    for module in model.modules():
        parts: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        # Quantised layers are of other types, or have weights of another one.
        if not all(type(part) is nn.Linear and type(part.weight.data) is torch.Tensor for part in parts):
            continue
        gate, up, down = parts
        more = -gate.out_features % _WIDTH
        if gate.out_features % _ALIGNED == 0 or not _is_zero_at_zero(module):
            continue
        for part in (gate, up):
            part.weight = _padded(part.weight, (0, 0, 0, more))
            if part.bias is not None:
                part.bias = _padded(part.bias, (0, more))
            part.out_features += more
        down.weight = _padded(down.weight, (0, more))
        down.in_features += more
        count += 1
    return count


def _is_zero_at_zero(module: Any) -> bool:
    return bool(module.act_fn(torch.zeros(1)) == 0)


def _padded(weight: torch.Tensor, padding: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(F.pad(weight.detach(), padding), requires_grad=False)


def fuse_norms(model: nn.Module) -> int:
    """Computes RMS norms in one kernel instead of eight. Returns how many."""
    count = 0
    untyped_modules: Any = model.modules()
    for module in untyped_modules:
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = _FusedNorm(module)
            count += 1
    return count


class _FusedNorm:
    """The forward pass of an RMS norm with `weight` and `variance_epsilon`."""

    def __init__(self, norm: Any) -> None:
        self._norm = norm

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self._norm.weight
        if weight.dtype != hidden.dtype:  # the result would have another type
            original: torch.Tensor = type(self._norm).forward(self._norm, hidden)
            return original
        return F.rms_norm(hidden, weight.shape, weight, self._norm.variance_epsilon)
