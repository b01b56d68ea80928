"""Reads one MCAP file (https://mcap.dev/spec), as far as it goes.

Own code, because rosbags reads a file completely or not at all: it refuses one with a single foreign schema (an
encoding "unknown", a binary protobuf definition), without the profile "ros2", without an index and out of order, or
without its end. A recorder that was killed leaves such a file; here all messages before the cut are read, also those of
a chunk that was cut.
"""

from __future__ import annotations

import heapq
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from lz4.frame import LZ4FrameDecompressor

from decaf_ros.io.storage import Channel, Stored, zstd

MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _FOOTER = 0x03, 0x04, 0x05, 0x06, 0x07, 0x02
_RECORD, _MESSAGE_HEAD, _CHUNK_HEAD = struct.Struct("<BQ"), struct.Struct("<HIQQ"), struct.Struct("<QQQI")
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
# Only a definition in this language is of use; all others are foreign.
_ROS_LANGUAGE = "ros2msg"
# Compressed bytes per step, so that those before a damaged place are still unpacked.
_STEP_BYTES = 1 << 14


class _Block(NamedTuple):
    """A message, or a chunk of messages. offset, length: of the record's content in the file. start_ns, end_ns: log
    times. counts: messages by channel; None: not known without reading the chunk."""

    is_chunk: bool
    offset: int
    length: int
    start_ns: int
    end_ns: int
    counts: Counter[int] | None


