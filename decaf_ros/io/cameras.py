"""The topics of several cameras, from a command line and in a bag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from decaf_ros.config import camera_names
from decaf_ros.config.transports import decoding, transport_of

if TYPE_CHECKING:
    # Not at run time: the launch file imports this module.
    from decaf_ros.io.bags import BagReader

_DEPTH_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_INFO_TYPES = ("sensor_msgs/msg/CameraInfo",)


class DepthTopics(NamedTuple):
    """The topics of one camera's depth images and its camera info."""

    depth: str
    camera_info: str


def parse_cameras(entries: Iterable[str]) -> dict[str, str]:
    """The image topic of each camera from texts "NAME=TOPIC", or "NAME", which has an empty topic.

    Raises ValueError for a bad name.
    """
    parts = [entry.partition("=") for entry in entries]
    names = camera_names([name.strip() for name, _, _ in parts])
    return {name: topic.strip() for name, (_, _, topic) in zip(names, parts)}


def split_cameras(text: str) -> dict[str, str]:
    """As `parse_cameras`, from one text: "wrist=/wrist/image,head=/head/image", also in brackets; empty: none."""
    entries = text.strip().removeprefix("[").removesuffix("]").split(",")
    return parse_cameras([entry.strip() for entry in entries] if entries != [""] else [])


def recorded_cameras(
    reader: BagReader, cameras: Mapping[str, str], namespace: str, warn: Callable[[str], None]
) -> dict[str, str]:
    """The topic of each camera in a bag. An empty one means NAMESPACE/NAME/image or its /compressed: the one with more
    images. A camera without either is left out, with a warning.

    Raises ValueError for another topic that the bag does not have, a topic of two cameras, and if no camera is left.
    """
    topics: dict[str, str] = {}
    missing: list[str] = []
    for name, topic in cameras.items():
        raw = f"{namespace}/{name}/image"
        counts = {
            each: reader.topics[each].message_count for each in (raw, f"{raw}/compressed") if each in reader.topics
        }
        if topic or counts:
            topics[name] = reader.image_topic(topic or max(counts, key=lambda each: counts[each]))
        else:
            missing.append(f"{reader.path}: no images of camera {name} on {raw} or {raw}/compressed")
    if len(set(topics.values())) < len(topics):
        raise ValueError(f"cameras: expected a topic of its own for each, got {', '.join(topics.values())}")
    if not topics:
        raise ValueError("; ".join(missing))
    for text in missing:
        warn(text)
    return topics


def recorded_depth(
    reader: BagReader, cameras: Iterable[str], depth: Iterable[str], infos: Iterable[str]
) -> dict[str, DepthTopics]:
    """The topics of the cameras with depth, from texts "NAME=TOPIC", or "TOPIC" for a camera without a name ("").

    Raises ValueError for a camera that is not in `cameras`, one with depth or camera info only, and a topic that the
    bag does not have or of another type.
    """
    named = [_by_camera("--depth", depth), _by_camera("--camera-info", infos)]
    for name in {**named[0], **named[1]}:
        if name not in cameras:
            raise ValueError(f"--depth: expected one of the cameras {', '.join(cameras) or 'none'}, got {name!r}")
        if not (name in named[0] and name in named[1]):
            raise ValueError(f"--depth: expected --depth and --camera-info of a camera, got one for {name!r}")
    for topics, types in zip(named, (_DEPTH_TYPES, _INFO_TYPES)):
        for topic in topics.values():
            kind = reader.topics[topic].msgtype if topic in reader.topics else "no such topic"
            if transport := transport_of(topic, "" if topic not in reader.topics else kind):
                raise ValueError(f"{reader.path}: {topic}: got {transport}; {decoding(topic, transport)}")
            if kind not in types:
                raise ValueError(f"{reader.path}: {topic}: expected {' or '.join(types)}, got {kind}")
    return {name: DepthTopics(topic, named[1][name]) for name, topic in named[0].items()}


def _by_camera(option: str, entries: Iterable[str]) -> dict[str, str]:
    topics: dict[str, str] = {}
    for entry in entries:
        name, _, topic = entry.rpartition("=")
        if name in topics:
            raise ValueError(f"{option}: expected one topic for a camera, got {topics[name]} and {topic}")
        topics[name] = topic
    return topics
