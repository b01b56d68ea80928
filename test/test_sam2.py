"""Agreement with the predictors of the sam2 package, caches and batches."""

from __future__ import annotations

import copy
import gc
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2_scenes import disc, moving_scene
from torch._dynamo.utils import counters

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.memory import ObjectMemory, propagate
from decaf_ros.segmentation.resizing import GridMasks, masks_of_size
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.sam2_loading import build_model, load_sam2
from decaf_ros.stages import finish
from decaf_ros.types import Frame
from tiny_models.sam2 import model_config, write_tiny_sam2


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir: Path) -> Sam2:
    return load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu"))


@pytest.fixture(scope="module")
def random_model() -> SAM2Base:
    """The tiny architecture with random weights, scaled so that memories and object pointers affect the masks."""
    torch.manual_seed(0)
    model = build_model(model_config()).eval()
    scales = {"cross_attn_image.v_proj": 8, "cross_attn_image.out_proj": 8, "memory_encoder.out_proj": 20, "obj_ptr": 4}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= next((scale for part, scale in scales.items() if part in name), 1)
        for network in model.sam_mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight *= 100
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(3)
    return model


def recorded_logits(sam2: Sam2) -> list[torch.Tensor]:
    """A list that collects the low-resolution mask logits of every later output."""
    record: list[torch.Tensor] = []
    filled = sam2.filled

    def spy(logits: torch.Tensor) -> torch.Tensor:
        record.append(filled(logits))
        return record[-1]

    sam2.filled = spy
    return record


def test_a_cpu_decodes_fewer_points_at_once_of_larger_features(random_model, monkeypatch):
    sam2 = Sam2(random_model, Sam2Config(device="cpu", point_batch=4), fill_holes_px=0)
    embedding = sam2.embed(moving_scene(1)[0])
    xy = np.random.default_rng(1).random((5, 2)).astype(np.float32)
    logits = recorded_logits(sam2)
    sizes = {}
    for images in (0.5, 2.5, 100):
        monkeypatch.setattr("decaf_ros.segmentation.sam2.CPU_BATCH_BYTES", int(images * embedding.features[-1].nbytes))
        logits.clear()
        units = 1 + sum(1 for _ in sam2.point_steps(embedding, xy))
        sizes[images] = [len(part) for part in logits]
        assert units == len(sizes[images]) and not torch.is_inference_mode_enabled()
    assert sizes == {0.5: [1] * 5, 2.5: [2, 2, 1], 100: [4, 1]}


def test_points_equal_the_image_predictor(random_model):
    frame = moving_scene(1)[0]
    height, width = frame.size_hw
    xy = np.random.default_rng(1).random((7, 2)).astype(np.float32)
    sam2 = Sam2(random_model, Sam2Config(device="cpu", point_batch=3), fill_holes_px=0)
    logits = recorded_logits(sam2)
    found = sam2.masks_at_points(sam2.embed(frame), xy)
    assert found.masks.shape == (7, height, width) and found.masks.dtype == torch.bool
    assert found.iou.dtype == found.object_score.dtype == torch.float32
    assert len(logits) == 3, "expected chunks of point_batch"

    predictor = SAM2ImagePredictor(random_model)
    predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]  # its default is for image_size 1024
    predictor.set_image(frame.image)
    for index, point in enumerate(xy):
        masks, iou, low_res = predictor.predict(point[None] * (width, height), np.array([1]))
        best = int(iou.argmax())
        assert found.iou[index] == pytest.approx(iou[best], abs=1e-5)
        np.testing.assert_allclose(torch.cat(logits)[index, 0], low_res[best], atol=5e-4)
        assert (found.masks[index].numpy() == masks[best].astype(bool)).mean() > 0.999


