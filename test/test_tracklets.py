from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from sam2_scenes import moving_scene, packed, signed

from decaf_ros.config import Sam2Config, SegmentationConfig
from decaf_ros.segmentation import overlap, resizing, tracklets
from decaf_ros.segmentation.overlap import PackedMasks, mask_iou, pairwise_iou
from decaf_ros.segmentation.points import negative_points
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.segmentation.scoring import score_tracklets
from decaf_ros.segmentation.tracklets import propose_tracklets, suppress
from decaf_ros.stages import finish
from decaf_ros.types import Frame, PointPrompts, Window


def strips(*spans: tuple[int, int]) -> PackedMasks:
    """(P, 1, 20) masks that cover columns first to last - 1."""
    columns = torch.arange(20)
    masks = [torch.zeros((0, 20), dtype=torch.bool)]
    masks += [((columns >= first) & (columns < last))[None] for first, last in spans]
    return packed(torch.cat(masks)[:, None])


def run(masks, scores, previous=(), previous_scores=(), threshold=0.7):
    return suppress(strips(*masks), torch.tensor(scores), strips(*previous), torch.tensor(previous_scores), threshold)


def test_iou_by_hand():
    iou = pairwise_iou(strips((0, 10), (0, 0)), strips((5, 15), (0, 10), (0, 0)))
    np.testing.assert_allclose(iou.numpy(), [[1 / 3, 1, 0], [0, 0, 0]])


def test_iou_of_many_masks(monkeypatch):
    """The pixels of 11 x 13 are no multiple of 8, and their bytes no multiple of a product's."""
    monkeypatch.setattr(overlap, "_BYTES_PER_PRODUCT", 5)
    masks = torch.from_numpy(np.random.default_rng(0).random((9, 11, 13)) < np.linspace(0, 0.9, 9)[:, None, None])
    monkeypatch.setattr(resizing, "_PIXELS_AT_ONCE", 2 * 11 * 13)
    parts = packed(masks)
    expected = [[mask_iou(one, other) for other in masks[3:].numpy()] for one in masks.numpy()]
    found = pairwise_iou(parts, packed(masks[3:]))
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(parts[torch.tensor([4])].area_px, [masks[4].sum()])


def test_best_first_and_duplicates_are_dropped():
    assert run([(0, 10), (0, 9), (12, 20)], [1.0, 1.5, 1.2]) == ([1, 2], [])


def test_iou_equal_to_the_threshold_stays():
    assert run([(0, 10), (0, 7)], [1.5, 1.0])[0] == [0, 1]  # 7 / 10
    assert run([(0, 10), (0, 8)], [1.5, 1.0])[0] == [0]


def test_the_better_of_new_and_old_is_kept_and_the_old_at_a_tie():
    assert run([(0, 10)], [1.5], [(0, 9), (11, 20)], [1.2, 0.1]) == ([0], [0])
    assert run([(0, 10)], [1.5], [(0, 9)], [1.8]) == ([], [])
    assert run([(0, 10)], [1.5], [(0, 9)], [1.5]) == ([], [])


def test_a_dropped_candidate_deletes_nothing():
    # The candidate beats the first old one, but not the second.
    assert run([(0, 10)], [1.5], [(0, 9), (1, 10)], [1.2, 1.7]) == ([], [])


def test_one_candidate_can_replace_several():
    assert run([(0, 10)], [1.9], [(0, 9), (1, 10)], [1.2, 1.7]) == ([0], [0, 1])


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir):
    return load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu"))


