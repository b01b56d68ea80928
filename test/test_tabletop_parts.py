from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from decaf_tabletop.world.camera import project
from decaf_tabletop.world.clip import TabletopClip, TabletopObject
from decaf_tabletop.world.parts import PART_PX, part_labels, part_questions
from decaf_tabletop.world.shapes import EXTENTS, MUG_BODY, mesh
from decaf_tabletop.world.simulator import make_clip

# Not importorskip: that would import MuJoCo before the simulator sets MUJOCO_GL.
pytestmark = pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")

# Their scenes have a mug with its handle in view, and a bottle.
MUG, BOTTLE = 900001, 900006


@pytest.fixture(scope="module")
def clips() -> dict[int, TabletopClip]:
    return {seed: make_clip(seed, depth=True) for seed in (MUG, BOTTLE)}


def drawn_vertices(clip: TabletopClip, frame: int, index: int, chosen: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of some of the mesh's vertices, where nothing is in front of them."""
    thing, pose, camera = clip.objects[index], clip.poses[frame, index], clip.camera_poses[frame]
    points = mesh(thing.category).vertices[chosen] * thing.radius_m / EXTENTS[thing.category][0]
    world = Rotation.from_quat(pose[[4, 5, 6, 3]]).apply(points) + pose[:3]
    found = project(world, camera[:3], Rotation.from_quat(camera[[4, 5, 6, 3]]).as_matrix())
    pixels = found[:, :2].round().astype(int)
    inside = ((pixels >= 0) & (pixels < clip.labels.shape[:0:-1])).all(axis=1)
    (columns, rows), depth = pixels[inside].T, found[inside, 2]
    visible = depth < clip.depth_m[frame, rows, columns] + 0.003
    drawn = np.zeros(clip.labels.shape[1:], bool)
    drawn[rows[visible], columns[visible]] = True
    return drawn


@pytest.mark.parametrize(("seed", "category", "text"), [(MUG, "mug", "handle"), (BOTTLE, "bottle", "neck")])
def test_a_part_is_labelled_where_its_mesh_is_seen(clips, seed, category, text):
    clip = clips[seed]
    layer = part_labels(clip)
    index = [thing.category for thing in clip.objects].index(category)
    vertices = mesh(category).vertices
    if category == "mug":
        # The handle's vertices are the last ones. The body's are within its radius.
        part = np.hypot(vertices[:, 0] - MUG_BODY[1], vertices[:, 1]) > MUG_BODY[0] + 0.1
        body = np.hypot(vertices[:, 0] - MUG_BODY[1], vertices[:, 1]) < MUG_BODY[0] + 1e-6
    else:
        part, body = vertices[:, 2] > 0.7, vertices[:, 2] < 0.6
    for frame in (0, 16, 31):
        own, seen = layer[frame] == index + 1, clip.labels[frame] == index + 1
        assert own.sum() > PART_PX and not (own & ~seen).any()
        on_part, on_body = (drawn_vertices(clip, frame, index, chosen) & seen for chosen in (part, body))
        print(
            own[on_part & ~on_body].mean(),
            own[on_body & ~on_part].mean(),
            on_part.sum(),
            on_body.sum(),
            own.sum(),
        )
        assert own[on_part & ~on_body].mean() > 0.95 and own[on_body & ~on_part].mean() < 0.05
    assert {question.text.split(" of ")[0] for question in part_questions(clip, layer)} == {f"the {text}"}
    assert set(np.unique(layer)) <= {0, *(k + 1 for k, thing in enumerate(clip.objects) if thing.category == category)}


def test_a_clip_without_depth_is_refused(clips):
    with pytest.raises(ValueError, match="expected a clip with depth"):
        part_labels(dataclasses.replace(clips[MUG], depth_m=None))


def test_questions_name_one_object_with_a_part_in_view():
    things = [("mug", "red"), ("mug", "blue"), ("bottle", "red"), ("cube", "red")]
    objects = tuple(TabletopObject(category, color, "small", 0.04, 0.08) for category, color in things)
    layer = np.zeros((4, 20, 20), np.uint8)
    layer[:, :6, :6], layer[:2, 10:16, :6], layer[:, :5, 10:15] = 1, 2, 3
    clip = TabletopClip(0, layer[..., None], layer, np.arange(4), objects, *[np.zeros(1)] * 3, "wood")

    def texts(layer, objects=objects):
        return [question.text for question in part_questions(dataclasses.replace(clip, objects=objects), layer)]

    # The third one shows fewer than 30 pixels, the second one half of the time.
    assert texts(layer) == ["the handle of the red mug", "the handle of the blue mug"]
    hidden = layer * (layer != 2)
    assert texts(hidden) == ["the handle of the red mug"]
    assert texts(layer, objects[:1] + objects[3:] * 3) == ["the handle of the mug"]
    assert texts(layer, objects[:1] * 2 + objects[2:]) == []
