"""Reads and writes ROS 2 bags with `rosbags`, without a ROS installation.

Reads a folder from `ros2 bag record` (mcap or sqlite3), or a bare .mcap or .db3 file. Writes a folder with one mcap or
sqlite3 file and metadata.yaml. The message definitions are embedded, so `ros2 bag`, `mcap` and rosbags can open it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from decaf_ros.io import messages
from decaf_ros.io.interfaces import MESSAGES, interface_text
from decaf_ros.types import Frame

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
_SUFFIXES = (".mcap", ".db3")

# The newest version that Humble reads. Version 9 changes the QoS format.
_METADATA_VERSION: Final = 8


class BagMessage(NamedTuple):
    """One recorded message. stamp_ns: recording time, not the header's stamp. data: CDR bytes."""

    topic: str
    msgtype: str
    stamp_ns: int
    data: bytes


class BagTopic(NamedTuple):
    """Message type and number of messages of one topic."""

    msgtype: str
    message_count: int


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """The standard ROS 2 messages (Humble to Kilted) and those of this package. Shared: do not register more types."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    types: dict[str, Any] = {}
    for name in MESSAGES:
        types.update(get_types_from_msg(interface_text(name), f"decaf_ros/msg/{name}"))
    store.register(types)
    return store


def is_bag(path: str | Path) -> bool:
    """Whether `path` looks like a bag: a folder, or a file with suffix .mcap or .db3."""
    path = Path(path)
    return path.is_dir() or path.suffix in _SUFFIXES


class BagReader:
    """An open bag; a context manager. Raises FileNotFoundError, or ValueError for an unreadable bag."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        storage = _storage(self.path)
        try:
            self._reader = Reader(storage)
            self._reader.open()
        except FileNotFoundError:
            raise
        except Exception as error:  # for a damaged file rosbags raises anything: struct, apsw, memory errors
            raise ValueError(f"{path}: not a readable bag: {error!r}") from error
        self._stores: dict[str, Typestore] = {}

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    @property
    def topics(self) -> dict[str, BagTopic]:
        """All topics by name, in alphabetical order."""
        topics: dict[str, BagTopic] = {}
        for connection in sorted(self._reader.connections, key=lambda connection: connection.topic):
            topic = topics.get(connection.topic, BagTopic(connection.msgtype, 0))
            topics[connection.topic] = BagTopic(connection.msgtype, topic.message_count + connection.msgcount)
        return topics

    def image_topic(self, name: str = "") -> str:
        """Checks the topic `name`; an empty name selects the only image topic.

        Raises ValueError, which lists the candidates, if there is no such topic or the choice is ambiguous.
        """
        images = {topic: entry for topic, entry in self.topics.items() if entry.msgtype in IMAGE_TYPES}
        found = ", ".join(
            f"{topic} ({entry.msgtype}, {entry.message_count} messages)" for topic, entry in images.items()
        )
        if name and name not in images:
            raise ValueError(f"{self.path}: no image topic {name}; image topics: {found or 'none'}")
        if not images:
            raise ValueError(f"{self.path}: expected an image topic, got {', '.join(self.topics) or 'an empty bag'}")
        if not name and len(images) > 1:
            raise ValueError(f"{self.path}: several image topics, name one: {found}")
        return name or next(iter(images))

    def messages(self, topics: Collection[str] = ()) -> Iterator[BagMessage]:
        """The messages of `topics` (empty: all topics) in recording order.

        A bag split into several files is read file by file, like `ros2 bag play`. Raises ValueError if the bag is
        truncated or damaged.
        """
        connections = [each for each in self._reader.connections if not topics or each.topic in topics]
        if not connections:
            return
        try:
            for connection, stamp_ns, data in self._reader.messages(connections):
                yield BagMessage(connection.topic, connection.msgtype, stamp_ns, data)
        except Exception as error:  # as in __init__
            raise ValueError(f"{self.path}: the bag is truncated or damaged: {error!r}") from error

    def deserialize(self, message: BagMessage) -> Any:
        """`message` as an object with the fields of its definition. Raises ValueError if the bytes do not fit it."""
        store = self._store(message.msgtype)
        try:
            return _deserialized(store, message)
        except ValueError as error:
            raise ValueError(f"{self.path}: {message.topic}: {error}") from error

    def frames(self, topic: str = "", reject: Callable[[str], None] | None = None) -> Iterator[Frame]:
        """The images of `topic` (see `image_topic`) with the stamps of their headers and indices from 0.

        reject: called with an error text for each undecodable image, which is skipped together with its index. Without
        `reject` such an image raises ValueError.
        """
        topic = self.image_topic(topic)
        for index, recorded in enumerate(self.messages([topic])):
            store = self._store(recorded.msgtype)
            try:
                frame = messages.frame_from_message(_deserialized(store, recorded), index)
            except ValueError as error:
                text = f"{self.path}: {topic}, message {index}: {error}"
                if reject is None:
                    raise ValueError(text) from error
                reject(text)
                continue
            yield frame

    def _store(self, msgtype: str) -> Typestore:
        """Types for reading `msgtype`: the definition embedded in the bag, else the one in `typestore()`."""
        if msgtype not in self._stores:
            definitions = (
                connection.msgdef.data
                for connection in self._reader.connections
                if connection.msgtype == msgtype and connection.msgdef.format == MessageDefinitionFormat.MSG
            )
            definition = next(definitions, None)
            store = typestore()
            if definition is not None:
                store = get_typestore(Stores.EMPTY)
                try:
                    store.register(get_types_from_msg(definition, msgtype))
                except TypesysError as error:
                    raise ValueError(f"{self.path}: bad definition of {msgtype}: {error}") from error
            elif msgtype not in store.types:
                raise ValueError(f"{self.path}: expected a definition of {msgtype} in the bag or a standard message")
            self._stores[msgtype] = store
        return self._stores[msgtype]


