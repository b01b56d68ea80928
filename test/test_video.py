from pathlib import Path

import cv2
import numpy as np
import pytest

from decaf_ros.io.video import read_video


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A red square on blue that moves to the right."""
    image = np.full((height, width, 3), (10, 20, 160), np.uint8)
    image[16:32, 4 * index : 4 * index + 16] = (220, 30, 20)
    return image


def write(path, count: int):
    """MPEG-4 Part 2 at 20 frames/s."""
    writer = cv2.VideoWriter(str(path.absolute()), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 20.0, (64, 48))
    for index in range(count):
        writer.write(picture(index)[..., ::-1])
    writer.release()
    return path


def test_reading_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.mp4: no such file"):
        list(read_video(tmp_path / "nowhere.mp4"))
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(ValueError, match="notes.mp4: expected a video file"):
        list(read_video(tmp_path / "notes.mp4"))


def test_video_without_a_frame(tmp_path):
    """The header is intact but the frame data is zero."""
    path = write(tmp_path / "clip.mp4", 5)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="clip.mp4: expected"):
        list(read_video(path))


def motion_jpeg(path, damaged=(), count: int = 12, suffix: str = ".avi"):
    """A video whose frames are single JPEG images; the `damaged` ones are zeroed behind their first bytes."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for index in range(count):
        writer.write(picture(index)[..., ::-1])
    writer.release()
    data = bytearray(path.read_bytes())
    starts = [place for place in range(len(data)) if data[place : place + 3] == b"\xff\xd8\xff"]
    assert len(starts) == count
    for index in damaged:
        end = starts[index + 1] if index + 1 < count else starts[index] + 400
        data[starts[index] + 4 : end - 40] = bytes(end - 40 - starts[index] - 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("damaged", [[], [0], [5], [11], [5, 6], [0, 1, 2], [3, 8, 10, 11]])
@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_reading_goes_on_behind_damaged_frames(tmp_path, damaged, suffix):
    rejected: list[str] = []
    frames = list(read_video(motion_jpeg(tmp_path / f"clip{suffix}", damaged), reject=rejected.append))
    good = [index for index in range(12) if index not in damaged]
    assert [frame.index for frame in frames] == good
    np.testing.assert_allclose([frame.stamp_ns for frame in frames], [index * 1e8 for index in good], atol=2e6)
    for frame in frames:
        np.testing.assert_allclose(frame.image[18:30, 4 * frame.index + 4], [[220, 30, 20]] * 12, atol=30)
    # A container that does not know its number of frames hides that the last ones were damaged.
    assert len(rejected) == len(damaged) or (suffix == ".mkv" and len(rejected) < len(damaged))
    assert all("cannot be decoded" in text for text in rejected)


@pytest.mark.parametrize("count", [0.0, -1.0, 3.0, 1e9])
def test_a_container_that_does_not_know_its_number_of_frames(tmp_path, monkeypatch, count):
    path = motion_jpeg(tmp_path / "clip.avi", [2, 5])
    make = cv2.VideoCapture

    class Capture:
        def __init__(self, path: str) -> None:
            self._capture = make(path)

        def get(self, name: int) -> float:
            return count if name == cv2.CAP_PROP_FRAME_COUNT else self._capture.get(name)

        def __getattr__(self, name: str):
            return getattr(self._capture, name)

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    rejected: list[str] = []
    assert len(list(read_video(path, reject=rejected.append))) == 10
    assert len(rejected) == (2 if count < 100 else 3)


@pytest.mark.parametrize("name", ["2024-01-01T12:00:00.mp4", "a:b.mp4", "http:x.mp4", "file:x.mp4", "pipe:0.mp4"])
def test_a_relative_name_with_a_colon(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(Path(name), 3)
    assert len(list(read_video(name))) == 3