def test_boxes_equal_the_image_predictor(random_model):
    frame = moving_scene(1)[0]
    size = np.array((frame.size_hw[1], frame.size_hw[0]) * 2)
    boxes = np.array([[0.1, 0.2, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8], [0.0, 0.0, 1.0, 1.0]], np.float32)
    sam2 = Sam2(random_model, Sam2Config(device="cpu", point_batch=2), fill_holes_px=0)
    found = finish(sam2.box_steps(sam2.embed(frame), boxes))
    predictor = SAM2ImagePredictor(random_model)
    predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]  # its default is for image_size 1024
    predictor.set_image(frame.image)
    for index, box in enumerate(boxes):
        masks, iou, low_res = predictor.predict(box=box * size, multimask_output=False)
        assert found.iou[index] == pytest.approx(iou[0], abs=1e-5)
        np.testing.assert_allclose(found.logits[index].clamp(-32, 32), low_res[0], atol=5e-4)
        assert (found.masks[index].numpy() == masks[0].astype(bool)).mean() > 0.999
    assert len(finish(sam2.box_steps(sam2.embed(frame), boxes[:0])).iou) == 0
    for bad in (boxes[:, :2], boxes + 1):
        with pytest.raises(ValueError, match=r"boxes: expected shape \(P, 4\) with values in \[0, 1\]"):
            finish(sam2.box_steps(sam2.embed(frame), bad))


def test_negative_points_equal_the_image_predictor(random_model):
    frame = moving_scene(1)[0]
    size_wh = frame.size_hw[::-1]
    clicks = np.random.default_rng(2).random((3, 3, 2)).astype(np.float32)
    sam2 = Sam2(random_model, Sam2Config(device="cpu", point_batch=2), fill_holes_px=0)
    logits = recorded_logits(sam2)
    found = finish(sam2.point_steps(sam2.embed(frame), clicks[:, 0], clicks[:, 1:]))
    predictor = SAM2ImagePredictor(random_model)
    predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]  # its default is for image_size 1024
    predictor.set_image(frame.image)
    for index, points in enumerate(clicks):
        _, iou, low_res = predictor.predict(points * size_wh, np.array([1, 0, 0]))
        assert found.iou[index] == pytest.approx(iou.max(), abs=1e-5)
        np.testing.assert_allclose(torch.cat(logits)[index, 0], low_res[int(iou.argmax())], atol=5e-4)
    with pytest.raises(ValueError, match=r"negative_xy: expected shape \(P, N, 2\)"):
        finish(sam2.point_steps(sam2.embed(frame), clicks[:, 0], clicks[:2, 1:]))


def test_blanked_points_equal_the_video_predictor(random_model, tmp_path):
    """A median bias: about half of the points show nothing, by the model's own score."""
    model, frame = copy.deepcopy(random_model), moving_scene(1)[0]
    xy = np.random.default_rng(1).random((8, 2)).astype(np.float32)
    bias = model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    shown = Sam2(model, Sam2Config(device="cpu"), 0)
    bias.data -= shown.masks_at_points(shown.embed(frame), xy).object_score.median() + 1e-4
    blanked = Sam2(model, Sam2Config(device="cpu", blank_unseen=True), 0)
    kept, found = (sam2.masks_at_points(sam2.embed(frame), xy) for sam2 in (shown, blanked))
    unseen = found.object_score <= 0
    assert 0 < unseen.sum() < len(xy) and kept.masks.flatten(1).any(1).all()
    assert not found.masks[unseen].any() and torch.equal(found.masks[~unseen], kept.masks[~unseen])
    assert torch.equal(found.iou, kept.iou) and torch.equal(found.object_score, kept.object_score)

    predictor = _video_predictor(model)
    cv2.imwrite(str(tmp_path / "0.jpg"), frame.image)
    state = predictor.init_state(str(tmp_path))
    state["images"] = shown.normalised(frame.image)  # avoids JPEG loss
    state["cached_features"] = {}
    size_wh = np.array(frame.size_hw[::-1])
    for number, point in enumerate(xy):
        _, _, logits = predictor.add_new_points_or_box(state, 0, number, points=(point * size_wh)[None], labels=[1])
    assert ((logits[:, 0] > 0) == found.masks).float().mean() > 0.999
    assert not (logits[unseen] > 0).any()


