"""Runs recorder, node and player side by side and asks the questions."""

from __future__ import annotations

import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from decaf_ros.resources import find_resource
from decaf_tabletop.demo.clip import STORY, Clip, Question
from decaf_tabletop.demo.processes import Child, ChildError
from decaf_tabletop.world.bag import COMPRESSED_TOPIC

NAMESPACE = "/decaf"
PROFILE = find_resource("config/fastdds_large_shm.xml")
# Clip seconds for which an answer is tracked before the next question.
_WATCH_S = 1.0
# Clip seconds by which the camera may be ahead of the node.
_AHEAD_S = 0.4
_START_S, _ANSWER_S = 120.0, 150.0

Log = Callable[[str], None]


class Conversation(NamedTuple):
    """The queries in the order asked, with the empty one that clears, and the node's exit code."""

    asked: list[str]
    node_exit: int


def hold_conversation(clip: Clip, configs: Sequence[Path], out: Path, domain: int, log: Log) -> Conversation:
    """Plays the clip to the node and records the node's topics into `out`/outputs.

    Each question is asked once the node has reached its clip time and the previous answer has been tracked for a
    while. Questions after the end of the clip are skipped, except the empty one. The camera pauses when the node falls
    behind and while a query is open. All child processes have ended when this returns or raises.

    Args:
        configs: the node's parameter files; later files override earlier ones.
        domain: ROS domain id.
        log: called with each progress line.

    Raises:
        ChildError: a process ended early or timed out.
    """
    env = {
        **os.environ,
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTDDS_DEFAULT_PROFILES_FILE": str(PROFILE),
        "PYTHONUNBUFFERED": "1",
    }
    with ExitStack() as stack:

        def start(name: str, module: str, *arguments: str) -> Child:
            child = Child(name, [sys.executable, "-m", module, *arguments], env, out / f"{name}.log")
            stack.callback(child.stop)
            return child

        recorder = start("recorder", "decaf_tabletop.demo.recorder", str(out / "outputs"), "--namespace", NAMESPACE)
        ros = ["--ros-args", "-r", f"__ns:={NAMESPACE}", "-p", "use_sim_time:=true"]
        ros += ["-r", f"image/compressed:={COMPRESSED_TOPIC}"]
        ros += [part for config in configs for part in ("--params-file", str(config))]
        node = start("node", "decaf_ros.nodes.segmenter", *ros)
        play = ["--image-topic", COMPRESSED_TOPIC, "--query-topic", f"{NAMESPACE}/query"]
        play += ["--seconds", str(clip.seconds)]
        player = start("player", "decaf_tabletop.demo.player", str(STORY), *play)
        recorder.wait_for({"event": "ready"}, _START_S)
        _wait_until_active(recorder, node)
        log("      the node is active; the camera starts")
        asked = _converse(recorder, node, player, clip.questions, log)
        node_exit = node.stop()
    return Conversation(asked, node_exit)


def _wait_until_active(recorder: Child, node: Child) -> None:
    for event in _events(_START_S, recorder, node):
        if event["event"] == "diagnostics":
            if event["state"] == "active":
                return
            if event["message"].startswith("cannot become"):
                raise ChildError(f"node: {event['message']} (log: {node.log})")


def _converse(recorder: Child, node: Child, player: Child, questions: Sequence[Question], log: Log) -> list[str]:
    """Plays and asks until the clip is over, every query is answered and the node is idle. Returns the texts asked."""
    pending = list(questions)
    asked: list[str] = []
    answered: set[str] = set()
    counts: dict[str, int] = {}
    start_ns = 0
    # Clip time of the newest frame with published results. The camera is ahead of it while the node has a backlog.
    clip_s = logged_s = 0.0
    answered_s = -_WATCH_S
    played = over = idle = False
    player.send(play_s=_AHEAD_S)
    for event in _events(_ANSWER_S, recorder, node, player):
        if event["event"] == "playing":
            start_ns = event["stamp_ns"]
        elif event["event"] == "played":
            played = True
        elif event["event"] == "frame" and start_ns:
            clip_s = (event["stamp_ns"] - start_ns) / 1e9
        elif event["event"] == "status":
            log(f"      {clip_s:5.2f} s  {event['id']} {event['state']}{': ' if event['text'] else ''}{event['text']}")
            if event["state"] not in ("RECEIVED", "GROUNDING"):
                answered.add(event["id"])
                answered_s = clip_s
        elif event["event"] == "diagnostics":
            idle = event["counts"] == counts and counts["waiting"] == 0
            counts = event["counts"]
            over = played and counts["waiting"] == 0
            if clip_s >= logged_s + 1.0:
                logged_s = clip_s
                numbers = ", ".join(f"{counts[name]} {name}" for name in ("received", "used", "dropped"))
                log(f"      {clip_s:5.2f} s  frames: {numbers}")
        if len(answered) < len(asked):
            continue
        if not played:
            player.send(play_s=clip_s + _AHEAD_S)
        if pending and (not pending[0].text if over else clip_s >= max(pending[0].at_s, answered_s + _WATCH_S)):
            asked.append(pending.pop(0).text)
            player.send(ask=asked[-1])
            log(f"      {clip_s:5.2f} s  asked: {asked[-1] or '(empty: clears)'}")
        elif over and idle:
            return asked
    return asked


def _events(timeout_s: float, *children: Child) -> Iterator[dict[str, Any]]:
    """The events of all children as they come.

    Raises ChildError when a child ends, or after `timeout_s` without an event other than diagnostics.
    """
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        for child in children:
            child.check()
            while True:
                try:
                    event = child.events.get_nowait()
                except queue.Empty:
                    break
                if event["event"] != "diagnostics":
                    until = time.monotonic() + timeout_s
                yield event
        time.sleep(0.02)
    logs = ", ".join(str(child.log) for child in children)
    raise ChildError(f"no event for {timeout_s:.0f} s; logs: {logs}")
