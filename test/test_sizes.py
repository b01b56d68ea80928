"""Images larger than `window.max_side` are kept as smaller copies; everything is published at the camera's size."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from decaf_ros.cli.clips import ClipSource
from decaf_ros.cli.main import main
from decaf_ros.config import DecafConfig, WindowConfig, replace
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader, make_message
from decaf_ros.io.messages import topic_messages
from decaf_ros.io.parameter_files import load_config
from decaf_ros.io.sizes import at_camera_size, bounded, enlarged, nearest
from decaf_ros.io.video import read_video
from decaf_ros.io.viz import overlay
from decaf_ros.offline import check_clip
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.online.window import FrameBuffer
from decaf_ros.pipeline import Decaf
from decaf_ros.types import (
    Frame,
    FrameResult,
    Heatmap,
    Query,
    QueryEvent,
    QueryState,
    Target,
    TargetState,
    TrackletScores,
)

ROOT = Path(__file__).parents[1]
SIZE_HW = HEIGHT, WIDTH = 256, 384
START_NS, STEP_NS, FRAMES = 1_700_000_000_000_000_000, 500_000_000, 6


def picture(index: int) -> np.ndarray:
    ground = cv2.resize(np.random.default_rng(0).integers(0, 200, (8, 12, 3), dtype=np.uint8), (WIDTH, HEIGHT))
    return cv2.circle(ground, (80 + 24 * index, 128), 48, (220, 60, 30), -1)


def camera_frame(index: int) -> Frame:
    return Frame(picture(index), START_NS + index * STEP_NS, "optical", index)


@pytest.fixture
def bag(tmp_path) -> Path:
    with BagWriter(tmp_path / "bag") as file:
        for index in range(FRAMES):
            file.write_image("/camera/image", picture(index), START_NS + index * STEP_NS, "optical")
    return tmp_path / "bag"


@pytest.fixture(scope="module")
def models(tiny_mllm_dir, tiny_sam2_dir) -> dict[str, object]:
    """Settings; random models find nothing convincing, so these accept every answer."""
    always = {"presence.threshold": 0.0, "segmentation.fallback": "best", "segmentation.max_points": 8}
    one_target = {"segmentation.tracklet_threshold": 1.0, "tracking.max_targets": 1}
    small = {"window.size": 3, "window.min_frames": 3, "window.max_side": 192, "regrounding.policy": "off"}
    checkpoints = {"mllm.checkpoint": str(tiny_mllm_dir), "sam2.checkpoint": str(tiny_sam2_dir)}
    return {**checkpoints, **always, **one_target, **small, "grounding.mode": "fast"}


@pytest.mark.parametrize(
    ("size_hw", "kept_hw"), [((1080, 1920), (1080, 1920)), ((2160, 3840), (1296, 2304)), ((8000, 1), (2304, 1))]
)
def test_only_sides_above_the_bound_are_shrunk(size_hw, kept_hw):
    frame = Frame(np.zeros((*size_hw, 3), np.uint8), 5, "camera", 7)
    kept = bounded(frame, WindowConfig().max_side)
    assert (kept.size_hw, kept.camera_hw) == (kept_hw, size_hw)
    assert (kept is frame) == (kept_hw == size_hw)
    assert (kept.stamp_ns, kept.frame_id, kept.index) == (5, "camera", 7)
    assert enlarged(kept).size_hw == size_hw and bounded(frame, 0) is frame


def test_the_paper_keeps_every_size():
    assert load_config(ROOT / "config" / "paper.yaml").window.max_side == 0


def test_a_copy_averages_and_labels_keep_their_values_and_places():
    stripes = np.zeros((6, 8, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (bounded(Frame(stripes, 0), 4).image == 100).all()
    labels = np.array([[0, 7], [255, 1]], np.uint8)
    np.testing.assert_array_equal(nearest(labels, (4, 6)), labels.repeat(2, axis=0).repeat(3, axis=1))
    assert nearest(labels > 1, (4, 4)).dtype == bool and nearest(labels, (2, 2)) is labels


def test_geometry_is_in_pixels_of_the_camera():
    camera = Frame(np.zeros((40, 60, 3), np.uint8), 0)
    kept = bounded(camera, 30)
    mask = np.zeros(kept.size_hw, bool)
    mask[4:8, 10:16] = True
    target = Target(3, 9, ("q1",), "ball", TargetState.TRACKED, mask, TrackletScores(1, 1, 1, 1), 0)
    result = at_camera_size(FrameResult(kept, mask * np.uint8(9), (), (target,)), camera)
    (found,) = result.targets
    assert result.frame is camera and (found.id, found.label, found.state) == (3, 9, TargetState.TRACKED)
    assert (found.box_xywh, found.area_px, found.centroid_xy) == ((20, 8, 12, 8), 96, (25.5, 11.5))
    np.testing.assert_array_equal(result.labels == 9, found.mask)


def test_another_camera_is_noticed_although_its_copies_have_the_same_size():
    buffer = FrameBuffer()
    first, second = (bounded(Frame(np.zeros((*size, 3), np.uint8), 0), 20) for size in ((30, 40), (60, 80)))
    assert first.size_hw == second.size_hw
    buffer.push(first, WindowConfig())
    assert buffer.break_before(second, WindowConfig()) == "the image size changed from 40x30 to 80x60"
    with pytest.raises(ValueError, match="expected 40 x 30 px as before, got 80 x 60 px"):
        check_clip([first, second])


def test_a_stream_is_published_at_the_camera_s_size(models):
    outputs: list = []
    decaf = Decaf.from_config(replace(DecafConfig(), models))
    online = OnlineSegmenter(decaf, outputs.append)
    frames = [camera_frame(index) for index in range(FRAMES)]
    for frame in frames[:3]:
        online.observe(frame)
    online.ask(Query("q1", "the red ball"))
    for frame in frames[3:]:
        online.observe(frame)
    assert online.buffer.nbytes == FRAMES * 128 * 192 * 3
    assert {frame.size_hw for frame in online.buffer.window().frames} == {(128, 192)}
    (answer,) = (one for one in outputs if isinstance(one, QueryEvent) and one.state == QueryState.TRACKING)
    assert max(point.x for point in answer.keypoints) > 192 or max(point.y for point in answer.keypoints) > 128
    results = [one for one in outputs if isinstance(one, FrameResult)]
    assert [result.frame for result in results] == frames, "the camera's own images"
    followed = results[3:]
    assert sum(target.area_px for result in followed for target in result.targets)
    for result in followed:
        assert result.labels.shape == SIZE_HW and overlay(result).shape == (*SIZE_HW, 3)
        assert all(target.mask.shape == SIZE_HW for target in result.targets)
    heats = [one for one in outputs if isinstance(one, Heatmap)]
    assert len(heats) == 3 and {size(message) for heat in heats for message in messages(heat)} == {SIZE_HW}


def size(message: object) -> tuple[int, int]:
    return message.height, message.width


def messages(output: object) -> list[object]:
    return [message for _, message in topic_messages(make_message, output)]


@pytest.mark.parametrize("mode", [[], ["--online"]], ids=["offline", "online"])
def test_files_have_the_camera_s_size(bag, models, tmp_path, mode):
    out = tmp_path / "out"
    settings = [part for name, value in models.items() for part in ("--set", f"{name}={value}")]
    args = ["segment", str(bag), "--query", "the red ball", "--out", str(out), "--format", "both", *mode, *settings]
    assert main(args) == 0
    assert json.loads((out / "summary.json").read_text())["state"] == "TRACKING"
    folders = ["masks"] if mode else ["masks", "coarse_masks"]
    pictures = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for name in folders for file in (out / name).iterdir()]
    assert {picture.shape for picture in pictures} == {SIZE_HW}
    assert {frame.size_hw for frame in read_video(out / "overlay.webm")} == {SIZE_HW}
    with BagReader(out / "outputs_bag") as outputs:
        images = ["/decaf/masks", "/decaf/target_mask", "/decaf/heatmaps"]
        found = [outputs.deserialize(message) for message in outputs.messages(images)]
        arrays = [outputs.deserialize(message) for message in outputs.messages(["/decaf/tracklets"])]
        masks = [outputs.deserialize(message) for message in outputs.messages(["/decaf/masks"])]
    assert {size(message) for message in found} == {SIZE_HW}
    boxes = [(array, tracklet) for array in arrays for tracklet in array.tracklets if tracklet.area]
    labels = {mask.header.stamp.sec * 10**9 + mask.header.stamp.nanosec: mask.data.reshape(SIZE_HW) for mask in masks}
    for array, tracklet in boxes:
        box = tracklet.box
        mask = labels[array.header.stamp.sec * 10**9 + array.header.stamp.nanosec] == tracklet.label
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        assert (box.x_offset, box.y_offset, tracklet.area) == (columns[0], rows[0], mask.sum())
    assert boxes, "one target, so the label image shows its whole mask"


def test_a_clip_in_memory_is_bounded(bag):
    frames = ClipSource(bag, max_side=192).load()
    assert [(frame.size_hw, frame.camera_hw, frame.index) for frame in frames] == [
        ((128, 192), SIZE_HW, index) for index in range(FRAMES)
    ]