def test_the_tiny_checkpoint_is_small_reproducible_and_makes_masks(sam2, tiny_sam2_dir, tmp_path):
    write_tiny_sam2(tmp_path)
    for name in ("model.yaml", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tiny_sam2_dir / name).read_bytes()
    assert (tmp_path / "model.safetensors").stat().st_size < 10_000_000
    frame = moving_scene(1)[0]
    xy = np.stack(np.meshgrid([0.2, 0.5, 0.8], [0.3, 0.7]), -1).reshape(-1, 2)
    masks = sam2.masks_at_points(sam2.embed(frame), xy).masks
    assert ((masks.float().mean((1, 2)) > 0.005) & (masks.float().mean((1, 2)) < 0.3)).all()
    rows, columns = (xy[:, ::-1] * frame.size_hw).astype(int).T
    assert masks[torch.arange(len(xy)), rows, columns].all(), "a mask does not contain its point"


@pytest.mark.slow  # compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_image_encoder_gives_equal_features(sam2, tiny_sam2_dir):
    compiled = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", compile=True))
    torch._dynamo.reset()
    counters.clear()
    for frame in moving_scene(2):
        expected, found = sam2.embed(frame), compiled.embed(frame)
        assert counters["frames"]["ok"] == 1, "expected one compilation, with the first frame"
        for found_level, expected_level in zip(found.features, expected.features):
            np.testing.assert_allclose(found_level, expected_level, atol=2e-4)


def test_no_points_give_no_masks(sam2):
    found = sam2.masks_at_points(sam2.embed(moving_scene(1)[0]), np.zeros((0, 2), np.float32))
    assert found.masks.shape == (0, 120, 200) and len(found.iou) == len(found.object_score) == 0


@pytest.mark.parametrize("size_hw", [(48, 85), (12, 20), (9, 7), (5, 4)])
def test_masks_of_size_are_interpolated(size_hw):
    """Also at the edges, with several components, without foreground and with foreground only."""
    logits = torch.randn(40, 12, 20, generator=torch.Generator().manual_seed(0)) - 2.5
    logits[0], logits[1] = -1, 1
    logits[2], logits[2, 0, 0], logits[2, -1, -1] = -1, 2, 2
    expected = F.interpolate(logits[:, None], size_hw, mode="bilinear")[:, 0] > 0
    found = masks_of_size(logits, size_hw)
    assert found.dtype == torch.bool and found[1].all() and not found[0].any()
    assert (found == expected).float().mean() > 0.9999


@pytest.mark.parametrize("bad", [np.array([[0.5, 1.1]]), np.array([0.5, 0.5]), np.array([[0.5, np.nan]])])
def test_bad_points_are_named(sam2, bad):
    with pytest.raises(ValueError, match=r"\(P, 2\) with values in \[0, 1\]"):
        sam2.masks_at_points(sam2.embed(moving_scene(1)[0]), bad)


