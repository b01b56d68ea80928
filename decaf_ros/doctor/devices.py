"""The devices that the models ask for: is torch built for them, is the driver there, do they compute?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from decaf_ros.config import DecafConfig
from decaf_ros.doctor.findings import OK, WRONG, Finding

if TYPE_CHECKING:
    import torch

_DRIVER = Path("/proc/driver/nvidia/version")


def check_devices(config: DecafConfig) -> Iterator[Finding]:
    """The device of each model computes a matrix product."""
    import torch

    from decaf_ros.devices import resolve_device

    for name in ("mllm.device", "sam2.device"):
        asked = getattr(config, name.partition(".")[0]).device
        try:
            device = resolve_device(asked)
            ones = torch.ones(64, 64, device=device)
            total = float((ones @ ones).sum())
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch is not built for it
            reason = str(error).strip().partition("\n")[0]
            yield Finding(name, WRONG, f"{asked} does not work: {reason}", _mend(name, asked))
            continue
        if total != 64.0**3:
            yield Finding(name, WRONG, f"{device} gives a wrong product", "test the device's memory and driver")
        else:
            yield Finding(name, OK, f"{asked}: {_described(device)}")


def driver_version() -> str:
    """The version of NVIDIA's driver, empty if there is none (or elsewhere than on Linux)."""
    found = re.search(r"Module.*?\s(\d+(\.\d+)+)\s", _DRIVER.read_text()) if _DRIVER.is_file() else None
    return found[1] if found else ""


def _described(device: torch.device) -> str:
    import torch

    if device.type != "cuda":
        return f"{device}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device)
    return f"{device}, {name}, CUDA {torch.version.cuda}, driver {driver_version() or 'unknown'}"


def _mend(name: str, asked: str) -> str:
    import torch

    otherwise = f"set {name} to auto or cpu"
    if not asked.startswith("cuda"):
        return otherwise
    if torch.version.cuda is None:
        return f"install a build of torch for CUDA (https://pytorch.org/get-started), or {otherwise}"
    if not driver_version():
        return (
            f"install NVIDIA's driver for CUDA {torch.version.cuda} (in a container: start it with its GPUs), or "
            f"{otherwise}"
        )
    return f"driver {driver_version()} must support CUDA {torch.version.cuda}; update it, or {otherwise}"
