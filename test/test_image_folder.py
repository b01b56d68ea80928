"""A folder of numbered images is an input like a video."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from recordings import picture, place_of

from decaf_ros.cli.clips import ClipSource
from decaf_ros.cli.main import main
from decaf_ros.io.image_folder import image_files, read_images


def write(folder: Path, names: list[str]) -> Path:
    """A picture for each name, in the order of the names."""
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        suffix = Path(name).suffix.lower()
        (folder / name).write_bytes(cv2.imencode(suffix, picture(index)[..., ::-1])[1].tobytes())
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [f"{index:05d}.jpg" for index in range(12)],
        [f"{index:05d}.png" for index in range(12)],
        [f"{index}.jpg" for index in range(12)],
        [f"frame{index}.JPG" for index in range(8, 12)],
        [f"Frame_{index}.PNG" for index in range(98, 103)],
        [f"{index:05d}.jpeg" for index in (0, 5, 10, 25, 30, 100)],
        [f"{1403636579763555584 + index * 10**8}.png" for index in range(4)],
        ["a_9.jpg", "A_10.jpg", "a_11.jpeg"],
        ["1.JPEG", "2.jpg", "10.JPG"],
        ["one.jpg"],
    ],
)
def test_images_come_in_the_order_of_their_numbers(tmp_path, names):
    folder = write(tmp_path / "frames", names)
    frames = list(read_images(folder, fps=10))
    assert [place_of(frame.image) for frame in frames] == [frame.index for frame in frames] == list(range(len(names)))
    assert [frame.stamp_ns for frame in frames] == [index * 10**8 for index in range(len(names))]


def test_other_files_are_ignored(tmp_path):
    folder = write(tmp_path / "frames", [f"{index:05d}.jpg" for index in range(5)])
    write(folder, ["00000.png", "00001.png"])  # masks of some frames
    for name in ("notes.txt", ".DS_Store", "._00001.jpg", "Thumbs.db", "labels.json"):
        (folder / name).write_bytes(b"no image")
    (folder / "more.jpg").mkdir()
    assert [file.name for file in image_files(folder)] == [f"{index:05d}.jpg" for index in range(5)]
    write(folder, [f"{index:05d}.png" for index in range(5)])
    assert {file.suffix for file in image_files(folder)} == {".jpg"}


@pytest.mark.parametrize("damaged", [[0], [2], [4], [1, 2]])
def test_damaged_images_are_counted(tmp_path, damaged):
    folder = write(tmp_path / "frames", [f"{index:05d}.jpg" for index in range(5)])
    for index in damaged:
        file = folder / f"{index:05d}.jpg"
        file.write_bytes(file.read_bytes()[:200] if index % 2 else b"")
    source = ClipSource(folder)
    assert [frame.index for frame in source.load()] == [index for index in range(5) if index not in damaged]
    assert source.problems.rejected == len(damaged)


def test_grey_transparent_and_deep_images(tmp_path):
    (tmp_path / "frames").mkdir()
    pixels = picture(3)[..., ::-1]
    for name, image in {
        "0.png": pixels,
        "1.png": np.dstack([pixels, np.full(pixels.shape[:2], 9, np.uint8)]),
        "2.png": pixels.astype(np.uint16) * 257,
        "3.png": cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY),
    }.items():
        cv2.imwrite(str(tmp_path / "frames" / name), image)
    frames = list(read_images(tmp_path / "frames"))
    for frame in frames[:3]:
        np.testing.assert_array_equal(frame.image, picture(3))
    assert len(frames) == 4 and (frames[3].image[..., 0] == frames[3].image[..., 2]).all()


def test_errors(tmp_path):
    folder = write(tmp_path / "frames", ["0.jpg"])
    with pytest.raises(ValueError, match="fps: expected a positive rate, got 0"):
        list(read_images(folder, fps=0))
    (folder / "0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="expected JPEG or PNG images, got 1, none of which can be decoded"):
        ClipSource(folder).load()
    (folder / "0.jpg").rename(folder / "notes.txt")
    with pytest.raises(ValueError, match="expected a bag .* or a folder of JPEG or PNG images; found notes.txt"):
        ClipSource(folder).load()


@pytest.mark.parametrize("mode", [[], ["--online"]])
def test_segmenting_a_folder(tmp_path, tiny_mllm_dir, tiny_sam2_dir, mode):
    folder = write(tmp_path / "frames", [f"{index}.jpg" for index in range(8)])
    (folder / "5.jpg").write_bytes(b"damaged")
    models = ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir), "--set", "grounding.mode=fast"]
    models += ["--set", "presence.threshold=0", "--set", "window.min_frames=2", "--set", "window.size=2"]
    out = tmp_path / "out"
    arguments = ["--query", "the box", "--out", str(out), "--fps", "2", *mode, *models]
    assert main(["segment", str(folder), *arguments]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["frames"], summary["frames_rejected"]) == (7, 1)
    assert summary["stamps_ns"] == [index * 5 * 10**8 for index in range(8) if index != 5]
    assert sorted(int(file.stem) for file in (out / "masks").iterdir()) == [0, 1, 2, 3, 4, 6, 7]
