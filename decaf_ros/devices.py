"""Where a model runs."""

from __future__ import annotations

import torch


def resolve_device(device: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu; anything else as torch understands it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
