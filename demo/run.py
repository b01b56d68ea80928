"""`make demo`: a recorded camera is played to the real node over DDS, asked questions, and what comes back is kept.

Run inside the environment: scripts/with_env.sh python -m demo.run. Leaves everything in demo_output/.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import yaml
from domain_coordinator import domain_id

from demo import report
from demo.clips import CLIPS, IMAGE_TOPIC, clip_bag
from demo.conversation import NAMESPACE, hold_conversation
from demo.processes import ChildError

ROOT = Path(__file__).resolve().parents[1]
# The last one is empty: it clears.
QUERIES = ["the person who rides a bicycle", "the car that drives past", ""]
FIRST_QUERY_S = 2.0
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", choices=CLIPS, default="bikes")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the clip that are played (%(default)g)")
    parser.add_argument("--rate", type=float, default=0.5, help="speed of playing (%(default)g)")
    parser.add_argument("--out", type=Path, default=ROOT / "demo_output", help="replaced (%(default)s)")
    parser.add_argument("--cache", type=Path, default=ROOT / ".demo", help="clip and checkpoints (%(default)s)")
    given = parser.parse_args()
    for number in _INTERRUPTS:
        signal.signal(number, _interrupt)
    try:
        return run(given.clip, given.seconds, given.rate, given.out.resolve(), given.cache.resolve())
    except (ChildError, OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; all its processes have ended", file=sys.stderr)
        return 130


def run(clip: str, seconds: float, rate: float, out: Path, cache: Path) -> int:
    """The exit code: 1 where a check fails. Raises ChildError, OSError or ValueError where it cannot go on."""
    began = time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    _say(f"[1/5] clip {clip}: its first {seconds:g} s as a bag in {_short(cache)}")
    camera = clip_bag(clip, seconds, cache)
    _say("[2/5] tiny randomly initialised checkpoints: stand-ins, so the masks will mean nothing")
    checkpoints = tiny_checkpoints(cache)
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    config = write_config(out / "demo.yaml", checkpoints)
    _say(f"[3/5] starting recorder and node (logs in {_short(out)})")
    _say(f"[4/5] playing {seconds:g} s of camera at {rate:g} x, so {seconds / rate:.0f} s, and asking (clip times):")
    with domain_id() as domain:
        conversation = hold_conversation(camera, config, QUERIES, FIRST_QUERY_S, rate, out, domain, _say)
    _say("[5/5] drawing and checking")
    recording = report.read(
        camera, IMAGE_TOPIC, out / "outputs", NAMESPACE, out / "overlay.mp4", out / "contact_sheet.png"
    )
    found = report.checks(recording, conversation.asked, conversation.node_exit)
    facts = {
        "Clip": f"{clip}, {seconds:g} s, {len(recording.published)} frames, played at {rate:g} x its speed, which two "
        "processor cores follow",
        "Node": f"`python -m decaf_ros.nodes.segmenter`, namespace `{NAMESPACE}`, simulated time, parameters in "
        f"`{config.name}`",
        "Machine": f"{os.cpu_count()} processor cores; the demo took {time.monotonic() - began:.0f} s",
    }
    (out / "summary.md").write_text(report.summary(recording, found, facts, stand_ins=True), encoding="utf-8")
    holds = report.say_checks(found, _say)
    counts = ", ".join(f"{recording.counts[name]} {name}" for name in ("received", "used", "dropped", "rejected"))
    _say(f"      frames: {len(recording.published)} published, {counts}")
    _say("      the checkpoints are tiny and random: masks, answers and heatmaps mean nothing")
    for name, what in (
        ("summary.md", "one page: states, frames, stage times, checks"),
        ("overlay.mp4", "what the node published on `overlay`"),
        ("contact_sheet.png", "frames and heatmaps"),
        ("outputs", "bag with everything that the node published"),
        ("node.log", "the node's log"),
    ):
        _say(f"      {_short(out / name)}  ({what})")
    _say(f"{'Done' if holds else 'A CHECK FAILED'} after {time.monotonic() - began:.0f} s.")
    return 0 if holds else 1


def tiny_checkpoints(cache: Path) -> Path:
    """A folder with `mllm` and `sam2`; made anew when the code that writes them has changed."""
    # Found, not imported: they bring torch and transformers along, which takes seconds.
    modules = map(importlib.util.find_spec, ("decaf_ros.demo.tiny_mllm", "decaf_ros.demo.tiny_sam2"))
    sources = b"".join(Path(module.origin).read_bytes() for module in modules)
    folder = cache / f"checkpoints_{hashlib.sha256(sources).hexdigest()[:12]}"
    if not folder.exists():
        from decaf_ros.demo import tiny_mllm, tiny_sam2

        # Under another name until it is whole: an interrupted run must not leave half a checkpoint.
        unfinished = cache / "checkpoints.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        # transformers draws progress bars, which would tear up the demo's own lines.
        with (cache / "checkpoints.log").open("w") as log, contextlib.redirect_stderr(log):
            tiny_mllm.write_tiny_mllm(unfinished / "mllm")
            tiny_sam2.write_tiny_sam2(unfinished / "sam2")
        unfinished.rename(folder)
    return folder


def write_config(path: Path, checkpoints: Path) -> Path:
    """The node's parameters: random models find nothing convincing, so it is told to answer always."""
    parameters = {
        # A coarse token grid, so that two processor cores answer within seconds.
        "mllm": {"checkpoint": str(checkpoints / "mllm"), "local_files_only": True, "video_tokens": 120},
        "sam2": {"checkpoint": str(checkpoints / "sam2"), "local_files_only": True},
        "grounding": {"mode": "paper"},
        "segmentation": {"fallback": "best"},
        "presence": {"threshold": 0.0},
        "window": {"size": 6, "keyframe_period_s": 0.5, "min_frames": 4},
        "node": {"diagnostics_period_s": 0.5},
    }
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}, sort_keys=False), encoding="utf-8")
    return path


def _interrupt(*_: object) -> None:
    # The processes are being ended now, which takes some seconds: a second Ctrl-C must not leave them behind.
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _short(path: Path) -> str:
    """Relative to the current folder where it lies in it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
