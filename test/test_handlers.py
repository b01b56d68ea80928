"""Handlers with tiny models: the messages published for frames, queries and invalid input."""
# ruff: noqa: E402

from __future__ import annotations

import array
import itertools
from collections.abc import Callable

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")

from handler_run import PERIOD_NS, START_NS, Run, image, tiny_models
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from decaf_ros.config import replace
from decaf_ros.io.mask_codes import with_codes
from decaf_ros.io.messages import stamp_ns
from decaf_ros.msg import QueryStatus
from decaf_ros.online import handlers as handlers_module
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def models(tiny_mllm_dir, tiny_sam2_dir) -> Decaf:
    return tiny_models(tiny_mllm_dir, tiny_sam2_dir)


@pytest.fixture
def run(models) -> Run:
    return Run(models)


def test_every_used_frame_gets_one_message_per_topic_with_its_header(run):
    run.show(*map(image, range(4)))
    run.ask("the red disc")
    run.show(*map(image, range(4, 8)))
    expected = [START_NS + number * PERIOD_NS for number in range(8)]
    for topic in ("masks", "target_mask", "tracklets", "overlay"):
        assert run.stamps(topic) == expected
        assert {message.header.frame_id for message in run.on(topic)} == {"camera"}
    assert run.states("q1") == [QueryStatus.RECEIVED, QueryStatus.GROUNDING, QueryStatus.TRACKING]
    for masks, union, array_message in zip(run.on("masks"), run.on("target_mask"), run.on("tracklets")):
        labels, target = np.frombuffer(masks.data, np.uint8), np.frombuffer(union.data, np.uint8)
        assert np.array_equal(target, np.where(labels, 255, 0))
        assert set(labels[labels > 0]) <= {tracklet.label for tracklet in array_message.tracklets}
    assert [bool(message.tracklets) for message in run.on("tracklets")] == [False] * 4 + [True] * 4
    assert {message.query_id for message in run.on("tracklets")[4:]} == {"q1"}
    assert run.stamps("heatmaps") == [expected[0], expected[2]]
    assert run.warnings() == []
    assert (run.handlers.statistics.used, run.handlers.statistics.rejected) == (8, 0)
    assert [stage for stage, _ in run.handlers.statistics.stage_ms][-1] == "catch_up"


def test_overlay_and_heatmaps_are_published_only_if_wanted(models):
    run = Run(models, is_wanted=lambda topic: False)
    run.show(*map(image, range(4)))
    run.ask("the red disc")
    assert {topic for topic, _ in run.published} == {"masks", "target_mask", "tracklets", "status"}


def test_masks_without_room_are_left_out_and_reported(models):
    before = models.config
    # So large a PNG takes more than 1 KiB, even of an empty mask.
    models.config = replace(before, {"outputs.tracklet_masks": "png", "outputs.tracklet_masks_kib": 1})
    try:
        run = Run(models)
        run.show(*(image(number, (480, 640)) for number in range(4)))
        run.ask("the red disc")
        run.show(image(4, (1500, 2000)))
    finally:
        models.config = before
    masks = {one.id: one.mask for one in run.on("tracklets")[-1].tracklets}
    assert masks and all(not mask.encoding and len(mask.data) == mask.height == 0 for mask in masks.values())
    assert any("(outputs.tracklet_masks_kib), got more: target " in text for text in run.warnings())


@pytest.mark.parametrize("wanted", [True, False])
def test_masks_in_tracklets_are_only_encoded_for_a_consumer(models, wanted, monkeypatch):
    before, encoded = models.config, []
    monkeypatch.setattr(handlers_module, "with_codes", lambda *given: encoded.append(1) or with_codes(*given))
    models.config = replace(before, {"outputs.tracklet_masks": "rle"})
    try:
        run = Run(models, is_wanted=lambda topic: wanted and topic == "tracklets")
        run.show(*map(image, range(4)))
        run.ask("the red disc")
        run.show(image(4))
    finally:
        models.config = before
    assert run.on("tracklets")[-1].tracklets and bool(encoded) is wanted
    assert all(bool(one.mask.encoding) is wanted for one in run.on("tracklets")[-1].tracklets)


