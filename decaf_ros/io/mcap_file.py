"""Reads one MCAP file (https://mcap.dev/spec) with the library `mcap`, as far as it goes.

Not with rosbags, which reads a file completely or not at all: it refuses one with a single foreign schema (an encoding
"unknown", a binary protobuf definition), without the profile "ros2", without an index, or without its end. Nor with the
readers of `mcap`, which end at the first damaged chunk and load a file without chunks into memory to sort it: here its
records are read one by one, at the places that the summary or a first pass found.
"""

from __future__ import annotations

import heapq
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from mcap.exceptions import McapError
from mcap.reader import SeekingReader
from mcap.records import Channel as McapChannel
from mcap.records import Chunk, Footer, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from decaf_ros.io.storage import Channel, Stored
from decaf_ros.types.checks import quoted

MAGIC = b"\x89MCAP0\r\n"
# Only a definition in this language is of use; all others are foreign.
_ROS_LANGUAGE = "ros2msg"
# `mcap` takes a chunk of any other compression for one that is not compressed.
_COMPRESSIONS = ("", "lz4", "zstd")
# Errors of `mcap` for records that are cut or damaged. ValueError: texts that are not UTF-8.
_DAMAGED = (McapError, struct.error, ValueError, OverflowError, MemoryError)


class _Place(NamedTuple):
    """A chunk or a message outside chunks. start_ns: its first log time. offset: in the file. channels: whose messages
    it has; empty: not known."""

    start_ns: int
    offset: int
    channels: frozenset[int]


class McapFile:
    """An open MCAP file.

    warn: called with a text for everything that cannot be read. Raises ValueError for a file that is no MCAP file.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._size = path.stat().st_size
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, McapChannel] = {}
        self._counts: Counter[int] = Counter()
        # None: not known yet, because the summary has no index of chunks.
        self._places: list[_Place] | None = None
        self.start_ns = 0
        self._file = path.open("rb")
        try:
            if self._file.read(len(MAGIC)) != MAGIC:
                raise ValueError(f"{path}: expected an MCAP file, got another or an empty one")
            if not self._read_summary():
                self._places, self._counts = self._scan()
                self.start_ns = min((place.start_ns for place in self._places), default=0)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    @property
    def channels(self) -> list[Channel]:
        found = []
        for channel in self._channels.values():
            schema = self._schemas.get(channel.schema_id, Schema(0, b"", "", ""))
            definition = schema.data.decode(errors="replace") if schema.encoding == _ROS_LANGUAGE else ""
            count = self._counts[channel.id]
            found.append(Channel(channel.id, channel.topic, schema.name, channel.message_encoding, definition, count))
        return found

    def messages(self, numbers: Collection[int]) -> Iterator[Stored]:
        """The messages of these channels, ordered by log time. Keeps only chunks in memory that overlap in time."""
        if self._places is None:
            self._places, _ = self._scan()
        wanted = set(numbers)
        waiting: list[tuple[int, int, Stored]] = []
        order = 0
        for place in sorted(self._places):
            if place.channels and not wanted & place.channels:
                continue
            while waiting and waiting[0][0] < place.start_ns:
                yield heapq.heappop(waiting)[2]
            for record in self._read(place.offset):
                if isinstance(record, Message) and record.channel_id in wanted:
                    stored = Stored(record.channel_id, record.log_time, record.data)
                    heapq.heappush(waiting, (stored.stamp_ns, order, stored))
                    order += 1
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _read_summary(self) -> bool:
        """Takes the topics, counts and chunks from the summary. Returns False if there is none that says it all."""
        self._file.seek(0)
        try:
            summary = SeekingReader(self._file, record_size_limit=self._size).get_summary()
        except (*_DAMAGED, OSError):  # the file is cut, as the scan will find
            return False
        if summary is None or summary.statistics is None:
            return False
        counts, channels = Counter(summary.statistics.channel_message_counts), summary.channels
        is_whole = counts.total() == summary.statistics.message_count and counts.keys() <= channels.keys()
        if not is_whole or {channel.schema_id for channel in channels.values()} - {0} - summary.schemas.keys():
            return False
        self._channels, self._schemas, self._counts = channels, summary.schemas, counts
        self.start_ns = summary.statistics.message_start_time
        if summary.chunk_indexes:
            self._places = [
                _Place(chunk.message_start_time, chunk.chunk_start_offset, frozenset(chunk.message_index_offsets))
                for chunk in summary.chunk_indexes
            ]
        return True

    def _scan(self) -> tuple[list[_Place], Counter[int]]:
        """Reads the file up to its end or the first cut: places and messages by channel. Learns its definitions."""
        places: list[_Place] = []
        counts: Counter[int] = Counter()
        self._file.seek(0)
        offset, is_whole = len(MAGIC), False
        try:
            for record in StreamReader(self._file, emit_chunks=True, record_size_limit=self._size).records:
                found: Counter[int] = Counter()
                times = []
                for part in self._parts(record, offset):
                    if isinstance(part, Schema):
                        self._schemas[part.id] = part
                    elif isinstance(part, McapChannel):
                        self._channels[part.id] = part
                    elif isinstance(part, Message):
                        found[part.channel_id] += 1
                        times.append(part.log_time)
                if times:
                    places.append(_Place(min(times), offset, frozenset(found)))
                    counts += found
                is_whole = isinstance(record, Footer)
                offset = self._file.tell()
        except _DAMAGED:
            pass  # said below, with its place
        if not is_whole:
            self._warn(
                f"{self._path}: the file is cut or damaged at byte {offset} (a recorder that was killed, or an "
                f"incomplete copy); read up to there, in whole chunks. To repair it: `mcap recover {self._path.name} "
                f"-o whole.mcap`"
            )
        return places, counts

    def _read(self, offset: int) -> list[McapRecord]:
        """The records of the chunk, or the record, at `offset`."""
        self._file.seek(offset)
        stream = StreamReader(self._file, skip_magic=True, emit_chunks=True, record_size_limit=self._size)
        try:
            return self._parts(next(stream.records), offset)
        except _DAMAGED as error:
            return self._left_out(offset, error)

    def _parts(self, record: McapRecord, offset: int) -> list[McapRecord]:
        """The records of a chunk, none if it is damaged; of another record, itself."""
        if not isinstance(record, Chunk):
            return [record]
        if record.compression not in _COMPRESSIONS:
            return self._left_out(offset, f"expected compression zstd or lz4, got {quoted(record.compression)}")
        try:
            return breakup_chunk(record, validate_crc=True)
        except Exception as error:  # each compression has its own
            return self._left_out(offset, error)

    def _left_out(self, offset: int, reason: object) -> list[McapRecord]:
        self._warn(f"{self._path}: the chunk at byte {offset} is damaged and left out: {reason!s}")
        return []
