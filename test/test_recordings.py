"""Recordings as real recorders leave them are read: foreign topics, killed recorders, wrong metadata, packed files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from recordings import (
    CHUNKED,
    FRAMES,
    IMAGE,
    PLAIN,
    START_NS,
    STEP_NS,
    image_bytes,
    kill_recorder,
    read,
    storage_file,
    write_bag,
    write_mcap,
    write_metadata,
    write_split,
)

from decaf_ros.cli.clips import ClipSource
from decaf_ros.cli.main import main
from decaf_ros.io.bag_writer import STORAGES, BagWriter
from decaf_ros.io.bags import is_bag, typestore
from decaf_ros.io.storage import zstd

CASES = Path(__file__).parent / "cases"


def state(path: Path) -> dict[str, tuple]:
    """Content, size and time of every file."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: (hashlib.sha256(file.read_bytes()).digest(), file.stat().st_mtime_ns) for file in files}


@pytest.fixture
def segment(tiny_mllm_dir, tiny_sam2_dir, tmp_path, monkeypatch):
    """Runs `decaf segment` in the folder of the test. Returns its exit code and summary.json."""
    monkeypatch.chdir(tmp_path)

    def run(path: str, *args: str) -> tuple[int, dict]:
        always = ["--set", "presence.threshold=0", "--set", "segmentation.fallback=best", "--set", "window.size=2"]
        always += ["--set", "window.min_frames=2"]
        models = ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir), "--set", "grounding.mode=fast"]
        code = main(["segment", path, "--query", "the box", "--out", "out", *models, *always, *args])
        summary = Path("out", "summary.json")
        return code, json.loads(summary.read_text()) if summary.exists() else {}

    return run


# Foreign topics


def test_a_foreign_topic_beside_the_camera(segment):
    """Written by a recorder of Jazzy: the schema of an action's feedback has the encoding "unknown"."""
    path = CASES / "action_beside_camera.mcap"
    assert read(path) == (list(range(FRAMES)), "")
    code, summary = segment(str(path))
    assert (code, summary["frames"], summary["frames_rejected"]) == (0, FRAMES, 0)


@pytest.mark.parametrize("language", ["unknown", "", "protobuf", "ros2msg"])
@pytest.mark.parametrize("foreign", [True, False])
def test_definitions_in_sqlite3(tmp_path, language, foreign):
    """`foreign`: of another topic; else of the camera's, whose type is known without its definition."""
    bag = write_bag(tmp_path / "bag", "sqlite3", range(5))
    with closing(sqlite3.connect(storage_file(bag))) as database, database:
        if foreign:
            kind = "nav2_msgs/action/NavigateToPose_FeedbackMessage"
            database.execute("INSERT INTO topics VALUES (9, '/feedback', ?, 'cdr', '', '')", (kind,))
            row = (kind, language, b"\xff\x00")
            database.execute("INSERT INTO message_definitions VALUES (9, ?, ?, ?, '')", row)
            database.execute("INSERT INTO messages VALUES (99, 9, ?, x'00010000')", (START_NS,))
        else:
            text = "" if language == "ros2msg" else "no definition"
            database.execute(
                "UPDATE message_definitions SET encoding = ?, encoded_message_definition = ?", (language, text)
            )
    assert read(bag) == (list(range(5)), "")


# Killed recorders


@pytest.mark.parametrize("journal", ["wal", "journal"])
@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_journal_is_read_and_nothing_is_changed(tmp_path, journal, metadata, as_file):
    bag = kill_recorder(write_bag(tmp_path / "bag", "sqlite3"), journal)
    if metadata:
        write_metadata(bag, ["copy.db3"], "sqlite3")
    before = state(bag)
    for file in bag.iterdir():
        file.chmod(0o444)
    bag.chmod(0o555)
    try:
        assert read(storage_file(bag) if as_file else bag) == (list(range(FRAMES)), "")
    finally:
        bag.chmod(0o755)
    assert state(bag) == before


def test_a_journal_that_cannot_be_applied_is_named(tmp_path, monkeypatch):
    class Full(sqlite3.Connection):
        def execute(self, sql, *parameters):
            if "wal_checkpoint" in sql:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    bag = kill_recorder(write_bag(tmp_path / "bag", "sqlite3"))
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Full, **options))
    assert "database or disk is full" in read(bag)[1]


def test_segmenting_a_killed_recording(segment, tmp_path):
    bag = kill_recorder(write_bag(tmp_path / "bag", "sqlite3"))
    code, summary = segment("bag")
    assert (code, summary["frames"]) == (0, FRAMES) and set(state(bag)) == {"copy.db3", "copy.db3-wal"}