def test_watchers_of_results_get_the_places_of_targets_with_depth(models):
    before, results = models.config, []
    models.config = replace(before, {"space.enabled": True, "space.min_points": 3})
    try:
        run = Run(models, watch=lambda output: results.append(output) if isinstance(output, FrameResult) else None)
        matrix = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
        run.handlers.space.put_info(CameraInfo(header=image(0).header, height=48, width=64, k=matrix))
        for number in range(8):
            depth = Image(header=image(number).header, height=48, width=64, encoding="16UC1", step=128)
            depth.data = array.array("B", np.full((48, 64), 1000, np.uint16).tobytes())
            run.handlers.space.put_depth(depth)
            run.show(image(number))
            if number == 3:
                run.ask("the red disc")
    finally:
        models.config = before
    seen = [target for target in results[-1].targets if target.area_px > 100]
    assert seen and all(target.place.position[2] == pytest.approx(1.0) for target in seen)
    published = {one.id: one.position.z for one in run.on("tracklets")[-1].tracklets}
    assert all(published[target.id] == target.place.position[2] for target in seen)
    assert run.stamps("points") == run.stamps("masks") and run.warnings() == []


def test_compressed_images_give_the_same_result_as_raw_ones(run):
    pixels = np.frombuffer(image(0).data, np.uint8).reshape(48, 64, 3)
    data = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    message = CompressedImage(header=image(0).header, format="png", data=array.array("B", data))
    run.show(message)
    assert run.stamps("masks") == [START_NS]
    assert np.array_equal(np.frombuffer(run.on("overlay")[0].data, np.uint8).reshape(48, 64, 3)[-8:], pixels[-8:])


BAD_IMAGES = {
    "truncated": ({"data": array.array("B", bytes(100))}, "expected 9216 bytes of data (48 rows of step 192), got 100"),
    "step too short": ({"step": 100}, "expected a step of at least 192 bytes"),
    "unknown encoding": ({"encoding": "rgb99"}, "got 'rgb99'"),
    "empty": ({"height": 0, "data": array.array("B")}, "got 0 x 64"),
}


