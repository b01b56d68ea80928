"""Writes tabletop clips as bags with camera topics and ground truth; reads the ground truth back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader, make_header, make_message
from decaf_ros.io.messages import stamp_ns as message_stamp_ns
from decaf_tabletop.world.clip import Expression, TabletopClip, TabletopObject

IMAGE_TOPIC = "/camera/color/image_raw"
COMPRESSED_TOPIC = f"{IMAGE_TOPIC}/compressed"
INFO_TOPIC = "/camera/color/camera_info"
DEPTH_TOPIC = "/camera/depth/image_rect_raw"
LABELS_TOPIC = "/ground_truth/labels"
PARTS_TOPIC = "/ground_truth/parts"
POSES_TOPIC = "/ground_truth/poses"
SCENE_TOPIC = "/ground_truth/scene"
_JPEG_QUALITY = 90


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The ground truth of a recorded clip.

    Attributes:
        labels: (H, W) uint8 by frame stamp in nanoseconds, as in TabletopClip.
        poses: (n, 7) float64 by frame stamp: x, y, z in metres and quaternion w, x, y, z of each object in the
            camera's optical frame.
    """

    seed: int
    surface: str
    objects: tuple[TabletopObject, ...]
    expressions: tuple[Expression, ...]
    labels: dict[int, np.ndarray]
    poses: dict[int, np.ndarray]


def write_tabletop_bag(
    path: str | Path,
    clip: TabletopClip,
    expressions: Sequence[Expression] = (),
    compressed: bool = False,
    parts: np.ndarray | None = None,
) -> None:
    """Writes a new mcap bag whose messages carry the stamps of the clip's frames.

    compressed: JPEG images (quality 90, CompressedImage on COMPRESSED_TOPIC) and 16UC1 depth in millimetres, instead of
    rgb8 and 32FC1 in metres. Depth is written only if the clip holds it. Raises FileExistsError if `path` exists.
    parts: a further label image of each frame on PARTS_TOPIC, see `decaf_tabletop.world.parts.part_labels`.
    """
    poses = _optical_poses(clip)
    with BagWriter(path) as bag:
        for index, frame in enumerate(clip.frames()):
            stamp_ns, header = frame.stamp_ns, make_header(frame.stamp_ns, frame.frame_id)
            if index == 0:
                scene = make_message("std_msgs/msg/String", data=_scene_json(clip, expressions))
                bag.write_message(SCENE_TOPIC, scene, stamp_ns)
            bag.write_message(INFO_TOPIC, _camera_info(clip, header), stamp_ns)
            if compressed:
                bag.write_message(COMPRESSED_TOPIC, _jpeg(frame.image, header), stamp_ns)
            else:
                bag.write_image(IMAGE_TOPIC, frame.image, stamp_ns, frame.frame_id)
            if clip.depth_m is not None:
                depth = clip.depth_m[index]
                # By convention 0 is an invalid depth; used for depths beyond 16 bits too.
                millimetres = np.where(depth < 65.535, np.rint(depth * 1000), 0).astype(np.uint16)
                bag.write_image(DEPTH_TOPIC, millimetres if compressed else depth, stamp_ns, frame.frame_id)
            bag.write_image(LABELS_TOPIC, clip.labels[index], stamp_ns, frame.frame_id)
            if parts is not None:
                bag.write_image(PARTS_TOPIC, parts[index], stamp_ns, frame.frame_id)
            bag.write_message(POSES_TOPIC, _pose_array(poses[index], header), stamp_ns)


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Reads the ground truth from a bag that `write_tabletop_bag` wrote.

    Raises FileNotFoundError for a missing bag, ValueError for a bag without valid ground truth.
    """
    scene_json, labels, poses = None, {}, {}
    with BagReader(path) as bag:
        for recorded in bag.messages([SCENE_TOPIC, LABELS_TOPIC, POSES_TOPIC]):
            message = bag.deserialize(recorded)
            if recorded.topic == SCENE_TOPIC:
                scene_json = message.data
                continue
            stamp_ns = message_stamp_ns(message.header.stamp)
            if recorded.topic == LABELS_TOPIC:
                if message.encoding != "mono8" or message.data.size != message.height * message.step:
                    raise ValueError(f"{path}: {LABELS_TOPIC}: expected whole mono8 images, got {message.encoding}")
                labels[stamp_ns] = message.data.reshape(message.height, message.step)[:, : message.width].copy()
            else:
                poses[stamp_ns] = np.array([_pose_row(pose) for pose in message.poses]).reshape(-1, 7)
    if scene_json is None:
        raise ValueError(f"{path}: expected ground truth of a tabletop clip, got no {SCENE_TOPIC}")
    try:
        scene = json.loads(scene_json)
        return GroundTruth(
            seed=scene["seed"],
            surface=scene["surface"],
            objects=tuple(TabletopObject(**thing) for thing in scene["objects"]),
            expressions=tuple(
                Expression(**{**expression, "targets": tuple(expression["targets"])})
                for expression in scene["expressions"]
            ),
            labels=labels,
            poses=poses,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {SCENE_TOPIC}: not the scene of a tabletop clip: {error!r}") from error


def _scene_json(clip: TabletopClip, expressions: Sequence[Expression]) -> str:
    return json.dumps(
        {
            "seed": clip.seed,
            "surface": clip.surface,
            "objects": [asdict(thing) for thing in clip.objects],
            "expressions": [asdict(expression) for expression in expressions],
        }
    )


def _optical_poses(clip: TabletopClip) -> np.ndarray:
    """(F, n, 7): the objects' poses in each frame's optical frame."""
    optical = np.empty_like(clip.poses)
    for index, (poses, camera) in enumerate(zip(clip.poses, clip.camera_poses)):
        world_to_optical = _rotation(camera[3:]).inv()
        optical[index, :, :3] = world_to_optical.apply(poses[:, :3] - camera[:3])
        optical[index, :, 3:] = np.roll((world_to_optical * _rotation(poses[:, 3:])).as_quat(), 1, axis=-1)
    return optical


def _rotation(wxyz: np.ndarray) -> Rotation:
    return Rotation.from_quat(np.roll(wxyz, -1, axis=-1))  # SciPy puts w last


def _pose_array(poses: np.ndarray, header: Any) -> Any:
    return make_message(
        "geometry_msgs/msg/PoseArray",
        header=header,
        poses=[
            make_message(
                "geometry_msgs/msg/Pose",
                position=make_message("geometry_msgs/msg/Point", x=x, y=y, z=z),
                orientation=make_message("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
            )
            for x, y, z, qw, qx, qy, qz in poses.tolist()
        ],
    )


def _pose_row(pose: Any) -> list[float]:
    position, rotation = pose.position, pose.orientation
    return [position.x, position.y, position.z, rotation.w, rotation.x, rotation.y, rotation.z]


def _camera_info(clip: TabletopClip, header: Any) -> Any:
    """CameraInfo of a camera without distortion."""
    height, width = clip.labels.shape[1:]
    full_image = make_message(
        "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    return make_message(
        "sensor_msgs/msg/CameraInfo",
        header=header,
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=clip.intrinsics.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([clip.intrinsics, np.zeros((3, 1))]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=full_image,
    )


def _jpeg(image: np.ndarray, header: Any) -> Any:
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return make_message(
        "sensor_msgs/msg/CompressedImage", header=header, format="rgb8; jpeg compressed bgr8", data=encoded.reshape(-1)
    )
