"""Downloads checkpoints from a hub into folders, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported when it is used
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

from decaf_ros.weights.folders import SUMS, check_folder, digest, git_digest

# Files of an MLLM that loading reads; a repository may also have pictures, other formats and other sizes in folders.
_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".safetensors")
_PICKLES = ".bin"
_PART = ".part"


def download(name: str, to: Path, endpoint: str | None, say: Callable[[str], None], revision: str = "") -> Path:
    """Downloads a checkpoint into the folder TO/NAME, and returns this folder.

    Files go to TO/NAME.part, which gets its name when all of them have the hub's checksums: a folder of this name is
    whole. A repeated call goes on where an earlier one ended; in a whole folder it replaces files that changed.

    Args:
        name: OWNER/NAME on the hub.
        to: parent of the new folder.
        endpoint: address of a mirror of the hub; None: `HF_ENDPOINT`, else the hub.
        say: called with a line for each file that is there already, and for the folder when it is whole.
        revision: branch, tag or commit; empty: the main branch.

    Raises:
        ValueError: a repository without the files of a checkpoint, or a file with another checksum.
        OSError: no connection, no such repository, no access, a full disk.
    """
    # The file listing and the files belong to one commit.
    info = _asked(
        name, lambda: HfApi(endpoint=endpoint).model_info(name, revision=revision or None, files_metadata=True)
    )
    files = {file.rfilename: file for file in info.siblings or ()}
    wanted = _wanted(name, files)
    folder = to / name
    work = folder if folder.exists() else folder.with_name(folder.name + _PART)
    for number, file in enumerate(wanted, 1):
        path = work / file
        if path.is_file() and _is_whole(path, files[file]):
            say(f"{file} ({number} of {len(wanted)}): already there")
            continue
        url = hf_hub_url(name, file, revision=info.sha, endpoint=endpoint)
        part = work / f"{file}.{_checksum(files[file])}{_PART}"
        part.parent.mkdir(parents=True, exist_ok=True)
        _asked(name, partial(_fetch, url, part, files[file].size, file))
        if not _is_whole(part, files[file]):
            part.unlink()
            raise ValueError(f"{name}: {file} came with another checksum than the hub's; try again")
        os.replace(part, path)
    if errors := check_folder(work, checksums=False):
        raise ValueError(f"{name}: no checkpoint that decaf_ros can load: {'; '.join(errors)}")
    sums = work / f"{SUMS}{_PART}"
    sums.write_text("".join(f"{digest(work / file)}  {file}\n" for file in wanted), encoding="utf-8")
    os.replace(sums, work / SUMS)
    for part in work.glob(f"*{_PART}"):  # of another commit
        part.unlink()
    os.replace(work, folder)
    say(f"{folder} is whole: commit {info.sha}, {len(wanted)} files")
    return folder


def _asked(name: str, ask: Callable[[], Any]) -> Any:
    """The hub's answer. Raises OSError for all errors of a connection, whose types depend on the version."""
    try:
        return ask()
    except ValueError:  # a name that no hub can have
        raise
    except RepositoryNotFoundError as error:  # also one without access
        raise OSError(f"{name}: {error}") from error
    except Exception as error:
        raise OSError(f"{name}: {error}; run the command again to go on") from error


def _fetch(url: str, part: Path, size: int, file: str) -> None:
    """Downloads what a file lacks, with a progress bar. (`hf_hub_download` begins a file anew in each process.)"""
    with open(part, "ab") as stream:
        http_get(
            url,
            stream,
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=size,
            displayed_filename=file,
        )


def _wanted(name: str, files: Iterable[str]) -> list[str]:
    """The files that loading needs. Raises ValueError if there are none."""
    if name in HF_MODEL_ID_TO_FILENAMES:
        config, weights = HF_MODEL_ID_TO_FILENAMES[name]
        wanted = [file for file in files if file in (Path(config).name, weights)]
    else:
        wanted = [file for file in files if "/" not in file and file.endswith(_SUFFIXES)]
        if not any(file.endswith(".safetensors") for file in wanted):
            wanted += [file for file in files if "/" not in file and file.endswith(_PICKLES)]
    if not any(file.endswith((".safetensors", ".bin", ".pt")) for file in wanted):
        raise ValueError(f"{name}: expected a repository with weights, got {', '.join(files) or 'no files'}")
    return sorted(wanted)


def _is_whole(path: Path, file: Any) -> bool:
    """Whether a file has the checksum that the hub states: SHA-256 of a large file, git's of a small one."""
    return path.stat().st_size == file.size and _checksum(file) == (digest(path) if file.lfs else git_digest(path))


def _checksum(file: Any) -> str:
    return str(file.lfs.sha256 if file.lfs else file.blob_id)
