"""Long clips of the table: the events that they promise happen, and their expressions are true."""

import argparse
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from decaf_ros.evaluation.datasets.registry import Selection
from decaf_tabletop.dataset import SOURCE, stored_clips
from decaf_tabletop.simulate import add_parser
from decaf_tabletop.training.clips import training_clips
from decaf_tabletop.world import store
from decaf_tabletop.world.bag import read_ground_truth
from decaf_tabletop.world.camera import project
from decaf_tabletop.world.clip import FRAME_PERIOD_S, KINDS, TabletopClip
from decaf_tabletop.world.expressions import FELL, STILL, expressions
from decaf_tabletop.world.long_expressions import FIRST_S, LAST_S, long_expressions
from decaf_tabletop.world.long_scenes import sample_long_scene
from decaf_tabletop.world.routes import AWAY_M, GRAVITY, Leg, Route
from decaf_tabletop.world.simulator import make_long_clip
from decaf_tabletop.world.store import read_clip
from decaf_tabletop.world.windows import WINDOW, training_windows

pytestmark = pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")

BAG = Path(__file__).parents[1] / "decaf_tabletop" / "demo" / "bags" / "long"
MUJOCO_4 = find_spec("mujoco") is not None and int(version("mujoco").split(".")[0]) >= 4
SECONDS, FRAMES = 60.0, 600
SEEDS = (1_000_000, 1_000_006)
PLANNED = range(12)


@pytest.fixture(scope="module", params=SEEDS)
def clip(request) -> TabletopClip:
    return make_long_clip(request.param, SECONDS)


@pytest.fixture(scope="module")
def scenes():
    return [sample_long_scene(seed, SECONDS) for seed in PLANNED]


def areas(clip: TabletopClip) -> np.ndarray:
    """(F, n) visible pixels."""
    return np.stack([(clip.labels == k + 1).sum((1, 2)) for k in range(len(clip.objects))], axis=1)


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(first, end) of each stretch of true values."""
    edges = np.flatnonzero(np.diff(np.r_[0, flags.astype(int), 0]))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def bases(clip: TabletopClip) -> np.ndarray:
    """(F, n) heights of the objects' lower ends above the table in metres."""
    return clip.poses[:, :, 2] - np.array([thing.height_m / 2 for thing in clip.objects])


def pixels(clip: TabletopClip) -> np.ndarray:
    """(F, n, 3) of the objects' centres, as in `project`; meaningless outside the image."""
    w, x, y, z = clip.camera_poses[:, 3:].T
    rotation = np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        axis=1,
    )
    return project(clip.poses[:, :, :3], clip.camera_poses[:, :3], rotation)


def test_a_route_moves_with_ramps_and_falls_with_drag():
    route = Route((0.0, 0.0, 0.0), (Leg("slide", 1.0, 2.0, (0.2, 0.0, 0.0)), Leg("lift", 3.0, 4.0, (0.2, 0.0, AWAY_M))))
    route = route.with_legs(Leg("drop", 5.0, 6.3, (0.2, 0.0, 0.0)))
    times = np.arange(0, 8, 0.01)
    places = route.at(times)
    np.testing.assert_allclose(places[[0, 100, 200, 300, 400, 500, 790], 0], [0, 0, 0.2, 0.2, 0.2, 0.2, 0.2], atol=1e-9)
    np.testing.assert_allclose(places[[250, 450, 790], 2], [0, AWAY_M, 0], atol=1e-9)
    speeds = np.gradient(places, 0.01, axis=0)
    assert speeds[:, 0].max() == pytest.approx(0.2 / 0.85, rel=0.01)  # 0.15 s of ramps
    assert np.abs(np.diff(speeds[:480, 0])).max() < 0.03
    assert speeds[:, 2].min() == pytest.approx(-0.5, rel=0.02)
    assert np.diff(speeds[495:520, 2]).min() / 0.01 >= -GRAVITY
    held = route.is_held(times)
    assert not held[:300].any() and held[300:500].all() and not held[500:].any()


def test_plans_have_all_events_and_no_collisions(scenes):
    legs = [leg for scene in scenes for route in scene.routes for leg in route.legs]
    assert set(Counter(leg.kind for leg in legs)) == {"slide", "lift", "carry", "lower", "drop"}
    assert any(route.start_m[2] > 0 for scene in scenes for route in scene.routes)
    times = np.arange(0, SECONDS, 0.05)
    touched = 0
    for scene in scenes:
        assert 3 <= len(scene.objects) <= 5 and scene.camera.moves
        assert sum(len(route.legs) for route in scene.routes) >= 6
        paths = [route.at(times) for route in scene.routes]
        assert all(path[-1, 2] < 1e-9 for path in paths)  # nothing is away for ever
        for a in range(len(paths)):
            for b in range(a):
                first, second = scene.objects[a].thing, scene.objects[b].thing
                gap = np.linalg.norm(paths[a][:, :2] - paths[b][:, :2], axis=1) - first.radius_m - second.radius_m
                beside = (paths[a][:, 2] < paths[b][:, 2] + second.height_m) & (
                    paths[b][:, 2] < paths[a][:, 2] + first.height_m
                )
                assert gap[beside].min() > 0
                touched += (gap[beside] < 0.002).any()
    assert touched  # somewhere one object pushes another
    things = [[placed.thing for placed in scene.objects] for scene in scenes]
    assert all(
        len({thing.category for thing in each}) < len(each) or len({thing.color for thing in each}) < len(each)
        for each in things
    )