@pytest.mark.parametrize("storage", list(STORAGES))
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_cut_file_is_read_up_to_its_cut(tmp_path, storage, share):
    path = storage_file(write_bag(tmp_path / "bag", storage))
    if storage == "mcap":
        write_mcap(path, **PLAIN)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    places, said = read(path.parent)
    assert places == list(range(len(places))) and share * FRAMES - 4 < len(places) <= share * FRAMES
    assert ("mcap recover" if storage == "mcap" else ".recover") in said and str(path) in said


@pytest.mark.parametrize("storage", list(STORAGES))
def test_a_cut_file_at_any_place_is_read_or_named(tmp_path, storage):
    """An MCAP file up to its last whole chunk."""
    path = storage_file(write_bag(tmp_path / "bag", storage))
    if storage == "mcap":
        write_mcap(path, **CHUNKED)
    data = path.read_bytes()
    counts = []
    for cut in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:cut])
        try:
            counts.append(len(read(path)[0]))
        except ValueError as error:
            assert str(path) in str(error)
            counts.append(0)
    assert counts == sorted(counts) and counts[-1] >= FRAMES - 2
    assert len(set(counts)) > 5, "each whole chunk, or page, before the cut is read"


def test_damage_in_the_middle_of_a_file(tmp_path):
    path = storage_file(write_bag(tmp_path / "bag", "sqlite3"))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 3 * 4096] = b"\xff" * (3 * 4096)
    path.write_bytes(data)
    source = ClipSource(path)
    assert FRAMES - 6 < len(source.load()) <= FRAMES


# Metadata


@pytest.mark.parametrize("storage", list(STORAGES))
@pytest.mark.parametrize("identifier", ["", "unknown", "mcap", "sqlite3", "rosbag_v2"])
def test_the_files_decide_whatever_the_metadata_says(tmp_path, storage, identifier):
    bag = write_bag(tmp_path / "bag", storage, range(5))
    write_metadata(bag, [storage_file(bag).name], identifier)
    assert read(bag) == (list(range(5)), "")


@pytest.mark.parametrize("storage", list(STORAGES))
def test_a_wrong_suffix(tmp_path, storage):
    path = storage_file(write_bag(tmp_path / "bag", storage, range(5)))
    wrong = path.rename(path.with_suffix(".db3" if storage == "mcap" else ".mcap"))
    assert read(wrong) == (list(range(5)), "")


def test_segmenting_a_reindexed_bag(segment, tmp_path):
    bag = write_bag(tmp_path / "bag")
    write_metadata(bag, [storage_file(bag).name], "")
    code, summary = segment("bag")
    assert (code, summary["frames"], summary["input_problems"]) == (0, FRAMES, [])


@pytest.mark.parametrize("text", ["", "rosbag2_bagfile_information: {}", "- no\n- bag", "{broken: [", "\x00\x01"])
def test_unusable_metadata(tmp_path, text):
    bag = write_bag(tmp_path / "bag", indices=range(5))
    (bag / "metadata.yaml").write_text(text)
    places, said = read(bag)
    assert places == list(range(5)) and "ros2 bag reindex bag" in said


# Names of the parts in Lyrical: number, recording, time.
LYRICAL = "{}_rec_2026_11_27-10_0{}_00"


@pytest.mark.parametrize("names", ["rec_{}", "rec_1{}", "2024-05-0{}T12-00", "{}", LYRICAL])
def test_a_split_bag_without_metadata(tmp_path, names):
    folder = write_split(tmp_path / "rec", names=names)
    places, said = read(folder)
    assert places == list(range(FRAMES)) and "ros2 bag reindex rec" in said


def test_several_bags_in_a_folder_are_not_one(tmp_path):
    folder = write_split(tmp_path / "rec", 2)
    (folder / "rec_0.mcap").rename(folder / "kitchen.mcap")
    (folder / "rec_1.mcap").rename(folder / "hall.mcap")
    with pytest.raises(ValueError, match="expected the files of one bag, got hall.mcap, kitchen.mcap"):
        read(folder)
    assert read(folder / "hall.mcap")[0] == list(range(10, 20))


def test_a_split_bag_in_wrong_order_of_names(tmp_path):
    folder = write_split(tmp_path / "rec")
    for old, new in ((0, "rec_9"), (1, "rec_10"), (2, "rec_8")):
        (folder / f"rec_{old}.mcap").rename(folder / f"{new}.mcap")
    assert read(folder)[0] == list(range(FRAMES))