def points(*rows: tuple[int, float, float, float]) -> PointPrompts:
    """Rows of (frame, x, y, value)."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 4)
    return PointPrompts(table[:, 0].astype(np.int64), table[:, 1:3].copy(), table[:, 3].copy())


def test_tracklets_over_the_window(sam2):
    window = Window(tuple(moving_scene(4)))
    found = finish(
        propose_tracklets(sam2, window, points((1, 0.3, 0.5, 0.9), (1, 0.75, 0.4, 1.0)), SegmentationConfig())
    )
    assert [proposal.source for proposal in found] == [1, 1]
    assert {round(proposal.attention, 3) for proposal in found} == {0.9, 1.0}
    assert found[0].score >= found[1].score
    for proposal in found:
        assert [(mask.shape, mask.dtype) for mask in proposal.masks] == [(window.size_hw, bool)] * 4
        assert all(mask.any() for mask in proposal.masks), "lost before or after its source frame"
        x, y = proposal.point_xy
        height, width = window.size_hw
        assert proposal.masks[1][int(y * height), int(x * width)]
    assert mask_iou(found[0].masks[1], found[1].masks[1]) < 0.1


def test_candidates_take_the_same_memory_for_images_of_every_size(sam2, monkeypatch):
    """Full-size masks are made a few at a time, and none is kept. NumPy makes them, so tracemalloc sees them."""
    size_hw = height, width = 1000, 1500
    monkeypatch.setattr(resizing, "_PIXELS_AT_ONCE", 2 * height * width)
    images = [np.resize(frame.image, (height, width, 3)) for frame in moving_scene(2)]
    window = Window(tuple(Frame(image, number) for number, image in enumerate(images)))
    at = np.linspace(0.1, 0.9, 5, dtype=np.float32)
    places = [(frame, x, y, 1.0) for frame in (0, 1) for x in at for y in at]
    small_batches = Sam2(sam2.model, Sam2Config(device="cpu", object_batch=4))
    tracemalloc.start()
    found = finish(propose_tracklets(small_batches, window, points(*places), SegmentationConfig(suppression_iou=1.0)))
    kept, peak = (number / (height * width) for number in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    grid = sam2.image_size // 4
    assert {one.masks.logits.untyped_storage().nbytes() for one in found} == {2 * grid * grid * 4}
    assert {mask.shape for one in found[::9] for mask in one.masks} == {size_hw}
    assert len(found) > 30 and kept < 1
    assert peak < 12, "packed masks take an eighth, parts two, prompts four full-size masks"


def test_the_same_object_on_a_later_frame_is_suppressed_or_replaces(sam2):
    window = Window(tuple(moving_scene(3)))
    config = SegmentationConfig(suppression_iou=0.3)
    weak, strong = (0.3, 0.5, 0.5), (0.3, 0.5, 0.95)
    first = finish(propose_tracklets(sam2, window, points((0, *strong), (2, *weak)), config))
    assert [proposal.source for proposal in first] == [0]
    second = finish(propose_tracklets(sam2, window, points((0, *weak), (2, *strong)), config))
    assert [proposal.source for proposal in second] == [2]


def test_suppression_looks_at_the_earlier_tracklet_where_it_is_now(sam2, monkeypatch):
    """The earlier tracklet moved half an image to the right: a later point at its old place is a new object."""

    def moved(sam2, frames, source, masks):
        yield
        moved = [masks.roll((index - source) * masks.shape[2] // 4, dims=2) for index in range(3)]
        return signed(torch.stack(moved, dim=1))

    monkeypatch.setattr(tracklets, "propagate_steps", moved)
    window = Window(tuple(moving_scene(3)))
    old_place, new_place = (0.3, 0.5, 0.9), (0.8, 0.5, 0.5)
    config = SegmentationConfig(suppression_iou=0.2)
    found = finish(
        propose_tracklets(sam2, window, points((0, 0.3, 0.5, 1.0), (2, *old_place), (2, *new_place)), config)
    )
    assert [(proposal.source, proposal.point_xy[0]) for proposal in found] == [
        (0, pytest.approx(0.3)),
        (2, pytest.approx(0.3)),
    ]


def test_a_point_without_a_mask_makes_no_candidate(sam2, monkeypatch):
    point_steps = sam2.point_steps

    def blind_on_the_left(embedding, xy):
        found = yield from point_steps(embedding, xy)
        return found._replace(logits=torch.where(torch.from_numpy(xy[:, 0] > 0.5)[:, None, None], found.logits, -1.0))

    monkeypatch.setattr(sam2, "point_steps", blind_on_the_left)
    window = Window(tuple(moving_scene(2)))
    (found,) = finish(
        propose_tracklets(sam2, window, points((0, 0.3, 0.5, 1.0), (0, 0.8, 0.4, 0.9)), SegmentationConfig())
    )
    assert found.point_xy == pytest.approx((0.8, 0.4)) and found.attention == pytest.approx(0.9)


def test_points_that_show_nothing_are_blank_candidates_if_configured(tiny_sam2_dir):
    """The model's score says of every point that nothing is there."""
    window, here = Window(tuple(moving_scene(3))), points((1, 0.3, 0.5, 0.9), (1, 0.31, 0.5, 1.0))
    found = {}
    for blank in (False, True):
        sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", blank_unseen=blank))
        with torch.no_grad():
            sam2.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-50)
        found[blank] = finish(propose_tracklets(sam2, window, here, SegmentationConfig(suppression_iou=0.3)))
    (kept,) = found[False]
    assert kept.object_score < 0 and kept.masks[1].any()
    assert [proposal.attention for proposal in found[True]] == pytest.approx([1.0, 0.9]), "empty masks do not overlap"
    assert not any(mask.any() for proposal in found[True] for mask in proposal.masks)
    attention = np.random.default_rng(0).random((3, 6, 10), dtype=np.float32)
    scored = score_tracklets(found[True], attention, SegmentationConfig())
    assert [tracklet.scores.consistency for tracklet in scored] == [0, 0]


