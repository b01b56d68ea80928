import numpy as np
import pytest

from decaf_ros.io.viz import PALETTE, contact_sheet, heat_overlay, overlay, shrunk, target_color
from decaf_ros.types import Frame, FrameResult, Query, Target, TargetState, TrackletScores

HEIGHT, WIDTH = 120, 320
GREY = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def target(target_id: int, box: tuple[int, int, int, int], **changes) -> Target:
    x, y, width, height = box
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + height, x : x + width] = True
    fields = {
        "id": target_id,
        "label": target_id,
        "query_ids": ("q",),
        "category": "mug",
        "state": TargetState.TRACKED,
        "mask": mask,
        "scores": TrackletScores(0.9, 0.9, 0.9, 0.9),
        "source_stamp_ns": 0,
    }
    return Target(**{**fields, **changes})


def result(*targets: Target) -> FrameResult:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for each in targets:
        labels[each.mask] = each.label
    return FrameResult(Frame(GREY.copy(), 0), labels, (Query("q", "the mug"),) if targets else (), targets)


def test_overlay_draws_on_a_copy_of_the_frame():
    frame_result = result(target(1, (200, 60, 60, 40)))
    drawn = overlay(frame_result, "TRACKING")
    assert drawn.shape == GREY.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(frame_result.frame.image, GREY)


def test_overlay_marks_the_mask_and_nothing_far_from_it():
    drawn = overlay(result(target(1, (200, 60, 60, 40))), "TRACKING").astype(int)
    tinted = (GREY[0, 0] * 0.65 + np.array(target_color(1)) * 0.35).astype(int)
    np.testing.assert_allclose(drawn[80, 230], tinted, atol=1)
    edge = drawn[80, 195:206]
    assert (np.abs(edge - target_color(1)).sum(axis=1) < 30).any(), "the outline has the target's colour"
    assert (edge.sum(axis=1) < 220).any(), "the outline has a dark rim"
    np.testing.assert_array_equal(drawn[30:, :150], GREY[30:, :150])


def test_bar_has_query_and_state():
    empty = overlay(result())
    assert (empty[:20, :100] > 200).any(), "the bar shows that there is no query"
    assert not (empty[:20, 200:] > 200).any()
    assert (overlay(result(), "NOT_FOUND")[:20, 200:, 0] > 180).any()
    np.testing.assert_array_equal(empty[40:], GREY[40:])
    assert (overlay(result(), "", "the mug") != empty).any()


def test_colours_are_stable_and_distinct():
    assert target_color(3) == target_color(3 + len(PALETTE))
    assert len({target_color(target_id) for target_id in range(len(PALETTE))}) == len(PALETTE)
    luma = np.array([np.dot(color, (0.299, 0.587, 0.114)) for color in PALETTE])
    assert np.abs(luma - np.roll(luma, 1)).min() > 30, "neighbours differ in lightness"


def test_hidden_targets_are_listed_at_the_bottom():
    drawn = overlay(result(target(1, (0, 0, 0, 0), state=TargetState.OCCLUDED)))
    assert (drawn[-20:, :80] > 200).any() and (drawn[60:90] == 100).all()


def test_overlapping_tags_are_moved_apart():
    boxes = [(50, 60, 40, 40), (52, 60, 40, 40)]
    drawn = overlay(result(*(target(number, box) for number, box in enumerate(boxes, 1))))
    areas = [(np.abs(drawn.astype(int) - target_color(number)).sum(axis=2) < 3).sum() for number in (1, 2)]
    assert min(areas) > 400, "both tags are visible"


def test_long_texts_fit_into_a_small_frame():
    tiny = np.zeros((24, 32, 3), np.uint8)
    mask = np.ones((24, 32), bool)
    mug = target(1, (0, 0, 1, 1), mask=mask, category="x" * 300)
    frame_result = FrameResult(Frame(tiny, 0), mask.astype(np.uint8), (Query("q", "word " * 300),), (mug,))
    assert overlay(frame_result, "TRACKING").shape == tiny.shape


def test_heat_overlay():
    values = np.zeros((HEIGHT, WIDTH), np.float32)
    values[60, 160] = 1.0
    drawn = heat_overlay(GREY, values, "the mug").astype(int)
    hot, cold = drawn[60, 160], drawn[100, 20]
    assert hot[0] > 180 and hot[1] > 180 and hot[2] < 100, "yellow is hot"
    np.testing.assert_allclose(cold, 100, atol=25)
    with pytest.raises(ValueError, match=r"expected the image's size \(120, 320\), got \(4, 4\)"):
        heat_overlay(GREY, np.zeros((4, 4), np.float32))


def test_contact_sheet_lays_out_in_rows():
    images = [np.full((10, 20, 3), value, np.uint8) for value in (10, 60, 110)]
    sheet = contact_sheet(images, columns=2)
    assert sheet.shape == (2 * 10 + 3 * 6, 2 * 20 + 3 * 6, 3)
    assert [sheet[11, 16, 0], sheet[11, 42, 0], sheet[27, 16, 0]] == [10, 60, 110]
    assert (sheet[27, 42] > 240).all(), "the last cell is empty"
    captioned = contact_sheet(images, columns=5, captions=["a", "b", "c"])
    assert captioned.shape[1] == 3 * 20 + 4 * 6
    assert (captioned[18:, :, 0] < 100).any(), "captions are written"


def test_contact_sheet_shrinks_wide_images():
    assert contact_sheet([np.zeros((100, 200, 3), np.uint8)], 1, tile_width=50).shape == (25 + 12, 50 + 12, 3)
    assert shrunk(GREY, 1000) is GREY


@pytest.mark.parametrize(
    ("images", "columns", "captions", "message"),
    [([], 2, [], "got 0 and 2"), ([GREY], 0, [], "got 1 and 0"), ([GREY], 1, ["a", "b"], "expected 1 captions, got 2")],
)
def test_contact_sheet_errors(images, columns, captions, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(images, columns, captions)


def test_a_tag_does_not_cover_its_target_under_the_bar():
    drawn = overlay(result(target(1, (100, 0, 60, 34)))).astype(int)
    covered = np.abs(drawn - target_color(1)).sum(axis=2) < 3
    assert covered[38:54, 104:150].mean() > 0.5, "the tag is below the target"
    assert covered[24:30, 110:150].mean() < 0.1
