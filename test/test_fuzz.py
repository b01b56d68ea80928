"""Any message, query, parameter or file: it is used, or refused with a short line that says why.

`pytest -m slow test/test_fuzz.py` runs a hundred times as many examples, other ones each time.
"""

from __future__ import annotations

import array
import math
import struct
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import FRAMES, storage_file, write_bag
from scripted import Recorder, ScriptedDecaf, World, WorldTracker, frame
from scripted import settings as quick_settings

from decaf_ros.config import DecafConfig, options, replace
from decaf_ros.config.transports import DEPTH_TRANSPORTS
from decaf_ros.io.bags import BagReader
from decaf_ros.io.film import VideoWriter
from decaf_ros.io.images import ENCODINGS
from decaf_ros.io.messages import frame_from_message
from decaf_ros.io.video import read_video
from decaf_ros.online.query import refusal
from decaf_ros.space.camera import camera_from_info, pixel_rays, project
from decaf_ros.space.depth import message_depth
from decaf_ros.types import FrameResult, Query, QueryEvent

# A line of a log, which a message must neither fill nor break.
MOST_CHARS = 600
MAX_MPX = 0.05

numbers = st.one_of(st.integers(0, 70), st.integers(0, 2**32 - 1))
texts = st.one_of(st.text(max_size=40), st.text(min_size=700, max_size=700), st.just(""))
blobs = st.binary(max_size=300)
header = st.builds(
    lambda sec, nanosec, frame_id: SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec), frame_id=frame_id),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**32 - 1),
    texts,
)


def fuzz(example: st.SearchStrategy, check: Callable, count: int) -> None:
    """Tries `count` examples: the same ones in every quick run."""
    is_quick = count <= 2500
    wanted = settings(
        max_examples=count, deadline=None, database=None, derandomize=is_quick, suppress_health_check=list(HealthCheck)
    )
    wanted(given(example)(check))()


def examples(quick: int) -> list:
    return [quick, pytest.param(100 * quick, marks=pytest.mark.slow)]


def refused(work: Callable[[], object]) -> bool:
    """Whether it raises ValueError, whose text is a short line."""
    try:
        work()
    except ValueError as error:
        text = str(error)
        assert 0 < len(text) <= MOST_CHARS, len(text)
        assert text.isprintable(), repr(text)
        return True
    return False


def mutated(draw: Callable, data: bytes) -> bytes:
    """Some bytes of the data changed, cut or repeated."""
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        stop = min(len(data), start + draw(st.integers(0, 40)))
        data[start:stop] = draw(st.one_of(st.binary(max_size=8), st.just(bytes(data[start:stop]) * 2)))
    return bytes(data)


@st.composite
def image_messages(draw) -> SimpleNamespace:
    """A valid image, of which any field may then be another one."""
    encoding = draw(st.sampled_from(sorted(ENCODINGS)))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    step = draw(st.integers(1, 16)) * width
    fields = {
        "header": draw(header),
        "height": height,
        "width": width,
        "encoding": encoding,
        "is_bigendian": draw(st.integers(0, 255)),
        "step": step,
        "data": array.array("B", bytes(height * step)),
    }
    others = {"height": numbers, "width": numbers, "step": numbers, "encoding": texts}
    others["data"] = blobs.map(lambda data: array.array("B", data))
    for name in draw(st.lists(st.sampled_from(sorted(others)), max_size=2)):
        fields[name] = draw(others[name])
    return SimpleNamespace(**fields)


PICTURES = [
    cv2.imencode(ending, np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(kind))[1].tobytes()
    for ending, shape, kind in [
        (".jpg", (9, 11, 3), np.uint8),
        (".png", (9, 11, 3), np.uint8),
        (".png", (9, 11), np.uint16),
        (".bmp", (9, 11, 3), np.uint8),
        (".webp", (9, 11, 3), np.uint8),
        (".tiff", (9, 11), np.float32),
    ]
]


@st.composite
def compressed_messages(draw) -> SimpleNamespace:
    data = draw(st.one_of(blobs, st.sampled_from(PICTURES).map(lambda picture: mutated(draw, picture))))
    known = st.sampled_from(["jpeg", "png", "rgb8; jpeg compressed bgr8", "bayer_rggb8; png compressed", "16UC1; png"])
    return SimpleNamespace(header=draw(header), format=draw(st.one_of(known, texts)), data=data)


