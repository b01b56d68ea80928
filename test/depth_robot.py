"""A robot with a depth camera that shows a clip to the segmenter, and listens to its 3D outputs."""

from __future__ import annotations

import time
from importlib.util import find_spec

import numpy as np
from geometry_msgs.msg import PoseStamped
from node_process import LATCHED, Robot, wait_for
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from decaf_ros.io.messages import header, image
from decaf_ros.nodes.message_factory import make_message

FRAME = "camera_optical"


class DepthRobot(Robot):
    """A robot with a depth camera that shows a clip."""

    def __init__(self, domain_id: int, clip, camera: str = "") -> None:
        from vision_msgs.msg import Detection2DArray, Detection3DArray, LabelInfo

        super().__init__(domain_id, camera)
        own = f"{camera}/" if camera else ""
        for topic, kind, qos in (
            ("target_pose", PoseStamped, 50),
            ("points", PointCloud2, 50),
            ("depth_masked", Image, 50),
            ("depth_masked/camera_info", CameraInfo, 50),
            ("detections_3d", Detection3DArray, 50),
            ("detections", Detection2DArray, 50),
            ("label_info", LabelInfo, LATCHED),
        ):
            self.received[topic] = []
            self.node.create_subscription(kind, own + topic, self.received[topic].append, qos)
        if find_spec("visualization_msgs") is not None:
            from visualization_msgs.msg import MarkerArray

            self.received["markers"] = []
            self.node.create_subscription(MarkerArray, own + "markers", self.received["markers"].append, 50)
        self._clip = clip
        self.shown_index: dict[int, int] = {}
        self._depth = self.node.create_publisher(Image, f"{own}depth", 10)
        self._info = self.node.create_publisher(CameraInfo, f"{own}camera_info", 10)
        self._depth_info = self.node.create_publisher(CameraInfo, f"{own}depth/camera_info", 10)

    def wait_until_listened_to(self) -> None:
        super().wait_until_listened_to()
        wait_for(lambda: self._depth.get_subscription_count() and self._info.get_subscription_count(), "depth")

    def info(self, stamp_ns: int, **changes) -> CameraInfo:
        matrix = self._clip.intrinsics
        height, width = self._clip.images.shape[1:3]
        message = CameraInfo(header=header(make_message, stamp_ns, FRAME), height=height, width=width)
        message.distortion_model, message.k = "plumb_bob", matrix.ravel().tolist()
        message.p = np.hstack([matrix, np.zeros((3, 1))]).ravel().tolist()
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def show_depth_info(self, frame_id: str) -> None:
        """Publishes the camera info of a depth camera whose images are not registered."""
        wait_for(self._depth_info.get_subscription_count, "a subscription to depth/camera_info")
        self._depth_info.publish(self.info(0, header=header(make_message, 0, frame_id)))

    def depth(self, index: int, stamp_ns: int, frame_id: str = FRAME) -> Image:
        depth_mm = np.nan_to_num(self._clip.depth_m[index] * 1000).astype(np.uint16)
        return image(make_message, depth_mm, header(make_message, stamp_ns, frame_id))

    def show(self, frames: int, hz: float = 20.0, *, depth=True, info=True, late_s=0.0, shift_s=0.0, **changes):
        """Publishes frames of the clip with depth and camera info; returns their stamps. depth: a function that makes
        the message from its number and stamp, or False."""
        stamps = []
        for _ in range(frames):
            index = self.shown % len(self._clip)
            stamp_ns = time.time_ns()
            self.shown_index[stamp_ns] = index
            depth_ns = stamp_ns + round(shift_s * 1e9)
            if info:
                self._info.publish(self.info(stamp_ns) if info is True else info(stamp_ns))
            self._camera.publish(image(make_message, self._clip.images[index], header(make_message, stamp_ns, FRAME)))
            time.sleep(late_s)
            if depth:
                self._depth.publish(self.depth(index, depth_ns) if depth is True else depth(index, depth_ns))
            stamps.append(stamp_ns)
            self.shown += 1
            time.sleep(max(1 / hz - late_s, 0))
        return stamps

    def frames(self, key: str) -> int:
        return int(self.diagnosed()[key])
