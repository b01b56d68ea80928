"""A camera driver, as a thread of the tests or as a process (arguments: domain, reliability, rate, height, width)."""

from __future__ import annotations

import array
import sys
import threading
import time

import rclpy
from rclpy.context import Context
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from decaf_ros.io.messages import stamp_ns

TOPIC, INFO, DEPTH = "/camera/image_raw", "/camera/camera_info", "/camera/depth"
SIZE_HW = (48, 64)


class Driver:
    """A camera driver: publishes an image and its camera_info at a rate, with an increasing stamp.

    depths: by topic, published with the stamp of the image and `depth_later_s`.
    """

    def __init__(
        self,
        domain: int,
        reliability: str,
        hz: float,
        info: CameraInfo | None = None,
        size_hw: tuple[int, int] = SIZE_HW,
        depths: dict[str, Image] | None = None,
        depth_later_s: float = 0.0,
        **changes: object,
    ) -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node("camera_driver", context=self._context)
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy[reliability.upper()])
        self._images = self._node.create_publisher(Image, TOPIC, qos)
        self._infos = self._node.create_publisher(CameraInfo, INFO, qos) if info else None
        self._depths = [
            (self._node.create_publisher(Image, topic, qos), message) for topic, message in (depths or {}).items()
        ]
        self._depth_later_ns = round(depth_later_s * 1e9)
        self._size_hw = size_hw
        self._info, self._period_s, self._changes = info, 1 / hz if hz else None, changes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        height, width = self._size_hw
        image = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        image.header.frame_id = "camera_optical"
        image.data = array.array("B", bytes(3 * height * width))
        for name, value in self._changes.items():
            if name != "stamps":
                setattr(image, name, value)
        while self._period_s and not self._stopping.wait(self._period_s):
            if self._changes.get("stamps", True):
                now = time.time_ns()
                image.header.stamp.sec, image.header.stamp.nanosec = divmod(now, 10**9)
            self._images.publish(image)
            for publisher, depth in self._depths:
                later_ns = stamp_ns(image.header.stamp) + self._depth_later_ns
                depth.header.stamp.sec, depth.header.stamp.nanosec = divmod(later_ns, 10**9)
                publisher.publish(depth)
            if self._infos:
                self._infos.publish(self._info)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._node.destroy_node()
        self._context.try_shutdown()


if __name__ == "__main__":
    domain, reliability, hz, height, width = sys.argv[1:]
    running = Driver(int(domain), reliability, float(hz), size_hw=(int(height), int(width)))
    print("running", flush=True)
    sys.stdin.read()  # until the test closes it
    running.stop()
