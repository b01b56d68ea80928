import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from decaf_tabletop.world import simulator
from decaf_tabletop.world.clip import CATEGORIES, COLORS, FRAME_PERIOD_S, FRAMES, IMAGE_HW, SURFACES, TabletopClip
from decaf_tabletop.world.layout import GAP_M, boxes
from decaf_tabletop.world.scenes import NOMINAL_M, Scene, sample_scene
from decaf_tabletop.world.shapes import EXTENTS, mesh
from decaf_tabletop.world.simulator import make_clip
from decaf_tabletop.world.store import clip_path, main, read_clip, write_clip
from decaf_tabletop.world.textures import PAINTS, object_texture, paint, surface_texture

# Not importorskip: that would import MuJoCo before the simulator sets MUJOCO_GL.
pytestmark = pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")

ROOT = Path(__file__).parents[1]
PLANNED = 160


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(seed) for seed in range(PLANNED)]


@pytest.fixture(scope="module")
def turning(scenes) -> TabletopClip:
    """A clip with depth, four objects or more and a moving camera."""
    return make_clip(
        next(scene.seed for scene in scenes if scene.camera.start != scene.camera.end and len(scene.objects) >= 4),
        depth=True,
    )


def first_event(scenes: list[Scene], kind: str, category: str = "") -> tuple[int, int]:
    """Seed and object index of the first event of a kind."""
    return next(
        (scene.seed, index)
        for scene in scenes
        for index, placed in enumerate(scene.objects)
        if placed.event and placed.event.kind == kind and category in ("", placed.thing.category)
    )


def in_camera(clip: TabletopClip, frame: int) -> np.ndarray:
    """(n, 3): the objects' centres in the optical frame."""
    camera = clip.camera_poses[frame]
    return Rotation.from_quat(np.roll(camera[3:], -1)).inv().apply(clip.poses[frame, :, :3] - camera[:3])


def test_a_clip_has_the_documented_shapes(turning):
    count = len(turning.objects)
    assert turning.images.shape == (FRAMES, *IMAGE_HW, 3) and turning.images.dtype == np.uint8
    assert turning.labels.shape == (FRAMES, *IMAGE_HW) and turning.labels.dtype == np.uint8
    assert turning.depth_m.shape == (FRAMES, *IMAGE_HW) and turning.depth_m.dtype == np.float32
    assert turning.poses.shape == (FRAMES, count, 7) and turning.camera_poses.shape == (FRAMES, 7)
    assert set(np.diff(turning.stamps_ns)) == {round(FRAME_PERIOD_S * 1e9)}
    assert set(np.unique(turning.labels)) == set(range(count + 1))
    assert turning.surface in SURFACES
    np.testing.assert_allclose(np.linalg.norm(turning.poses[..., 3:], axis=-1), 1, atol=1e-6)
    assert np.abs(turning.camera_poses[-1] - turning.camera_poses[0]).max() > 0.01


def test_the_same_seed_gives_the_same_clip(turning):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    again = make_clip(turning.seed, depth=True)
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    for name in ("images", "labels", "depth_m", "poses", "camera_poses", "stamps_ns"):
        np.testing.assert_array_equal(getattr(turning, name), getattr(again, name), err_msg=name)
    assert again.objects == turning.objects
    assert not np.array_equal(make_clip(turning.seed + 1).images, turning.images)


def test_poses_masks_depth_and_camera_agree(turning):
    visible = 0
    for frame in range(0, FRAMES, 5):
        centres = in_camera(turning, frame)
        pixels = centres @ turning.intrinsics.T
        pixels = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int)
        for index, ((column, row), centre, thing) in enumerate(zip(pixels, centres, turning.objects)):
            if not (0 <= column < IMAGE_HW[1] and 0 <= row < IMAGE_HW[0]):
                continue
            depth, size = turning.depth_m[frame, row, column], np.hypot(thing.radius_m, thing.height_m / 2)
            if turning.labels[frame, row, column] == index + 1:
                assert centre[2] - size < depth < centre[2] + 0.1 * size
                visible += 1
            else:
                assert turning.labels[frame, row, column] != 0 and depth < centre[2]
    assert visible >= 20