@pytest.mark.parametrize("count", examples(2000))
@pytest.mark.parametrize("messages", [image_messages(), compressed_messages()], ids=["raw", "compressed"])
def test_images(messages, count):
    def check(message) -> None:
        warnings: list[str] = []

        def use() -> None:
            found = frame_from_message(message, 0, warnings.append, max_mpx=MAX_MPX)
            assert found.image.size <= 3 * MAX_MPX * 1e6
            assert hasattr(message, "format") or found.size_hw == (message.height, message.width)

        refused(use)
        assert all(len(text) <= MOST_CHARS and text.isprintable() for text in warnings), warnings

    fuzz(messages, check, count)


@st.composite
def depth_messages(draw) -> SimpleNamespace:
    if draw(st.booleans()):
        message = draw(image_messages())
        message.encoding = draw(st.one_of(st.sampled_from(["16UC1", "32FC1"]), texts))
        return message
    body = st.one_of(
        blobs,
        st.sampled_from(PICTURES).map(lambda picture: mutated(draw, picture)),
        st.builds(lambda size, data: struct.pack("<II", *size) + data, st.tuples(numbers, numbers), blobs),
    )
    head = struct.pack("<iff", draw(st.integers(-5, 5)), *(draw(st.floats(width=32)) for _ in range(2)))
    known = st.sampled_from(
        [f"{kind}; compressedDepth{codec}" for kind in ("16UC1", "32FC1") for codec in ("", " png", " rvl")]
    )
    return SimpleNamespace(header=draw(header), format=draw(st.one_of(known, texts)), data=head + draw(body))


@pytest.mark.parametrize("count", examples(1500))
def test_depth(count):
    assert DEPTH_TRANSPORTS

    def check(message) -> None:
        def use() -> None:
            depth = message_depth(message, MAX_MPX)
            assert depth.dtype == np.float32 and depth.size <= MAX_MPX * 1e6
            assert not np.isinf(depth).any() and (np.isnan(depth) | (depth > 0)).all()

        refused(use)

    fuzz(depth_messages(), check, count)


@st.composite
def camera_infos(draw) -> SimpleNamespace:
    number = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(-2, 2), st.just(0.0))
    matrix = [60.0, 0.0, 32.0, 0.0, 60.0, 24.0, 0.0, 0.0, 1.0]
    fields = {
        "header": draw(header),
        "width": 64,
        "height": 48,
        "distortion_model": draw(st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant", ""])),
        "d": draw(st.lists(st.floats(-0.3, 0.3), max_size=8)),
        "k": matrix,
        "p": [*matrix[:3], 0.0, *matrix[3:6], 0.0, *matrix[6:], 0.0],
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    }
    others = {
        "width": numbers,
        "height": numbers,
        "distortion_model": texts,
        "d": st.lists(number, max_size=16),
        "k": st.lists(number, min_size=9, max_size=9),
        "p": st.lists(number, min_size=12, max_size=12),
        "binning_x": numbers,
        "binning_y": numbers,
        "roi": st.builds(SimpleNamespace, x_offset=numbers, y_offset=numbers, width=numbers, height=numbers),
    }
    for name in draw(st.lists(st.sampled_from(sorted(others)), max_size=2)):
        fields[name] = draw(others[name])
    return SimpleNamespace(**fields)


@pytest.mark.parametrize("count", examples(1000))
def test_camera_infos(count):
    def check(info) -> None:
        for rectified in (False, True):

            def use(rectified=rectified) -> None:
                camera = camera_from_info(info, rectified)
                assert min(camera.size_hw) >= 1 and math.isfinite(camera.fx * camera.fy) and camera.fx > 0
                if camera.width * camera.height <= 10_000:
                    rays = pixel_rays(camera)
                    assert rays.shape[:2] == camera.size_hw
                    project(camera, np.ones((4, 3)))

            refused(use)

    fuzz(camera_infos(), check, count)


@pytest.mark.parametrize("count", examples(500))
def test_parameters(count):
    """A configuration is replaced as a whole, or not at all."""
    names = [option.name for option in options(DecafConfig())]
    values = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        texts,
        st.lists(st.one_of(texts, st.integers())).map(tuple),
    )

    def check(changes) -> None:
        refused(lambda: replace(DecafConfig(), changes))

    fuzz(st.dictionaries(st.one_of(st.sampled_from(names), texts), values, max_size=4), check, count)


