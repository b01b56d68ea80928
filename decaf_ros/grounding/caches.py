"""A cache bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteCache(Generic[Key, Value]):
    """LRU cache bounded in bytes. Entries used in this round are never evicted, so a round that needs more than
    `max_bytes` keeps its first part instead of thrashing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0
        self._round = 0
        # Value, size in bytes, round of the last use.
        self._entries: OrderedDict[Key, tuple[Value, int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        """The keys, least recently used first. The cache may change while they are iterated."""
        return iter(list(self._entries))

    def clear(self) -> None:
        """Removes all entries."""
        self._entries.clear()
        self.held_bytes = 0

    def new_round(self) -> None:
        """Starts a round: every entry may be evicted again until it is used."""
        self._round += 1

    def get(self, key: Key) -> Value | None:
        """The value, marked as used in this round, or None."""
        if key not in self._entries:
            self.misses += 1
            return None
        self.hits += 1
        value, size, _ = self._entries.pop(key)
        self._entries[key] = value, size, self._round
        return value

    def peek(self, key: Key) -> Value | None:
        """As `get`, but does not count as a use."""
        return self._entries[key][0] if key in self._entries else None

    def put(self, key: Key, value: Value, size: int) -> bool:
        """Stores a value of `size` bytes if it fits. Returns whether it does."""
        self.drop(key)
        evictable = [old for old, (_, _, last_round) in self._entries.items() if last_round < self._round]
        free = self.max_bytes - self.held_bytes + sum(self._entries[old][1] for old in evictable)
        if size > free:
            return False
        for old in evictable:
            if self.held_bytes + size <= self.max_bytes:
                break
            self.drop(old)
        self._entries[key] = value, size, self._round
        self.held_bytes += size
        return True

    def drop(self, key: Key) -> None:
        """Removes an entry, if it exists."""
        if key in self._entries:
            self.held_bytes -= self._entries.pop(key)[1]
