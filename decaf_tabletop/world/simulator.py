"""Makes clips with MuJoCo: simulates a scene, reads its ground truth and renders it headless."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType

import numpy as np

from decaf_tabletop.world.camera import intrinsics
from decaf_tabletop.world.clip import FRAME_PERIOD_S, IMAGE_HW, TabletopClip
from decaf_tabletop.world.hands import Hands
from decaf_tabletop.world.long_scenes import sample_long_scene
from decaf_tabletop.world.routes import GRAVITY
from decaf_tabletop.world.scenes import Scene, sample_scene
from decaf_tabletop.world.world import (
    CAMERA,
    MASS_KG,
    TIMESTEP_S,
    body_name,
    has_drive,
    joint_name,
    visual_name,
    world_xml,
)

# In a crossing the occluded object's visible share must fall below _HIDDEN and then rise above _VISIBLE.
_HIDDEN, _VISIBLE = 0.4, 0.8
_CROSSING_ATTEMPTS = 60
_START_NS = 1_000_000_000
_STEPS = round(FRAME_PERIOD_S / TIMESTEP_S)


def make_clip(seed: int, depth: bool = False, crossing: bool = False) -> TabletopClip:
    """Makes the clip of a seed (>= 0), reproducible on one machine.

    depth: keep the depth images. crossing: one object passes in front of another, which is mostly hidden and then
    visible again. Raises ValueError for a negative seed, RuntimeError if MuJoCo or its renderer is missing or no
    crossing is found.
    """
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    for attempt in range(_CROSSING_ATTEMPTS if crossing else 1):
        scene = sample_scene(seed, crossing, attempt)
        with _Stage(scene) as stage:
            stage.simulate()
            labels = stage.labels()
            occluded = scene.crossing[1] if scene.crossing else None
            if occluded is None or _is_crossing(labels, stage.unoccluded_mask(occluded), occluded):
                return stage.clip(labels, depth)
    raise RuntimeError(f"seed {seed}: no crossing found in {_CROSSING_ATTEMPTS} attempts")


def make_long_clip(seed: int, seconds: float, depth: bool = False) -> TabletopClip:
    """Makes the long clip of a seed, as `make_clip`. Raises ValueError for a bad seed or length."""
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    return play_scene(sample_long_scene(seed, seconds), depth)


def play_scene(scene: Scene, depth: bool = False) -> TabletopClip:
    """Makes the clip of a scene, `scene.frames` long. Raises RuntimeError if MuJoCo or its renderer is missing."""
    with _Stage(scene) as stage:
        stage.simulate()
        return stage.clip(stage.labels(), depth)


def _is_crossing(labels: np.ndarray, unoccluded: np.ndarray, index: int) -> bool:
    """Whether the object is visible first, hidden for two frames or more, then visible in two or more and the last.

    labels: (F, H, W) uint8. unoccluded: (F, H, W) bool, the object's mask without the other objects.
    """
    areas = unoccluded.sum((1, 2))
    share = (labels == index + 1).sum((1, 2)) / np.maximum(areas, 1)
    hidden_frames = np.flatnonzero(share < _HIDDEN)
    return bool(
        len(hidden_frames) >= 2
        and share[0] > _VISIBLE
        and (share[hidden_frames[-1] :] > _VISIBLE).sum() >= 2
        and share[-1] > _VISIBLE
    )


def _mujoco() -> ModuleType:
    """Imports MuJoCo on demand: only rendering needs it."""
    # MuJoCo selects its renderer at import.
    os.environ.setdefault("MUJOCO_GL", "egl")
    # Mesa and Triton each bring an LLVM. A process that loads Triton second crashes, and torch may import it later.
    with suppress(ImportError):
        import_module("triton")
    try:
        return import_module("mujoco")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
            text = "the tabletop simulator needs MuJoCo: pip install 'decaf_ros[tabletop]'"
            raise RuntimeError(text) from error
        raise RuntimeError(_renderer_error(error)) from error  # a missing graphics library raises various types


def _renderer_error(error: Exception) -> str:
    return (
        f"MuJoCo cannot render with MUJOCO_GL={os.environ.get('MUJOCO_GL')} ({error}): install EGL (Debian: libegl1) "
        "and set MUJOCO_GL=egl, or OSMesa (libosmesa6) and MUJOCO_GL=osmesa, before anything imports mujoco"
    )


class _Stage:
    """A compiled scene with a renderer. Call `simulate` before any other method.

    A context manager, as renderers hold graphics memory.
    """

    def __init__(self, scene: Scene) -> None:
        self._mujoco = _mujoco()
        self._scene = scene
        xml, files = world_xml(scene)
        self._model = self._mujoco.MjModel.from_xml_string(xml, files)
        self._data = self._mujoco.MjData(self._model)
        self._bodies = [self._model.body(body_name(index)).id for index in range(len(scene.objects))]
        self._visuals = [self._model.geom(visual_name(index)).id for index in range(len(scene.objects))]
        self._camera_id = self._model.camera(CAMERA).id
        try:
            self._renderer = self._mujoco.Renderer(self._model, *IMAGE_HW)
        except Exception as error:
            raise RuntimeError(_renderer_error(error)) from error

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()

    def simulate(self) -> None:
        """Computes the object poses, the camera pose and the model's state at each frame."""
        model, data, scene = self._model, self._data, self._scene
        falling, driven = [], []
        for index, placed in enumerate(scene.objects):
            if has_drive(placed):
                drives = [model.actuator(joint_name(index, axis)).id for axis in "xy"]
                driven.append((placed.event, drives))
                if placed.event is not None:
                    velocity = placed.event.speed_factor(0.0) * np.array(placed.event.velocity_m_s)
                    data.qvel[[model.joint(joint_name(index, axis)).dofadr[0] for axis in "xy"]] = velocity
            else:
                assert placed.event is not None  # see has_drive
                falling.append((placed.event, model.joint(joint_name(index, "z")).dofadr[0]))
        hands = Hands(model, data, scene.routes, scene.frames * FRAME_PERIOD_S) if scene.routes else None
        frames = scene.frames
        poses = np.empty((frames, len(scene.objects), 7))
        camera_poses = np.empty((frames, 7))
        states = np.empty((frames, model.nq))
        for frame in range(frames):
            if frame:
                for step in range(_STEPS):
                    time = (frame - 1) * FRAME_PERIOD_S + step * TIMESTEP_S
                    for event, drives in driven:
                        if event is not None:
                            data.ctrl[drives] = event.speed_factor(time) * np.array(event.velocity_m_s)
                    for event, dof in falling:
                        # Compensate gravity until release.
                        data.qfrc_applied[dof] = MASS_KG * GRAVITY if time < event.start_s else 0.0
                    if hands:
                        hands.apply(time)
                    self._mujoco.mj_step(model, data)
            states[frame] = data.qpos
            self._set_state(states[frame], frame)
            poses[frame, :, :3], poses[frame, :, 3:] = data.xpos[self._bodies], data.xquat[self._bodies]
            camera_poses[frame] = self._camera_pose()
        self._poses, self._camera_poses, self._states = poses, camera_poses, states

    def clip(self, labels: np.ndarray, depth: bool) -> TabletopClip:
        """The clip with its rendered images. labels: the result of `labels`, which is not rendered again."""
        return TabletopClip(
            seed=self._scene.seed,
            images=np.stack(list(self._rendered())),
            labels=labels,
            stamps_ns=_START_NS + np.arange(self._scene.frames) * round(FRAME_PERIOD_S * 1e9),
            objects=tuple(placed.thing for placed in self._scene.objects),
            poses=self._poses,
            camera_poses=self._camera_poses,
            intrinsics=intrinsics(),
            surface=self._scene.surface,
            depth_m=self._depth_m() if depth else None,
        )

    def _depth_m(self) -> np.ndarray:
        """(F, H, W) float32."""
        self._renderer.enable_depth_rendering()
        depth = np.stack(list(self._rendered())).astype(np.float32)
        self._renderer.disable_depth_rendering()
        return depth

    def labels(self) -> np.ndarray:
        """(F, H, W) uint8: 1 + the index of the visible object, or 0."""
        label_of_geom = np.zeros(self._model.ngeom + 1, np.uint8)
        label_of_geom[self._visuals] = 1 + np.arange(len(self._visuals))
        geom = int(self._mujoco.mjtObj.mjOBJ_GEOM)
        self._renderer.enable_segmentation_rendering()
        # Pixels without a geom are -1 and so read the last entry, which is 0.
        labels = np.stack([label_of_geom[np.where(ids[..., 1] == geom, ids[..., 0], -1)] for ids in self._rendered()])
        self._renderer.disable_segmentation_rendering()
        return labels

    def unoccluded_mask(self, index: int) -> np.ndarray:
        """(F, H, W) bool: the object's mask without the other objects."""
        with self._geoms_hidden([geom for other, geom in enumerate(self._visuals) if other != index]):
            mask: np.ndarray = self.labels() == index + 1
            return mask

    @contextmanager
    def _geoms_hidden(self, geoms: list[int]) -> Iterator[None]:
        groups = self._model.geom_group[geoms].copy()
        self._model.geom_group[geoms] = 5  # not rendered by default
        try:
            yield
        finally:
            self._model.geom_group[geoms] = groups

    def _rendered(self) -> Iterator[np.ndarray]:
        for frame, state in enumerate(self._states):
            self._set_state(state, frame)
            self._renderer.update_scene(self._data, CAMERA)
            yield self._renderer.render()

    def _set_state(self, state: np.ndarray, frame: int) -> None:
        """Moves the objects and the camera to their poses at a frame."""
        position, rotation = self._scene.camera.at(frame * FRAME_PERIOD_S)
        # MuJoCo cameras look along -z with y up.
        self._model.cam_pos[self._camera_id] = position
        self._mujoco.mju_mat2Quat(self._model.cam_quat[self._camera_id], (rotation * (1, -1, -1)).ravel())
        self._data.qpos[:] = state
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)

    def _camera_pose(self) -> np.ndarray:
        rotation = self._data.cam_xmat[self._camera_id].reshape(3, 3) * (1, -1, -1)
        quaternion = np.empty(4)
        self._mujoco.mju_mat2Quat(quaternion, rotation.ravel())
        return np.concatenate([self._data.cam_xpos[self._camera_id], quaternion])
