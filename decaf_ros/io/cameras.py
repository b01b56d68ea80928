"""The topics of several cameras, from a command line and in a bag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from decaf_ros.config import camera_names

if TYPE_CHECKING:
    # Not at run time: the launch file imports this module.
    from decaf_ros.io.bags import BagReader


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