def test_depth_of_the_surroundings_fits_the_table_and_the_floor(turning):
    rows, columns = np.indices(IMAGE_HW)
    rays = np.stack([columns, rows, np.ones(IMAGE_HW)], axis=-1) @ np.linalg.inv(turning.intrinsics).T
    for frame in (0, FRAMES - 1):
        camera = turning.camera_poses[frame]
        points = rays * turning.depth_m[frame][..., None]
        heights = Rotation.from_quat(np.roll(camera[3:], -1)).apply(points.reshape(-1, 3))[:, 2] + camera[2]
        empty = turning.labels[frame].reshape(-1) == 0
        off = np.minimum(np.abs(heights), np.abs(heights + 0.7))[empty]
        assert np.mean(off < 0.0005) > 0.99  # a pixel at the table's edge lies between the two
        assert np.mean(np.abs(heights[empty]) < 0.0005) > 0.5
        assert heights[~empty].max() > 0.02


def test_scenes_have_the_intended_variety(scenes):
    counts = np.bincount([len(scene.objects) for scene in scenes], minlength=6) / PLANNED
    assert counts[:2].sum() == 0 and counts[6:].sum() == 0
    np.testing.assert_allclose(counts[2:6], (0.2, 0.35, 0.3, 0.15), atol=0.12)
    without_events = np.mean([all(placed.event is None for placed in scene.objects) for scene in scenes])
    assert 0.18 < without_events < 0.42
    assert 0.18 < np.mean([scene.camera.start != scene.camera.end for scene in scenes]) < 0.42
    things = [placed.thing for scene in scenes for placed in scene.objects]
    assert {thing.category for thing in things} == set(CATEGORIES) and {thing.color for thing in things} == set(COLORS)
    assert {scene.surface for scene in scenes} == set(SURFACES)
    kinds = [placed.event.kind for scene in scenes for placed in scene.objects if placed.event]
    assert all(kinds.count(kind) > 0.12 * len(kinds) for kind in ("slide", "stop", "drop"))
    for scene in scenes:
        looks = [(placed.thing.category, placed.thing.color, placed.thing.size) for placed in scene.objects]
        assert len(set(looks)) == len(looks)


def test_things_keep_apart_and_in_view(scenes):
    for scene in scenes[:40]:
        for index, placed in enumerate(scene.objects):
            left_top, right, bottom = np.split(boxes(scene.camera, placed), [2, 3], axis=1)
            assert (left_top >= 0).all() and (right < IMAGE_HW[1]).all() and (bottom < IMAGE_HW[0]).all()
            low, high = NOMINAL_M[placed.thing.size]
            assert low <= placed.nominal_m <= high
            for other in scene.objects[:index]:
                nearest = np.linalg.norm(placed.path - other.path, axis=1).min()
                assert nearest > placed.thing.radius_m + other.thing.radius_m + GAP_M


@pytest.mark.parametrize("kind", ["slide", "stop"])
def test_sliding_objects_follow_the_planned_path(scenes, kind):
    seed, index = first_event(scenes, kind)
    placed, clip = scenes[seed].objects[index], make_clip(seed)
    way = clip.poses[:, index, :3]
    assert np.linalg.norm(way[-1, :2] - way[0, :2]) > 0.04
    assert np.abs(way[:, :2] - placed.path).max() < 0.008
    np.testing.assert_allclose(way[:, 2], placed.thing.height_m / 2, atol=0.003)
    speeds = np.linalg.norm(np.diff(way[:, :2], axis=0), axis=1) / FRAME_PERIOD_S
    if kind == "stop":
        half = round(placed.event.end_s / FRAME_PERIOD_S)
        assert FRAMES * 0.34 < half < FRAMES * 0.66
        assert speeds[0] > 0.07 and speeds[half + 1 :].max() < 0.01
    # The other objects stay in place.
    for other, resting in enumerate(scenes[seed].objects):
        if resting.event is None:
            assert np.abs(clip.poses[:, other, :3] - clip.poses[0, other, :3]).max() < 0.003