def test_the_objects_follow_the_plan_and_stay_on_the_table(clip):
    scene = sample_long_scene(clip.seed, SECONDS)
    times = np.arange(FRAMES) * FRAME_PERIOD_S
    for index, route in enumerate(scene.routes):
        assert np.abs(route.at(times)[:, :2] - clip.poses[:, index, :2]).max() < 0.01
    assert bases(clip).min() > -0.012 and np.abs(bases(clip)[-1]).max() < 0.002
    assert (np.abs(clip.poses[..., :2]) < np.array(scene.table_m)).all()
    # Upright to the end, but for balls.
    for index, thing in enumerate(clip.objects):
        if thing.category != "ball":
            x, y = clip.poses[:, index, 4:6].T
            assert (1 - 2 * (x * x + y * y)).min() > 0.999


def test_an_object_leaves_the_view_for_seconds_and_comes_back(clip):
    seen = areas(clip)
    away = [
        (k, first, end)
        for k in range(len(clip.objects))
        for first, end in runs(seen[:, k] == 0)
        if first > 0 and end < FRAMES and end - first >= 15 and seen[end:, k].max() >= 100
    ]
    assert away
    # At least one leaves by itself, not because the camera turns away.
    assert any((seen[first:end].sum(axis=1) > 0).mean() > 0.8 for _, first, end in away)


def test_an_object_is_hidden_behind_another_for_seconds(clip):
    seen, centre = areas(clip), pixels(clip)
    inside = (centre[..., :2] > 5).all(-1) & (centre[..., 0] < 315) & (centre[..., 1] < 235) & (centre[..., 2] > 0)
    on_table = bases(clip) < 0.01
    hidden = inside & on_table & (seen < 0.2 * np.median(seen, axis=0))
    longest = [
        (end - first, k, end) for k in range(len(clip.objects)) for first, end in runs(hidden[:, k]) if end < FRAMES
    ]
    length, k, end = max(longest)
    assert length >= 20 and seen[end:, k].max() >= 100


def test_a_look_alike_passes_close_by(clip):
    speed = np.linalg.norm(np.diff(clip.poses[:, :, :2], axis=0), axis=2) / FRAME_PERIOD_S
    nearest = []
    for a, first in enumerate(clip.objects):
        for b, second in enumerate(clip.objects):
            if a == b or not (first.category == second.category or first.color == second.color):
                continue
            for frame in np.flatnonzero(speed[:, a] > 0.05).tolist():
                mine, other = clip.labels[frame] == a + 1, clip.labels[frame] == b + 1
                if mine.sum() >= 100 and other.sum() >= 100:
                    nearest.append(cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, 3)[mine].min())
    assert min(nearest) <= 12


def test_the_camera_moves_and_comes_back(scenes):
    assert sum(len(scene.camera.moves) >= 2 for scene in scenes) > len(scenes) // 2
    tour = next(scene.camera for scene in scenes if scene.camera.moves)
    start_s, end_s, view = tour.moves[0]
    before, after = tour.at(start_s)[0], tour.at(end_s)[0]
    np.testing.assert_array_equal(before, tour.at(0.0)[0])
    assert np.linalg.norm(after - before) > 0.02
    steps = [tour.at(time)[0] for time in np.arange(start_s - 0.2, end_s + 0.2, 0.02)]
    assert np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 0.04


def test_the_same_seed_gives_the_same_clip():
    first, second, other = (make_long_clip(seed, 30.0) for seed in (3, 3, 9))
    for name in ("images", "labels", "poses", "camera_poses", "stamps_ns"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert long_expressions(first) == long_expressions(second)
    assert len(first) == 300 and not np.array_equal(first.images, other.images)


def test_the_expressions_are_true_when_they_are_asked(clip):
    expressions = long_expressions(clip)
    assert [one.asked_s for one in expressions] == sorted(one.asked_s for one in expressions)
    assert sum(bool(one.targets) for one in expressions) >= 3
    seen, centre = areas(clip), pixels(clip)
    names = [(thing.color, thing.category, thing.size) for thing in clip.objects]
    step = np.linalg.norm(np.diff(clip.poses[:, :, :3], axis=0), axis=2)
    for one in expressions:
        assert one.kind in KINDS and FIRST_S <= one.asked_s <= LAST_S
        last = round(one.asked_s / FRAME_PERIOD_S)
        window = slice(last - WINDOW + 1, last + 1)
        words = one.text.strip("?").split()
        fits = [k for k, name in enumerate(names) if all(part in name for part in words if part in sum(names, ()))]
        assert all(seen[last, target] >= 80 for target in one.targets)
        assert (one.kind == "absent") == (not one.targets)
        if one.kind in ("explicit", "attribute"):
            assert fits == list(one.targets)
        elif one.kind == "motion":
            (target,) = one.targets
            path = step[window].sum(axis=0)[target]
            if one.text in STILL:
                assert path < 0.01
            else:
                assert path > 0.08
                for word, sign in (("left", -1), ("right", 1)):
                    if word in words:
                        assert sign * (centre[last, target, 0] - centre[window.start, target, 0]) > 5
        elif one.text in FELL:
            assert -np.diff(clip.poses[window, one.targets[0], 2]).min() > 0.035


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["simulate", *words])


