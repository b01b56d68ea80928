from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2_scenes import disc, moving_scene

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.segmentation.tracker import StreamingTracker, TrackStep

SIZE = (120, 200)
LEFT, RIGHT, MIDDLE = disc(SIZE, 0.3, 0.5, 0.2), disc(SIZE, 0.75, 0.4, 0.2), disc(SIZE, 0.5, 0.6, 0.2)


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir: Path) -> Sam2:
    return load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu"))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def test_objects_are_followed_under_their_ids(sam2):
    frames = moving_scene(6)
    tracker = StreamingTracker(sam2)
    tracker.add([7, 3], frames[0], np.stack([LEFT, RIGHT]))
    for frame in frames[1:]:
        steps = tracker.step(frame)
    assert list(steps) == [7, 3] == list(tracker.ids)
    assert isinstance(steps[7], TrackStep) and steps[7].mask.shape == SIZE and steps[7].mask.dtype == np.bool_
    assert overlap(steps[7].mask, LEFT) > 0.5 and overlap(steps[3].mask, RIGHT) > 0.5
    assert steps[7].object_score > 0


def test_a_rejected_step_leaves_no_trace_in_the_memory_of_its_object(sam2):
    frames = moving_scene(6)
    tracker = StreamingTracker(sam2)
    tracker.add([1, 2], frames[0], np.stack([LEFT, RIGHT]))
    tracker.step(frames[1])
    (group,) = tracker._groups
    tracker.step(frames[2])
    outputs = group.memory._bank["non_cond_frame_outputs"]
    before, own = outputs[1]["maskmem_features"].clone(), outputs[2]["maskmem_features"].clone()
    pointers = outputs[1]["obj_ptr"].clone()
    assert not torch.equal(before[0], own[0])
    tracker.reject([1])
    assert torch.equal(outputs[2]["maskmem_features"][0], before[0]) and torch.equal(
        outputs[2]["obj_ptr"][0], pointers[0]
    )
    assert torch.equal(outputs[2]["maskmem_features"][1], own[1])
    tracker.step(frames[3])
    with pytest.raises(ValueError, match=r"expected some of \(1, 2\), got \[9\]"):
        tracker.reject([9])


def test_a_rejected_first_step_falls_back_to_the_prompt(sam2):
    frames = moving_scene(3)
    tracker = StreamingTracker(sam2)
    tracker.add([1], frames[0], LEFT[None])
    tracker.reject([1])  # nothing to reject yet
    tracker.step(frames[1])
    tracker.reject([1])
    (group,) = tracker._groups
    bank = group.memory._bank
    prompt = bank["cond_frame_outputs"][0]["maskmem_features"]
    assert torch.equal(bank["non_cond_frame_outputs"][1]["maskmem_features"], prompt)


def test_groups_join_and_leave_without_disturbing_each_other(sam2):
    frames = moving_scene(8)
    alone, mixed = StreamingTracker(sam2), StreamingTracker(sam2)
    alone.add([1], frames[0], LEFT[None])
    mixed.add([2, 1], frames[0], np.stack([RIGHT, LEFT]))
    for index, frame in enumerate(frames[1:], start=1):
        expected, found = alone.step(frame)[1], mixed.step(frame)
        assert overlap(found[1].mask, expected.mask) > 0.99
        assert found[1].object_score == pytest.approx(expected.object_score, abs=1e-3)
        if index == 2:
            mixed.add([5], frame, MIDDLE[None])
        if index == 4:
            mixed.remove([2])
        if index == 6:
            assert mixed.ids == (1, 5)
            mixed.remove([5])
    assert mixed.ids == (1,)
    mixed.remove([1])
    assert mixed.ids == () and mixed.step(frames[0]) == {}


def test_each_frame_is_embedded_once_for_all_groups(tiny_sam2_dir):
    sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", embedding_cache=1))
    encoded = []
    forward_image = sam2.model.forward_image
    sam2.model.forward_image = lambda batch: encoded.append(1) or forward_image(batch)
    frames = moving_scene(3)
    tracker = StreamingTracker(sam2)
    tracker.add([1], frames[0], LEFT[None])
    tracker.add([2], frames[0], RIGHT[None])
    tracker.step(frames[1])
    tracker.step(frames[2])
    assert len(encoded) == 3


def test_the_same_calls_give_the_same_bytes(sam2):
    def run() -> list[bytes]:
        tracker = StreamingTracker(sam2)
        frames = moving_scene(5)
        tracker.add([1, 2], frames[0], np.stack([LEFT, RIGHT]))
        steps = [step for frame in frames[1:] for step in tracker.step(frame).values()]
        return [step.mask.tobytes() + np.float64(step.object_score).tobytes() for step in steps]

    assert run() == run()