def test_no_points_no_tracklets(sam2):
    assert finish(propose_tracklets(sam2, Window(tuple(moving_scene(2))), points(), SegmentationConfig())) == []


def test_points_outside_the_window_are_named(sam2):
    with pytest.raises(ValueError, match="window of 2"):
        finish(propose_tracklets(sam2, Window(tuple(moving_scene(2))), points((2, 0.5, 0.5, 1)), SegmentationConfig()))


def test_negative_points_change_the_masks_that_cover_weak_tokens(sam2, monkeypatch):
    """Only where a token of low attention lies inside; a mask that they would empty stays."""
    window, here = Window(tuple(moving_scene(2))), points((0, 0.3, 0.5, 1.0), (0, 0.8, 0.4, 0.9))
    config = SegmentationConfig(negative_points=2)
    later = points((0, 0.3, 0.5, 0.9), (1, 0.8, 0.4, 0.9))
    of_two_frames = finish(propose_tracklets(sam2, window, later, config, np.full((2, 12, 20), 0.9, np.float32)))
    assert sorted(one.source for one in of_two_frames) == [0, 1]
    attention = np.full((2, 12, 20), 0.9, np.float32)
    plain = finish(propose_tracklets(sam2, window, here, SegmentationConfig()))
    for map_, options in ((None, config), (attention, config), (attention * 0, SegmentationConfig())):
        same = finish(propose_tracklets(sam2, window, here, options, map_))
        assert all(np.array_equal(one.masks[0], other.masks[0]) for one, other in zip(plain, same))

    # The wired model finds nothing of the left one beside its negative points: that mask stays.
    embedding = sam2.embed(window.frames[0])
    first = sam2.masks_at_points(embedding, here.xy)
    kept = finish(tracklets.refined(sam2, embedding, here.xy, first, attention[0] * 0, config))
    assert torch.equal(kept.logits[0], first.logits[0]) and kept.iou[0] == first.iou[0]
    assert kept.masks[1].any() and not torch.equal(kept.masks[1], first.masks[1])

    # Farther points leave something. The left mask alone covers a weak token.
    attention[:, :, :10] = 0.1
    apart, asked = np.array([[0.3, 0.3], [0.3, 0.31]], np.float32), []

    def some(attention, mask, config):
        asked.append(len(negative_points(attention, mask, config)))
        return apart[: asked[-1]]

    monkeypatch.setattr(tracklets, "negative_points", some)
    again = finish(tracklets.refined(sam2, embedding, here.xy, first, attention[0], config))
    expected = finish(sam2.point_steps(embedding, here.xy[:1], apart[None]))
    assert asked == [2, 0] and expected.masks.any() and not torch.equal(expected.masks[0], first.masks[0])
    assert torch.equal(again.logits[0], expected.logits[0]) and again.iou[0] == expected.iou[0]
    assert torch.equal(first.logits[1], again.logits[1]) and first.iou[1] == again.iou[1]
    changed = finish(propose_tracklets(sam2, window, here, config, attention))
    assert {one.iou for one in changed} == set(again.iou.tolist())
