"""Targets in space on a camera stream: matches depth with frames, measures, and publishes.

A frame's masks are published at once. Its 3D outputs follow as soon as its depth is settled: with the depth image of
its exact stamp; else, when a later one has come or after `space.depth_wait_s`, with the nearest one within
`space.sync_slop_s`. Frames keep their order. A frame without depth has no 3D outputs; it is counted, and the reason is
reported.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from decaf_ros.config import DecafConfig
from decaf_ros.io.messages import Make
from decaf_ros.io.space_messages import BUILDERS, camera_info
from decaf_ros.online.depth_matching import DepthMatcher, Search
from decaf_ros.online.statistics import Statistics
from decaf_ros.space.camera import Camera, camera_from_info
from decaf_ros.space.depth import message_depth
from decaf_ros.space.objects import TargetMeasurer
from decaf_ros.space.registration import depth_in_camera
from decaf_ros.space.scene import Scene, with_places
from decaf_ros.types import Frame, FrameResult, Notice
from decaf_ros.types.checks import quoted

# More waiting frames than this do not wait any longer, which bounds the memory.
_MOST_WAITING = 30
_INFO = "depth_masked/camera_info"


class Transforms(Protocol):
    """Transforms between frames, such as those of TF."""

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """(4, 4): takes points from `source` to `target` at that time. Does not wait. Raises LookupError."""


class _Waiting:
    """A frame whose 3D outputs are not published yet. scene: once it is measured. since: of the present waiting."""

    def __init__(self, result: FrameResult, search: Search, since: float) -> None:
        self.result = result
        self.search = search
        self.since = since
        self.scene: Scene | None = None


class SpaceOutputs:
    """The 3D outputs of one camera. Call `put_depth`, `put_info`, `put_depth_info` and `waits` from any thread, the
    others from one.

    Args:
        make: makes messages, as for `Handlers`.
        publish: called with a topic and a message.
        is_wanted: whether a topic has a consumer.
        report: called with a notice and its kind.
        statistics: counts the frames with and without 3D outputs.
        config: returns the configuration.
        clock: seconds, for waiting.
        keep_all: keep the depth of frames that have not begun, however many come before; see `DepthMatcher`.
        transforms: None: there are none. Raises ValueError if `space.target_frame` needs them.
    """

    def __init__(
        self,
        make: Make,
        publish: Callable[[str, Any], None],
        is_wanted: Callable[[str], bool],
        report: Callable[[Notice, str], None],
        statistics: Statistics,
        config: Callable[[], DecafConfig],
        clock: Callable[[], float],
        keep_all: bool,
        transforms: Transforms | None,
    ) -> None:
        if config().space.target_frame and transforms is None:
            raise ValueError("space.target_frame: expected transforms, got none; leave it empty for the camera's frame")
        self._make = make
        self._publish = publish
        self._is_wanted = is_wanted
        self._report = report
        self._statistics = statistics
        self._config = config
        self._clock = clock
        self._transforms = transforms
        self._matcher = DepthMatcher(keep_all)
        self._measurer = TargetMeasurer()
        self._info: Any = None
        self._depth_info: Any = None
        self._search: Search | None = None
        self._waiting: deque[_Waiting] = deque()
        statistics.located = 0

    # Inputs

    def put_depth(self, message: Any) -> None:
        self._matcher.put(message)

    def put_info(self, message: Any) -> None:
        self._info = message

    def put_depth_info(self, message: Any) -> None:
        """The camera info of a depth camera whose images are not registered."""
        self._depth_info = message

    @property
    def waits(self) -> bool:
        """Whether frames wait for their depth or a transform."""
        return bool(self._waiting)

    # Frames

    def begin(self, frame: Frame) -> None:
        """A frame will be tracked: its depth is kept from now on."""
        if self._search is not None:  # tracking the last frame has failed
            self._matcher.end(self._search)
        self._search = self._matcher.seek(frame.stamp_ns)

    def locate(self, result: FrameResult) -> FrameResult:
        """Takes the result of the frame that has begun. Returns it with the places of its targets if its depth is
        there."""
        search, self._search = self._search, None
        assert search is not None, "begin comes before"
        if not any(map(self._is_wanted, ("tracklets", _INFO, *BUILDERS))):
            self._matcher.end(search)
            return result
        waiting = _Waiting(result, search, self._clock())
        if not search.settled or self._measure(waiting):
            self._waiting.append(waiting)
        return with_places(result, waiting.scene.geometry) if waiting.scene else result

    def publish_ready(self, is_end: bool = False) -> None:
        """Publishes the outputs of frames that need not wait any longer. is_end: none of them."""
        while self._waiting:
            waiting = self._waiting[0]
            hurry = is_end or len(self._waiting) > _MOST_WAITING
            wait_s = self._config().space.depth_wait_s
            if waiting.scene is None:
                if not (hurry or waiting.search.settled or self._clock() - waiting.since > wait_s):
                    return
                if not self._measure(waiting):
                    self._waiting.popleft()
                    continue
            scene = self._in_target_frame(waiting, hurry)
            if scene is None:
                return
            self._waiting.popleft()
            self._publish_scene(scene)

    def _measure(self, waiting: _Waiting) -> bool:
        """Measures the targets of a frame. Returns False, and reports why, if that is impossible."""
        self._matcher.end(waiting.search)
        frame, config = waiting.result.frame, self._config().space
        try:
            camera = self._camera(frame)
            depth_m = self._depth(waiting.search, camera)
            self._measurer.config = config
            masks = {target.id: target.mask for target in waiting.result.targets}
            geometry = self._measurer.measure(masks, depth_m, camera)
        except ValueError as error:
            self._statistics.unlocated += 1
            # The kind is the expectation in the error text, as for images.
            self._report(Notice("warn", f"no 3D: {error}"), re.sub(r"[,;].*|\d+", "", str(error)))
            return False
        waiting.scene = Scene(waiting.result, camera, depth_m, geometry, frame.frame_id)
        waiting.since = self._clock()
        return True

    def _camera(self, frame: Frame) -> Camera:
        """The camera of the frame's image. Raises ValueError."""
        if self._info is None:
            raise ValueError("camera info: expected a message, got none yet")
        camera = camera_from_info(self._info, self._config().space.rectified)
        if camera.size_hw != frame.camera_hw:
            height, width = frame.camera_hw
            raise ValueError(
                f"camera info: expected {width} x {height} px, as the image, got {camera.width} x {camera.height}"
            )
        if camera.frame_id.lstrip("/") != frame.frame_id.lstrip("/"):
            raise ValueError(
                f"camera info: expected frame {quoted(frame.frame_id)}, as the image, got {quoted(camera.frame_id)}"
            )
        return camera

    def _depth(self, search: Search, camera: Camera) -> np.ndarray:
        """The depth of a frame in the pixels of its image. Raises ValueError."""
        config = self._config()
        message = search.found(config.space.sync_slop_s)
        if message is None:
            distance = "none" if search.distance_ns is None else f"one {search.distance_ns / 1e9:.3f} s away"
            slop_s = config.space.sync_slop_s
            raise ValueError(
                f"depth: expected an image within {slop_s:g} s of the frame (space.sync_slop_s), got {distance}"
            )
        depth_m, frame_id = message_depth(message, config.node.max_image_mpx), message.header.frame_id
        if self._depth_info is None or (depth_m.shape == camera.size_hw and _same(frame_id, camera.frame_id)):
            return depth_in_camera(depth_m, frame_id, camera)
        depth_camera = camera_from_info(self._depth_info, config.space.rectified)
        if not _same(depth_camera.frame_id, frame_id):
            expected, got = quoted(frame_id), quoted(depth_camera.frame_id)
            raise ValueError(f"depth camera info: expected frame {expected}, as the depth, got {got}")
        return depth_in_camera(
            depth_m, frame_id, camera, depth_camera, self._extrinsics(frame_id, camera, search.stamp_ns)
        )

    def _extrinsics(self, frame_id: str, camera: Camera, stamp_ns: int) -> np.ndarray:
        if _same(frame_id, camera.frame_id):
            return np.eye(4)
        if self._transforms is None:
            raise ValueError(
                f"depth: expected frame {quoted(camera.frame_id)}, as the image, got {quoted(frame_id)}; without "
                "tf2_ros there is no transform between them: use the registered topic"
            )
        try:
            return self._transforms.lookup(camera.frame_id, frame_id, stamp_ns)
        except LookupError as error:
            raise ValueError(
                f"depth: expected a transform from {quoted(frame_id)} to the image's frame, got none: {error}"
            ) from error

    # Outputs

    def _in_target_frame(self, waiting: _Waiting, hurry: bool) -> Scene | None:
        """The scene in `space.target_frame`; in the camera's frame after the time-out; None while it has to wait."""
        scene, config = waiting.scene, self._config().space
        assert scene is not None, "measured"
        if not config.target_frame or _same(config.target_frame, scene.frame_id):
            return scene
        assert self._transforms is not None, "refused at the start"
        try:
            transform = self._transforms.lookup(config.target_frame, scene.frame_id, waiting.search.stamp_ns)
        except LookupError as error:
            if not hurry and self._clock() - waiting.since <= config.tf_timeout_s:
                return None
            frames = f"from {quoted(scene.frame_id)} to {quoted(config.target_frame)}"
            text = f"space.target_frame: no transform {frames}: {error}; "
            self._report(Notice("warn", f"{text}3D outputs are in the camera's frame"), "space.target_frame")
            return scene
        return scene.in_frame(config.target_frame, transform)

    def _publish_scene(self, scene: Scene) -> None:
        self._statistics.located = (self._statistics.located or 0) + 1
        for topic, build in BUILDERS.items():
            if self._is_wanted(topic):
                message = build(self._make, scene)
                if message is not None:
                    self._publish(topic, message)
        if self._is_wanted(_INFO):
            self._publish(_INFO, camera_info(self._make, scene, self._info))


def _same(frame: str, other: str) -> bool:
    """Frames may begin with a slash in old bags."""
    return frame.lstrip("/") == other.lstrip("/")
