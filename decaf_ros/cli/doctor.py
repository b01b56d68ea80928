"""The command `decaf doctor`: is everything there that the segmenter needs?"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator

from decaf_ros.cli.options import add_config_arguments, read_config
from decaf_ros.config import DecafConfig, replace
from decaf_ros.doctor.findings import WRONG, Finding, examine
from decaf_ros.doctor.ros import CameraTopics, camera_topics
from decaf_ros.resources import find_resource


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `doctor` to the commands of `decaf`."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine, the models and the camera's topics",
        description="Checks what the segmenter needs: versions, GPU, memory, the checkpoints' files, and with ROS the "
        "camera's topics. Each line is ok, wrong or not checked, with the reason and the mend. Changes and downloads "
        "nothing. Exit status: 0 if nothing is wrong, else 1.",
    )
    parser.set_defaults(configure=configure, run=run)
    add = parser.add_argument
    add_config_arguments(parser, " (default: config/decaf.yaml, as the launch file has it)")
    add("--image", nargs="+", default=[], metavar="TOPIC", help="image topics (default: those of the namespace)")
    add("--depth", nargs="+", default=[], metavar="TOPIC", help="their depth images; turns on space.enabled")
    add("--camera-info", nargs="+", default=[], metavar="TOPIC", help="their camera info (default: beside the images)")
    add(
        "--depth-camera-info",
        nargs="+",
        default=[],
        metavar="TOPIC",
        help="camera info of depth that is not registered to the images",
    )
    add("--namespace", default="decaf", help="the segmenter's namespace (%(default)s)")
    add(
        "--target-frame",
        default="",
        metavar="FRAME",
        help="also check the transform from the images' frame to this one (default: space.target_frame, if enabled)",
    )
    add("--watch", type=float, default=3.0, metavar="S", help="count images for so many seconds (%(default)g)")
    add("--image-size", type=image_size, default="640x480", metavar="WxH", help="for the memory (%(default)s)")
    add("--checkpoint-check", action="store_true", help="load the MLLM and compare it with its own generate (minutes)")
    add("--json", action="store_true", help="print a JSON list of objects with name, state, text and mend")


def image_size(text: str) -> tuple[int, int]:
    """(height, width) from "WIDTHxHEIGHT"."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 640x480, got {text!r}")
    return int(found[2]), int(found[1])


def configure(args: argparse.Namespace) -> DecafConfig:
    """The configuration, by default the launch file's. Raises OSError or ValueError."""
    if not 0 < args.watch <= 3600:
        raise ValueError(f"--watch: expected more than 0 and at most 3600 seconds, got {args.watch:g}")
    args.config = args.config or find_resource("config/decaf.yaml")
    config = read_config(args)
    _cameras(args, config)  # for its errors
    return replace(config, {"space.enabled": True}) if args.depth else config


def _cameras(args: argparse.Namespace, config: DecafConfig) -> list[CameraTopics]:
    return camera_topics(config, args.namespace, args.image, args.depth, args.camera_info, args.depth_camera_info)


def run(args: argparse.Namespace, config: DecafConfig) -> int:
    """Prints the findings. Returns 1 if one of them is wrong, else 0."""
    findings = []
    for finding in examine_all(args, config):
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    if args.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    return int(any(finding.state == WRONG for finding in findings))


def examine_all(args: argparse.Namespace, config: DecafConfig) -> Iterator[Finding]:
    """All checks in order."""
    # Imported here: some import packages that may be missing, which is a finding of its own.
    from decaf_ros.doctor.checkpoint import check_checkpoint
    from decaf_ros.doctor.devices import check_devices
    from decaf_ros.doctor.files import check_caches, check_weights
    from decaf_ros.doctor.memory import check_memory
    from decaf_ros.doctor.packages import check_numpy, check_packages, check_python
    from decaf_ros.doctor.ros import check_ros

    cameras = _cameras(args, config)
    target = args.target_frame or (config.space.target_frame if config.space.enabled else "")
    yield from examine("Python", check_python)
    yield from examine("packages", check_packages)
    yield from examine("NumPy", check_numpy)
    yield from examine("devices", lambda: check_devices(config))
    yield from examine("weights", lambda: check_weights(config))
    yield from examine("memory", lambda: check_memory(config, args.image_size))
    yield from examine("caches", check_caches)
    yield from examine("ROS", lambda: check_ros(config, cameras, target, args.watch))
    if args.checkpoint_check:
        yield from examine("checkpoint", lambda: check_checkpoint(config))
