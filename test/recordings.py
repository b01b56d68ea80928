"""Recordings as real recorders leave them, for the tests: whole, killed, cut, with foreign topics."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mcap.writer import IndexType, Writer

from decaf_ros.cli.clips import ClipSource
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import make_header, make_message, typestore

START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
HEIGHT, WIDTH = 48, 64
FRAMES = 30
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def picture(index: int) -> np.ndarray:
    """A red box on grey that moves to the right."""
    image = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    image[10:30, index + 5 : index + 25] = (220, 60, 60)
    return image


def place_of(image: np.ndarray) -> int:
    """The index of a picture, from the place of its box; -1 if no red box is in it."""
    columns = np.flatnonzero((image[20:28, :, 0].astype(int) - image[20:28, :, 2] > 90).all(axis=0))
    return int(columns[0]) - 5 if len(columns) else -1


def raw(index: int, stamp_ns: int):
    pixels = picture(index)
    header = make_header(stamp_ns, "cam")
    return typestore().types[IMAGE](header, HEIGHT, WIDTH, "rgb8", 0, 3 * WIDTH, pixels.reshape(-1))


def compressed(pixels: np.ndarray, text: str, suffix: str, stamp_ns: int = START_NS):
    """pixels: as they are given to OpenCV."""
    data = cv2.imencode(suffix, pixels)[1].reshape(-1)
    return typestore().types[COMPRESSED](make_header(stamp_ns, "cam"), text, data)


def write_bag(
    path: Path,
    storage: str = "mcap",
    indices: Iterable[int] = range(FRAMES),
    stamps: Iterable[int] | None = None,
    topic: str = "/camera/image_raw",
) -> Path:
    """A bag with pictures, recorded every STEP_NS. stamps: of their headers; default: the recorded times."""
    indices = list(indices)
    times = [START_NS + place * STEP_NS for place in range(len(indices))]
    with BagWriter(path, storage) as writer:
        for index, recorded_ns, stamp_ns in zip(indices, times, stamps or times):
            writer.write_message(topic, raw(index, stamp_ns), recorded_ns)
    return path


def write_depth_bag(path: Path, cameras: Iterable[str] = ()) -> Path:
    """A bag of cameras with compressed images, raw depth and camera infos: NAME/image/compressed and so on."""
    info = make_message(
        "sensor_msgs/msg/CameraInfo",
        header=make_header(START_NS, "cam"),
        height=HEIGHT,
        width=WIDTH,
        distortion_model="plumb_bob",
        **{name: np.zeros(size) for name, size in (("d", 5), ("k", 9), ("r", 9), ("p", 12))},
        binning_x=0,
        binning_y=0,
        roi=make_message(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )
    with BagWriter(path) as writer:
        for index in range(3):
            stamp_ns = START_NS + index * STEP_NS
            for own in [f"/{name}" for name in cameras] or [""]:
                picture_message = compressed(picture(index), "png", ".png", stamp_ns)
                writer.write_message(f"{own}/image/compressed", picture_message, stamp_ns)
                writer.write_image(f"{own}/depth", np.full((HEIGHT, WIDTH), 1000, np.uint16), stamp_ns, "cam")
                writer.write_message(f"{own}/camera_info", info, stamp_ns)
    return path


def storage_file(bag: Path) -> Path:
    return next(file for file in bag.iterdir() if file.suffix in (".mcap", ".db3"))


def write_split(folder: Path, parts: int = 3, storage: str = "mcap", names: str = "rec_{}") -> Path:
    """A bag in several files of ten frames each, without metadata.yaml."""
    folder.mkdir()
    for part in range(parts):
        bag = folder.parent / f"{folder.name}_part_{part}"
        with BagWriter(bag, storage) as writer:
            for index in range(10 * part, 10 * part + 10):
                stamp_ns = START_NS + index * STEP_NS
                writer.write_message("/camera/image_raw", raw(index, stamp_ns), stamp_ns)
        file = storage_file(bag)
        shutil.move(file, folder / (names.format(part, part) + file.suffix))
        shutil.rmtree(bag)
    return folder


def write_metadata(folder: Path, files: Iterable[str], storage: str) -> None:
    listed = "".join(f"\n  - {name}" for name in files) or " []"
    text = (
        f"rosbag2_bagfile_information:\n  version: 5\n  storage_identifier: {storage!r}\n  relative_file_paths:{listed}"
    )
    (folder / "metadata.yaml").write_text(text + "\n")


def kill_recorder(bag: Path, journal: str = "wal") -> Path:
    """Leaves a sqlite3 bag as a recorder that was killed does: with a journal beside it, and without metadata.yaml."""
    file = storage_file(bag)
    work = bag / "work.db3"
    with closing(sqlite3.connect(file)) as source:
        if journal == "journal":  # uncommitted changes are in the database, the journal takes them back
            source.execute("PRAGMA cache_size=1")
            source.execute("DELETE FROM messages WHERE id > 13")
            source.execute("CREATE TABLE filler AS SELECT data FROM messages")
            copies = [bag / "copy.db3", bag / "copy.db3-journal"]
            shutil.copyfile(file, copies[0])
            shutil.copyfile(f"{file}-journal", copies[1])
            source.rollback()
        else:
            source.execute("PRAGMA journal_mode=WAL")
            source.execute("PRAGMA wal_autocheckpoint=0")
            rows = source.execute("SELECT * FROM messages WHERE id > 13").fetchall()
            source.execute("DELETE FROM messages WHERE id > 13")
            source.commit()
            source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            source.executemany("INSERT INTO messages VALUES (?, ?, ?, ?)", rows)
            source.commit()
            copies = [bag / "copy.db3", bag / "copy.db3-wal"]
            shutil.copyfile(file, copies[0])
            shutil.copyfile(f"{file}-wal", copies[1])
    for left in bag.iterdir():
        if not left.name.startswith("copy"):
            left.unlink()
    assert not work.exists() and copies[1].stat().st_size > 1000
    return bag


# Without chunks, summary and index, and with them.
PLAIN: dict[str, Any] = {
    "use_chunking": False,
    "index_types": IndexType.NONE,
    "repeat_channels": False,
    "repeat_schemas": False,
    "use_statistics": False,
    "use_summary_offsets": False,
}
CHUNKED: dict[str, Any] = {"chunk_size": 25_000}  # three images


class McapFile:
    """Writes an MCAP file as other recorders do; a context manager. options: of mcap.writer.Writer."""

    def __init__(self, path: Path, profile: str = "ros2", **options: Any) -> None:
        self._writer = Writer(str(path), **options)
        self._writer.start(profile)

    def __enter__(self) -> McapFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.finish()

    def topic(self, name: str, kind: str, language: str, definition: bytes | str, encoding: str = "cdr") -> int:
        data = definition.encode() if isinstance(definition, str) else definition
        return self._writer.register_channel(name, encoding, self._writer.register_schema(kind, language, data))

    def message(self, topic: int, stamp_ns: int, data: bytes) -> None:
        self._writer.add_message(topic, stamp_ns, data, stamp_ns)


def write_mcap(path: Path, indices: Iterable[int] = range(FRAMES), **options: Any) -> Path:
    """An MCAP file with pictures, in this order, recorded at the times of their indices."""
    with McapFile(path, **options) as file:
        camera = file.topic("/camera/image_raw", IMAGE, "", "")
        for index in indices:
            file.message(camera, START_NS + index * STEP_NS, image_bytes(index))
    return path


def image_bytes(index: int) -> bytes:
    return bytes(typestore().serialize_cdr(raw(index, START_NS + index * STEP_NS), IMAGE))


def read(path: Path) -> tuple[list[int], str]:
    """The places of the box in the clip's frames, and what was said about the input."""
    source = ClipSource(path)
    frames = source.load()
    assert not source.problems.rejected
    return [place_of(frame.image) for frame in frames], "\n".join(source.problems.texts)
