"""Finds and opens the files of a bag. The files decide: metadata.yaml only says which files there should be, and in
which order, because a recorder that was killed or `ros2 bag reindex` leaves it absent, incomplete or wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import yaml

from decaf_ros.io import mcap_file, sqlite_file
from decaf_ros.io.files import UNFINISHED
from decaf_ros.io.storage import Storage, zstd

SUFFIXES = (".mcap", ".db3")
_PACKED_SUFFIXES = (".zstd", ".zst")
_ROS1_MAGIC, ZSTD_MAGIC = b"#ROSBAG V", b"\x28\xb5\x2f\xfd"
_METADATA = "metadata.yaml"
# A part's name since ROS 2 Lyrical: number, recording, local time.
_LYRICAL_PART = re.compile(r"\d+_(.+)_\d{4}(?:_\d\d){2}-\d\d(?:_\d\d){2}")
_STEP_BYTES = 1 << 20


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts names as people count: rec_2 before rec_10, and upper-case as lower-case letters."""
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def is_bag(path: str | Path) -> bool:
    """Whether `path` is a bag of any kind, also one that cannot be read: a folder that contains bag files or
    metadata.yaml, or a file by its first bytes or its suffix."""
    path = Path(path)
    if path.is_dir():
        return (path / _METADATA).is_file() or bool(_bag_files(path))
    magics = (mcap_file.MAGIC, sqlite_file.MAGIC, _ROS1_MAGIC, ZSTD_MAGIC)
    return path.suffix in (*SUFFIXES, *_PACKED_SUFFIXES, ".bag") or _start(path).startswith(magics)