@pytest.mark.parametrize("changes, message", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_give_one_log_line_and_a_count_and_the_stream_continues(run, changes, message):
    run.show(image(0), *(image(number, **changes) for number in range(1, 6)), image(6))
    (line,) = run.warnings()
    assert line.startswith("image rejected: ") and message in line
    assert run.stamps("masks") == [START_NS, START_NS + 6 * PERIOD_NS]
    statistics = run.handlers.statistics
    assert (statistics.used, statistics.rejected) == (2, 5)
    assert message in statistics.problem.text


def test_repeated_warnings_are_throttled_and_counted(run, monkeypatch):
    monkeypatch.setattr(handlers_module, "LOG_PERIOD_S", 0.0)
    run.show(image(0, step=1))
    monkeypatch.setattr(handlers_module, "LOG_PERIOD_S", 1e9)
    run.show(image(1, step=2), image(2, step=3), image(3, encoding="rgb99"))
    monkeypatch.setattr(handlers_module, "LOG_PERIOD_S", 0.0)
    run.show(image(4, step=4))
    first, other, again = run.warnings()
    assert "got 1" in first and "rgb99" in other
    assert again.endswith("got 4 (2 more like it before)")


def test_a_truncated_jpeg_is_rejected(run):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    message = CompressedImage(header=image(0).header, format="jpeg", data=array.array("B", data[: len(data) // 2]))
    run.show(message, image(1))
    assert len(run.warnings()) == 1 and "expected a whole image" in run.warnings()[0]
    assert run.stamps("masks") == [START_NS + PERIOD_NS]


@pytest.mark.parametrize(
    "second, message",
    [
        (lambda number: image(number + 8, size_hw=(64, 48)), "the image size changed from 64x48 to 48x64"),
        (lambda number: image(number), "the stamp jumped back by 0.350 s"),
    ],
    ids=["resolution change", "time jumps back"],
)
def test_a_broken_stream_is_reset_and_keeps_the_query(run, second: Callable[[int], Image], message):
    run.show(*map(image, range(8)))
    run.ask("the red disc")
    run.show(*map(second, range(8)))
    (line,) = run.warnings()
    assert message in line
    assert len(run.on("masks")) == len(run.on("tracklets")) == 16
    assert run.answers("q1") == [QueryStatus.TRACKING]
    # Grounded again on the new stream, with new ids.
    before = {tracklet.id for tracklets in run.on("tracklets")[:8] for tracklet in tracklets.tracklets}
    after = {tracklet.id for tracklets in run.on("tracklets")[8:] for tracklet in tracklets.tracklets}
    assert after and not before & after


def test_a_query_before_any_frame_waits_for_the_window(run):
    run.ask("the red disc")
    (status,) = run.on("status")
    assert (status.state, stamp_ns(status.header.stamp)) == (QueryStatus.RECEIVED, 0)
    run.show(*map(image, range(4)))
    assert run.answers("q1") == [QueryStatus.TRACKING]


def test_an_empty_query_clears(run):
    run.show(*map(image, range(4)))
    run.ask("the red disc")
    run.show(image(4))
    run.ask("  ")
    run.show(image(5))
    assert run.answers("q1") == [QueryStatus.TRACKING]
    assert run.answers("q2") == [QueryStatus.CANCELLED]
    assert [bool(message.tracklets) for message in run.on("tracklets")[4:]] == [True, False]
    assert not any(run.on("masks")[-1].data)


def test_a_very_long_query_is_refused_and_the_current_one_continues(run):
    run.show(*map(image, range(4)))
    run.ask("the red disc")
    run.ask("long " * 100_000)
    run.show(image(4))
    assert run.answers("q2") == [QueryStatus.FAILED]
    assert run.on("status")[-1].text == "query: expected at most 50 characters, got 499999"
    assert run.on("status")[-1].query.startswith("long long") and len(run.on("status")[-1].query) < 250
    assert run.handlers.statistics.event.query.id == "q1"
    assert max(len(text) for _, text in run.log) < 300
    assert run.on("tracklets")[-1].query_id == "q1"


def test_a_second_query_during_a_grounding_supersedes_the_first(models):
    query_ids: list[str] = []

    def between() -> None:
        if not query_ids:
            query_ids.append(run.ask("the blue box"))

    run = Run(models, between=between)
    run.show(*map(image, range(4)))
    run.ask("the red disc")
    assert run.states("q1") == [QueryStatus.RECEIVED, QueryStatus.GROUNDING, QueryStatus.SUPERSEDED]
    assert run.answers("q2") == [QueryStatus.TRACKING]


def test_a_model_error_fails_only_the_query(models):
    class OutOfMemory(Decaf):
        def steps(self, *args, **options):
            raise RuntimeError("CUDA out of memory")

    run = Run(OutOfMemory(models.grounder.mllm, models.sam2, models.config))
    run.show(*map(image, range(4)))
    run.ask("the red disc")
    run.show(image(4))
    assert run.answers("q1") == [QueryStatus.FAILED]
    assert run.on("status")[-1].text == "RuntimeError: CUDA out of memory"
    assert len(run.on("masks")) == 5
    assert [level for level, text in run.log if level == "error" and "q1" in text and "CUDA out of memory" in text]
    assert run.handlers.statistics.problem.level == "error"
    assert len(run.warnings()) == 1


def test_a_cancelled_query_gets_one_answer(run):
    query_id = run.ask("the red disc")
    run.handlers.cancel(query_id, "no longer needed")
    run.handlers.cancel(query_id, "again")
    run.handlers.cancel("q77", "never was")
    assert run.answers("q1") == [QueryStatus.CANCELLED]
    assert run.on("status")[-1].text == "no longer needed"


def test_stop_answers_the_waiting_query_and_ends_tracking(run):
    run.ask("the red disc")
    run.handlers.stop("the node was deactivated")
    assert run.answers("q1") == [QueryStatus.CANCELLED]
    run.show(*map(image, range(4)))
    run.ask("the red disc")
    run.handlers.stop("the node was deactivated")
    run.handlers.stop("the node was deactivated")
    run.show(*map(image, range(10, 14)))
    assert run.answers("q2") == [QueryStatus.TRACKING]
    assert run.on("tracklets")[-1].tracklets == []
    assert run.warnings() == [] and run.handlers.statistics.event is None


def test_shared_id_supplies_continue_over_several_handlers(models):
    ids = {"query_numbers": itertools.count(1), "target_ids": itertools.count(1)}
    used_ids = []
    for _ in range(2):
        run = Run(models, **ids)
        run.show(*map(image, range(4)))
        query_id = run.ask("the red disc")
        run.show(image(4))
        used_ids.append((query_id, {tracklet.id for tracklet in run.on("tracklets")[-1].tracklets}))
    (first, before), (second, after) = used_ids
    assert (first, second) == ("q1", "q2")
    assert min(after) > max(before)


@pytest.fixture
def bars(monkeypatch) -> list[tuple[str, str]]:
    """State and query text in the overlay of each frame."""
    texts: list[tuple[str, str]] = []
    draw = handlers_module.overlay

    def overlay(result, state, query):
        texts.append((state, query))
        return draw(result, state, query)

    monkeypatch.setattr(handlers_module, "overlay", overlay)
    return texts


def test_the_overlay_shows_the_current_query(run, bars):
    run.show(image(0))
    run.ask("the red disc")
    run.show(image(1))
    run.ask("far too long " * 5)
    run.show(*map(image, range(2, 5)))
    run.ask("")
    run.show(image(5))
    assert [bars[0], bars[1], bars[2], bars[4], bars[5]] == [
        ("", ""),
        ("RECEIVED", "the red disc"),
        ("RECEIVED", "the red disc"),
        ("TRACKING", "the red disc"),
        ("CANCELLED", ""),
    ]


def test_the_overlay_shows_a_refused_query_if_no_other_is_current(run, bars):
    run.ask("  \n" + "long " * 100_000)
    run.show(image(0))
    ((state, text),) = bars
    assert state == "FAILED" and text.startswith("long long") and len(text) < 250
    assert run.handlers.statistics.event.query.id == "q1"
    assert len(run.warnings()) == 1


def test_a_blank_query_counts_as_empty(run):
    run.ask(" " * 500_000)
    (status,) = run.on("status")
    assert (status.state, status.query) == (QueryStatus.CANCELLED, "")


def test_a_changed_threshold_takes_effect_at_once(run, models):
    config = models.config
    try:
        run.show(*map(image, range(4)))
        strict = {"segmentation.tracklet_threshold": 1.0, "segmentation.fallback": "none"}
        run.handlers.change_config(replace(config, strict))
        run.ask("the red disc")
        assert run.answers("q1") == [QueryStatus.NOT_FOUND]
    finally:
        models.config = config


def test_an_image_that_is_too_large_is_rejected(run):
    before = run.handlers._decaf.config
    run.handlers.change_config(replace(before, {"node.max_image_mpx": 0.001}))
    run.show(image(0))
    run.handlers.change_config(before)
    run.show(image(1))
    assert (run.handlers.statistics.rejected, len(run.on("masks"))) == (1, 1)
    assert "expected at most 0.001 megapixels (node.max_image_mpx), got 64 x 48 px" in run.warnings()[0]