@pytest.mark.parametrize("weights", ["random", "wired"])
@pytest.mark.parametrize(("length", "source"), [(6, 2), (20, 1)])
def test_propagation_equals_the_video_predictor(request, tmp_path, weights, length, source):
    """Two objects from one frame's masks, forwards and backwards; 20 frames are more than the memory holds.

    The random weights depend on object pointers, the wired ones on masks in the memory.
    """
    model = request.getfixturevalue("sam2").model if weights == "wired" else request.getfixturevalue("random_model")
    frames = moving_scene(length)
    masks = np.stack([disc(frames[0].size_hw, 0.3, 0.5, 0.18), disc(frames[0].size_hw, 0.75, 0.4, 0.12)])
    sam2 = Sam2(model, Sam2Config(device="cpu"), fill_holes_px=0)
    record = recorded_logits(sam2)
    tracks = propagate(sam2, frames, source, torch.from_numpy(masks))
    order = [*range(source, length), *reversed(range(source))]
    logits = dict(zip(order, record))

    predictor = _video_predictor(model)
    for frame in frames:
        cv2.imwrite(str(tmp_path / f"{frame.index}.jpg"), frame.image)
    state = predictor.init_state(str(tmp_path))
    state["images"] = torch.cat([sam2.normalised(frame.image) for frame in frames])  # avoids JPEG loss
    state["cached_features"] = {}
    for object_id, mask in enumerate(masks):
        predictor.add_new_mask(state, source, object_id, mask)
    expected = {}
    for reverse in (False, True):
        for index, _, found in predictor.propagate_in_video(state, reverse=reverse):
            expected[index] = found[:, 0] > 0
    assert sorted(expected) == list(range(length))
    assert all((found > NO_OBJ_SCORE).all() and found.std() > 0.5 for found in record), (
        "empty or constant masks would test nothing"
    )
    for object_id, outputs in state["output_dict_per_obj"].items():
        stored = {**outputs["cond_frame_outputs"], **outputs["non_cond_frame_outputs"]}
        for index in range(length):
            reference = stored[index]["pred_masks"][0]
            np.testing.assert_allclose(logits[index][object_id], reference, atol=2e-3, err_msg=f"frame {index}")
            mask = GridMasks(tracks[object_id], frames[0].size_hw)[index]
            assert (mask == expected[index][object_id].numpy()).mean() > 0.999


def test_many_objects_are_followed_in_batches(sam2: Sam2, monkeypatch):
    frames = moving_scene(5)
    places = [(0.3, 0.5, 0.18), (0.75, 0.4, 0.12), (0.5, 0.8, 0.1)]
    masks = torch.from_numpy(np.stack([disc(frames[0].size_hw, *place) for place in places]))
    expected = propagate(sam2, frames, 2, masks)
    counts, start = [], ObjectMemory.start
    monkeypatch.setattr(ObjectMemory, "start", lambda *arguments: counts.append(len(arguments[2])) or start(*arguments))
    found = propagate(Sam2(sam2.model, Sam2Config(device="cpu", object_batch=2)), frames, 2, masks)
    assert counts == [2, 1] and (expected > 0).flatten(1).any(1).all()
    assert ((found > 0) == (expected > 0)).float().mean() > 0.999


def _video_predictor(model: SAM2Base) -> SAM2Base:
    extras = {"dynamic_multimask_via_stability": True, "dynamic_multimask_stability_delta": 0.05}
    predictor = instantiate(
        {
            **model_config(),
            "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
            "sam_mask_decoder_extra_args": {**extras, "dynamic_multimask_stability_thresh": 0.98},
            "binarize_mask_from_pts_for_mem_enc": True,
        },
        _convert_="all",
    )
    predictor.load_state_dict(model.state_dict())
    return predictor.eval()


def test_holes_up_to_the_limit_are_filled(random_model):
    logits = torch.full((2, 1, 20, 20), 3.0)
    logits[0, 0, 2:4, 2:6] = -1  # 8 pixels
    logits[0, 0, 8:11, 2:5] = -1  # 9 pixels
    logits[0, 0, 0:2, 18:20] = -1  # 4 pixels at the border
    logits[0, 0, [14, 15], [14, 15]] = 0.0  # 2 pixels that touch at a corner; 0 is background
    logits[1] = -5
    logits[1, 0, 5:10, 5:10] = 2
    filled = Sam2(random_model, Sam2Config(device="cpu"), fill_holes_px=8).filled(logits)
    assert (filled[0, 0] <= 0).sum() == 9 and (filled[0, 0, 8:11, 2:5] == -1).all()
    assert (filled[0, 0, 2:4, 2:6] == 0.1).all()
    assert torch.equal(filled[1], logits[1])
    assert Sam2(random_model, Sam2Config(device="cpu"), fill_holes_px=0).filled(logits) is logits


