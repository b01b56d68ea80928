"""Plays a bag through the node's handlers and writes everything they publish to a new bag. Needs no ROS installation.

No frame is dropped and the result does not depend on the machine's speed: on a CPU, the same bag and configuration
always give the same masks and tracklets, byte for byte. CUDA kernels are not pinned; a live node depends on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from decaf_ros.io.bags import BagMessage, BagReader, BagWriter, make_message
from decaf_ros.online.handlers import Handlers
from decaf_ros.online.statistics import Statistics
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Notice, Output, QueryEvent

_STRING = "std_msgs/msg/String"


class TimedQuery(NamedTuple):
    """A query and its time in seconds after the first played message."""

    text: str
    at_s: float = 0.0


class Played(NamedTuple):
    """Result of a replay.

    Attributes:
        statistics: counters of the stream.
        answers: the answer to each query, in order of arrival.
        outputs: number of messages by topic.
    """

    statistics: Statistics
    answers: tuple[QueryEvent, ...]
    outputs: dict[str, int]


def replay(
    decaf: Decaf,
    reader: BagReader,
    writer: BagWriter,
    queries: Sequence[TimedQuery] = (),
    image_topic: str = "",
    namespace: str = "/decaf",
    with_overlay: bool = False,
    log: Callable[[str, str], None] = lambda level, text: None,
) -> Played:
    """Plays the images of `image_topic`, and `queries` or, without any, the queries recorded on NAMESPACE/query.

    Each output is written under NAMESPACE at the recording time of the message that caused it, so both bags can be
    played side by side; its header has the stamp of its source frame. A query without an answer at the end of the bag
    is answered with CANCELLED. A message whose bytes do not fit its type is rejected.

    Args:
        image_topic: empty for the only image topic of the bag.
        with_overlay: whether to draw and record `overlay`.
        log: called with level ("info", "warn", "error") and text.

    Raises:
        ValueError: the bag is damaged, has no such topic, or ends before a query is due.
    """
    image_topic = reader.image_topic(image_topic)
    query_topic = f"{namespace}/query"
    use_recorded = not queries and query_topic in reader.topics and reader.topics[query_topic].msgtype == _STRING
    now_ns = 0
    answers: list[QueryEvent] = []
    outputs: dict[str, int] = {}

    def publish(topic: str, message: Any) -> None:
        outputs[topic] = outputs.get(topic, 0) + 1
        writer.write_message(f"{namespace}/{topic}", message, now_ns)

    def watch(output: Output) -> None:
        if isinstance(output, QueryEvent) and output.state.is_answer:
            answers.append(output)

    def is_wanted(topic: str) -> bool:
        return topic != "overlay" or with_overlay

    handlers = Handlers(decaf, make_message, publish, log, is_wanted, watch=watch)
    ending = "the bag could not be played to its end"
    try:
        topics = [image_topic, query_topic] if use_recorded else [image_topic]
        for message, due in _schedule(reader.messages(topics), queries):
            now_ns = message.stamp_ns
            for query in due:
                handlers.on_query(handlers.new_query(query.text, now_ns))
            _handle(reader, message, handlers)
        ending = "the bag has ended"
    finally:
        handlers.cancel_unanswered(ending)
    return Played(handlers.statistics, tuple(answers), outputs)


def check_times(reader: BagReader, queries: Sequence[TimedQuery], image_topic: str = "") -> None:
    """Raises ValueError for a query after the last image. Reads the bag up to the last query."""
    count = 0
    for _, due in _schedule(reader.messages([reader.image_topic(image_topic)]), queries):
        count += len(due)
        if count == len(queries):
            return


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
