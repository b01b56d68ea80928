"""`make demo`: plays a recorded camera to the segmenter node over DDS, asks questions and checks the answers.

Run inside the environment: scripts/with_env.sh python -m decaf_tabletop.demo.run. Writes into demo_output/.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import yaml
from domain_coordinator import domain_id

from decaf_ros.resources import resolve_path
from decaf_tabletop.demo import pictures, recording, report
from decaf_tabletop.demo.clip import STORY, load_clip
from decaf_tabletop.demo.conversation import NAMESPACE, hold_conversation
from decaf_tabletop.demo.processes import ChildError
from decaf_tabletop.demo.verdicts import judge

TABLETOP = Path(resolve_path("package://decaf_tabletop/config/tabletop.yaml"))
# Overrides for tabletop.yaml. With every frame used, the answers hardly depend on the machine's speed.
EVERY_FRAME = {
    "node": {
        "image_transport": "compressed",
        "drop_frames": False,
        "reliability": "reliable",
        "diagnostics_period_s": 0.5,
    }
}
_REMARK = """**Both checkpoints are small stand-ins trained on this simulated table. They know nothing else.**
The clip is not part of their training data, but its objects, colours, motions and questions are of the same kinds. The
masks show that the method works. They do not show how well real models find things. The node uses every frame
(`node.drop_frames` is false), and the camera pauses when the node falls behind and while a query is open, so the
answers hardly depend on the machine's speed. A robot's camera does not pause: there the node drops frames and uses the
newest."""
_SHORT_REMARK = "small checkpoints, trained only on this simulated table: no measure of real models"
_OUTPUTS = {
    "summary.md": "one page: answers, frames, stage times, checks",
    "question.png": "one question, the attention and the mask",
    "contact_sheet.png": "attention and masks for every answer",
    "overlay.webm": "the node's `overlay` topic",
    "outputs": "bag with all topics of the node",
    "node.log": "the node's log",
}
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=_positive, help="play only the first seconds of the clip (default: all)")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder, replaced (%(default)s)")
    arguments = parser.parse_args()
    for number in _INTERRUPTS:
        signal.signal(number, _interrupt)
    try:
        return run(arguments.seconds, arguments.out.resolve())
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


def run(seconds: float | None, out: Path) -> int:
    """Plays the first `seconds` of the clip (None: all) and writes into `out`.

    Returns the exit code, 1 if a check fails. Raises ChildError, OSError or ValueError if the demo cannot run.
    """
    began = time.monotonic()
    clip = load_clip(seconds)
    _log(f"[1/4] clip: the first {clip.seconds:g} s of the bag {_short(STORY)}")
    _log(f"      {_SHORT_REMARK}")
    _clear(out)
    configs = [TABLETOP, out / "demo.yaml"]
    write_config(configs[-1], EVERY_FRAME)
    _log(f"[2/4] starting recorder and node (logs in {_short(out)})")
    _log("[3/4] playing and asking (clip times); the camera pauses while a query is open:")
    with domain_id() as domain:
        conversation = hold_conversation(clip, configs, out, domain, _log)
    _log("[4/4] drawing and checking")
    recorded = recording.read(clip.seconds, out / "outputs", NAMESPACE, out / "overlay.webm")
    results = report.checks(recorded, conversation.asked, conversation.node_exit)
    verdicts = judge(recorded, clip.truth)
    if clip.due:
        results.append(report.answers_check(verdicts, clip.due))
    else:
        _log("      the clip is too short for a question: no answer to check")
    if verdicts:
        pictures.write_answers_sheet(recorded, verdicts, out / "contact_sheet.png")
    for verdict in verdicts:
        if verdict.text == pictures.QUESTION:
            pictures.write_question_picture(recorded, clip.truth, verdict, out / "question.png")
    facts = {
        "Clip": f"{clip.seconds:g} s, {len(recorded.published)} frames",
        "Node": f"`python -m decaf_ros.nodes.segmenter`, namespace `{NAMESPACE}`, simulated time, parameters in "
        + " and ".join(f"`{_short(config)}`" for config in configs),
        "Machine": f"{os.cpu_count()} processor cores; the demo took {time.monotonic() - began:.0f} s",
    }
    text = report.summary(recorded, results, facts, _REMARK, verdicts)
    (out / "summary.md").write_text(text, encoding="utf-8")
    all_hold = report.log_checks(results, _log)
    counts = ", ".join(f"{recorded.counts[name]} {name}" for name in ("received", "used", "dropped", "rejected"))
    _log(f"      frames: {len(recorded.published)} published, {counts}")
    _log(f"      {_SHORT_REMARK}")
    for name, description in _OUTPUTS.items():
        if (out / name).exists():
            _log(f"      {_short(out / name)}  ({description})")
    _log(f"{'Done' if all_hold else 'A CHECK FAILED'} after {time.monotonic() - began:.0f} s.")
    return 0 if all_hold else 1


def _clear(out: Path) -> None:
    """Replaces an earlier demo's folder by an empty one. Raises FileExistsError for a folder with other content."""
    if out.exists() and any(out.iterdir()) and not (out / "demo.yaml").is_file():
        raise FileExistsError(f"--out {out}: expected a new or empty folder, or an earlier demo's")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def write_config(path: Path, parameters: dict[str, dict[str, object]]) -> None:
    """Writes a parameter file for the node."""
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}, sort_keys=False), encoding="utf-8")


def _interrupt(*_: object) -> None:
    # Stopping the children takes seconds. A second Ctrl-C must not leave them running.
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _short(path: Path) -> str:
    """The path relative to the current folder if it lies inside."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _log(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
