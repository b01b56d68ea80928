"""Which weights a training began from: kept in its state, so that it is not gone on with as if it were another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Of names and values, in the order of the names."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_origin(state: Mapping[str, Any], begun_from: str) -> None:
    """state: with `begun_from`, a digest, empty for a training from nothing. Raises ValueError where it is another."""
    kept = state.get("begun_from")
    if kept == begun_from:
        return
    expected = "began from the same weights" if begun_from else "began from nothing"
    found = "it began from nothing" if kept == "" else "it began from others" if kept else "its state does not say"
    raise ValueError(f"expected a training that {expected}, {found}: name another --work")