def _deserialized(store: Typestore, message: BagMessage) -> Any:
    try:
        return store.deserialize_cdr(message.data, message.msgtype)
    except Exception as error:  # a SerdeError; older versions of rosbags may raise anything
        raise ValueError(f"not a {message.msgtype}: {error!r}") from error


def _storage(path: Path) -> Path:
    """The path for rosbags: `path`, or the only file in a folder without metadata (an interrupted recording)."""
    if not path.is_dir() or (path / "metadata.yaml").is_file():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"{path}: expected metadata.yaml, or a single .mcap or .db3 file; got {found}")
    return files[0]


class BagWriter:
    """A new bag; a context manager. After an error the messages written so far stay readable.

    storage: "mcap" or "sqlite3", else ValueError. Raises FileExistsError if `path` exists.
    """

    def __init__(self, path: str | Path, storage: str = "mcap") -> None:
        if storage not in STORAGES:
            raise ValueError(f"storage: expected one of {', '.join(STORAGES)}, got {storage!r}")
        try:
            self._writer = Writer(path, version=_METADATA_VERSION, storage_plugin=STORAGES[storage])
            if storage == "mcap":
                # Per-chunk compression, which every mcap reader supports. Label images become tiny.
                self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()
        except WriterError as error:
            raise FileExistsError(f"{path}: exists already") from error
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()

    def write(self, topic: str, msgtype: str, stamp_ns: int, data: bytes | memoryview) -> None:
        """Appends CDR bytes. Raises ValueError for an unknown type, or if the topic has another type."""
        connection = self._connections.get(topic)
        if connection is None:
            try:
                connection = self._writer.add_connection(topic, msgtype, typestore=typestore())
            except TypesysError as error:
                raise ValueError(f"{topic}: expected a standard message or one of decaf_ros, got {msgtype}") from error
            self._connections[topic] = connection
        if connection.msgtype != msgtype:
            raise ValueError(f"{topic}: expected {connection.msgtype} as before, got {msgtype}")
        self._writer.write(connection, stamp_ns, data)

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


def make_message(type_name: str, **fields: Any) -> Any:
    """Builds a message for a bag. type_name: for example std_msgs/msg/Header."""
    return typestore().types[type_name](**fields)


def make_header(stamp_ns: int, frame_id: str) -> Any:
    """std_msgs/Header for a bag."""
    return messages.header(make_message, stamp_ns, frame_id)