def test_a_dropped_object_falls_in_view_and_stays(scenes):
    seed, index = first_event(scenes, "drop")
    placed, clip = scenes[seed].objects[index], make_clip(seed)
    above = clip.poses[:, index, 2] - placed.thing.height_m / 2
    lands = round(placed.event.end_s / FRAME_PERIOD_S)
    assert 6 <= lands <= 26 and above[0] > 0.25
    assert above[lands - 2] > 0.03 and np.abs(above[lands + 1 :]).max() < 0.004
    assert -0.55 < np.diff(above).min() / FRAME_PERIOD_S < -0.45
    in_the_air = (clip.labels[:lands] == index + 1).any(axis=(1, 2)).sum()
    assert in_the_air >= 2 and (clip.labels[-1] == index + 1).sum() > 300
    np.testing.assert_allclose(clip.poses[-1, index, :2], placed.place_m, atol=0.005)


def test_a_ball_rolls(scenes):
    seed, index = first_event(scenes, "slide", "ball")
    placed, clip = scenes[seed].objects[index], make_clip(seed)
    assert placed.pattern != "plain"
    turns = Rotation.from_quat(np.roll(clip.poses[:, index, 3:], -1, axis=-1))
    angle = (turns[1:] * turns[:-1].inv()).magnitude().sum()
    way = np.linalg.norm(np.diff(clip.poses[:, index, :2], axis=0), axis=1).sum()
    assert angle == pytest.approx(way / placed.thing.radius_m, rel=0.15)


def test_a_crossing_occludes_an_object_temporarily():
    for seed in (40, 72):  # seeds whose first attempts hide too little
        clip = make_clip(seed, crossing=True)
        ways = np.linalg.norm(clip.poses[-1, :, :2] - clip.poses[0, :, :2], axis=-1)
        found = False
        for index in range(len(clip.objects)):
            areas = (clip.labels == index + 1).sum((1, 2)) / (clip.labels[0] == index + 1).sum()
            least = int(areas.argmin())
            if areas[least] > 0.5 or areas[least:].max() < 0.75 or ways[index] > 0.01:
                continue
            # The occluder is nearer to the camera and moves.
            cover = clip.labels[least][clip.labels[0] == index + 1]
            occluder = int(np.bincount(cover[cover != index + 1]).argmax()) - 1
            depths = in_camera(clip, least)[:, 2]
            found |= occluder >= 0 and ways[occluder] > 0.1 and depths[occluder] < depths[index]
        assert found, seed


def test_is_crossing_requires_visible_hidden_visible():
    unoccluded = np.ones((6, 2, 5), bool)
    labels = np.full((6, 2, 5), 2, np.uint8)
    labels[2:4] = 1
    assert simulator._is_crossing(labels, unoccluded, 1)
    assert not simulator._is_crossing(labels[:4], unoccluded[:4], 1)  # hidden at the end
    assert not simulator._is_crossing(labels[3:], unoccluded[3:], 1)  # hidden in the first frame
    half = labels.copy()
    half[2:4, 0] = 2
    assert not simulator._is_crossing(half, unoccluded, 1)


