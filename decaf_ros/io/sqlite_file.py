"""Reads one sqlite3 file of a bag, without changing it or a file beside it.

Own code, because rosbags opens a file as immutable: it does not see the write-ahead log of a recorder that was killed,
and refuses a file with a single foreign definition or a damaged page.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from decaf_ros.io.storage import Channel, Stored

MAGIC = b"SQLite format 3\0"
# Files in which SQLite keeps changes that are not in the database yet.
JOURNALS = ("-wal", "-journal")
_ROS_LANGUAGE = "ros2msg"


class SqliteFile:
    """An open sqlite3 file of a bag.

    A file with a journal is read in a copy, in a temporary folder: SQLite would have to write beside the original.

    warn: called with a text for everything that cannot be read. Raises ValueError for a file without a bag's tables.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._folder: TemporaryDirectory[str] | None = None
        # Ids of the readable messages of a damaged file; None: the file is whole.
        self._ids: dict[int, int] | None = None
        if any(_journal(path, ending).is_file() and _journal(path, ending).stat().st_size for ending in JOURNALS):
            self._folder = TemporaryDirectory(prefix="decaf_bag_")
        try:
            self._database = self._open()
            self.channels, self.start_ns = self._channels()
        except sqlite3.Error as error:
            self.close()
            raise ValueError(
                f"{path}: not a readable sqlite3 bag: {error}. To repair it: `sqlite3 {path.name} .recover | sqlite3 "
                f"whole.db3`"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()
        if self._folder is not None:
            self._folder.cleanup()

    def messages(self, numbers: Collection[int]) -> Iterator[Stored]:
        """The messages of these topics, ordered by recording time. A damaged one is left out."""
        if self._ids is not None:
            yield from self._salvaged(set(numbers))
            return
        places = ",".join("?" * len(numbers))
        query = (
            f"SELECT id, topic_id, timestamp, data FROM messages WHERE topic_id IN ({places}) ORDER BY timestamp, id"
        )
        seen = set()
        try:
            for number, channel, stamp_ns, data in self._database.execute(query, tuple(numbers)):
                seen.add(number)
                yield Stored(channel, stamp_ns, data)
            return
        except sqlite3.Error as error:
            self._report(error)
        self._ids = self._readable_ids()
        yield from self._salvaged(set(numbers), seen)

    def _open(self) -> sqlite3.Connection:
        path = self._path
        if self._folder is not None:
            path = Path(self._folder.name, self._path.name)
            shutil.copyfile(self._path, path)
            for ending in JOURNALS:
                if _journal(self._path, ending).is_file():
                    shutil.copyfile(_journal(self._path, ending), _journal(path, ending))
            # The first read takes the journal into account; then the copy is read like any other file.
            with closing(sqlite3.connect(path)) as copy:
                try:
                    copy.execute("SELECT count(*) FROM sqlite_master").fetchone()
                    copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                except sqlite3.Error as error:
                    self._report(error)
        if not path.stat().st_size:
            raise sqlite3.DatabaseError("the file is empty")
        database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?immutable=1", uri=True)
        # A binary definition, of protobuf for example, is no text.
        database.text_factory = lambda data: data.decode(errors="replace")
        return database

    def _channels(self) -> tuple[list[Channel], int]:
        """The topics and the recording time of the first message."""
        try:
            topics = self._database.execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
        except sqlite3.Error as error:
            # SQLite refuses a file that is shorter than its head says, unless its schema may be damaged.
            self._database.execute("PRAGMA writable_schema=ON")
            topics = self._database.execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
            self._report(error)
            self._ids = self._readable_ids()
        counts: Counter[int] = Counter()
        start_ns = 0
        if self._ids is None:
            try:
                counts.update(dict(self._database.execute("SELECT topic_id, count(*) FROM messages GROUP BY topic_id")))
                start_ns = self._database.execute("SELECT min(timestamp) FROM messages").fetchone()[0] or 0
            except sqlite3.Error as error:
                self._report(error)
                self._ids = self._readable_ids()
        if self._ids is not None:
            counts = Counter(self._ids.values())
            start_ns = next((stored.stamp_ns for stored in self._salvaged(set(counts))), 0)
        definitions: dict[str, str] = {}
        with suppress(sqlite3.Error):  # recorded since Iron
            query = "SELECT topic_type, encoded_message_definition FROM message_definitions WHERE encoding = ?"
            definitions = dict(self._database.execute(query, (_ROS_LANGUAGE,)))
        return [
            Channel(number, name, kind, encoding, definitions.get(kind, ""), counts[number])
            for number, name, kind, encoding in topics
            if None not in (name, kind, encoding)  # on a damaged page
        ], start_ns

    def _readable_ids(self) -> dict[int, int]:
        """Topic by id of the messages before the first and behind the last damaged place of the table."""
        found: dict[int, int] = {}
        self._database.execute("PRAGMA writable_schema=ON")
        for direction in ("ASC", "DESC"):
            with suppress(sqlite3.Error):
                for number, channel in self._database.execute(
                    f"SELECT id, topic_id FROM messages ORDER BY id {direction}"
                ):
                    if number in found:
                        break
                    found[number] = channel
        return dict(sorted(found.items()))

    def _salvaged(self, wanted: set[int], seen: Collection[int] = ()) -> Iterator[Stored]:
        """The readable messages of a damaged file, in the order of their ids, which is that of recording."""
        damaged = 0
        for number, channel in (self._ids or {}).items():
            if channel in wanted and number not in seen:
                try:
                    query = "SELECT timestamp, data FROM messages WHERE id = ?"
                    row = self._database.execute(query, (number,)).fetchone()
                except sqlite3.Error:
                    row = None
                if row is None:  # a page of it is damaged
                    damaged += 1
                else:
                    yield Stored(channel, *row)
        if damaged:
            self._warn(f"{self._path}: {damaged} damaged messages were left out")

    def _report(self, error: sqlite3.Error) -> None:
        self._warn(
            f"{self._path}: the file is cut or damaged ({error}); what can be read is used. To repair it: `sqlite3 "
            f"{self._path.name} .recover | sqlite3 whole.db3`"
        )


def _journal(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
