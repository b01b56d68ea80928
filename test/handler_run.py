"""Handlers with tiny models, and the images of a camera, for the tests of handlers and patience."""
# ruff: noqa: E402

from __future__ import annotations

import array
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")

from sensor_msgs.msg import Image

from decaf_ros.config import DecafConfig, replace
from decaf_ros.io.messages import TOPICS, header, stamp_ns
from decaf_ros.io.space_messages import SPACE_TOPICS
from decaf_ros.io.vision_messages import VISION_TOPICS
from decaf_ros.msg import QueryStatus
from decaf_ros.nodes.message_factory import CLASSES, make_message
from decaf_ros.online.handlers import Handlers
from decaf_ros.online.turns import Turns
from decaf_ros.pipeline import Decaf

START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 50_000_000
TYPES = TOPICS | SPACE_TOPICS | VISION_TOPICS
ANSWERS = range(QueryStatus.TRACKING, QueryStatus.SUPERSEDED + 1)


def tiny_models(tiny_mllm_dir: Path, tiny_sam2_dir: Path) -> Decaf:
    return Decaf.from_config(
        replace(
            DecafConfig(),
            {
                "mllm.checkpoint": str(tiny_mllm_dir),
                "mllm.local_files_only": True,
                "mllm.video_tokens": 16,
                "sam2.checkpoint": str(tiny_sam2_dir),
                "grounding.mode": "fast",
                "window.size": 3,
                "window.min_frames": 2,
                "window.keyframe_period_s": 0.1,
                "segmentation.max_points": 2,
                "segmentation.fallback": "best",
                "presence.threshold": 0.0,
                "regrounding.policy": "off",
                "node.max_query_chars": 50,
            },
        )
    )


class Run:
    """Handlers with a record of their published messages and log lines, in order.

    between: called between two units of a grounding, as a live node. Without it a grounding takes no time.
    """

    def __init__(self, decaf: Decaf, between: Callable[[], None] | None = None, **options) -> None:
        self.between = between
        self.is_between = False
        self.published: list[tuple[str, object]] = []
        self.log: list[tuple[str, str]] = []
        self.turns = Turns(decaf)
        options.setdefault("is_wanted", lambda topic: TYPES[topic] in CLASSES)
        self.handlers = Handlers(
            decaf,
            make_message,
            lambda *output: self.published.append(output),
            lambda *line: self.log.append(line),
            live=between is not None,
            turns=self.turns,
            **options,
        )

    def show(self, *messages: Image) -> None:
        for message in messages:
            self.handlers.on_image(message)
            self.go_on()

    def ask(self, text: str) -> str:
        query = self.handlers.new_query(text, 0)
        self.handlers.on_query(query)
        self.go_on()
        return query.id

    def go_on(self) -> None:
        while self.between is not None and not self.is_between and self.turns.advance():
            self.is_between = True
            self.between()
            self.is_between = False

    def on(self, topic: str) -> list:
        return [message for name, message in self.published if name == topic]

    def stamps(self, topic: str) -> list[int]:
        return [stamp_ns(message.header.stamp) for message in self.on(topic)]

    def states(self, query_id: str) -> list[int]:
        return [status.state for status in self.on("status") if status.query_id == query_id]

    def answers(self, query_id: str) -> list[int]:
        return [state for state in self.states(query_id) if state in ANSWERS]

    def warnings(self) -> list[str]:
        return [text for level, text in self.log if level != "info"]


def image(number: int, size_hw: tuple[int, int] = (48, 64), **changes) -> Image:
    """Frame `number` of a camera; a disc moves to the right."""
    pixels = np.full((*size_hw, 3), 40, np.uint8)
    cv2.circle(pixels, (10 + 2 * number, size_hw[0] // 2), 8, (230, 60, 30), cv2.FILLED)
    message = Image(height=size_hw[0], width=size_hw[1], encoding="rgb8", step=3 * size_hw[1])
    message.header = header(make_message, START_NS + number * PERIOD_NS, "camera")
    message.data = array.array("B", pixels.tobytes())
    for name, value in changes.items():
        setattr(message, name, value)
    return message
