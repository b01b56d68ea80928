"""`make demo`: a recorded camera is played to the real node over DDS, asked questions, and what comes back is kept.

Run inside the environment: scripts/with_env.sh python -m decaf_tabletop.demo.run. Leaves everything in demo_output/.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from domain_coordinator import domain_id

from decaf_ros.resources import resolve_path
from decaf_tabletop.demo import pictures, recording, report
from decaf_tabletop.demo.clips import CLIPS, find_clip
from decaf_tabletop.demo.conversation import NAMESPACE, hold_conversation
from decaf_tabletop.demo.processes import ChildError
from decaf_tabletop.demo.verdicts import judge

TABLETOP = Path(resolve_path("package://decaf_tabletop/config/tabletop.yaml"))
_REMARKS = {
    "tabletop": """**Both checkpoints are small stand-ins, trained on this simulated table; they know nothing else.**
This clip was not among those that they were trained on, but its objects, looks, motions and questions are of the same
kinds. The masks show that the method works, not how well real models find things. So that the result does not depend on
the speed of the machine, every frame is used (`node.drop_frames` false) and the camera waits where the node does not
follow, and while an answer is looked for; on a robot the world goes on, and the newest frame is taken.""",
    "bikes": """**The checkpoints are tiny, randomly initialised stand-ins. Masks, answers and heatmaps mean nothing.**
This run shows that the path works (camera, DDS, node, models, tracking, outputs), not what it finds. So
that something is drawn at all, the node is told to answer always (`presence.threshold` 0,
`segmentation.fallback` best); a robot keeps the defaults, which say NOT_FOUND instead.""",
}
_SHORT_REMARKS = {
    "tabletop": "small checkpoints that were trained on this simulated table alone: they say nothing about real models",
    "bikes": "the checkpoints are tiny and random: masks, answers and heatmaps mean nothing",
}
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", choices=CLIPS, default=CLIPS[0], help="(%(default)s)")
    parser.add_argument("--seconds", type=_positive, help="of the clip that are played (tabletop: all, bikes: 10)")
    parser.add_argument("--rate", type=_positive, help="speed of playing (tabletop: 1, bikes: 0.5)")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="replaced (%(default)s)")
    parser.add_argument("--cache", type=Path, default=Path(".demo"), help="clip and checkpoints (%(default)s)")
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


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number over 0, got {text!r}")
    return number


def run(name: str, seconds: float | None, rate: float | None, out: Path, cache: Path) -> int:
    """The exit code: 1 where a check fails. Raises ChildError, OSError or ValueError where it cannot go on."""
    began = time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    clip = find_clip(name, seconds, cache)
    rate = clip.rate if rate is None else rate
    _say(f"[1/5] clip {name}: its first {clip.seconds:g} s, a bag in {_short(clip.bag.parent)}")
    _say(f"[2/5] {_SHORT_REMARKS[name]}")
    parameters = random_parameters(tiny_checkpoints(cache)) if clip.truth is None else EVERY_FRAME
    _clear(out)
    configs = [out / "demo.yaml"] if clip.truth is None else [TABLETOP, out / "demo.yaml"]
    write_config(configs[-1], parameters)
    _say(f"[3/5] starting recorder and node (logs in {_short(out)})")
    pauses = ", plus the time of the answers" if clip.waits else ""
    _say(f"[4/5] playing at {rate:g} x, so {clip.seconds / rate:.0f} s{pauses}, and asking (clip times):")
    with domain_id() as domain:
        conversation = hold_conversation(clip, configs, rate, out, domain, _say)
    _say("[5/5] drawing and checking")
    recorded = recording.read(clip, out / "outputs", NAMESPACE, out / "overlay.mp4")
    found = report.checks(recorded, conversation.asked, conversation.node_exit)
    verdicts = judge(recorded, clip.truth) if clip.truth else []
    if clip.truth and clip.due:
        found.append(report.answers_check(verdicts, clip.due))
    elif clip.truth:
        _say("      so short a clip leaves no time for a question: there is no answer to check")
    if verdicts:
        pictures.write_answers_sheet(recorded, verdicts, out / "contact_sheet.png")
    elif not clip.truth:
        pictures.write_even_sheet(recorded, out / "contact_sheet.png")
    facts = {
        "Clip": f"{name}, {clip.seconds:g} s, {len(recorded.published)} frames, played at {rate:g} x its speed, which "
        "two processor cores follow",
        "Node": f"`python -m decaf_ros.nodes.segmenter`, namespace `{NAMESPACE}`, simulated time, parameters in "
        + " and ".join(f"`{_short(config)}`" for config in configs),
        "Machine": f"{os.cpu_count()} processor cores; the demo took {time.monotonic() - began:.0f} s",
    }
    text = report.summary(recorded, found, facts, _REMARKS[name], verdicts)
    (out / "summary.md").write_text(text, encoding="utf-8")
    holds = report.say_checks(found, _say)
    counts = ", ".join(f"{recorded.counts[name]} {name}" for name in ("received", "used", "dropped", "rejected"))
    _say(f"      frames: {len(recorded.published)} published, {counts}")
    _say(f"      {_SHORT_REMARKS[name]}")
    for name, what in (
        ("summary.md", "one page: answers, frames, stage times, checks"),
        ("overlay.mp4", "what the node published on `overlay`"),
        ("contact_sheet.png", "frames and heatmaps"),
        ("outputs", "bag with everything that the node published"),
        ("node.log", "the node's log"),
    ):
        if (out / name).exists():
            _say(f"      {_short(out / name)}  ({what})")
    _say(f"{'Done' if holds else 'A CHECK FAILED'} after {time.monotonic() - began:.0f} s.")
    return 0 if holds else 1


def _clear(out: Path) -> None:
    """An empty folder, in place of an earlier run's. Raises FileExistsError for a folder with anything else in it."""
    if out.exists() and any(out.iterdir()) and not (out / "demo.yaml").is_file():
        raise FileExistsError(f"--out {out}: expected a new or empty folder, or an earlier demo's")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