@pytest.mark.parametrize("category", CATEGORIES)
def test_shapes_fill_their_cylinder_and_face_outwards(category):
    shape = mesh(category)
    radius, height = EXTENTS[category]
    assert np.linalg.norm(shape.vertices[:, :2], axis=1).max() == pytest.approx(radius, abs=0.02)
    assert shape.vertices[:, 2].min() == pytest.approx(-height / 2) == -shape.vertices[:, 2].max()
    assert shape.coordinates.min() >= 0 and shape.coordinates.max() <= 1
    corners = shape.vertices[shape.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.linalg.norm(across, axis=1).min() > 1e-6
    assert (np.einsum("fi,fci->fc", across, shape.normals[shape.faces]) > 0).all()


def test_colours_and_surfaces_are_distinct():
    rng = np.random.default_rng(0)
    names, shades = list(PAINTS), np.array([paint(color, rng) for color in PAINTS for _ in range(20)], float)
    distances = np.linalg.norm(shades[:, None] - np.array(list(PAINTS.values())), axis=-1)
    assert (distances.argmin(1) == np.repeat(np.arange(len(names)), 20)).all()
    for color in PAINTS:
        plain, dotted = (object_texture(mesh("ball"), PAINTS[color], kind, rng) for kind in ("plain", "dots"))
        dotted_share = (plain != dotted).any(-1).mean()
        assert 0.1 < dotted_share < 0.6, color
    tops = {surface: surface_texture(surface, rng) for surface in SURFACES}
    means = np.array([top.mean((0, 1)) for top in tops.values()])
    assert all(top.shape == (512, 512, 3) and top.std() > 8 for top in tops.values())
    assert np.linalg.norm(means[:, None] - means, axis=-1)[~np.eye(len(means), dtype=bool)].min() > 12
    assert not np.array_equal(tops["wood"], surface_texture("wood", rng))


def test_clip_file_round_trip(turning, tmp_path):
    path = tmp_path / "clip.npz"
    write_clip(path, turning)
    stored = read_clip(path)
    assert list(tmp_path.iterdir()) == [path] and path.stat().st_size < 2_000_000
    for name in ("labels", "poses", "camera_poses", "stamps_ns", "intrinsics"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(turning, name), err_msg=name)
    assert (stored.seed, stored.objects, stored.surface) == (turning.seed, turning.objects, turning.surface)
    assert stored.depth_m is None and stored.images.flags.c_contiguous
    assert np.abs(stored.images.astype(int) - turning.images).mean() < 4
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"clip\.npz: not a tabletop clip"):
        read_clip(path)
    with pytest.raises(FileNotFoundError):
        read_clip(tmp_path / "none.npz")


def test_existing_clips_are_kept(tmp_path):
    """Older folders hold crossings (here seed 8) under the plain name."""
    for seed in (5, 6, 7, 8):
        clip_path(tmp_path, seed).write_bytes(b"kept")
    assert main(["--out", str(tmp_path), "--seeds", "4:9", "--workers", "1", "--crossing-every", "4"]) == 0
    assert clip_path(tmp_path, 5).read_bytes() == clip_path(tmp_path, 8).read_bytes() == b"kept"
    made = clip_path(tmp_path, 4, crossing=True)
    assert sorted(tmp_path.iterdir()) == [made, *(clip_path(tmp_path, seed) for seed in (5, 6, 7, 8))]
    np.testing.assert_array_equal(read_clip(made).labels, make_clip(4, crossing=True).labels)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--seeds", "6:6"], "expected FIRST:LAST"),
        (["--workers", "0"], "--workers: expected 1 or more, got 0"),
        (["--crossing-every", "-1"], "--crossing-every: expected 0 or more, got -1"),
    ],
)
def test_the_command_rejects_invalid_options(options, text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "new"), "--seeds", "4:6", *options])
    assert text in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_command_reports_missing_mujoco_in_one_line(tmp_path):
    (tmp_path / "mujoco.py").write_text("raise ModuleNotFoundError(name='mujoco')")
    command = [sys.executable, "-m", "decaf_tabletop.world.store", "--out", str(tmp_path), "--seeds", "4:6"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "store: the tabletop simulator needs MuJoCo: pip install 'decaf_ros[tabletop]'\n"


def test_make_clip_names_the_missing_requirement(monkeypatch):
    with pytest.raises(ValueError, match="seed: expected a number >= 0, got -1"):
        make_clip(-1)

    def no_egl(*_, **__):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr("mujoco.Renderer", no_egl)
    with pytest.raises(RuntimeError, match=r"libegl1.*libosmesa6"):
        make_clip(0)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(RuntimeError, match=r"pip install 'decaf_ros\[tabletop\]'"):
        make_clip(0)


def test_importing_needs_no_mujoco():
    code = (
        "import sys, decaf_ros.cli.main\n"
        "from decaf_tabletop.world import bag, simulator, store\n"
        "sys.exit('mujoco' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_triton_can_be_imported_after_rendering():
    code = "from decaf_tabletop.world.simulator import make_clip; make_clip(0); import triton"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