@pytest.mark.parametrize("storage", list(STORAGES))
def test_a_missing_and_a_cut_part(tmp_path, storage):
    folder = write_split(tmp_path / "rec", 4, storage)
    suffix = storage_file(folder).suffix
    write_metadata(folder, [f"rec/rec_{part}{suffix}" for part in range(4)], storage)
    (folder / f"rec_1{suffix}").unlink()
    (folder / f"rec_2{suffix}").write_bytes((folder / f"rec_2{suffix}").read_bytes()[:20])
    places, said = read(folder)
    assert places == [*range(10), *range(30, 40)]
    assert f"1 of the 4 files in metadata.yaml are missing: rec_1{suffix}" in said and f"rec_2{suffix}" in said


def test_parts_that_the_metadata_does_not_list(tmp_path):
    """A recorder that was killed; another bag in the same folder is not a part."""
    folder = write_split(tmp_path / "rec")
    write_metadata(folder, ["rec_0.mcap"], "mcap")
    other = write_bag(tmp_path / "other", indices=[40])
    shutil.copy(storage_file(other), folder / "other.mcap")
    places, said = read(folder)
    assert places == list(range(FRAMES)) and "does not list rec_1.mcap, rec_2.mcap" in said


def test_parts_with_the_names_of_lyrical_that_the_metadata_does_not_list(tmp_path):
    folder = write_split(tmp_path / "rec", names=LYRICAL)
    write_metadata(folder, [LYRICAL.format(0, 0) + ".mcap"], "mcap")
    other = write_bag(tmp_path / "other", indices=[40])
    shutil.copy(storage_file(other), folder / "3_other_2026_11_27-10_03_00.mcap")
    places, said = read(folder)
    assert places == list(range(FRAMES)) and "does not list 1_rec_2026_11_27-10_01_00.mcap, 2_rec_" in said


# Packed files, ROS 1 and what is no bag


@pytest.mark.parametrize("storage", list(STORAGES))
@pytest.mark.parametrize("suffix", [".zstd", ".zst"])
@pytest.mark.parametrize("metadata", [True, False])
def test_packed_files_in_a_folder(tmp_path, storage, suffix, metadata):
    bag = write_bag(tmp_path / "bag", storage, range(5))
    path = storage_file(bag)
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(zstd.compress(path.read_bytes()))
    path.unlink()
    (bag / "metadata.yaml").unlink()
    if metadata:
        write_metadata(bag, [packed.name], storage)
    assert read(bag) == (list(range(5)), "")
    with pytest.raises(ValueError, match=rf"give the folder.* metadata.yaml, or unpack it: `zstd -d {packed.name}`"):
        read(packed)


def test_packed_messages(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for index in range(5):
            data = zstd.compress(image_bytes(index))
            writer.write("/camera/image_raw", IMAGE, START_NS + index * STEP_NS, data)
    assert read(tmp_path / "bag") == (list(range(5)), "")


@pytest.mark.parametrize("command", ["segment", "replay"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("old.bag", b"#ROSBAG V2.0\n" + bytes(100), "a bag of ROS 1.*rosbags-convert --src old.bag --dst old"),
        ("old.bag.active", b"#ROSBAG V2.0\n" + bytes(100), "a bag of ROS 1.*rosbags-convert"),
        (
            "rec_0.mcap.zstd",
            b"\x28\xb5\x2f\xfd" + bytes(100),
            "give the folder that it lies in.*zstd -d rec_0.mcap.zstd",
        ),
        ("rec_0.db3.zst", b"cut", "give the folder that it lies in.*zstd -d rec_0.db3.zst"),
        ("rec.mcap", b"", "not a readable bag.*an empty one.*mcap recover rec.mcap"),
        ("rec.db3", b"", "not a readable sqlite3 bag: the file is empty"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_command_that_helps(
    tmp_path, monkeypatch, capsys, command, name, content, message
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    assert is_bag(name)
    arguments = ["--query", "x"] if command == "segment" else []
    assert main([command, name, "--out", "out", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("decaf: ") and re.search(message, line)


def test_names_that_look_like_a_url(tmp_path):
    bag = write_bag(tmp_path / "bag", "sqlite3", range(3)).rename(tmp_path / "12:00?x=1#y%41")
    storage_file(bag).rename(bag / "file:a?b#c.db3")
    assert read(bag)[0] == read(storage_file(bag))[0] == list(range(3))


def test_reading_changes_no_file(tmp_path):
    for number, storage in enumerate(STORAGES):
        bag = write_bag(tmp_path / str(number), storage, range(5))
        before = state(bag)
        read(bag)
        assert state(bag) == before


def test_the_default_store_is_not_changed_by_a_bag(tmp_path):
    read(write_bag(tmp_path / "bag", indices=range(2)))
    assert "acme/msg/Thing" not in typestore().types
