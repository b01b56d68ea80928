"""Films for browsers, written by the real encoder and read back."""

from __future__ import annotations

import resource

import av
import numpy as np
import pytest
from test_video import picture

from decaf_ros.io import film
from decaf_ros.io.film import FilmError, VideoWriter, count_frames, frame_rate, letterboxed
from decaf_ros.io.video import read_video


def write(path, stamps_ms, images=None):
    with VideoWriter(path) as video:
        for index, stamp_ms in enumerate(stamps_ms):
            video.write(picture(index % 10) if images is None else images[index], 10**18 + stamp_ms * 1_000_000)
    return path


def stamps_ms(path) -> list[int]:
    return [round(frame.stamp_ns / 1e6) for frame in read_video(path)]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_written_frames_are_read_back(tmp_path, count):
    path = write(tmp_path / "clip.webm", range(0, 50 * count, 50))
    frames = list(read_video(path, frame_id="optical"))
    assert [frame.index for frame in frames] == list(range(count)) and count_frames(path) == count
    assert frames[-1].frame_id == "optical" and stamps_ms(path) == list(range(0, 50 * count, 50))
    np.testing.assert_allclose(frames[-1].image[18:30, 4 * ((count - 1) % 10) + 4], [[220, 30, 20]] * 12, atol=35)
    assert np.abs(frames[0].image.astype(int) - picture(0)).mean() < 8


def test_frames_are_shown_at_their_stamps(tmp_path):
    """A gap of half a second, jitter, a stamp that stands still, and a jump of an hour that is cut out."""
    written = [0, 50, 100, 149, 200, 700, 751, 800, 800, 3_600_000, 3_600_050]
    assert stamps_ms(write(tmp_path / "clip.webm", written)) == [0, 50, 100, 149, 200, 700, 751, 800, 849, 898, 948]


def test_a_browser_knows_the_codec(tmp_path):
    with av.open(str(write(tmp_path / "clip.webm", [0, 50, 100]))) as container:
        (stream,) = container.streams
        assert (container.format.name, stream.codec_context.name) == ("matroska,webm", "vp9")
        assert stream.codec_context.pix_fmt == "yuv420p" and float(stream.average_rate) == 20
    assert b"webm" in (tmp_path / "clip.webm").read_bytes()[:64]


def test_odd_sizes(tmp_path):
    (frame,) = read_video(write(tmp_path / "clip.webm", [0], [picture(0, 49, 63)]))
    assert frame.image.shape == (49, 63, 3)


def test_wrong_image_shape(tmp_path):
    with VideoWriter(tmp_path / "clip.webm") as video:
        video.write(picture(0), 0)
        with pytest.raises(ValueError, match="expected an .* uint8 frame"):
            video.write(picture(1)[..., 0], 1)


def test_frames_of_another_size_are_letterboxed(tmp_path):
    """The camera changes its resolution; the film keeps its initial size."""
    grey = np.full((96, 192, 3), (200, 200, 200), np.uint8)
    path = write(tmp_path / "clip.webm", [0, 50, 100, 150], [picture(0), picture(1), grey, grey])
    frames = [frame.image.astype(int) for frame in read_video(path)]
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
    VideoWriter(tmp_path / "clip.webm").close()
    assert not (tmp_path / "clip.webm").exists()


def test_no_folder(tmp_path):
    with pytest.raises(FilmError, match="clip.webm: cannot write a film of 64 x 48 px .*No such file"):
        write(tmp_path / "nowhere" / "clip.webm", [0])


def test_an_encoder_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "CODEC", "libmoon")
    with pytest.raises(FilmError, match="clip.webm: cannot write a film .*libmoon"):
        write(tmp_path / "clip.webm", [0])


NOISE = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)


def test_a_full_disk(tmp_path):
    (tmp_path / "clip.webm").symlink_to("/dev/full")
    with pytest.raises(FilmError, match="clip.webm: cannot write .*No space left on device"):
        write(tmp_path / "clip.webm", range(60), NOISE)


@pytest.mark.parametrize("limit", [0, 300, 9000, 60_000])
def test_a_disk_that_fills_up(tmp_path, limit):
    """The operating system refuses to write more than `limit` bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(FilmError, match="clip.webm: "):
            write(tmp_path / "clip.webm", range(0, 6000, 100), NOISE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_film_that_lost_frames_is_noticed(tmp_path):
    """As if a file system had dropped the end of the file without an error."""
    video = VideoWriter(tmp_path / "clip.webm")
    for index in range(60):
        video.write(NOISE[index], index * 10**8)
    video._written += 1
    with pytest.raises(FilmError, match="expected 61 frames in the film, got 60; is the disk full"):
        video.close()
    (tmp_path / "clip.webm").write_text("no film")
    with pytest.raises(FilmError, match="expected a film, got a file that cannot be read back"):
        count_frames(tmp_path / "clip.webm")


def test_the_first_error_counts(tmp_path):
    with pytest.raises(KeyError), VideoWriter(tmp_path / "nowhere" / "clip.webm") as video:
        video.write(picture(0), 0)
        raise KeyError


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


@pytest.mark.parametrize("name", ["2024-01-01T12:00:00.webm", "a:b.webm", "http:x.webm", "pipe:0.webm"])
def test_a_relative_name_with_a_colon(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert stamps_ms(write(name, [0, 50, 100])) == [0, 50, 100]
