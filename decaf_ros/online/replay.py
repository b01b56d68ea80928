"""Plays a bag through the node's handlers and writes what they publish to a new bag. `ros2 run decaf_ros replay`.

No frame is dropped and nothing depends on the machine's speed: the same bag gives the same masks and tracklets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rclpy.serialization import serialize_message

from decaf_ros.config import DecafConfig, load_config
from decaf_ros.io.bags import STORAGES, BagMessage, BagReader, BagWriter, typestore
from decaf_ros.io.messages import shortened
from decaf_ros.nodes.diagnostics import Statistics
from decaf_ros.online.handlers import Handlers
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Notice, Output, QueryEvent, QueryState

_STRING = "std_msgs/msg/String"


class TimedQuery(NamedTuple):
    """A query and when it is asked, in seconds after the first message that is played."""

    text: str
    at_s: float = 0.0


class Played(NamedTuple):
    """What a replay did. answers: the answer to each query, in the order in which they came."""

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
    """Plays the images of `image_topic` (the only image topic where it is empty) with `queries`, or, where there are
    none, with those that were recorded on NAMESPACE/query.

    Outputs are recorded under NAMESPACE at the recorded time of the message that caused them, so the two bags can be
    played side by side; their headers hold the stamps of their source frames. A query that is still waiting when the
    bag ends, or cannot be played on, is answered with CANCELLED. A message whose bytes do not fit its type is rejected.

    Raises ValueError for a bag that breaks off or has no such topic, and for a query after its last message.
    """
    image_topic = reader.image_topic(image_topic)
    query_topic = f"{namespace}/query"
    recorded = not queries and query_topic in reader.topics and reader.topics[query_topic].msgtype == _STRING
    now_ns = 0
    answers: list[QueryEvent] = []
    outputs: dict[str, int] = {}

    def publish(topic: str, message: Any) -> None:
        outputs[topic] = outputs.get(topic, 0) + 1
        msgtype = _type_name(message)
        writer.write(f"{namespace}/{topic}", msgtype, now_ns, _same_bytes(serialize_message(message), msgtype))

    def watch(output: Output) -> None:
        if isinstance(output, QueryEvent) and output.state.is_answer:
            answers.append(output)

    handlers = Handlers(decaf, publish, log, lambda topic: topic != "overlay" or with_overlay, watch=watch)
    ending = "the bag could not be played to its end"
    try:
        for message, due in _schedule(reader.messages([image_topic, *([query_topic] if recorded else [])]), queries):
            now_ns = message.stamp_ns
            for query in due:
                handlers.on_query(handlers.new_query(query.text, now_ns))
            _play(reader, message, handlers)
        ending = "the bag has ended"
    finally:
        handlers.answer_waiting(ending)
    return Played(handlers.statistics, tuple(answers), outputs)


def _play(reader: BagReader, message: BagMessage, handlers: Handlers) -> None:
    """Hands an image or a query to its handler. One that cannot be read is told of, as no node would ever get it."""
    is_query = message.msgtype == _STRING
    try:
        content = reader.deserialize(message)
    except ValueError as error:
        if is_query:
            handlers.report(Notice("warn", f"query rejected: {error}"), kind="query rejected")
        else:
            handlers.reject_image(error)
        return
    if is_query:
        handlers.on_query(handlers.new_query(content.data, message.stamp_ns))
    else:
        handlers.on_image(content)


def check_times(reader: BagReader, queries: Sequence[TimedQuery], image_topic: str = "") -> None:
    """Raises ValueError for a query after the last image. Reads the bag no further than to the last query."""
    asked = 0
    for _, due in _schedule(reader.messages([reader.image_topic(image_topic)]), queries):
        asked += len(due)
        if asked == len(queries):
            return


def _schedule(
    messages: Iterator[BagMessage], queries: Sequence[TimedQuery]
) -> Iterator[tuple[BagMessage, list[TimedQuery]]]:
    """Each message with the queries that are asked just before it. Raises ValueError for one after the last message."""
    waiting = sorted(queries, key=lambda query: query.at_s)
    start_ns = None
    for message in messages:
        start_ns = message.stamp_ns if start_ns is None else start_ns
        due = [query for query in waiting if message.stamp_ns >= start_ns + query.at_s * 1e9]
        waiting = [query for query in waiting if query not in due]
        yield message, due
    if waiting:
        raise ValueError(f"expected a query within the bag, got {waiting[0].text!r} at {waiting[0].at_s:g} s")


def _type_name(message: Any) -> str:
    """Such as decaf_ros/msg/QueryStatus."""
    return f"{type(message).__module__.split('.')[0]}/msg/{type(message).__name__}"


def _same_bytes(cdr: bytes, msgtype: str) -> memoryview:
    """The same message with zeros between its fields, where the middleware leaves whatever was in memory."""
    return typestore().serialize_cdr(typestore().deserialize_cdr(cdr, msgtype), msgtype)


def _summary(played: Played, out: Path) -> str:
    told = played.statistics
    lines = [f"frames: {told.used} used, {told.rejected} rejected"]
    for event in played.answers:
        presence = f", presence {event.presence.score:.2f}" if event.presence else ""
        query = f"query {event.query.id} {shortened(event.query.text)!r}"
        lines.append(f"{query}: {event.state.name}{presence}: {event.text}")
        lines += [f"    {stage:<18} {ms:9.1f} ms" for stage, ms in event.stage_ms]
    lines.append(f"a frame: decoding {told.decode_ms:.1f} ms, tracking {told.track_ms:.1f} ms (recent mean)")
    lines.append(f"{out}: " + ", ".join(f"{count} {topic}" for topic, count in sorted(played.outputs.items())))
    return "\n".join(lines)


def _namespace(name: str) -> str:
    """With a slash in front and none at the end; empty for the root."""
    return f"/{name.strip('/')}".rstrip("/")


class _QueryAt(argparse.Action):
    """`--query-at` belongs to the `--query` before it."""

    def __call__(self, parser, namespace, seconds, option=None) -> None:
        if not namespace.query:
            parser.error("expected --query before --query-at")
        namespace.query[-1] = namespace.query[-1]._replace(at_s=seconds)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="replay", description=__doc__.split("\n\n")[0])
    parser.add_argument("bag", type=Path, help="mcap or sqlite3 bag with raw or compressed images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bag; must not exist")
    parser.add_argument(
        "--query", action="append", type=TimedQuery, default=[], help="may be given again; default: those in the bag"
    )
    parser.add_argument(
        "--query-at", action=_QueryAt, type=float, metavar="S", help="time of the query before it, from the start (0)"
    )
    parser.add_argument(
        "--params-file",
        type=Path,
        help="ROS parameter file; default: the defaults of docs/parameters.md, not config/decaf.yaml as launched",
    )
    parser.add_argument("--image-topic", default="", help="default: the only image topic")
    parser.add_argument(
        "--namespace", type=_namespace, default="/decaf", help="of the query topic and of the outputs (%(default)s)"
    )
    parser.add_argument("--storage", choices=sorted(STORAGES), default="mcap", help="of the new bag (%(default)s)")
    parser.add_argument("--overlay", action="store_true", help="write the overlay images too")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Exit code 1 where the bag cannot be played, no frame could be used, or a query failed."""
    options = _parse(args)
    if options.out.exists():
        print(f"replay: {options.out} exists already", file=sys.stderr)
        return 1
    try:
        config = load_config(options.params_file) if options.params_file else DecafConfig()
        with BagReader(options.bag) as reader:
            check_times(reader, options.query, options.image_topic)  # before the models take their time to load
            decaf = Decaf.from_config(config)
            with BagWriter(options.out, options.storage) as writer:
                played = replay(
                    decaf,
                    reader,
                    writer,
                    options.query,
                    options.image_topic,
                    options.namespace,
                    options.overlay,
                    _log,
                )
    except (OSError, ValueError, RuntimeError) as error:  # torch reports a full GPU as a RuntimeError
        print(f"replay: {error}", file=sys.stderr)
        return 1
    print(_summary(played, options.out))
    failed = any(event.state == QueryState.FAILED for event in played.answers)
    return 1 if failed or not played.statistics.used else 0


def _log(level: str, text: str) -> None:
    print(f"[{level}] {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
