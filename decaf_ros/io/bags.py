"""ROS 2 bags without a ROS installation: reading camera images, writing this package's outputs. By `rosbags`.

Read: an mcap or sqlite3 folder as `ros2 bag record` leaves it, or a bare .mcap or .db3 file. Written: a folder with one
mcap or sqlite3 file and metadata.yaml, message definitions embedded, so that `ros2 bag`, `mcap` and rosbags open it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

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

# Humble (metadata version 5) still reads version 8; version 9 writes the QoS in a form that it does not know.
_METADATA_VERSION = 8


class BagMessage(NamedTuple):
    """One recorded message. stamp_ns: when it was recorded (not its header's stamp). data: CDR bytes."""

    topic: str
    msgtype: str
    stamp_ns: int
    data: bytes


class BagTopic(NamedTuple):
    """A topic of a bag."""

    msgtype: str
    count: int


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """The standard messages of ROS 2, the same from Humble to Kilted, and those of this package. Not to be added to."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    types: dict[str, Any] = {}
    for name in MESSAGES:
        types.update(get_types_from_msg(interface_text(name), f"decaf_ros/msg/{name}"))
    store.register(types)
    return store


def is_bag(path: str | Path) -> bool:
    """Whether `path` looks like a bag: a folder, or a file that ends in .mcap or .db3."""
    path = Path(path)
    return path.is_dir() or path.suffix in _SUFFIXES


class BagReader:
    """An opened bag; a context manager.

    Raises FileNotFoundError, or ValueError for a path that holds no readable bag.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        storage = _storage(self.path)
        try:
            self._reader = Reader(storage)
            self._reader.open()
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged file makes rosbags raise anything: struct, apsw, memory errors
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
        """Every topic by its name, in alphabetical order."""
        counts: dict[str, BagTopic] = {}
        for connection in sorted(self._reader.connections, key=lambda connection: connection.topic):
            before = counts.get(connection.topic, BagTopic(connection.msgtype, 0))
            counts[connection.topic] = BagTopic(connection.msgtype, before.count + connection.msgcount)
        return counts

    def image_topic(self, wanted: str = "") -> str:
        """The topic `wanted`, or the only image topic where it is empty.

        Raises ValueError, which lists the candidates, where there is no such topic or the choice is open.
        """
        images = {name: topic for name, topic in self.topics.items() if topic.msgtype in IMAGE_TYPES}
        found = ", ".join(f"{name} ({topic.msgtype}, {topic.count} messages)" for name, topic in images.items())
        if wanted and wanted not in images:
            raise ValueError(f"{self.path}: no image topic {wanted}; image topics: {found or 'none'}")
        if not images:
            raise ValueError(f"{self.path}: expected an image topic, got {', '.join(self.topics) or 'an empty bag'}")
        if not wanted and len(images) > 1:
            raise ValueError(f"{self.path}: several image topics, name one: {found}")
        return wanted or next(iter(images))

    def messages(self, topics: Collection[str] = ()) -> Iterator[BagMessage]:
        """The messages of `topics` (of all where it is empty) in the order in which they were recorded.

        A bag that was split into several files is read file by file, as `ros2 bag play` does. Raises ValueError where
        the bag breaks off.
        """
        connections = [each for each in self._reader.connections if not topics or each.topic in topics]
        if not connections:
            return
        try:
            for connection, stamp_ns, data in self._reader.messages(connections):
                yield BagMessage(connection.topic, connection.msgtype, stamp_ns, data)
        except Exception as error:  # as above
            raise ValueError(f"{self.path}: the bag breaks off: {error!r}") from error

    def deserialize(self, message: BagMessage) -> Any:
        """`message` as an object with the fields of its definition. Raises ValueError where its bytes do not fit."""
        store = self._store(message.msgtype)
        try:
            return _deserialized(store, message)
        except ValueError as error:
            raise ValueError(f"{self.path}: {message.topic}: {error}") from error

    def frames(self, topic: str = "", reject: Callable[[str], None] | None = None) -> Iterator[Frame]:
        """The images of `topic` (see `image_topic`), stamped as their headers say; index: place among them, from 0.

        reject: is told of each image that cannot be decoded, with its place in the bag, and it is left out (its index
        too); without it such an image raises ValueError.
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
        """The types to read `msgtype` with: the bag's own definition where it holds one, else ours."""
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
                raise ValueError(f"{self.path}: no definition of {msgtype} in the bag, and it is no standard message")
            self._stores[msgtype] = store
        return self._stores[msgtype]


def _deserialized(store: Typestore, message: BagMessage) -> Any:
    try:
        return store.deserialize_cdr(message.data, message.msgtype)
    except Exception as error:  # a SerdeError; older versions of rosbags raise whatever the bytes lead to
        raise ValueError(f"not a {message.msgtype}: {error!r}") from error


def _storage(path: Path) -> Path:
    """What rosbags shall open: `path`, or the single file in a folder without metadata (its recording broke off)."""
    if not path.is_dir() or (path / "metadata.yaml").is_file():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"{path}: expected metadata.yaml, or a single .mcap or .db3 file; got {found}")
    return files[0]


class BagWriter:
    """A new bag; a context manager. What was written before an error stays readable.

    storage: "mcap" or "sqlite3". Raises ValueError for another one, FileExistsError where `path` exists.
    """

    def __init__(self, path: str | Path, storage: str = "mcap") -> None:
        if storage not in STORAGES:
            raise ValueError(f"storage: expected one of {', '.join(STORAGES)}, got {storage!r}")
        try:
            self._writer = Writer(path, version=_METADATA_VERSION, storage_plugin=STORAGES[storage])
            if storage == "mcap":
                # Inside the file, chunk by chunk, which every reader of mcap knows: label images shrink to nothing.
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
        """Appends CDR bytes. Raises ValueError for an unknown type, or for a topic that had another type before."""
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
        """Appends a message made of the classes in `typestore().types`."""
        self.write(topic, message.__msgtype__, stamp_ns, typestore().serialize_cdr(message, message.__msgtype__))

    def write_image(self, topic: str, image: np.ndarray, stamp_ns: int, frame_id: str) -> None:
        """Appends a sensor_msgs/Image, recorded at its stamp.

        image: (H, W, 3) uint8 as rgb8, (H, W) uint8 as mono8, (H, W) uint16 as 16UC1 or (H, W) float32 as 32FC1.
        Raises ValueError for others.
        """
        try:
            message = messages.image(make_message, image, make_header(stamp_ns, frame_id))
        except ValueError as error:
            raise ValueError(f"{topic}: {error}") from error
        self.write_message(topic, message, stamp_ns)


def make_message(type_name: str, **fields: Any) -> Any:
    """A message for a bag, such as std_msgs/msg/Header."""
    return typestore().types[type_name](**fields)


def make_header(stamp_ns: int, frame_id: str) -> Any:
    """std_msgs/Header for a bag."""
    return messages.header(make_message, stamp_ns, frame_id)