def test_absorb_takes_over_memories(sam2):
    frames = moving_scene(6)
    reference, taken, home = StreamingTracker(sam2), StreamingTracker(sam2), StreamingTracker(sam2)
    reference.add([2], frames[0], RIGHT[None])
    taken.add([2], frames[0], RIGHT[None])
    home.add([1], frames[0], LEFT[None])
    for frame in frames[1:3]:
        for tracker in (reference, taken, home):
            tracker.step(frame)
    home.absorb(taken)
    assert home.ids == (1, 2) and taken.ids == ()
    for frame in frames[3:]:
        assert np.array_equal(home.step(frame)[2].mask, reference.step(frame)[2].mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_gpu_and_cpu_agree(sam2, tiny_sam2_dir, autocast):
    on_gpu = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cuda", autocast=autocast))
    frames = moving_scene(6)
    trackers = [StreamingTracker(model) for model in (sam2, on_gpu)]
    for tracker in trackers:
        tracker.add([1, 2], frames[0], np.stack([LEFT, RIGHT]))
    for frame in frames[1:]:
        expected, found = (tracker.step(frame) for tracker in trackers)
        assert all(overlap(found[key].mask, expected[key].mask) > 0.9 for key in (1, 2))


def test_an_empty_mask_stays_unseen(sam2):
    frames = moving_scene(2)
    memory = ObjectMemory.start(sam2, sam2.embed(frames[0]), torch.zeros((1, *SIZE), dtype=torch.bool))
    assert memory.latest.object_score[0] < 0 and not memory.latest.masks.any()


def test_misuse_is_named(sam2):
    frame = moving_scene(1)[0]
    tracker = StreamingTracker(sam2)
    tracker.add([], frame, np.zeros((0, *SIZE), dtype=bool))
    tracker.add([1], frame, LEFT[None])
    with pytest.raises(ValueError, match=r"none of \(1,\), got \(1,\)"):
        tracker.add([1], frame, LEFT[None])
    with pytest.raises(ValueError, match="expected 1 distinct ids"):
        tracker.add([2, 3], frame, LEFT[None])
    with pytest.raises(ValueError, match=r"expected shape .*120, 200.* got \(1, 60, 200\)"):
        tracker.add([2], frame, LEFT[None, :60])
    with pytest.raises(TypeError, match="bool tensor, got torch.uint8"):
        tracker.add([2], frame, LEFT[None].astype(np.uint8))
    with pytest.raises(ValueError, match=r"got \[9\]"):
        tracker.remove([1, 9])
    with pytest.raises(ValueError, match=r"expected an image of size \(120, 200\), got \(100, 100\)"):
        tracker.step(moving_scene(1, (100, 100))[0])
    other = StreamingTracker(sam2)
    other.add([1], frame, LEFT[None])
    with pytest.raises(ValueError, match=r"got \[1\]"):
        tracker.absorb(other)


def test_memory_holds_only_entries_within_reach(sam2):
    """After many steps exactly the entries within the model's reach are left: 16 object pointers, 7 feature maps."""
    frames = moving_scene(2)
    embedding = sam2.embed(frames[0])
    memory = ObjectMemory.start(sam2, embedding, torch.from_numpy(LEFT[None]))
    for _ in range(40):
        memory.step(embedding)
    outputs = memory._bank["non_cond_frame_outputs"]
    assert sorted(outputs) == list(range(25, 41))
    assert [index for index in outputs if "maskmem_features" in outputs[index]] == list(range(34, 41))
    assert outputs[40]["maskmem_features"].dtype == torch.bfloat16
    positions = {entry["maskmem_pos_enc"][0].data_ptr() for entry in outputs.values()}
    assert len(positions) == 1, "the position encoding is the same for all frames"


def test_results_do_not_depend_on_frame_numbers(sam2):
    frames = moving_scene(6)
    prompt = torch.from_numpy(np.stack([LEFT, RIGHT]))

    def outputs(index: int, num_frames: int | None, reverse: bool) -> list[torch.Tensor]:
        memory = ObjectMemory.start(sam2, sam2.embed(frames[0]), prompt, index, num_frames)
        if reverse:
            memory.rewind()
        return [part for frame in frames[1:] for part in memory.step(sam2.embed(frame))[:2]]

    far, near = 2_000_000, 40
    for early, late in (
        (outputs(0, None, False), outputs(far, None, False)),
        (outputs(near, near + 6, False), outputs(far, far + 6, False)),
        (outputs(near, near + 1, True), outputs(far, far + 1, True)),
    ):
        assert all(torch.equal(first, second) for first, second in zip(early, late))

    stream = ObjectMemory.start(sam2, sam2.embed(frames[0]), prompt)
    stream.step(sam2.embed(frames[1]))
    stream._bank["non_cond_frame_outputs"] = {far: stream._bank["non_cond_frame_outputs"][1]}
    stream._index = far  # two million frames after the conditioning frame
    found = stream.step(sam2.embed(frames[2]))
    assert torch.isfinite(found.object_score).all() and overlap(found.masks[0].numpy(), LEFT) > 0.5


def test_a_clip_has_two_ends_and_is_rewound_once(sam2):
    frames = moving_scene(3)
    clip = ObjectMemory.start(sam2, sam2.embed(frames[1]), torch.from_numpy(LEFT[None]), 1, 3)
    clip.step(sam2.embed(frames[2]))
    with pytest.raises(ValueError, match="frame 3 lies outside the clip of 3 frames"):
        clip.step(sam2.embed(frames[2]))
    clip.rewind()
    clip.step(sam2.embed(frames[0]))
    with pytest.raises(ValueError, match="frame -1 lies outside"):
        clip.step(sam2.embed(frames[0]))
    with pytest.raises(ValueError, match="has not been rewound"):
        clip.rewind()
    with pytest.raises(ValueError, match="expected a frame of the clip of 3 frames, got 3"):
        ObjectMemory.start(sam2, sam2.embed(frames[1]), torch.from_numpy(LEFT[None]), 3, 3)


@pytest.mark.slow
def test_resident_memory_is_flat_over_2000_frames():
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "benchmarks" / "tracker_memory.py"), "--frames", "2000"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    measured = json.loads(run.stdout.splitlines()[-1])
    assert measured["frames"] == 2000 and abs(measured["change"]) < 0.02, run.stdout
