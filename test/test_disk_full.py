"""A disk that is full: one line says so, nothing broken is presented as whole, and the next run goes on.

A limit on the size of files stands for the disk: the system refuses what is beyond it, at the same calls.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from recordings import START_NS, STEP_NS, storage_file, write_bag

from decaf_ros.cli.main import main
from decaf_ros.comparison.results import ResultError, read_result
from decaf_ros.io.bag_writer import STORAGES, BagWriter
from decaf_ros.io.bags import BagReader
from decaf_ros.io.files import UNFINISHED, write_bytes, write_text
from decaf_ros.io.results import check_new_folder, remove_unfinished, write_png

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 5000),
        lambda path: write_bytes(path, b"x" * 5000),
        lambda path: write_png(path, NOISE),
    ],
)
@pytest.mark.parametrize("existed", [False, True])
def test_a_file_is_whole_or_as_before(tmp_path, write, existed):
    path = tmp_path / "a.png"
    if existed:
        path.write_text("before")
    with full_disk(4000), pytest.raises(OSError, match=r"cannot be written: .*a\.png"):
        write(path)
    assert [file.name for file in tmp_path.iterdir()] == (["a.png"] if existed else [])
    assert not existed or path.read_text() == "before"
    write(path)
    assert path.stat().st_size >= 5000 and len([*tmp_path.iterdir()]) == 1


def test_a_device_and_a_link_stay_what_they_are(tmp_path, capfd):
    write_text(Path("/dev/stdout"), "to the terminal")
    assert capfd.readouterr().out == "to the terminal"
    (tmp_path / "there").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_text(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "after"
    with pytest.raises(OSError, match="No space left on device"):
        write_text(Path("/dev/full"), "x")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("most_bytes", [0, 60_000, 400_000])
def test_a_bag_is_whole_or_marked(tmp_path, storage, most_bytes):
    path, warnings = tmp_path / "bag", []
    with full_disk(most_bytes), pytest.raises(OSError, match=rf"{path}: the bag cannot be written: "):
        _write_noise(path, storage)
    assert (path / UNFINISHED).exists() if path.exists() else most_bytes < 100_000
    if path.exists() and most_bytes:
        text = (path / UNFINISHED).read_text()
        with BagReader(path, warnings.append) if "\n0 of" not in text else _nothing() as reader:
            count = len([*reader.messages()]) if reader else 0
        assert f"\n{count} of " in text and text.startswith("This run did not finish.")
        assert not count or any("did not finish" in warning for warning in warnings)
        with pytest.raises(ResultError, match="broken off"):
            read_result(path)
    _write_noise(path, storage)
    assert not (path / UNFINISHED).exists() and storage_file(path)
    with BagReader(path) as reader:
        assert len([*reader.messages()]) == 60
    with pytest.raises(FileExistsError, match="exists already"):
        _write_noise(path, storage)


def test_half_a_file_that_a_kill_left_is_replaced(tmp_path):
    for name in ("summary.json.part", UNFINISHED):
        (tmp_path / name).touch()
    check_new_folder(tmp_path)
    remove_unfinished(tmp_path)
    assert not [*tmp_path.iterdir()]
    (tmp_path / "notes.txt.part").touch()
    (tmp_path / UNFINISHED).touch()
    with pytest.raises(FileExistsError, match="not empty"):
        check_new_folder(tmp_path)


def test_a_bag_beside_other_files_is_not_replaced(tmp_path):
    with pytest.raises(RuntimeError), BagWriter(tmp_path / "bag"):
        raise RuntimeError
    (tmp_path / "bag" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        BagWriter(tmp_path / "bag")
    assert (tmp_path / "bag" / "notes.txt").exists()


@pytest.mark.parametrize("most_bytes", [60, 1200, 6000])
def test_segment_says_it_in_one_line_and_goes_on_next_time(tmp_path, models, capsys, most_bytes):
    command = ["segment", str(write_bag(tmp_path / "bag", indices=range(6))), "--query", "the ball", *models]
    out, result = tmp_path / "out", ["--out", str(tmp_path / "out"), "--format", "both"]
    with full_disk(most_bytes):
        code = main([*command, *result])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("decaf: ")]
    assert code == 1 and len(said) == 1 and str(out) in said[0], said
    assert (out / UNFINISHED).exists() and not (out / "summary.json").exists()
    assert all(cv2.imread(str(path)) is not None for path in out.rglob("*.png"))
    assert main([*command, *result]) == 0
    assert not [*out.rglob(UNFINISHED)] and len([*(out / "masks").iterdir()]) == 6


@pytest.mark.parametrize("storage", STORAGES)
def test_replay_says_it_in_one_line_and_goes_on_next_time(tmp_path, models, capsys, storage):
    command = ["replay", str(write_bag(tmp_path / "bag", indices=range(6))), "--query", "the ball", *models]
    command += ["--out", str(tmp_path / "out"), "--storage", storage]
    with full_disk(9000):
        code = main(command)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("decaf: ")]
    assert code == 1 and len(said) == 1 and str(tmp_path / "out") in said[0], said
    assert (tmp_path / "out" / UNFINISHED).exists() or storage == "sqlite3"  # which has no room to begin
    assert main(command) == 0
    with BagReader(tmp_path / "out") as reader:
        assert reader.topics["/decaf/masks"].message_count == 6


def _write_noise(path: Path, storage: str) -> None:
    noise = np.random.default_rng(0)
    with BagWriter(path, storage) as bag:
        for number in range(60):
            image = noise.integers(0, 256, (64, 64, 3), np.uint8)
            bag.write_image("/image", image, START_NS + number * STEP_NS, "cam")


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@pytest.fixture
def models(tiny_mllm_dir, tiny_sam2_dir) -> list[str]:
    settings = ["presence.threshold=0", "segmentation.fallback=best", "segmentation.max_points=2", "window.size=4"]
    settings += ["window.min_frames=2", "grounding.mode=fast", "mllm.video_tokens=16"]
    changes = [word for setting in settings for word in ("--set", setting)]
    return [*changes, "--set", f"mllm.checkpoint={tiny_mllm_dir}", "--set", f"sam2.checkpoint={tiny_sam2_dir}"]
