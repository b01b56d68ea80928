"""Reads ROS 2 bags without a ROS installation: a folder from `ros2 bag record` (mcap or sqlite3), or one of its files,
whole or not (`decaf_ros.io.bag_files`). Types and messages are those of `rosbags`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from decaf_ros.config.transports import decoding, transport_of
from decaf_ros.io import messages
from decaf_ros.io.bag_files import ZSTD_MAGIC, open_files
from decaf_ros.io.bag_files import is_bag as is_bag
from decaf_ros.io.interfaces import MESSAGES, interface_text
from decaf_ros.io.stamps import StreamStamps
from decaf_ros.io.storage import zstd
from decaf_ros.io.topics import UNREADABLE, ImageTopic, candidates, kind_of_image, ranked
from decaf_ros.io.vision_types import VISION_MESSAGES
from decaf_ros.types import Frame

_log = logging.getLogger(__name__)

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
# Message encodings that can be read; sqlite3 bags of unknown origin may name none.
_READABLE = ("cdr", "")

# Messages that are looked at to tell what an image topic shows.
_PROBED_MESSAGES = 5


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


class RecordedFrame(NamedTuple):
    """A frame with the stamp of its header as it is, and the recording time of its message."""

    frame: Frame
    recorded_ns: int


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """The standard ROS 2 messages (Humble to Kilted), those of this package and some of vision_msgs.

    Shared: do not register more types.
    """
    store = get_typestore(Stores.ROS2_HUMBLE)
    types: dict[str, Any] = {}
    for name in MESSAGES:
        types.update(get_types_from_msg(interface_text(name), f"decaf_ros/msg/{name}"))
    for name, text in VISION_MESSAGES.items():
        types.update(get_types_from_msg(text, f"vision_msgs/msg/{name}"))
    store.register(types)
    return store


class BagReader:
    """An open bag; a context manager. Reading changes no file of it.

    Topics of other middleware or without a usable definition are listed, but only the topics that are read matter.

    Args:
        path: a folder from `ros2 bag record` (also without metadata.yaml, or with a wrong one), or one of its files.
        warn: called once with each text about what is missing or cannot be read; the rest is read. Default: the log.

    Raises FileNotFoundError, or ValueError if nothing can be read; the text says what it is and how to convert it.
    """

    def __init__(self, path: str | Path, warn: Callable[[str], None] = _log.warning) -> None:
        self.path = Path(path)
        self._files = ExitStack()
        self._warn = _once(warn)
        try:
            self._storages = open_files(self.path, self._files, self._warn)
        except BaseException:
            self._files.close()
            raise
        self._channels = [channel for storage in self._storages for channel in storage.channels]
        self._stores: dict[str, Typestore] = {}
        self._kinds: dict[str, str] = {}

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._files.close()

    @property
    def topics(self) -> dict[str, BagTopic]:
        """All topics by name, in alphabetical order."""
        topics: dict[str, BagTopic] = {}
        for channel in sorted(self._channels, key=lambda channel: channel.topic):
            topic = topics.get(channel.topic, BagTopic(channel.msgtype, 0))
            topics[channel.topic] = BagTopic(topic.msgtype, topic.message_count + channel.message_count)
        return topics

    def image_topic(self, name: str = "") -> str:
        """Checks the topic `name`; an empty name selects the camera: see `decaf_ros.io.topics`.

        Raises ValueError, which lists the candidates, if there is no such topic or the choice is ambiguous.
        """
        readable = {channel.topic for channel in self._channels if channel.encoding in _READABLE}
        images = {
            topic: entry for topic, entry in self.topics.items() if entry.msgtype in IMAGE_TYPES and topic in readable
        }
        if name in self.topics and (transport := transport_of(name, self.topics[name].msgtype)):
            raise ValueError(_undecoded(self.path, name, transport))
        if name and name in images:
            return name
        found = [
            ImageTopic(topic, entry.msgtype, entry.message_count, self._kind(topic)) for topic, entry in images.items()
        ]
        listed = ", ".join(map(str, ranked(found)))
        if name:
            raise ValueError(f"{self.path}: no image topic {name}; image topics: {listed or 'none'}")
        for topic, entry in self.topics.items() if not found else ():
            if transport := transport_of(topic, entry.msgtype):
                raise ValueError(_undecoded(self.path, topic, transport))
        if not found:
            others = ", ".join(f"{topic} ({entry.msgtype})" for topic, entry in self.topics.items())
            raise ValueError(f"{self.path}: expected an image topic, got {others or 'an empty bag'}")
        cameras = candidates(found)
        if not cameras:
            raise ValueError(f"{self.path}: expected images of a camera, got only {listed}; name one if it is right")
        if len(cameras) > 1:
            raise ValueError(f"{self.path}: several image topics, name one: {listed}")
        return cameras[0].name

    def messages(self, topics: Collection[str] = ()) -> Iterator[BagMessage]:
        """The messages of `topics` (empty: all topics) in recording order.

        A bag split into several files is read file by file, like `ros2 bag play`. Damaged messages are left out and
        reported.
        """
        for storage in self._storages:
            channels = {each.number: each for each in storage.channels if not topics or each.topic in topics}
            for number, stamp_ns, data in storage.messages(channels) if channels else ():
                if data.startswith(ZSTD_MAGIC):  # the recorder compressed each message; CDR begins with a zero
                    try:
                        data = zstd.decompress(data)
                    except zstd.ZstdError as error:
                        self._warn(f"{self.path}: {channels[number].topic}: a damaged message was left out: {error}")
                        continue
                yield BagMessage(channels[number].topic, channels[number].msgtype, stamp_ns, data)

    def deserialize(self, message: BagMessage) -> Any:
        """`message` as an object with the fields of its definition. Raises ValueError if the bytes do not fit it."""
        try:
            return _deserialized(self._store(message.msgtype), message)
        except ValueError as error:
            raise ValueError(f"{self.path}: {message.topic}: {error}") from error

    def frames(
        self, topic: str = "", reject: Callable[[str], None] | None = None, max_mpx: float = math.inf
    ) -> Iterator[Frame]:
        """The images of `topic` (see `image_topic`) in recording order, with indices from 0.

        Their stamps are those of their headers, or the recorded times where those do not move: see
        `decaf_ros.io.stamps.StreamStamps`.

        reject: called with an error text for each undecodable image, which is skipped together with its index. Without
        `reject` such an image raises ValueError. max_mpx: images of more megapixels are not decoded, but rejected.
        """
        stamps = StreamStamps(lambda text: self._warn(f"{self.path}: {text}"))
        for recorded in self.recorded_frames(topic, reject, max_mpx):
            frame = recorded.frame
            yield replace(frame, stamp_ns=stamps.settled(frame.stamp_ns, recorded.recorded_ns))

    def recorded_frames(
        self, topic: str = "", reject: Callable[[str], None] | None = None, max_mpx: float = math.inf
    ) -> Iterator[RecordedFrame]:
        """As `frames`, with the stamps as they are and the recorded times."""
        topic = self.image_topic(topic)
        for index, recorded in enumerate(self.messages([topic])):
            store = self._store(recorded.msgtype)
            try:
                message = _deserialized(store, recorded)
                frame = messages.frame_from_message(message, index, self._warn, max_mpx=max_mpx)
            except ValueError as error:
                text = f"{self.path}: {topic}, message {index}: {error}"
                if reject is None:
                    raise ValueError(text) from error
                reject(text)
                continue
            yield RecordedFrame(frame, recorded.stamp_ns)

    def _kind(self, topic: str) -> str:
        """The kind of an image topic by its name and first messages, see `decaf_ros.io.topics`."""
        if topic not in self._kinds:
            self._kinds[topic] = UNREADABLE
            for message in islice(self.messages([topic]), _PROBED_MESSAGES):  # the first may be damaged
                with suppress(ValueError):
                    self._kinds[topic] = kind_of_image(topic, self.deserialize(message))
                if self._kinds[topic] != UNREADABLE:
                    break
        return self._kinds[topic]

    def _store(self, msgtype: str) -> Typestore:
        """Types for reading `msgtype`: the definition embedded in the bag, else the one in `typestore()`."""
        if msgtype not in self._stores:
            definitions = (each.definition for each in self._channels if each.msgtype == msgtype and each.definition)
            definition = next(definitions, "")
            known = msgtype in typestore().types
            store = typestore()
            if definition:
                embedded = get_typestore(Stores.EMPTY)
                try:
                    embedded.register(get_types_from_msg(definition, msgtype))
                    store = embedded
                except Exception as error:  # a TypesysError; for some texts the parser raises anything
                    if not known:
                        raise ValueError(f"{self.path}: bad definition of {msgtype}: {error}") from error
            elif not known:
                raise ValueError(f"{self.path}: expected a definition of {msgtype} in the bag or a standard message")
            self._stores[msgtype] = store
        return self._stores[msgtype]


def _undecoded(path: Path, topic: str, transport: str) -> str:
    """The error of a topic of a transport that is not decoded here."""
    return (
        f"{path}: {topic}: expected raw or compressed images, got {transport}; play the bag, "
        f"{decoding(topic, transport)}, or record it there"
    )


def _once(warn: Callable[[str], None]) -> Callable[[str], None]:
    """`warn`, which is called once for each text."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    return say


def _deserialized(store: Typestore, message: BagMessage) -> Any:
    try:
        return store.deserialize_cdr(message.data, message.msgtype)
    except Exception as error:  # a SerdeError; older versions of rosbags may raise anything
        raise ValueError(f"not a {message.msgtype}: {error!r}") from error


def make_message(type_name: str, **fields: Any) -> Any:
    """Builds a message for a bag. type_name: for example std_msgs/msg/Header."""
    return typestore().types[type_name](**fields)


def make_header(stamp_ns: int, frame_id: str) -> Any:
    """std_msgs/Header for a bag."""
    return messages.header(make_message, stamp_ns, frame_id)
