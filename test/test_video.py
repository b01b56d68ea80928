import cv2
import numpy as np
import pytest

from decaf_ros.io.video import VideoWriter, frame_rate, letterboxed, read_video


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A red square on blue that moves to the right."""
    image = np.full((height, width, 3), (10, 20, 160), np.uint8)
    image[16:32, 4 * index : 4 * index + 16] = (220, 30, 20)
    return image


def write(path, count: int, step_ns: int = 50_000_000, **size):
    with VideoWriter(path) as video:
        for index in range(count):
            video.write(picture(index % 10, **size), 10**18 + index * step_ns)
    return path


@pytest.mark.parametrize("count", [1, 5, 40])
def test_written_frames_are_read_back(tmp_path, count):
    frames = list(read_video(write(tmp_path / "clip.mp4", count), frame_id="optical"))
    assert [frame.index for frame in frames] == list(range(count))
    assert frames[-1].frame_id == "optical" and frames[0].stamp_ns == 0
    if count > 1:
        np.testing.assert_allclose(np.diff([frame.stamp_ns for frame in frames]), 50_000_000, rtol=0.02)
    np.testing.assert_allclose(frames[-1].image[18:30, 4 * ((count - 1) % 10) + 4], [[220, 30, 20]] * 12, atol=25)
    assert np.abs(frames[0].image.astype(int) - picture(0)).mean() < 8


def test_missing_frames_repeat_the_previous_one(tmp_path):
    """Stamps at 20 Hz with a gap of half a second, jitter, and a jump of an hour that is cut out."""
    stamps_ms = [0, 50, 100, 149, 200, 700, 751, 800, 3_600_000, 3_600_050]
    with VideoWriter(tmp_path / "clip.mp4") as video:
        for index, stamp_ms in enumerate(stamps_ms):
            video.write(picture(index), stamp_ms * 1_000_000)
    frames = list(read_video(tmp_path / "clip.mp4"))
    assert len(frames) == len(stamps_ms) + 9
    for number, index in ((4, 4), (13, 4), (14, 5), (18, 9)):
        assert np.abs(frames[number].image.astype(int) - picture(index)).mean() < 8


def test_the_codec_is_mpeg4_part_2(tmp_path):
    capture = cv2.VideoCapture(str(write(tmp_path / "clip.mp4", 3)))
    fourcc = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()
    assert fourcc in ("mp4v", "FMP4")


def test_odd_sizes_are_made_even(tmp_path):
    (frame,) = read_video(write(tmp_path / "clip.mp4", 1, height=49, width=63))
    assert frame.image.shape == (50, 64, 3)


def test_wrong_image_shape(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4") as video:
        video.write(picture(0), 0)
        with pytest.raises(ValueError, match="expected an .* uint8 frame"):
            video.write(picture(1)[..., 0], 1)


def test_frames_of_another_size_are_letterboxed(tmp_path):
    """The camera changes its resolution; the video keeps its initial size."""
    with VideoWriter(tmp_path / "clip.mp4") as video:
        for index in range(4):
            image = picture(index) if index < 2 else np.full((96, 192, 3), (200, 200, 200), np.uint8)
            video.write(image, index * 50_000_000)
    frames = [frame.image.astype(int) for frame in read_video(tmp_path / "clip.mp4")]
    assert {frame.shape for frame in frames} == {(48, 64, 3)} and len(frames) == 4
    assert np.abs(frames[1] - picture(1)).mean() < 8
    assert frames[3][:6].max() < 30 and frames[3][-6:].max() < 30 and frames[3][12:36].min() > 170


@pytest.mark.parametrize(
    ("size_hw", "rows", "columns"),
    [((96, 96), (32, 64), (0, 96)), ((16, 96), (0, 16), (24, 72)), ((1, 3), (0, 1), (0, 3))],
)
def test_letterbox(size_hw, rows, columns):
    fitted = letterboxed(np.full((10, 30, 3), 255, np.uint8), size_hw)
    expected = np.zeros((*size_hw, 3), np.uint8)
    expected[slice(*rows), slice(*columns)] = 255
    np.testing.assert_array_equal(fitted, expected)


def test_no_file_without_a_frame(tmp_path):
    VideoWriter(tmp_path / "clip.mp4").close()
    assert not (tmp_path / "clip.mp4").exists()


def test_unwritable(tmp_path):
    video = VideoWriter(tmp_path / "nowhere" / "clip.mp4")
    video.write(picture(0), 0)
    with pytest.raises(OSError, match="cannot write a 64 x 48 MP4"):
        video.close()


@pytest.mark.parametrize(
    ("stamps_ns", "fps"),
    [
        ([], 1.0),
        ([5], 1.0),
        ([0, 40_000_000, 80_000_000, 400_000_000], 25.0),
        ([0, 0, 0], 1.0),
        ([0, 33_366_667], 29.97),
        ([0, 3_600_000_000_000], 0.1),
        ([0, 1], 240.0),
    ],
)
def test_frame_rate(stamps_ns, fps):
    assert frame_rate(stamps_ns) == fps


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
    write(name, 3)
    assert len(list(read_video(name))) == 3
