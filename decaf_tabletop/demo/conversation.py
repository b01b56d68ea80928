"""Runs recorder, node and player side by side, and asks the questions."""

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
from decaf_tabletop.demo.clips import Clip
from decaf_tabletop.demo.processes import Child, ChildError

NAMESPACE = "/decaf"
PROFILE = find_resource("config/fastdds_large_shm.xml")
# How long a target is watched, in seconds of the clip, before the next question.
_WATCH_S = 1.0
# How far a camera that waits for the node may be ahead of it, in seconds of the clip.
_AHEAD_S = 0.4
_START_S, _ANSWER_S = 120.0, 150.0

Say = Callable[[str], None]


class Conversation(NamedTuple):
    """What was done. asked: the queries in order, the clearing empty one too. node_exit: the node's exit code."""

    asked: list[str]
    node_exit: int


def hold_conversation(
    clip: Clip, configs: Sequence[Path], rate: float, out: Path, domain: int, say: Say
) -> Conversation:
    """Plays the clip to the node and records into `out`/outputs. configs: the node's parameter files, the last one
    counts.

    The clip's questions are asked one after the other, each when the node has come to its time and the one before has
    been answered and watched for a while; those for which the clip is too short are not. An empty one needs no camera
    and is asked after the clip too.
    Raises ChildError where a process ends early or says nothing for too long. All processes have ended afterwards.
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
        ros += ["-r", f"{'image/compressed' if clip.compressed else 'image'}:={clip.topic}"]
        ros += [part for config in configs for part in ("--params-file", str(config))]
        node = start("node", "decaf_ros.nodes.segmenter", *ros)
        play = ["--image-topic", clip.topic, "--query-topic", f"{NAMESPACE}/query"]
        play += ["--seconds", str(clip.seconds), "--rate", str(rate)]
        player = start("player", "decaf_tabletop.demo.player", str(clip.bag), *play)
        recorder.wait_for({"event": "ready"}, _START_S)
        _wait_until_active(recorder, node)
        say("      the node is active; the camera starts")
        asked = _converse(recorder, node, player, clip, say)
        node_exit = node.stop()
    return Conversation(asked, node_exit)


def _wait_until_active(recorder: Child, node: Child) -> None:
    for event in _events(_START_S, recorder, node):
        if event["event"] == "diagnostics":
            if event["state"] == "active":
                return
            if event["message"].startswith("cannot become"):
                raise ChildError(f"node: {event['message']} (all of it: {node.log})")


def _converse(recorder: Child, node: Child, player: Child, clip: Clip, say: Say) -> list[str]:
    """Lets it play, asks, and says what happens, until the clip is over, every question has its answer and the node has
    nothing left to do. The texts that were asked."""
    waiting, asked = list(clip.questions), []
    answered: set[str] = set()
    counts: dict[str, int] = {}
    start_ns = 0
    # Of the newest frame that the node has published results of: where it has images waiting, the camera is ahead.
    clip_s = said_s = 0.0
    answered_s = -_WATCH_S
    played = over = idle = False
    player.send(play_s=_AHEAD_S if clip.waits else clip.seconds)
    for event in _events(_ANSWER_S, recorder, node, player):
        if event["event"] == "playing":
            start_ns = event["stamp_ns"]
        elif event["event"] == "played":
            played = True
        elif event["event"] == "frame" and start_ns:
            clip_s = (event["stamp_ns"] - start_ns) / 1e9
        elif event["event"] == "status":
            say(f"      {clip_s:5.2f} s  {event['id']} {event['state']}{': ' if event['text'] else ''}{event['text']}")
            if event["state"] not in ("RECEIVED", "GROUNDING"):
                answered.add(event["id"])
                answered_s = clip_s
        elif event["event"] == "diagnostics":
            idle = event["counts"] == counts and counts["waiting"] == 0
            counts = event["counts"]
            over = played and counts["waiting"] == 0
            if clip_s >= said_s + 1.0:
                said_s = clip_s
                numbers = ", ".join(f"{counts[name]} {name}" for name in ("received", "used", "dropped"))
                say(f"      {clip_s:5.2f} s  frames: {numbers}")
        if len(answered) < len(asked):
            continue
        if clip.waits and not played:
            player.send(play_s=clip_s + _AHEAD_S)
        if waiting and (not waiting[0].text if over else clip_s >= max(waiting[0].at_s, answered_s + _WATCH_S)):
            asked.append(waiting.pop(0).text)
            player.send(ask=asked[-1])
            say(f"      {clip_s:5.2f} s  asked: {asked[-1] or '(empty: clears)'}")
        elif over and idle:
            return asked
    return asked


def _events(quiet_s: float, *children: Child) -> Iterator[dict[str, Any]]:
    """What the processes say. Raises ChildError where one ends, or the first of them says nothing new but diagnostics
    for `quiet_s`."""
    until = time.monotonic() + quiet_s
    while time.monotonic() < until:
        for child in children:
            child.check()
            while True:
                try:
                    event = child.events.get_nowait()
                except queue.Empty:
                    break
                if event["event"] != "diagnostics":
                    until = time.monotonic() + quiet_s
                yield event
        time.sleep(0.02)
    logs = ", ".join(str(child.log) for child in children)
    raise ChildError(f"nothing has happened for {quiet_s:.0f} s; logs: {logs}")