_TINY_SOURCES = (
    "tiny_models.qwen_vl",
    "tiny_models.sam2",
    "decaf_tabletop.training.sam2_shape",
    "decaf_ros.grounding.prompts",
)


def tiny_checkpoints(cache: Path) -> Path:
    """A folder with `mllm` and `sam2`; made anew when the code that writes them has changed."""
    # Found, not imported: they bring torch and transformers along, which takes seconds.
    modules = map(importlib.util.find_spec, _TINY_SOURCES)
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


# Over tabletop.yaml: the bag's images are compressed, and results must not depend on the machine's speed.
EVERY_FRAME = {
    "node": {
        "image_transport": "compressed",
        "drop_frames": False,
        "reliability": "reliable",
        "diagnostics_period_s": 0.5,
    }
}


def random_parameters(checkpoints: Path) -> dict[str, dict[str, Any]]:
    """The node's parameters: random models find nothing convincing, so it is told to answer always."""
    return {
        # A coarse token grid, so that two processor cores answer within seconds.
        "mllm": {"checkpoint": str(checkpoints / "mllm"), "local_files_only": True, "video_tokens": 120},
        "sam2": {"checkpoint": str(checkpoints / "sam2"), "local_files_only": True},
        "grounding": {"mode": "paper"},
        "segmentation": {"fallback": "best"},
        "presence": {"threshold": 0.0},
        "window": {"size": 6, "keyframe_period_s": 0.5, "min_frames": 4},
        "node": {"diagnostics_period_s": 0.5},
    }


def write_config(path: Path, parameters: dict[str, dict[str, Any]]) -> None:
    """A parameter file for the node."""
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}, sort_keys=False), encoding="utf-8")


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