@st.composite
def events(draw) -> list[tuple]:
    """Frames, questions, cancellations in any order. Stamps jump, images change their size."""
    text = st.one_of(st.sampled_from(["one", "none", "", "  "]), texts)
    event = st.one_of(
        st.tuples(st.just("frame"), st.integers(-3, 8), st.booleans()),
        st.tuples(st.just("ask"), text, st.sampled_from(["", "hold", "refresh", "off", "never"])),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
        st.tuples(st.just("advance"), st.integers(1, 4)),
    )
    return draw(st.lists(event, max_size=40))


@pytest.mark.parametrize("count", examples(1000))
def test_a_stream_answers_each_question_once_and_each_frame(monkeypatch, count):
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)
    scene = {"a": lambda time_s: (0, 0)}

    def check(example) -> None:
        mode, happenings = example
        answers = {"one": ["a"], "none": []}
        decaf = ScriptedDecaf(World(**scene), quick_settings(queries__mode=mode), answers)
        decaf.script = Answers(answers)
        run, number, frames, asked = Recorder(decaf, lambda: None), 0, 0, []
        run._is_between = True  # units run by "advance" only
        for kind, *details in happenings:
            if kind == "frame":
                number = max(0, number + details[0])
                run.online.observe(frame(number, size_hw=(24, 32) if details[1] else (12, 16)))
                frames += 1
            elif kind == "ask":
                asked.append(f"q{len(asked)}")
                run.online.ask(Query(asked[-1], details[0], policy=details[1]))
            elif kind == "cancel":
                current = [live.query.id for live in run.online.queries]
                if details[0] < len(current):
                    assert run.online.cancel(current[details[0]]) == [current[details[0]]]
                else:
                    run.online.cancel()
            else:
                any(not run.online.advance() for _ in range(details[0]))
        run.online.cancel()
        while run.online.advance():
            pass
        assert len(run.of(FrameResult)) == frames and not len(run.online.queries)
        for query_id in asked:
            assert len(run.answers(query_id)) == 1, query_id
        ids = [target.id for result in run.results for target in result.targets]
        assert all(len(event.text) <= MOST_CHARS and event.text.isprintable() for event in run.of(QueryEvent))
        assert len(set(ids)) <= len(asked) * 4

    fuzz(st.tuples(st.sampled_from(["replace", "add"]), events()), check, count)


class Answers(dict):
    """The scripted answers; any other text means nothing that is there."""

    def __missing__(self, text: str) -> list[str]:
        return []


@pytest.mark.parametrize("count", examples(500))
def test_queries(count):
    def check(example) -> None:
        text, policy = example
        reason = refusal(text, policy, DecafConfig())
        assert len(reason) <= MOST_CHARS and reason.isprintable()

    fuzz(st.tuples(st.one_of(texts, st.text(min_size=1100, max_size=1200)), texts), check, count)


@pytest.fixture(scope="module", params=["mcap", "sqlite3"])
def bag_bytes(request, tmp_path_factory) -> tuple[str, bytes]:
    file = storage_file(write_bag(tmp_path_factory.mktemp("fuzz") / "bag", request.param))
    return file.suffix, file.read_bytes()


@pytest.mark.parametrize("count", examples(250))
def test_damaged_bags(bag_bytes, tmp_path, count):
    suffix, whole = bag_bytes

    def check(data) -> None:
        path = tmp_path / f"some{suffix}"
        path.write_bytes(mutated(data.draw, whole))

        def use() -> None:
            with BagReader(path, lambda text: None) as reader:
                rejected: list[str] = []
                count = sum(1 for _ in reader.frames(reject=rejected.append, max_mpx=MAX_MPX))
                assert count + len(rejected) <= 2 * FRAMES

        refused(use)

    fuzz(st.data(), check, count)


@pytest.mark.parametrize("count", examples(250))
def test_damaged_videos(tmp_path, count):
    with VideoWriter(tmp_path / "whole.webm") as film:
        for number in range(6):
            film.write(np.full((24, 32, 3), 40 * number, np.uint8), number * 100_000_000)
    whole, path = (tmp_path / "whole.webm").read_bytes(), tmp_path / "some.webm"

    def check(data) -> None:
        path.write_bytes(mutated(data.draw, whole))
        refused(lambda: [*read_video(path, reject=lambda text: None, max_mpx=MAX_MPX)])

    fuzz(st.data(), check, count)
