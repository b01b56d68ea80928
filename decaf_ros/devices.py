"""Chooses the torch device of a model."""

from __future__ import annotations

import torch


def resolve_device(device: str) -> torch.device:
    """`auto`: cuda if available, else cpu. Other names are passed to torch."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
