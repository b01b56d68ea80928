"""The command `decaf replay`: plays a bag through the node's handlers, with reproducible results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decaf_ros.cli.options import add_config_arguments, read_config
from decaf_ros.config import DecafConfig, options
from decaf_ros.io.bag_writer import STORAGES, BagWriter, check_new_bag
from decaf_ros.io.bags import BagReader
from decaf_ros.io.cameras import parse_cameras, recorded_cameras, recorded_depth
from decaf_ros.io.messages import shortened
from decaf_ros.types import QueryState
from decaf_ros.version import __version__

if TYPE_CHECKING:
    from decaf_ros.online.replay import Played


class _AddQuery(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, text: Any, option: str | None = None) -> None:
        namespace.query = [*namespace.query, (text, 0.0)]


class _SetTime(argparse.Action):
    """Sets the time of the preceding --query."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, seconds: Any, option: str | None = None
    ) -> None:
        if not namespace.query:
            parser.error("expected --query before --query-at")
        namespace.query = [*namespace.query[:-1], (namespace.query[-1][0], seconds)]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `replay` to the commands of `decaf`."""
    parser = commands.add_parser(
        "replay",
        help="play a bag through the node's handlers into a new bag",
        description="Plays a bag through the node's handlers and writes everything that they publish to a new bag. "
        "Drops no frame: the same bag gives the same masks and tracklets. Needs no ROS installation.",
    )
    parser.set_defaults(configure=read_config, run=run)
    add = parser.add_argument
    add("bag", type=Path, help="mcap or sqlite3 bag with raw or compressed images")
    add(
        "--out",
        type=Path,
        required=True,
        help="folder of the new bag; must not exist, or be of a run that did not finish",
    )
    add("--query", action=_AddQuery, default=[], help="may be repeated; default: the queries recorded in the bag")
    add("--query-at", action=_SetTime, type=float, metavar="S", help="time of the preceding query from the start (0)")
    add("--image-topic", "--topic", default="", help="of the only camera; default: the only image topic")
    add(
        "--camera",
        action="append",
        default=[],
        metavar="NAME[=TOPIC]",
        help="one of several cameras and its image topic (NAMESPACE/NAME/image or its /compressed); default: the "
        "parameter `cameras`, unless --image-topic is given",
    )
    add(
        "--depth",
        action="append",
        default=[],
        metavar="[NAME=]TOPIC",
        help="depth images of a camera, for 3D outputs; raw or compressedDepth, registered to its image",
    )
    add("--camera-info", action="append", default=[], metavar="[NAME=]TOPIC", help="camera_info of a camera with depth")
    add("--namespace", type=_namespace, default="/decaf", help="namespace of query topic and outputs (%(default)s)")
    add("--storage", choices=sorted(STORAGES), default="mcap", help="storage format of the new bag (%(default)s)")
    add("--overlay", action="store_true", help="write the overlay images too")
    add("--confidence", action="store_true", help="write the confidence images too")
    add_config_arguments(parser, " (default: the defaults of docs/parameters.md, not config/decaf.yaml)")


def run(args: argparse.Namespace, config: DecafConfig) -> int:
    """Returns the exit status: 1 if no frame was used or a query failed. Raises OSError, ValueError or RuntimeError."""
    # These import torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.online.replay import TimedQuery, check_times, replay
    from decaf_ros.pipeline import Decaf

    check_new_bag(args.out)
    queries = [TimedQuery(*query) for query in args.query]
    with BagReader(args.bag, lambda text: _log("warn", text)) as reader:
        cameras = _cameras(reader, args, config)
        depth = recorded_depth(reader, cameras, args.depth, args.camera_info)
        _check_space(config, bool(depth))
        check_times(reader, queries, list(cameras.values()))  # before the slow loading of the models
        decaf = Decaf.from_config(config)
        origin = {
            "input": str(args.bag),
            "mode": "replay",
            "version": __version__,
            "parameters": {option.name: option.value for option in options(config)},
        }
        with BagWriter(args.out, args.storage, origin) as writer:
            on_request = args.overlay, args.confidence
            played = replay(decaf, reader, writer, queries, cameras, args.namespace, *on_request, depth, _log)
    print("\n".join(_summary(played, args.out)))
    answers = [event for camera in played.cameras.values() for event in camera.answers]
    failed = any(event.state == QueryState.FAILED for event in answers)
    return 1 if failed or not any(camera.statistics.used for camera in played.cameras.values()) else 0


def _cameras(reader: BagReader, args: argparse.Namespace, config: DecafConfig) -> dict[str, str]:
    """The image topic of each camera by name. Raises ValueError."""
    if args.camera and args.image_topic:
        raise ValueError("--camera: expected either this or --image-topic, got both")
    named = parse_cameras(args.camera or ([] if args.image_topic else config.cameras))
    if not named:
        return {"": reader.image_topic(args.image_topic)}
    return recorded_cameras(reader, named, args.namespace, lambda text: _log("warn", text))


def _check_space(config: DecafConfig, has_depth: bool) -> None:
    """Raises ValueError if the 3D outputs cannot be as configured."""
    if config.space.enabled and not has_depth:
        _log("warn", "space.enabled: no 3D outputs without --depth and --camera-info")
    if config.space.target_frame and has_depth:
        frame = config.space.target_frame
        raise ValueError(f"space.target_frame: expected no frame, as a replay has no transforms, got {frame!r}")


def _summary(played: Played, out: Path) -> Sequence[str]:
    lines = []
    for name, (statistics, answers) in played.cameras.items():
        own = f"{name}: " if name else ""
        lines.append(f"{own}frames: {statistics.used} used, {statistics.rejected} rejected")
        for event in answers:
            presence = f", presence {event.presence.score:.2f}" if event.presence else ""
            query = f"query {event.query.id} {shortened(event.query.text)!r}"
            lines.append(f"{own}{query}: {event.state.name}{presence}: {event.text}")
            lines += [f"    {stage:<18} {ms:9.1f} ms" for stage, ms in event.stage_ms]
        if statistics.located is not None:
            lines.append(f"{own}3D: {statistics.located} frames with, {statistics.unlocated} without")
        lines.append(
            f"{own}per frame: decoding {statistics.decode_ms:.1f} ms, tracking {statistics.track_ms:.1f} ms "
            "(moving average)"
        )
    lines.append(f"{out}: " + ", ".join(f"{count} {topic}" for topic, count in sorted(played.outputs.items())))
    return lines


def _namespace(name: str) -> str:
    """`name` with a leading and without a trailing slash; empty for the root namespace."""
    return f"/{name.strip('/')}".rstrip("/")


def _log(level: str, text: str) -> None:
    print(f"[{level}] {text}", file=sys.stderr)