def open_files(path: Path, stack: ExitStack, warn: Callable[[str], None]) -> list[Storage]:
    """The open files of a bag in the order of reading; `stack` closes them.

    Args:
        path: a folder, or one file.
        warn: called with a text for everything that is missing or cannot be read, with the command that helps.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: nothing in it can be read; the text says what it is and how to convert it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        if _start(path).startswith(ZSTD_MAGIC) or path.suffix in _PACKED_SUFFIXES:
            raise ValueError(
                f"{path}: a compressed file of a bag; give the folder that it lies in, with its {_METADATA}, or unpack "
                f"it: `zstd -d {path.name}`"
            )
        return [_open(path, stack, warn)]
    if (mark := path / UNFINISHED).is_file():
        text = " ".join(mark.read_text(encoding="utf-8", errors="replace").split())
        warn(f"{path}: {text or 'this run did not finish'}")
    files, is_ordered = _listed(path, warn)
    storages, errors = [], []
    for file in files:
        try:
            storages.append(_open(_unpacked(file, stack, warn), stack, warn))
        except (OSError, ValueError) as error:
            errors.append(str(error))
    if not storages:
        raise ValueError(f"{path}: not a readable bag: {'; '.join(errors)}")
    for text in errors:
        warn(f"{text}; the other files of {path.name} are read")
    return storages if is_ordered else sorted(storages, key=lambda storage: storage.start_ns)


def _open(path: Path, stack: ExitStack, warn: Callable[[str], None]) -> Storage:
    """Opens a file by its first bytes; its suffix may be that of the other storage."""
    start = _start(path)
    storage: Storage
    if start.startswith(_ROS1_MAGIC):
        raise ValueError(
            f"{path}: a bag of ROS 1, expected one of ROS 2; convert it: `rosbags-convert --src {path.name} --dst "
            f"{path.stem}`"
        )
    if start.startswith(mcap_file.MAGIC):
        storage = mcap_file.McapFile(path, warn)
    elif start.startswith(sqlite_file.MAGIC) or (not start and path.suffix == ".db3"):
        storage = sqlite_file.SqliteFile(path, warn)
    else:
        advice = f". To repair an MCAP file: `mcap recover {path.name} -o whole.mcap`" if path.suffix == ".mcap" else ""
        got = f"one that starts with {start[:8]!r}" if start else "an empty one"
        raise ValueError(f"{path}: not a readable bag: expected an MCAP or sqlite3 file, got {got}{advice}")
    stack.callback(storage.close)
    return storage


def _start(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""


def _bag_files(folder: Path) -> list[Path]:
    """The bag files of a folder, in natural order. A file that lies there packed and unpacked counts once."""
    found = {}
    for file in folder.iterdir():
        name = file.name.removesuffix(file.suffix) if file.suffix in _PACKED_SUFFIXES else file.name
        if name.endswith(SUFFIXES) and not name.startswith(".") and (name == file.name or name not in found):
            found[name] = file
    return [found[name] for name in sorted(found, key=natural_key)]


def _listed(folder: Path, warn: Callable[[str], None]) -> tuple[list[Path], bool]:
    """The files of the bag, and whether their order is known. Raises ValueError if there is none."""
    present = _bag_files(folder)
    names = _names_in_metadata(folder, warn)
    listed = [file for name in names for file in [_present(folder, name)] if file is not None]
    missing = [name for name in names if _present(folder, name) is None]
    if not present and not listed:
        others = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
        lacking = f" ({', '.join(missing)} in {_METADATA})" if missing else ""
        raise ValueError(
            f"{folder}: expected a bag with .mcap or .db3 files{lacking}, or a folder of JPEG or PNG images; "
            f"found {others}"
        )
    if missing:
        warn(
            f"{folder}: {len(missing)} of the {len(names)} files in {_METADATA} are missing: {', '.join(missing)}; the "
            f"others are read. If they are lost: `ros2 bag reindex {folder.name}`"
        )
    # Parts of the same recording, such as the last one of a recorder that was killed; no other bag in the folder.
    stems = {_recording(file) for file in listed}
    more = [file for file in present if file not in listed and (not listed or _recording(file) in stems)]
    if more and names:
        warn(
            f"{folder}: {_METADATA} does not list {', '.join(file.name for file in more)}; read all the same. To "
            f"repair it: `ros2 bag reindex {folder.name}`"
        )
    elif not names and len({re.sub(r"\d+", "0", _recording(file)) for file in more}) > 1:
        found = ", ".join(file.name for file in more)
        raise ValueError(
            f"{folder}: expected the files of one bag, got {found}, and no {_METADATA} lists them; give one"
        )
    elif not names and len(more) > 1:
        warn(
            f"{folder}: {_METADATA} is missing or lists no file; read in the order of the recording times: "
            f"{', '.join(file.name for file in more)}. To write it: `ros2 bag reindex {folder.name}`"
        )
    return [*listed, *more], not more


def _recording(file: Path) -> str:
    """The name of a recording, without what distinguishes its parts."""
    name = re.sub(r"\.(mcap|db3)(\.zstd?)?$", "", file.name)
    lyrical = _LYRICAL_PART.fullmatch(name)
    return lyrical[1] if lyrical else re.sub(r"_\d+$", "", name)


def _names_in_metadata(folder: Path, warn: Callable[[str], None]) -> list[str]:
    """The names of the files that metadata.yaml lists."""
    path = folder / _METADATA
    if not path.is_file():
        return []
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
        paths = document["rosbag2_bagfile_information"]["relative_file_paths"] or []
        # In old versions the path begins with the name of the folder.
        return [PurePosixPath(str(entry)).name for entry in paths]
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        warn(f"{path}: not readable ({type(error).__name__}). To write it anew: `ros2 bag reindex {folder.name}`")
        return []


def _present(folder: Path, name: str) -> Path | None:
    """A listed file, or the same packed or unpacked."""
    plain = re.sub(r"\.zstd?$", "", name)
    candidates = (name, plain, *(plain + suffix for suffix in _PACKED_SUFFIXES))
    return next((folder / each for each in candidates if (folder / each).is_file()), None)


def _unpacked(file: Path, stack: ExitStack, warn: Callable[[str], None]) -> Path:
    """`file`, or if it is packed, its content in a temporary folder."""
    if file.suffix not in _PACKED_SUFFIXES:
        return file
    target = Path(stack.enter_context(TemporaryDirectory(prefix="decaf_bag_")), file.stem)
    with zstd.open(file, "rb") as source, target.open("wb") as unpacked:
        try:
            while part := source.read(_STEP_BYTES):
                unpacked.write(part)
        except (EOFError, zstd.ZstdError) as error:
            warn(f"{file}: cut or damaged ({error}); read as far as it goes")
    return target