def test_the_command_writes_long_clips(tmp_path):
    for words in (("--format", "npz"), ("--compressed",)):
        args = arguments("--seed", "1000005", "--seconds", "30", "--out", str(tmp_path), *words)
        args.configure(args)
        args.run(args, None)
    truth = read_ground_truth(tmp_path / "clip_01000005_30s")
    assert len(truth.labels) == 300 and all(one.asked_s is not None for one in truth.expressions)
    stored = stored_clips(tmp_path, None, calibration=False).clip(0)
    assert stored.name == "01000005_30s" and len(stored.frames) == 300
    assert [(one.text, one.targets, one.asked_s) for one in stored.expressions] == [
        (one.text, one.targets, one.asked_s) for one in truth.expressions
    ]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--seconds", "5"), "--seconds: expected 30 to 600, got 5"),
        (("--seconds", "60", "--crossing"), "neither --crossing nor --story"),
    ],
)
def test_bad_lengths_are_rejected(words, error):
    args = arguments("--out", "x", *words)
    with pytest.raises(ValueError, match=error):
        args.configure(args)


def test_one_clip_may_have_a_name(tmp_path):
    args = arguments("--out", str(tmp_path), "--name", "mine", "--format", "npz")
    args.configure(args)
    args.run(args, None)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.npz"]
    for words in (("--name", "a/b"), ("--name", "a", "--clips", "2")):
        args = arguments("--out", str(tmp_path), *words)
        with pytest.raises(ValueError, match="--name: expected the name of one clip"):
            args.configure(args)


@pytest.mark.skipif(not MUJOCO_4, reason="needs mujoco 4")
def test_the_sample_bag_matches_a_new_rendering():
    """Up to edge pixels, which machines may render differently."""
    truth = read_ground_truth(BAG)
    clip = make_long_clip(truth.seed, SECONDS)
    assert truth.objects == clip.objects and list(truth.labels) == clip.stamps_ns.tolist()
    assert (np.stack(list(truth.labels.values())) != clip.labels).mean() < 0.001
    assert list(truth.expressions) == long_expressions(clip)
    assert sum(file.stat().st_size for file in BAG.iterdir()) < 4e6


def test_training_windows_are_like_short_clips(clip):
    windows = training_windows(clip, 6)
    ends = [last for last, _ in windows]
    assert 3 <= len(windows) <= 6 and min(np.diff(ends)) >= 10
    for last, window in windows:
        assert len(window) == WINDOW and window.stamps_ns[-1] == clip.stamps_ns[last]
        assert np.ptp(window.camera_poses, axis=0).max() <= 1e-3
        counts = [(window.labels == k + 1).sum((1, 2)) for k in range(len(window.objects))]
        assert all((count >= 80).mean() >= 0.5 for count in counts)
        hidden = set(clip.objects) - set(window.objects)
        shown = clip.labels[last - WINDOW + 1 : last + 1]
        assert not any((shown == 1 + clip.objects.index(thing)).sum((1, 2)).max() >= 80 for thing in hidden)
        fallen = {
            one.targets for one in expressions(window, np.random.default_rng(0)) if one.targets and one.text in FELL
        }
        drops = np.diff(window.poses[:, :, 2], axis=0).min(axis=0) / FRAME_PERIOD_S
        assert all(drops[target] < -0.35 for (target,) in fallen), "dropped, not put down"
    moving = [np.ptp(window.poses[:, :, :3], axis=0).max() > 0.08 for _, window in windows]
    assert sum(moving) >= len(moving) / 2


def test_windows_become_clip_files(tmp_path):
    command = ["--out", str(tmp_path), "--seeds", "7:8", "--windows", "2", "--workers", "1"]
    assert store.main(command) == 0
    files = training_clips(tmp_path)
    assert [file.name for file in files] == ["clip_00000007_window0.npz", "clip_00000007_window1.npz"]
    assert len(read_clip(files[1])) == WINDOW
    written = [file.stat().st_mtime_ns for file in files]
    assert store.main(command) == 0 and [file.stat().st_mtime_ns for file in files] == written


def test_a_report_on_long_clips_has_its_own_seeds():
    dataset = SOURCE.select(Selection(seed=3, count=2, seconds=30.0))
    assert (dataset.scored, dataset.tracking_only, dataset.settings["seconds"]) == (2, 0, 30.0)
    clip = dataset.clip(1)
    assert clip.name == "01030001_30s" and len(clip.frames) == 300
    assert any(one.targets and one.asked_s for one in clip.expressions)
    with pytest.raises(ValueError, match="--seconds: expected 30 to 600"):
        SOURCE.select(Selection(seconds=3.2))
