"""The checkpoints' files, and the folders that programs write to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from decaf_ros.config import DecafConfig
from decaf_ros.doctor.findings import OK, WRONG, Finding
from decaf_ros.hub import cached_folder, get_beforehand


def check_weights(config: DecafConfig) -> Iterator[Finding]:
    """The files of both checkpoints: all are there, and each is whole by its own header. Nothing is downloaded."""
    yield from _check_mllm(config)
    yield from _check_sam2(config)


def _check_mllm(config: DecafConfig) -> Iterator[Finding]:
    from decaf_ros.grounding.loading import local_folder
    from decaf_ros.weights.folders import check_folder

    stage, checkpoint, name = "mllm", config.mllm.checkpoint, "weights of the MLLM"
    try:
        folder = local_folder(config.mllm)
    except FileNotFoundError as error:
        yield Finding(name, WRONG, str(error), _again(stage, checkpoint))
        return
    if folder is None or not folder.is_dir():
        yield Finding(name, WRONG, f"{checkpoint} is not on this machine", _again(stage, checkpoint))
        return
    errors = check_folder(folder, checksums=False)
    if errors:
        yield Finding(name, WRONG, f"{folder}: {'; '.join(errors)}", _again(stage, checkpoint))
    else:
        yield Finding(name, OK, f"{folder}, {_size(folder)}")


def _check_sam2(config: DecafConfig) -> Iterator[Finding]:
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    from decaf_ros.segmentation.sam2_loading import locate
    from decaf_ros.weights.folders import check_file

    stage, checkpoint, name = "sam2", config.sam2.checkpoint, "weights of SAM 2"
    published = HF_MODEL_ID_TO_FILENAMES.get(checkpoint)
    if (
        published
        and not Path(checkpoint).exists()
        and cached_folder(checkpoint, published[1], config.sam2.revision) is None
    ):
        yield Finding(name, WRONG, f"{checkpoint} is not on this machine", _again(stage, checkpoint))
        return
    try:
        _, weights = locate(replace(config.sam2, local_files_only=True))
    except (FileNotFoundError, ValueError) as error:
        yield Finding(name, WRONG, " ".join(str(error).split()), _again(stage, checkpoint))
        return
    errors = check_file(weights)
    if errors:
        yield Finding(name, WRONG, f"{weights.parent}: {errors[0]}", _again(stage, checkpoint))
    else:
        yield Finding(name, OK, f"{weights}, {weights.stat().st_size / 1e6:.1f} MB")


def check_caches() -> Iterator[Finding]:
    """Every folder that libraries write to can be written to."""
    from huggingface_hub.constants import HF_HUB_CACHE

    home = Path("~").expanduser()
    folders = {
        "HF_HUB_CACHE": Path(HF_HUB_CACHE),
        "TMPDIR": Path(tempfile.gettempdir()),
        "TRITON_CACHE_DIR": Path(os.environ.get("TRITON_CACHE_DIR", home / ".triton" / "cache")),
        "ROS_LOG_DIR": Path(os.environ.get("ROS_LOG_DIR") or Path(os.environ.get("ROS_HOME", home / ".ros")) / "log"),
    }
    good = []
    for variable, folder in folders.items():
        try:
            existing = next(path for path in (folder, *folder.parents) if path.exists())
            with tempfile.NamedTemporaryFile(dir=existing):
                good.append(str(folder))
        except OSError as error:
            mend = f"make it writable for this user, or set {variable} to another folder"
            yield Finding("caches", WRONG, f"{folder} cannot be written to: {error.strerror}", mend)
    if good:
        yield Finding("caches", OK, f"can be written to: {', '.join(good)}")


def _again(stage: str, checkpoint: str) -> str:
    """How to get whole files."""
    if os.path.isabs(checkpoint) or checkpoint.startswith((".", "~", "package:")):
        return (
            f"get these files again, from the hub with decaf weights get NAME --to DIR, or correct {stage}.checkpoint"
        )
    return get_beforehand(stage, checkpoint)


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6:.1f} MB"