class McapFile:
    """An open MCAP file.

    warn: called with a text for everything that cannot be read. Raises ValueError for a file that is no MCAP file.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._schemas: dict[int, tuple[str, str]] = {}
        self._channels: dict[int, tuple[str, int, str]] = {}
        self._blocks: list[_Block] = []
        self._file = path.open("rb")
        try:
            if self._file.read(len(MAGIC)) != MAGIC:
                raise ValueError(f"{path}: expected an MCAP file, got another or an empty one")
            if not self._index():
                warn(
                    f"{path}: the file has no end (a recorder that was killed, or an incomplete copy); read as far as "
                    f"it goes. To repair it: `mcap recover {path.name} -o whole.mcap`"
                )
            self._counts = self._counted()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    @property
    def start_ns(self) -> int:
        """Log time of the first message; 0 without one."""
        return min((block.start_ns for block in self._blocks), default=0)

    @property
    def channels(self) -> list[Channel]:
        found = []
        for number, (topic, schema, encoding) in self._channels.items():
            name, definition = self._schemas.get(schema, ("", ""))
            found.append(Channel(number, topic, name, encoding, definition, self._counts[number]))
        return found

    def messages(self, numbers: Collection[int]) -> Iterator[Stored]:
        """The messages of these channels, ordered by log time. Keeps only chunks in memory that overlap in time."""
        wanted = set(numbers)
        waiting: list[tuple[int, int, Stored]] = []
        order = 0
        for block in sorted(self._blocks, key=lambda block: block.start_ns):
            if block.counts is not None and not wanted & block.counts.keys():
                continue
            while waiting and waiting[0][0] < block.start_ns:
                yield heapq.heappop(waiting)[2]
            for stored in self._stored(block):
                if stored.channel in wanted:
                    heapq.heappush(waiting, (stored.stamp_ns, order, stored))
                    order += 1
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _index(self) -> bool:
        """Finds schemas, channels, messages and chunks. Returns whether the file has its end."""
        size, offset = self._path.stat().st_size, len(MAGIC)
        while offset + _RECORD.size <= size:
            self._file.seek(offset)
            opcode, length = _RECORD.unpack(self._file.read(_RECORD.size))
            offset += _RECORD.size
            is_whole: bool = offset + length <= size
            if opcode == _CHUNK and offset + _CHUNK_HEAD.size <= size:
                start_ns, end_ns, _, _ = _CHUNK_HEAD.unpack(self._file.read(_CHUNK_HEAD.size))
                self._blocks.append(_Block(True, offset, min(length, size - offset), start_ns, end_ns, None))
            if opcode == _FOOTER or not is_whole:
                return bool(opcode == _FOOTER) and is_whole
            if opcode == _MESSAGE and length >= _MESSAGE_HEAD.size:
                channel, _, stamp_ns, _ = _MESSAGE_HEAD.unpack(self._file.read(_MESSAGE_HEAD.size))
                self._blocks.append(_Block(False, offset, length, stamp_ns, stamp_ns, Counter([channel])))
            elif opcode == _MESSAGE_INDEX:
                self._count(self._file.read(length))
            elif opcode in (_SCHEMA, _CHANNEL):
                self._define(opcode, self._file.read(length))
            offset += length
        return False

    def _count(self, content: bytes) -> None:
        """Adds the message index of one channel to the chunk before it."""
        if self._blocks and self._blocks[-1].is_chunk:
            last = self._blocks[-1]
            counts = Counter() if last.counts is None else last.counts
            # An entry has 16 bytes: log time and offset.
            counts[_U16.unpack_from(content)[0]] += _U32.unpack_from(content, 2)[0] // 16
            self._blocks[-1] = last._replace(counts=counts)

    def _counted(self) -> Counter[int]:
        """Messages by channel. Reads the chunks only if the indices do not say it, or channels are unknown."""
        counts: Counter[int] = sum((block.counts or Counter() for block in self._blocks), Counter())
        if all(block.counts is not None for block in self._blocks) and counts.keys() <= self._channels.keys():
            return counts
        for place, block in enumerate(self._blocks):
            if block.is_chunk:
                stamps = [(stored.channel, stored.stamp_ns) for stored in self._stored(block)]
                # The times in the head of a chunk that was cut are those of the whole chunk.
                start_ns, end_ns = (
                    min((stamp for _, stamp in stamps), default=0),
                    max((s for _, s in stamps), default=0),
                )
                counts_here = Counter(channel for channel, _ in stamps)
                self._blocks[place] = block._replace(start_ns=start_ns, end_ns=end_ns, counts=counts_here)
        self._blocks = [block for block in self._blocks if block.counts]
        return sum((block.counts or Counter() for block in self._blocks), Counter())

    def _stored(self, block: _Block) -> Iterator[Stored]:
        self._file.seek(block.offset)
        content = self._file.read(block.length)
        for opcode, record in self._records(content, block.offset) if block.is_chunk else [(_MESSAGE, content)]:
            if opcode == _MESSAGE and len(record) >= _MESSAGE_HEAD.size:
                channel, _, stamp_ns, _ = _MESSAGE_HEAD.unpack_from(record)
                yield Stored(channel, stamp_ns, bytes(record[_MESSAGE_HEAD.size :]))
            elif opcode in (_SCHEMA, _CHANNEL):
                self._define(opcode, record)

    def _records(self, chunk: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
        """The whole records of a chunk."""
        unpacked = memoryview(self._unpacked(chunk, offset))
        place = 0
        while place + _RECORD.size <= len(unpacked):
            opcode, length = _RECORD.unpack_from(unpacked, place)
            place += _RECORD.size
            if place + length > len(unpacked):
                return
            yield opcode, bytes(unpacked[place : place + length])
            place += length

    def _unpacked(self, chunk: bytes, offset: int) -> bytes:
        """The records of a chunk, decompressed up to the first damaged place."""
        try:
            _, _, size, checksum = _CHUNK_HEAD.unpack_from(chunk)
            compression, place = _text(chunk, _CHUNK_HEAD.size)
            packed = chunk[place + _U64.size :]
        except struct.error:  # cut in its head
            return b""
        makers: dict[str, Callable[[], Any]] = {"zstd": zstd.ZstdDecompressor, "lz4": LZ4FrameDecompressor}
        if compression and compression not in makers:
            self._warn(f"{self._path}: expected compression zstd or lz4, got {compression!r}; chunk left out")
            return b""
        unpacked = packed
        if compression:
            decompressor, parts = makers[compression](), []
            try:
                for start in range(0, len(packed), _STEP_BYTES):
                    if decompressor.eof:
                        break
                    parts.append(decompressor.decompress(packed[start : start + _STEP_BYTES]))
            except Exception as error:  # each library has its own
                self._warn(f"{self._path}: the chunk at byte {offset} is damaged: {error!r}")
            unpacked = b"".join(parts)
        if checksum and len(unpacked) == size and crc32(unpacked) != checksum:
            self._warn(f"{self._path}: the chunk at byte {offset} is damaged: its checksum differs")
        return unpacked

    def _define(self, opcode: int, record: bytes) -> None:
        try:
            number = _U16.unpack_from(record)[0]
            if opcode == _SCHEMA:
                name, place = _text(record, 2)
                language, place = _text(record, place)
                definition = _text(record, place)[0] if language == _ROS_LANGUAGE else ""
                self._schemas[number] = name, definition
            else:
                topic, place = _text(record, 4)
                self._channels[number] = topic, _U16.unpack_from(record, 2)[0], _text(record, place)[0]
        except struct.error:
            self._warn(f"{self._path}: a damaged definition was left out")


def _text(record: bytes, place: int) -> tuple[str, int]:
    """A text with its length before it, and the place behind it."""
    start = place + _U32.size
    end = start + _U32.unpack_from(record, place)[0]
    return record[start:end].decode(errors="replace"), end
