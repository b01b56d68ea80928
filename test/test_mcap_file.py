"""MCAP files of all layouts are read, with foreign topics, without an index, out of order and damaged."""

from __future__ import annotations

import tracemalloc

import pytest
from mcap.records import Chunk
from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, IndexType
from recordings import (
    CHUNKED,
    FRAMES,
    IMAGE,
    PLAIN,
    START_NS,
    STEP_NS,
    McapFile,
    image_bytes,
    place_of,
    read,
    write_mcap,
)

from decaf_ros.io.bags import BagReader


@pytest.mark.parametrize(
    ("kind", "language", "definition", "encoding"),
    [
        ("nav2_msgs/action/NavigateToPose_FeedbackMessage", "unknown", "", "cdr"),
        ("nav2_msgs/action/NavigateToPose_FeedbackMessage", "", "", "cdr"),
        ("acme/msg/Thing", "ros2msg", "", "cdr"),
        ("acme/msg/Thing", "ros2msg", "this is (no definition", "cdr"),
        ("acme.Thing", "protobuf", b"\n\x0b\xff\xfe\x80thing", "protobuf"),
        ("acme.Thing", "jsonschema", '{"type": "object"}', "json"),
        (IMAGE, "jsonschema", '{"type": "object"}', "json"),
        ("acme.Thing", "flatbuffer", b"\xff\x00\x80", "flatbuffer"),
    ],
)
@pytest.mark.parametrize(("profile", "options"), [("ros2", CHUNKED), ("", PLAIN)])
def test_foreign_topics_in_mcap(tmp_path, kind, language, definition, encoding, profile, options):
    with McapFile(tmp_path / "rec.mcap", profile, **options) as file:
        foreign = [file.topic(f"/foreign{number}", kind, language, definition, encoding) for number in range(3)]
        camera = file.topic("/camera/image_raw", IMAGE, "ros2msg", "")
        for index in range(5):
            for number in foreign:
                file.message(number, START_NS + index * STEP_NS, b"\xff{}")
            file.message(camera, START_NS + index * STEP_NS, image_bytes(index))
    assert read(tmp_path / "rec.mcap") == (list(range(5)), "")
    with BagReader(tmp_path / "rec.mcap") as bag:
        assert bag.topics["/foreign0"].message_count == 5
        with pytest.raises(ValueError, match="/foreign0"):
            [bag.deserialize(message) for message in bag.messages(["/foreign0"])]


LAYOUTS = {
    "chunks": CHUNKED,
    "chunks without a summary": PLAIN | CHUNKED | {"use_chunking": True},
    "chunks without their index": CHUNKED | {"index_types": IndexType.NONE},
    "definitions in the chunks only": CHUNKED | {"repeat_channels": False, "repeat_schemas": False},
    "no chunks, but a summary": {"use_chunking": False},
    "no chunks": PLAIN,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_messages_out_of_order(tmp_path, layout):
    """In chunks that overlap in time, too."""
    path = write_mcap(tmp_path / "rec.mcap", (0, 3, 6, 1, 4, 7, 2, 5, 8), **LAYOUTS[layout])
    with BagReader(path) as bag:
        assert [place_of(frame.image) for frame in bag.frames()] == list(range(9))
        assert bag.topics["/camera/image_raw"].message_count == 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_does_not_grow_with_the_file(tmp_path, layout):
    with McapFile(tmp_path / "rec.mcap", **LAYOUTS[layout]) as file:
        topic = file.topic("/data", "acme/msg/Thing", "", "")
        for index in range(40):
            file.message(topic, START_NS + index, bytes(1_000_000))
    tracemalloc.start()
    try:
        with BagReader(tmp_path / "rec.mcap") as bag:
            assert sum(1 for _ in bag.messages()) == 40
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", CompressionType)
@pytest.mark.parametrize("layout", ["chunks", "chunks without a summary"])
def test_a_damaged_chunk_is_left_out(tmp_path, compression, layout):
    path = write_mcap(tmp_path / "rec.mcap", range(9), compression=compression, **LAYOUTS[layout])
    with path.open("rb") as file:
        ends = [file.tell() for record in StreamReader(file, emit_chunks=True).records if isinstance(record, Chunk)]
    data = bytearray(path.read_bytes())
    data[ends[1] - 40 : ends[1] - 20] = b"\xff" * 20
    path.write_bytes(data)
    places, said = read(path)
    assert places == [0, 1, 2, 6, 7, 8]
    assert said.count("is damaged and left out") == 1


def test_an_unknown_compression(tmp_path):
    path = write_mcap(tmp_path / "rec.mcap", range(9), **CHUNKED)
    path.write_bytes(path.read_bytes().replace(b"zstd", b"zst2", 1))
    places, said = read(path)
    assert places == list(range(3, 9)) and "expected compression zstd or lz4, got 'zst2'" in said


def test_topics_and_counts_come_from_the_summary(tmp_path):
    path = write_mcap(tmp_path / "rec.mcap", compression=CompressionType.NONE, **CHUNKED)
    data = bytearray(path.read_bytes())
    data[100 : len(data) // 2] = bytes(len(data) // 2 - 100)
    path.write_bytes(data)
    with BagReader(path, pytest.fail) as bag:
        assert bag.topics == {"/camera/image_raw": (IMAGE, FRAMES)}
    places, said = read(path)
    assert 3 <= len(places) <= FRAMES - 9 and places[-1] == FRAMES - 1 and "is damaged" in said
