"""The interface that both storage formats of bags have in common."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol

# Zstandard is a part of Python since 3.14.
if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd


class Channel(NamedTuple):
    """A topic in one file.

    Attributes:
        number: unique in the file.
        msgtype: type name; that of another middleware (protobuf, JSON) for a foreign topic.
        encoding: of its messages: cdr for ROS 2, else foreign.
        definition: text of the message definition; empty if there is none that ROS 2 can read.
        message_count: as far as it can be read.
    """

    number: int
    topic: str
    msgtype: str
    encoding: str
    definition: str
    message_count: int


class Stored(NamedTuple):
    """A message in a file. channel: number of its Channel. stamp_ns: recording time. data: as recorded."""

    channel: int
    stamp_ns: int
    data: bytes


class Storage(Protocol):
    """An open file of a bag. start_ns: recording time of its first message, 0 without one."""

    @property
    def channels(self) -> list[Channel]: ...

    @property
    def start_ns(self) -> int: ...

    def messages(self, numbers: Collection[int]) -> Iterator[Stored]: ...

    def close(self) -> None: ...
