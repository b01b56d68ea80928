"""Clips from MuJoCo: a scene is simulated, its ground truth read from the simulation, and rendered headless."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType

import numpy as np

from decaf_tabletop.world.camera import intrinsics
from decaf_tabletop.world.clip import FRAME_PERIOD_S, IMAGE_HW, TabletopClip
from decaf_tabletop.world.scenes import Scene, sample_scene
from decaf_tabletop.world.world import (
    CAMERA,
    GRAVITY,
    MASS_KG,
    TIMESTEP_S,
    body_name,
    has_drive,
    joint_name,
    visual_name,
    world_xml,
)

# A crossing must hide so much of the hidden object's area, and then show so much of it.
_HIDDEN, _SHOWN = 0.4, 0.8
_ATTEMPTS = 60
_START_NS = 1_000_000_000
_STEPS = round(FRAME_PERIOD_S / TIMESTEP_S)


def make_clip(seed: int, depth: bool = False, crossing: bool = False) -> TabletopClip:
    """The clip of a seed (>= 0), the same one each time on one machine. depth: keep the depth images. crossing: one
    object passes in front of another, which is hidden for the most part and then seen again.

    Raises ValueError for a negative seed, RuntimeError where MuJoCo or what it renders with is missing.
    """
    if seed < 0:
        raise ValueError(f"seed: expected one >= 0, got {seed}")
    for attempt in range(_ATTEMPTS if crossing else 1):
        scene = sample_scene(seed, crossing, attempt)
        with _Stage(scene) as stage:
            stage.simulate()
            labels = stage.labels()
            if not crossing or _hides(labels, stage.alone(scene.crossing[1]), scene.crossing[1]):
                return stage.clip(labels, depth)
    raise RuntimeError(f"seed {seed}: no crossing found in {_ATTEMPTS} attempts")


def play_scene(scene: Scene, depth: bool = False) -> TabletopClip:
    """The clip of a scene, as long as that is. Raises RuntimeError as make_clip does."""
    with _Stage(scene) as stage:
        stage.simulate()
        return stage.clip(stage.labels(), depth)


def _hides(labels: np.ndarray, alone: np.ndarray, hidden: int) -> bool:
    """labels: (F, H, W); alone: (F, H, W) bool, where the hidden object would be if it were alone on the table."""
    areas = alone.sum((1, 2))
    shown = (labels == hidden + 1).sum((1, 2)) / np.maximum(areas, 1)
    dark = np.flatnonzero(shown < _HIDDEN)
    return bool(len(dark) >= 2 and shown[0] > _SHOWN and (shown[dark[-1] :] > _SHOWN).sum() >= 2 and shown[-1] > _SHOWN)


def _mujoco() -> ModuleType:
    """Only when something is rendered: the rest of the package needs no MuJoCo."""
    # It chooses how to render when it is imported.
    os.environ.setdefault("MUJOCO_GL", "egl")
    # Mesa renders with an LLVM, and Triton, which torch imports sooner or later, brings its own: a process in which
    # Triton comes second crashes.
    with suppress(ImportError):
        import_module("triton")
    try:
        import mujoco
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
            text = "the tabletop simulator needs MuJoCo: pip install 'decaf_ros[tabletop]'"
            raise RuntimeError(text) from error
        raise RuntimeError(_no_renderer(error)) from error  # anything, where the graphics library is missing
    return mujoco


def _no_renderer(error: Exception) -> str:
    return (
        f"MuJoCo cannot render with MUJOCO_GL={os.environ.get('MUJOCO_GL')} ({error}): install EGL (Debian: libegl1) "
        "and set MUJOCO_GL=egl, or OSMesa (libosmesa6) and MUJOCO_GL=osmesa, before anything imports mujoco"
    )


class _Stage:
    """A compiled scene with a renderer; a context manager, since renderers hold memory of the graphics system. Once it
    is simulated it can be looked at."""

    def __init__(self, scene: Scene) -> None:
        self._mujoco = _mujoco()
        self._scene = scene
        xml, files = world_xml(scene)
        self._model = self._mujoco.MjModel.from_xml_string(xml, files)
        self._data = self._mujoco.MjData(self._model)
        self._bodies = [self._model.body(body_name(index)).id for index in range(len(scene.objects))]
        self._seen = [self._model.geom(visual_name(index)).id for index in range(len(scene.objects))]
        self._eye = self._model.camera(CAMERA).id
        try:
            self._renderer = self._mujoco.Renderer(self._model, *IMAGE_HW)
        except Exception as error:
            raise RuntimeError(_no_renderer(error)) from error

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()

    def simulate(self) -> None:
        """Finds the poses of the objects and of the camera, and the model's state, at each frame."""
        model, data, scene = self._model, self._data, self._scene
        falling, driven = [], []
        for index, placed in enumerate(scene.objects):
            if has_drive(placed):
                drives = [model.actuator(joint_name(index, axis)).id for axis in "xy"]
                driven.append((placed.event, drives))
                if placed.event is not None:
                    speeds = placed.event.speed_at(0.0) * np.array(placed.event.velocity_m_s)
                    data.qvel[[model.joint(joint_name(index, axis)).dofadr[0] for axis in "xy"]] = speeds
            else:
                falling.append((placed.event, model.joint(joint_name(index, "z")).dofadr[0]))
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
                            data.ctrl[drives] = event.speed_at(time) * np.array(event.velocity_m_s)
                    for event, dof in falling:
                        # Until it is let go, something holds it.
                        data.qfrc_applied[dof] = MASS_KG * GRAVITY if time < event.start_s else 0.0
                    self._mujoco.mj_step(model, data)
            states[frame] = data.qpos
            self._show(states[frame], frame)
            poses[frame, :, :3], poses[frame, :, 3:] = data.xpos[self._bodies], data.xquat[self._bodies]
            camera_poses[frame] = self._camera_pose()
        self._poses, self._camera_poses, self._states = poses, camera_poses, states

    def clip(self, labels: np.ndarray, depth: bool) -> TabletopClip:
        """labels: from `labels`, which the caller may have looked at already."""
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
        """(F, H, W) uint8: 0, or 1 + the index of the object that is visible."""
        table = np.zeros(self._model.ngeom + 1, np.uint8)
        table[self._seen] = 1 + np.arange(len(self._seen))
        geom = int(self._mujoco.mjtObj.mjOBJ_GEOM)
        self._renderer.enable_segmentation_rendering()
        # -1, where nothing is, is the table's last entry.
        labels = np.stack([table[np.where(ids[..., 1] == geom, ids[..., 0], -1)] for ids in self._rendered()])
        self._renderer.disable_segmentation_rendering()
        return labels

    def alone(self, index: int) -> np.ndarray:
        """(F, H, W) bool: where the object would be seen without the others."""
        with self._hidden([geom for other, geom in enumerate(self._seen) if other != index]):
            return self.labels() == index + 1

    @contextmanager
    def _hidden(self, geoms: list[int]) -> Iterator[None]:
        groups = self._model.geom_group[geoms].copy()
        self._model.geom_group[geoms] = 5
        try:
            yield
        finally:
            self._model.geom_group[geoms] = groups

    def _rendered(self) -> Iterator[np.ndarray]:
        for frame, state in enumerate(self._states):
            self._show(state, frame)
            self._renderer.update_scene(self._data, CAMERA)
            yield self._renderer.render()

    def _show(self, state: np.ndarray, frame: int) -> None:
        """Objects and camera as they are at a frame."""
        position, rotation = self._scene.camera.at(frame * FRAME_PERIOD_S)
        # MuJoCo's cameras look along -z, with y up.
        self._model.cam_pos[self._eye] = position
        self._mujoco.mju_mat2Quat(self._model.cam_quat[self._eye], (rotation * (1, -1, -1)).ravel())
        self._data.qpos[:] = state
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)

    def _camera_pose(self) -> np.ndarray:
        rotation = self._data.cam_xmat[self._eye].reshape(3, 3) * (1, -1, -1)
        quaternion = np.empty(4)
        self._mujoco.mju_mat2Quat(quaternion, rotation.ravel())
        return np.concatenate([self._data.cam_xpos[self._eye], quaternion])
