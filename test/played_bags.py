"""The contents of bags that a replay wrote."""

from __future__ import annotations

from pathlib import Path

from decaf_ros.io.bags import BagReader
from decaf_ros.io.messages import stamp_ns
from decaf_ros.types import QueryState


def played_messages(bag: Path, topic: str) -> list:
    with BagReader(bag) as reader:
        return [reader.deserialize(message) for message in reader.messages([f"/decaf/{topic}"])]


def played_stamps(bag: Path, topic: str) -> list[int]:
    return [stamp_ns(message.header.stamp) for message in played_messages(bag, topic)]


def played_bytes(bag: Path) -> list:
    """All messages of a bag as they are, but those of a `status` topic as fields without the measured stage times."""

    def content(reader: BagReader, message) -> object:
        if not message.topic.endswith("/status"):
            return message
        status = reader.deserialize(message)
        assert status.state != QueryState.TRACKING or len(status.stage_times) > 5
        status.stage_times = []
        return message.topic, message.stamp_ns, repr(status)

    with BagReader(bag) as reader:
        return [content(reader, message) for message in reader.messages()]
