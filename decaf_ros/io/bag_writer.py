"""Writes ROS 2 bags with `rosbags`, without a ROS installation: a folder with one mcap or sqlite3 file and
metadata.yaml. The message definitions are embedded, so `ros2 bag`, `mcap` and rosbags can open it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer, WriterError
from rosbags.typesys import TypesysError

from decaf_ros.io import messages
from decaf_ros.io.bags import BagReader, make_header, make_message, typestore
from decaf_ros.io.files import UNFINISHED, mark_unfinished

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
# The file that is written, and those that SQLite keeps beside it.
_SUFFIXES = (".mcap", ".db3", ".db3-journal", ".db3-wal", ".db3-shm")
# The newest version that Humble reads. Version 9 changes the QoS format.
_METADATA_VERSION: Final = 8
# Key in metadata.yaml's custom_data.
_ORIGIN = "decaf_ros"
_METADATA = "metadata.yaml"


class BagWriter:
    """A new bag; a context manager.

    While it is open, and after an error, the folder contains a file UNFINISHED, and the next run may replace it. After
    an error the file says how many messages can be read. At its end the bag is opened again and its messages counted.

    Args:
        path: the folder.
        storage: "mcap" or "sqlite3", else ValueError.
        origin: How the bag was made, as JSON values; it stands in metadata.yaml, where `bag_origin` finds it.

    Raises FileExistsError and NotADirectoryError as in `check_new_bag`, OSError if it cannot be written.
    """

    def __init__(self, path: str | Path, storage: str = "mcap", origin: Mapping[str, object] | None = None) -> None:
        if storage not in STORAGES:
            raise ValueError(f"storage: expected one of {', '.join(STORAGES)}, got {storage!r}")
        self.path = Path(path)
        check_new_bag(self.path)
        if self.path.exists():
            for file in self.path.iterdir():
                if file.name != UNFINISHED:  # the mark goes last, so an interrupted removal can be repeated
                    file.unlink()
            shutil.rmtree(self.path)
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._connections: dict[str, Connection] = {}
        try:
            self._writer = Writer(self.path, version=_METADATA_VERSION, storage_plugin=STORAGES[storage])
            if storage == "mcap":
                # Per-chunk compression, which every mcap reader supports. Label images become tiny.
                self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            if origin is not None:
                self._writer.set_custom_data(_ORIGIN, json.dumps(origin))
            self._writer.open()
            mark_unfinished(self.path)
        except (OSError, sqlite3.Error, WriterError) as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise self._failure(error) from error

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def close(self) -> None:
        """Ends the bag, opens it again and counts its messages. Raises OSError if they are not all there."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.close()
        except (OSError, sqlite3.Error) as error:
            self._describe()
            raise self._failure(error) from error
        found = _readable(self.path)
        if found != self._counts:
            self._describe()
            written = self._counts.total()
            raise OSError(
                f"{self.path}: expected {written} messages in the bag, got {found.total()}; is the disk full?"
            )
        (self.path / UNFINISHED).unlink()

    def _abandon(self) -> None:
        """Ends the bag after an error, so that what was written stays readable."""
        if not self._closed:
            self._closed = True
            with suppress(OSError, sqlite3.Error):  # the first error counts
                self._writer.close()
            self._describe()

    def _describe(self) -> None:
        """Says in UNFINISHED how much can be read. Removes metadata.yaml if it claims more."""
        found, written = _readable(self.path), self._counts.total()
        with suppress(OSError):  # the mark is there already
            if found != self._counts:
                (self.path / _METADATA).unlink(missing_ok=True)
            mark_unfinished(self.path, f"{found.total()} of {written} messages can be read.\n")

    def _failure(self, error: Exception) -> OSError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return OSError(f"{self.path}: the bag cannot be written: {reason}")

    def write(self, topic: str, msgtype: str, stamp_ns: int, data: bytes | memoryview) -> None:
        """Appends CDR bytes. Raises ValueError for an unknown type, or if the topic has another type; OSError if they
        cannot be written."""
        try:
            connection = self._connections.get(topic)
            if connection is None:
                connection = self._writer.add_connection(topic, msgtype, typestore=typestore())
                self._connections[topic] = connection
            if connection.msgtype != msgtype:
                raise ValueError(f"{topic}: expected {connection.msgtype} as before, got {msgtype}")
            self._counts[topic] += 1
            self._writer.write(connection, stamp_ns, data)
        except TypesysError as error:
            raise ValueError(f"{topic}: expected a standard message or one of decaf_ros, got {msgtype}") from error
        except (OSError, sqlite3.Error) as error:
            raise self._failure(error) from error

    def write_message(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Appends a message of a class from `typestore().types`."""
        self.write(topic, message.__msgtype__, stamp_ns, typestore().serialize_cdr(message, message.__msgtype__))

    def write_image(self, topic: str, image: np.ndarray, stamp_ns: int, frame_id: str) -> None:
        """Appends a sensor_msgs/Image, recorded at its stamp.

        image: (H, W, 3) uint8 (rgb8), or (H, W) uint8 (mono8), uint16 (16UC1) or float32 (32FC1); else ValueError.
        """
        try:
            message = messages.image(make_message, image, make_header(stamp_ns, frame_id))
        except ValueError as error:
            raise ValueError(f"{topic}: {error}") from error
        self.write_message(topic, message, stamp_ns)


def check_new_bag(path: Path) -> None:
    """Raises FileExistsError unless `path` is absent or the bag of an unfinished run; NotADirectoryError for a file."""
    if not path.exists():
        return
    parts = {UNFINISHED, _METADATA, *(f"{path.name}{suffix}" for suffix in _SUFFIXES)}
    found = {file.name for file in path.iterdir()}
    if UNFINISHED not in found or found - parts:
        raise FileExistsError(f"{path}: exists already; name another folder or remove it")


def bag_origin(path: str | Path) -> dict[str, Any]:
    """The `origin` of a bag from BagWriter; empty for another bag. Raises OSError if metadata.yaml cannot be read."""
    file = Path(path) / _METADATA
    if not file.is_file():
        return {}
    information = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    custom = (information.get("rosbag2_bagfile_information") or {}).get("custom_data") or {}
    return dict(json.loads(custom[_ORIGIN])) if _ORIGIN in custom else {}


def _readable(path: Path) -> Counter[str]:
    """How many messages of each topic can be read back."""
    try:
        with BagReader(path, lambda text: None) as reader:
            return Counter(message.topic for message in reader.messages())
    except (OSError, ValueError):
        return Counter()
