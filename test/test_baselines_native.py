"""Native grounding: reading of answers, the points of each protocol by a hand-worked example, and the whole method."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from family_checks import noise, view

from decaf_ros.config import DecafConfig, EngineConfig, MllmConfig, Sam2Config, replace
from decaf_ros.evaluation.baselines.method import Models
from decaf_ros.evaluation.baselines.native_points import (
    MalformedAnswerError,
    describing_prompt,
    point_extent,
    point_prompt,
    read_points,
)
from decaf_ros.evaluation.baselines.registry import MethodSpec, make_method
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import Answer
from decaf_ros.grounding.views import ReadOptions
from decaf_ros.offline import key_frames
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import finish
from decaf_ros.types import Frame
from tiny_models.internvl import write_tiny_internvl
from tiny_models.qwen3_vl import write_tiny_qwen3_vl

EXTENT = (200.0, 100.0)
GOOD = '{"point_2d": [50, 25], "label": "mug"}'


@pytest.mark.parametrize(
    ("text", "points"),
    [
        (f"[{GOOD}]", [(0.25, 0.25)]),
        (GOOD, [(0.25, 0.25)]),
        (f"```json [ {GOOD} ] ```", [(0.25, 0.25)]),
        (f"```json\n[\n\t{GOOD}\n]\n```", [(0.25, 0.25)]),
        ('[{"point_2d": [0, 0]}, {"point_2d": [200, 100.0], "label": "", "color": "red"}]', [(0, 0), (1, 1)]),
        ("[]", []),
        ("```json [] ```", []),
    ],
)
def test_points_are_read(text, points):
    found = read_points(Answer(text, True), EXTENT)
    assert found.dtype == np.float32 and found.shape == (len(points), 2)
    np.testing.assert_allclose(found, np.array(points).reshape(-1, 2))


MALFORMED = {
    "": "JSON alone",
    "There are none.": "JSON alone",
    "(50, 25)": "JSON alone",
    "50, 25": "JSON alone",
    '<points x1="50" y1="25">mug</points>': "JSON alone",
    f"The mug is here: [{GOOD}]": "JSON alone",
    f"[{GOOD}] I hope this helps.": "JSON alone",
    f"[{GOOD}": "JSON alone",
    f"[{GOOD},]": "JSON alone",
    f"[{GOOD}] [{GOOD}]": "JSON alone",
    f"```json [{GOOD}]": "JSON alone",
    f"```json [{GOOD}] ``` ```json [{GOOD}] ```": "JSON alone",
    "[{'point_2d': [50, 25]}]": "JSON alone",
    '[{"point_2d": [NaN, 25]}]': "JSON alone",
    '[{"point_2d": [50, 25], "point_2d": [60, 35]}]': "an entry twice",
    "[" * 5000: "JSON alone",
    "null": "list of objects",
    "17": "list of objects",
    '"mug"': "list of objects",
    "[50, 25]": "an object",
    "[[50, 25]]": "an object",
    '[{"point_2d": [50, 25], "label": 3}]': "an object with a text as label",
    "[{}]": "point_2d with two numbers",
    '[{"bbox_2d": [10, 10, 50, 25], "label": "mug"}]': "point_2d with two numbers",
    '[{"point_2d": "50, 25"}]': "point_2d with two numbers",
    '[{"point_2d": [50]}]': "point_2d with two numbers",
    '[{"point_2d": [50, 25, 1]}]': "point_2d with two numbers",
    '[{"point_2d": ["50", "25"]}]': "point_2d with two numbers",
    '[{"point_2d": [true, 25]}]': "point_2d with two numbers",
    '[{"point_2d": [1e999, 25]}]': "point_2d with two numbers",
    '[{"point_2d": [[50, 25]]}]': "point_2d with two numbers",
    '[{"point_2d": null}]': "point_2d with two numbers",
    '[{"point_2d": [201, 25]}]': "within 200 x 100",
    '[{"point_2d": [50, 101]}]': "within 200 x 100",
    '[{"point_2d": [-1, 25]}]': "within 200 x 100",
    f'[{GOOD}, {{"point_2d": [500, 25]}}]': "within 200 x 100",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_answers_are_refused(text):
    with pytest.raises(MalformedAnswerError, match=MALFORMED[text]):
        read_points(Answer(text, True), EXTENT)


def test_an_answer_that_was_cut_off_is_malformed():
    with pytest.raises(MalformedAnswerError, match="expected a whole answer"):
        read_points(Answer(f"[{GOOD}]", False), EXTENT)


# The models


@pytest.fixture(scope="module")
def mllm(tiny_mllm_dir):
    return load_mllm(MllmConfig(str(tiny_mllm_dir), local_files_only=True, dtype="float32", video_tokens=48))


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir):
    return load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True))


def test_coordinates_of_the_families(mllm, tmp_path):
    """Qwen2.5-VL: pixels of the image that it sees, 28 a token. Qwen3-VL: thousandths. Others are refused by name."""
    layout = mllm.layout("frames", 1, (120, 160))
    assert layout.grid == (1, 8, 12) or layout.grid == (1, 12, 16), layout.grid
    assert point_extent(mllm, layout) == (layout.grid[2] * 28.0, layout.grid[1] * 28.0)
    config = MllmConfig(str(write_tiny_qwen3_vl(tmp_path / "qwen3")), local_files_only=True, dtype="float32")
    third = load_mllm(config)
    assert point_extent(third, third.layout("frames", 1, (120, 160))) == (1000.0, 1000.0)
    internvl = load_mllm(MllmConfig(str(write_tiny_internvl(tmp_path / "internvl")), local_files_only=True))
    with pytest.raises(ValueError, match="expected a model of type qwen2_5_vl or qwen3_vl, got internvl"):
        make_method(Models(internvl, None), DecafConfig(), MethodSpec("native-first-frame"))


def test_answers_without_a_rollout_equal_those_with_one(mllm):
    """And therefore those of transformers' `generate`, which the families' tests compare."""
    views = [view(mllm, "frames", noise(3, (90, 130))[start:]) for start in range(3)]
    engine = Engine(mllm, EngineConfig())
    answers = finish(engine.answers([*views, views[0]], "where is it?", 6))
    (with_rollout,) = finish(engine.ask(views, ["where is it?"], ReadOptions(2, max_new_tokens=6)))
    assert [answer.text for answer in answers] == [one.answer for one in (*with_rollout, with_rollout[0])]
    assert len({answer.text for answer in answers}) > 1
    (again,) = finish(engine.answers(views[:1], "where is it?", 6))
    assert again == answers[0], "on a cached prefix"


# The protocols: a ball moves from left to right over nine frames of 160 x 120 pixels


FRAMES, SIZE = 9, (160, 120)


def place(index: int) -> tuple[int, int]:
    return 20 + 15 * index, 60


def clip() -> list[Frame]:
    images = np.full((FRAMES, SIZE[1], SIZE[0], 3), 60, np.uint8)
    for index, image in enumerate(images):
        cv2.circle(image, place(index), 12, (220, 50, 40), -1)
    return [Frame(image, 10**9 + index * 10**8, index=index) for index, image in enumerate(images)]


class ScriptedEngine:
    """Answers as a model that sees the ball, in pixels of the image as it sees it."""

    def __init__(self, mllm, answers=None):
        self.mllm, self.asked, self.given = mllm, [], answers or {}

    def new_round(self, views, text):
        pass

    def answers(self, views, text, max_new_tokens):
        yield
        self.asked.append((views[0].layout.kind, [one.frames[0].index for one in views], text))
        if views[0].layout.kind == "video":
            return [Answer("the red ball on the left", True)]
        width, height = point_extent(self.mllm, views[0].layout)
        return [self.given.get(one.frames[0].index) or self._seen(one, width, height) for one in views]

    @staticmethod
    def _seen(one, width, height):
        x, y = place(one.frames[0].index)
        point = [round(x / SIZE[0] * width), round(y / SIZE[1] * height)]
        return Answer(json.dumps([{"point_2d": point, "label": "ball"}]), True)


def method(name, mllm, sam2, answers=None, **options):
    config = replace(DecafConfig(), {"presence.threshold": 0.0, "segmentation.fallback": "best", **options})
    made = make_method(Models(mllm, sam2), config, MethodSpec(name))
    made.engine = ScriptedEngine(mllm, answers)
    return made


def pixels(points):
    """(index of the key frame, x, y) of each point, in pixels of the camera's image."""
    return [
        (int(frame), *(round(float(one * side)) for one, side in zip(xy, SIZE)))
        for frame, xy in zip(points.frame, points.xy)
    ]


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        # Key frames are 0, 4 and 8. The ball is at x = 20 + 15 * frame.
        ("native-all-frames", list(range(9)), [(0, 20, 60), (1, 80, 60), (2, 140, 60)]),
        ("native-first-frame", [0], [(0, 20, 60)]),
        ("native-reference", [0], [(0, 20, 60)]),
        ("native-key-frames", [0, 4, 8], [(0, 20, 60), (1, 80, 60), (2, 140, 60)]),
    ],
)
def test_points_of_each_protocol_in_pixels(mllm, sam2, name, asked, expected):
    frames = clip()
    made = method(name, mllm, sam2)
    found = made.segment(key_frames(frames, 3), "the ball", frames)
    kind, places, text = made.engine.asked[-1]
    assert (kind, places) == ("frames", asked)
    assert pixels(found.points) == expected
    assert found.query == "the ball" and found.grounding.malformed == (0, len(asked))
    assert found.coarse_masks is None and found.dense_labels.shape == (FRAMES, SIZE[1], SIZE[0])
    # 1 at the tokens of the points only.
    fused = found.grounding.maps.fused
    assert fused.sum() == len(expected) and {int(frame) for frame in fused.nonzero()[0]} == {one[0] for one in expected}
    height, width = fused.shape[1:]
    assert fused[0, height // 2, int(20 / 160 * width)] == 1
    if name == "native-reference":
        assert made.engine.asked[0] == ("video", [0], describing_prompt("the ball"))
        assert text == point_prompt("the red ball on the left") and found.grounding.category in text
    else:
        assert text == point_prompt("the ball") and len(made.engine.asked) == 1


def test_every_frame_by_itself_is_masked_as_sam2_masks_its_points(mllm, sam2):
    """The union of the masks: frame 3 has two points, the ball and a corner."""
    frames = clip()
    width, height = point_extent(mllm, mllm.layout("frames", 1, SIZE[::-1]))
    ball, corner = (65 / 160 * width, height / 2), (0.75 * width, 0.875 * height)
    two = Answer(json.dumps([{"point_2d": list(ball)}, {"point_2d": list(corner)}]), True)
    found = method("native-all-frames", mllm, sam2, {3: two}).segment(key_frames(frames, 3), "the ball", frames)
    for index, places in ((0, [place(0)]), (3, [place(3), (120, 105)]), (8, [place(8)])):
        masks = sam2.masks_at_points(sam2.embed(frames[index]), np.array(places, np.float32) / SIZE)
        sized = [cv2.resize(one, SIZE, interpolation=cv2.INTER_LINEAR) > 0 for one in masks.logits.numpy()]
        assert (np.any(sized, axis=0) == (found.dense_labels[index] > 0)).mean() > 0.999
        assert len(sized) == 1 or (sized[0] != sized[1]).mean() > 0.01
    assert len(found.selected) == 1
    np.testing.assert_array_equal(found.selected[0].masks[1], found.dense_labels[4] > 0)


def test_malformed_answers_are_counted_and_give_no_point(mllm, sam2):
    frames = clip()
    wrong = {4: Answer("The ball is on the right.", True), 5: Answer("[]", True)}
    found = method("native-all-frames", mllm, sam2, wrong).segment(key_frames(frames, 3), "the ball", frames)
    assert found.grounding.malformed == (1, 9), "an empty list is an answer"
    assert [frame for frame, *_ in pixels(found.points)] == [0, 2]
    assert not found.dense_labels[4].any() and not found.dense_labels[5].any() and found.dense_labels[3].any()


def test_all_points_of_the_first_frame_count_but_those_of_key_frames_are_selected(mllm, sam2):
    frames, selected = clip(), {}
    for name in ("native-first-frame", "native-key-frames"):
        made = method(name, mllm, sam2, **{"segmentation.fallback": "none"})
        made.config = replace(made.config, {"segmentation.tracklet_threshold": 0.9})
        found = made.segment(key_frames(frames, 3), "the ball", frames)
        assert found.tracklets
        for one in found.tracklets:
            assert one.scores.attention == 1 and one.scores.combined == pytest.approx((1 + one.scores.iou) / 2)
        selected[name] = [one.scores.combined > 0.9 for one in found.selected], made._selection().segmentation
    assert selected["native-first-frame"][1].tracklet_threshold == 0
    assert selected["native-key-frames"][1].tracklet_threshold == 0.9 and all(selected["native-key-frames"][0])


@pytest.mark.parametrize("name", ["native-all-frames", "native-reference"])
def test_a_real_model_that_names_no_points_finds_nothing(mllm, sam2, name):
    """Random weights: every answer is malformed, which is counted and not an error."""
    frames = clip()[:3]
    config = replace(DecafConfig(), {"mllm.max_new_tokens": 1, "presence.threshold": 0.0})
    made = make_method(Models(mllm, sam2), config, MethodSpec(name))
    found = made.segment(key_frames(frames, 2), "the ball", frames)
    count = 3 if name == "native-all-frames" else 1
    assert found.grounding.malformed == (count, count)
    assert not found.selected and not found.dense_labels.any() and len(found.points) == 0
    with pytest.raises(ValueError, match="query: expected a text"):
        made.segment(key_frames(frames, 2), " ")
