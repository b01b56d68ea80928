"""A cache that is bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """What was used longest ago goes first, except what the running round has used: of a round that needs more than
    there is room for, the first part is kept, where throwing out the oldest would keep nothing of use for the next.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0
        self._round = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Hashable]:
        """The keys of what is held, those that were used longest ago first."""
        return iter(list(self._entries))

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self.held_bytes = 0

    def new_round(self) -> None:
        """From now on everything that is held may be thrown out again."""
        self._round += 1

    def get(self, key: Hashable) -> Value | None:
        if key not in self._entries:
            self.misses += 1
            return None
        self.hits += 1
        value, size, _ = self._entries.pop(key)
        self._entries[key] = value, size, self._round
        return value

    def peek(self, key: Hashable) -> Value | None:
        """As `get`, but it is no use of the value."""
        return self._entries[key][0] if key in self._entries else None

    def put(self, key: Hashable, value: Value, size: int) -> bool:
        """Keeps a value of `size` bytes if there is room for it; says whether."""
        self.drop(key)
        removable = [old for old, (_, _, used) in self._entries.items() if used < self._round]
        free = self.most_bytes - self.held_bytes + sum(self._entries[old][1] for old in removable)
        if size > free:
            return False
        for old in removable:
            if self.held_bytes + size <= self.most_bytes:
                break
            self.drop(old)
        self._entries[key] = value, size, self._round
        self.held_bytes += size
        return True

    def drop(self, key: Hashable) -> None:
        """Forgets a value, if it is there."""
        if key in self._entries:
            self.held_bytes -= self._entries.pop(key)[1]