def test_embeddings_are_cached_by_frame_up_to_the_limit(tiny_sam2_dir):
    sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", embedding_cache=2))
    encoded = []
    forward_image = sam2.model.forward_image
    sam2.model.forward_image = lambda batch: encoded.append(1) or forward_image(batch)
    first, second, third = moving_scene(3)
    same_pixels = Frame(first.image, first.stamp_ns)
    assert sam2.embed(first) is sam2.embed(first) and len(encoded) == 1
    assert sam2.embed(same_pixels) is not sam2.embed(first) and len(encoded) == 2
    sam2.embed(second)  # evicts `same_pixels`, the least recently used
    sam2.embed(first)
    assert len(encoded) == 3
    sam2.embed(third)
    sam2.embed(second)
    assert len(encoded) == 5


class Stream:
    """Holds frames."""


def test_held_frames_outlast_others(tiny_sam2_dir):
    sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", embedding_cache=3))
    encoded = []
    sam2._encode = lambda image: encoded.append(1) or object()
    frames = moving_scene(9)
    stream = Stream()
    sam2.hold(stream, frames[:2])
    kept = [sam2.embed(frame) for frame in frames[:2]]
    for frame in frames[2:]:
        assert sam2.embed(frame) is sam2.embed(frame), "the newest frame is cached too"
    assert [sam2.embed(frame) for frame in frames[:2]] == kept and len(encoded) == 9
    sam2.hold(stream, frames[:4])  # more than fit: all are kept, and the newest frame
    for _ in range(2):
        for frame in frames[:4]:
            sam2.embed(frame)
    assert len(encoded) == 11 and set(sam2._cache) == set(frames[:4])
    for frame in frames[4:6]:
        assert sam2.embed(frame) is sam2.embed(frame)
    assert set(sam2._cache) == {*frames[:4], frames[5]}
    sam2.hold(stream, ())
    assert set(sam2._cache) == {frames[2], frames[3], frames[5]}


def test_a_block_keeps_its_frames_whatever_the_stream_holds(tiny_sam2_dir):
    sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", embedding_cache=1))
    sam2._encode = lambda image: object()
    stream = Stream()
    frames = moving_scene(6)
    with pytest.raises(InterruptedError), sam2.holding(frames[:2]):
        with sam2.holding(frames[2:4]):
            for frame in frames:
                sam2.embed(frame)
            sam2.hold(stream, frames[4:5])
            assert set(sam2._cache) == {*frames[:4], frames[5]}
        assert set(sam2._cache) == {*frames[:2], frames[5]}
        raise InterruptedError
    assert set(sam2._cache) == {frames[5]}


def test_two_streams_do_not_undo_each_other(tiny_sam2_dir):
    sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", embedding_cache=1))
    sam2._encode = lambda image: object()
    left, right = Stream(), Stream()
    frames = moving_scene(6)
    sam2.hold(left, frames[:2])
    sam2.hold(right, frames[2:4])
    for frame in frames:
        sam2.embed(frame)
    assert set(sam2._cache) == {*frames[:4], frames[5]}
    del left
    gc.collect()
    sam2.embed(frames[4])
    assert set(sam2._cache) == {*frames[2:5]}, "a stream that is gone holds nothing"


def test_images_that_are_views_embed_as_their_copies(sam2):
    image = moving_scene(1)[0].image
    reversed_view = image[:, ::-1]
    frozen = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    flipped = sam2.embed(Frame(reversed_view, 1)).features[-1]
    assert torch.equal(flipped, sam2.embed(Frame(reversed_view.copy(), 1)).features[-1])
    assert torch.equal(sam2.embed(Frame(frozen, 1)).features[-1], sam2.embed(Frame(image, 1)).features[-1])
