"""Plays a bag through the node's handlers and writes everything they publish to a new bag. Needs no ROS installation.

No frame is dropped and the result does not depend on the machine's speed: on a CPU, the same bag and configuration
always give the same masks and tracklets, byte for byte. CUDA kernels are not pinned; a live node depends on timing.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from decaf_ros.config import replace
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagMessage, BagReader, make_message
from decaf_ros.io.cameras import DepthTopics
from decaf_ros.online.handlers import Handlers
from decaf_ros.online.statistics import Statistics
from decaf_ros.online.turns import Turns
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Notice, Output, QueryEvent

_STRING = "std_msgs/msg/String"


class TimedQuery(NamedTuple):
    """A query and its time in seconds after the first played message."""

    text: str
    at_s: float = 0.0


class PlayedCamera(NamedTuple):
    """Result of a replay for one camera.

    Attributes:
        statistics: counters of the stream.
        answers: the answer to each query, in order of arrival.
    """

    statistics: Statistics
    answers: list[QueryEvent]


class Played(NamedTuple):
    """Result of a replay.

    Attributes:
        cameras: by name; "" for a camera without a name.
        outputs: number of messages by topic.
    """

    cameras: dict[str, PlayedCamera]
    outputs: dict[str, int]


def replay(
    decaf: Decaf,
    reader: BagReader,
    writer: BagWriter,
    queries: Sequence[TimedQuery] = (),
    cameras: Mapping[str, str] | None = None,
    namespace: str = "/decaf",
    with_overlay: bool = False,
    with_confidence: bool = False,
    depth: Mapping[str, DepthTopics] | None = None,
    log: Callable[[str, str], None] = lambda level, text: None,
) -> Played:
    """Plays the images of all cameras, and `queries` or, without any, the queries recorded on NAMESPACE/query, which go
    to every camera, and on NAMESPACE/CAMERA/query.

    Each output is written under NAMESPACE, or NAMESPACE/CAMERA, at the recording time of the message that caused it, so
    both bags can be played side by side; its header has the stamp of its source frame. A query without an answer at the
    end of the bag is answered with CANCELLED. A message whose bytes do not fit its type is rejected.

    Args:
        cameras: image topic of each camera by name. Default: the only image topic of the bag, without a name ("").
        with_overlay: whether to draw and record `overlay`.
        with_confidence: whether to record `confidence`.
        depth: topics of cameras with depth, by name. Without any there are no 3D outputs (`space.enabled`). A depth
            image recorded up to `space.depth_wait_s` after an image comes before it, as if tracking took that time.
        log: called with level ("info", "warn", "error") and text.

    Raises:
        ValueError: the bag is damaged, has no such topic, or ends before a query is due.
    """
    cameras = cameras or {"": reader.image_topic()}
    depth = depth or {}
    decaf.config = replace(decaf.config, {"space.enabled": bool(depth)})
    names = {topic: name for name, topic in cameras.items()}
    now_ns, clock = 0, _Clock()
    outputs: dict[str, int] = {}
    decaf.grounder.engine.streams = len(cameras)
    turns, query_numbers, target_ids = Turns(decaf), itertools.count(1), itertools.count(1)
    answers: dict[str, list[QueryEvent]] = {name: [] for name in cameras}

    on_request = {"overlay": with_overlay, "confidence": with_confidence}

    def is_wanted(topic: str) -> bool:
        return on_request.get(topic, True)

    def make_handlers(name: str) -> Handlers:
        own = f"{name}/" if name else ""

        def publish(topic: str, message: Any) -> None:
            outputs[own + topic] = outputs.get(own + topic, 0) + 1
            writer.write_message(f"{namespace}/{own}{topic}", message, now_ns)

        def log_own(level: str, text: str) -> None:
            log(level, f"{name}: {text}" if name else text)

        def watch(output: Output) -> None:
            if isinstance(output, QueryEvent) and output.state.is_answer:
                answers[name].append(output)

        return Handlers(
            decaf,
            make_message,
            publish,
            log_own,
            is_wanted,
            watch=watch,
            query_numbers=query_numbers,
            target_ids=target_ids,
            turns=turns,
            clock=lambda: clock.ns / 1e9,
        )

    handlers = {name: make_handlers(name) for name in cameras}
    asked = {f"{namespace}/query": list(handlers.values())}
    asked |= {f"{namespace}/{name}/query": [each] for name, each in handlers.items() if name}
    asked = {
        topic: those
        for topic, those in asked.items()
        if not queries and topic in reader.topics and reader.topics[topic].msgtype == _STRING
    }
    ending = "the bag could not be played to its end"
    for name, each in handlers.items():
        if name not in depth:
            each.space = None
    inputs = _depth_inputs(handlers, depth)
    lead_ns = round(decaf.config.space.depth_wait_s * 1e9) if depth else 0
    messages = _without_depth(reader, [*names, *asked], inputs, lead_ns, clock)
    try:
        for message, due in _schedule(messages, queries):
            now_ns = message.stamp_ns
            for query in due:
                for each in handlers.values():
                    each.on_query(each.new_query(query.text, now_ns))
            receivers = asked[message.topic] if message.topic in asked else [handlers[names[message.topic]]]
            for each in receivers:
                _handle(reader, message, each)
        for each in handlers.values():
            if each.space is not None:
                each.space.publish_ready(is_end=True)
        ending = "the bag has ended"
    finally:
        for each in handlers.values():
            each.cancel_unanswered(ending)
    cameras_played = {name: PlayedCamera(each.statistics, answers[name]) for name, each in handlers.items()}
    return Played(cameras_played, outputs)


def check_times(reader: BagReader, queries: Sequence[TimedQuery], image_topics: Collection[str]) -> None:
    """Raises ValueError for a query after the last image. Reads the bag up to the last query."""
    count = 0
    for _, due in _schedule(reader.messages(image_topics), queries):
        count += len(due)
        if count == len(queries):
            return


class _Clock:
    """The time of a replay in nanoseconds, for the waiting of 3D outputs."""

    ns = 0


class _DepthInput(NamedTuple):
    """Takes the messages of a topic with depth or camera info."""

    handlers: Handlers
    take: Callable[[Any], None]


def _depth_inputs(handlers: Mapping[str, Handlers], depth: Mapping[str, DepthTopics]) -> dict[str, _DepthInput]:
    """The inputs by topic."""
    inputs = {}
    for name, topics in depth.items():
        space = handlers[name].space
        assert space is not None, "enabled"
        inputs[topics.depth] = _DepthInput(handlers[name], space.put_depth)
        inputs[topics.camera_info] = _DepthInput(handlers[name], space.put_info)
    return inputs


def _without_depth(
    reader: BagReader, topics: Collection[str], inputs: Mapping[str, _DepthInput], lead_ns: int, clock: _Clock
) -> Iterator[BagMessage]:
    """The messages of `topics`, each `lead_ns` later by the clock. Those of `inputs` are taken in between."""
    held: deque[BagMessage] = deque()

    def release(until_ns: float) -> Iterator[BagMessage]:
        # A bag whose time jumps back is played in its order.
        while held and not held[0].stamp_ns <= until_ns <= held[0].stamp_ns + lead_ns:
            clock.ns = held[0].stamp_ns + lead_ns
            yield held.popleft()

    for message in reader.messages([*topics, *inputs]):
        yield from release(message.stamp_ns)
        if message.topic not in inputs:
            held.append(message)
            continue
        clock.ns = message.stamp_ns
        handlers, take = inputs[message.topic]
        assert handlers.space is not None, "enabled"
        handlers.space.publish_ready()
        try:
            take(reader.deserialize(message))
        except ValueError as error:
            handlers.report(Notice("warn", f"depth rejected: {error}"), kind="depth rejected")
        handlers.space.publish_ready()
    yield from release(math.inf)


def _handle(reader: BagReader, message: BagMessage, handlers: Handlers) -> None:
    """Passes an image or a query to its handler. An unreadable one, which a node would never receive, is rejected."""
    is_query = message.msgtype == _STRING
    try:
        content = reader.deserialize(message)
    except ValueError as error:
        if is_query:
            handlers.report(Notice("warn", f"query rejected: {error}"), kind="query rejected")
        else:
            handlers.reject_image(error, message.stamp_ns)
        return
    if is_query:
        handlers.on_query(handlers.new_query(content.data, message.stamp_ns))
    else:
        handlers.on_image(content, message.stamp_ns)


def _schedule(
    messages: Iterator[BagMessage], queries: Sequence[TimedQuery]
) -> Iterator[tuple[BagMessage, list[TimedQuery]]]:
    """Each message with the queries due just before it. Raises ValueError for a query after the last message."""
    pending = sorted(queries, key=lambda query: query.at_s)
    start_ns = None
    for message in messages:
        start_ns = message.stamp_ns if start_ns is None else start_ns
        due = [query for query in pending if message.stamp_ns >= start_ns + query.at_s * 1e9]
        pending = [query for query in pending if query not in due]
        yield message, due
    if pending:
        raise ValueError(f"expected a query within the bag, got {pending[0].text!r} at {pending[0].at_s:g} s")
