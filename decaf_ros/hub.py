"""The Hugging Face hub's cache on this machine. Downloads nothing."""

from __future__ import annotations

from pathlib import Path


def cached_folder(name: str, file: str = "config.json", revision: str = "") -> Path | None:
    """The folder of the cache with a file of a repository, None without one.

    name: OWNER/NAME; another text is in no cache. revision: branch, tag or commit; empty: the main branch.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, file, revision=revision or None)
    except HFValidationError:
        return None
    return Path(path).parent if isinstance(path, str) else None


def get_beforehand(stage: str, name: str, revision: str = "") -> str:
    """How to have a checkpoint on the machine before a launch. stage: mllm or sam2."""
    option = f" --revision {revision}" if revision else ""
    return (
        f"decaf weights get {name}{option} --to DIR, then set {stage}.checkpoint to DIR/{name} and "
        f"{stage}.local_files_only to true"
    )
