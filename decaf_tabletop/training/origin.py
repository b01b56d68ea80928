"""Identifies the weights a training started from, so that a state is not resumed from different weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and values, sorted by name."""
    result = hashlib.sha256()
    for name, value in sorted(weights.items()):
        result.update(name.encode())
        result.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def check_origin(state: Mapping[str, Any], begun_from: str) -> None:
    """Raises ValueError if `state["begun_from"]` is not `begun_from`: a `digest`, or "" for training from nothing."""
    recorded = state.get("begun_from")
    if recorded == begun_from:
        return
    expected = "the same weights" if begun_from else "nothing"
    found = "nothing" if recorded == "" else "other weights" if recorded else "unrecorded weights"
    raise ValueError(f"expected a training that began from {expected}, got one from {found}: choose another --work")
