"""Checks the files of a checkpoint without loading it: are all there, and is each as long as it says itself?"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

from decaf_ros.grounding.checkpoint_files import require_files

# As `sha256sum` writes it; its presence says that the download has ended.
SUMS = "SHA256SUMS"
_SAM2_WEIGHTS = {weights for _, weights in HF_MODEL_ID_TO_FILENAMES.values()}
_LONGEST_HEADER = 100_000_000  # the limit of safetensors
_BLOCK = 1 << 20


def is_sam2(folder: Path) -> bool:
    """Whether a folder has a checkpoint of SAM 2: our two files, or a published .pt file."""
    return (folder / "model.yaml").is_file() or any((folder / name).is_file() for name in _SAM2_WEIGHTS)


def find_checkpoints(folder: Path) -> list[Path]:
    """The folders with a checkpoint: this one, or those below it."""
    found = {path.parent for path in folder.rglob("*") if path.name in ("config.json", "model.yaml", SUMS)}
    found |= {path.parent for path in folder.rglob("*.pt")}
    return [folder] if folder in found else sorted(path for path in found if not _is_hidden(path.relative_to(folder)))


def check_folder(folder: Path, checksums: bool) -> list[str]:
    """Lists the faults of a checkpoint's files.

    checksums: also compare every file with `SHA256SUMS`, where there is one; reads all of them.
    """
    errors = []
    if not is_sam2(folder):
        try:
            require_files(folder, str(folder))
        except (FileNotFoundError, ValueError) as error:
            errors.append(str(error).removeprefix(f"{folder}: "))
    for file in sorted(folder.iterdir()):
        errors += check_file(file)
    for index in folder.glob("*.safetensors.index.json"):
        errors += _check_index(index)
    if checksums and (folder / SUMS).is_file():
        errors += _check_sums(folder)
    return errors


def check_file(file: Path) -> list[str]:
    """Lists the faults of a file of weights, by its header; none for other files."""
    if file.suffix == ".safetensors":
        try:
            expected = sum(_header(file)[1])
        except ValueError as error:
            return [str(error)]
        if expected != file.stat().st_size:
            return [f"{file.name}: expected {expected} bytes by its header, got {file.stat().st_size}"]
    if file.suffix in (".pt", ".bin", ".pth") and not zipfile.is_zipfile(file):
        return [f"{file.name}: expected the whole file of torch.save, got {file.stat().st_size} bytes without its end"]
    return []


def digest(file: Path) -> str:
    """The file's SHA-256 as hexadecimal digits."""
    return _hashed(file, hashlib.sha256())


def git_digest(file: Path) -> str:
    """The file's SHA-1 as git writes it, which the hub has of small files."""
    return _hashed(file, hashlib.sha1(b"blob %d\0" % file.stat().st_size))


def _hashed(file: Path, state: hashlib._Hash) -> str:
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def _header(file: Path) -> tuple[set[str], tuple[int, int]]:
    """The tensors that a safetensors file names, and the bytes of its header and of its data.

    Raises ValueError for a header that is cut or is none.
    """
    with open(file, "rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        text = stream.read(length) if len(start) == 8 and length <= _LONGEST_HEADER else b""
    try:
        tensors = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        data = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{file.name}: expected a safetensors file, got {file.stat().st_size} bytes") from error
    return set(tensors), (8 + length, data)


def _check_index(index: Path) -> list[str]:
    """Tensors that the index expects in shards which do not name them. Missing shards are `require_files`'s."""
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        return [f"{index.name}: expected JSON with a weight_map"]
    errors = []
    for shard in sorted(set(places.values())):
        path = index.parent / shard
        if path.is_file() and not check_file(path):
            named = _header(path)[0]
            if lacking := [name for name, place in places.items() if place == shard and name not in named]:
                errors.append(f"{shard}: {len(lacking)} tensors of the index are missing, {lacking[0]} first")
    return errors


def _check_sums(folder: Path) -> Iterator[str]:
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        if not (folder / name).is_file():
            yield f"{name}: missing, but in {SUMS}"
        elif (got := digest(folder / name)) != expected:
            yield f"{name}: expected SHA-256 {expected}, got {got}"


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
