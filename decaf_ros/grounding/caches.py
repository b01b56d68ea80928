"""A cache bounded in bytes, and the bytes that a window needs."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

import torch

from decaf_ros.devices import free_bytes

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
_MIB = 2**20
_log = logging.getLogger(__name__)


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

    @property
    def free_bytes(self) -> int:
        """Largest size that `put` can store now."""
        evictable = sum(size for _, size, last_round in self._entries.values() if last_round < self._round)
        return self.max_bytes - self.held_bytes + evictable

    def put(self, key: Key, value: Value, size: int) -> bool:
        """Stores a value of `size` bytes if it fits. Returns whether it does."""
        self.drop(key)
        evictable = [old for old, (_, _, last_round) in self._entries.items() if last_round < self._round]
        if size > self.free_bytes:
            return False
        for old in evictable:
            if self.held_bytes + size <= self.max_bytes:
                break
            self.drop(old)
        self._entries[key] = value, size, self._round
        self.held_bytes += size
        return True

    def drop_unless(self, is_useful: Callable[[Key], bool]) -> None:
        """Removes entries that can be of no use any more, except those used in this round."""
        for key in [key for key, (_, _, last_round) in self._entries.items() if last_round < self._round]:
            if not is_useful(key):
                self.drop(key)

    def drop(self, key: Key) -> None:
        """Removes an entry, if it exists."""
        if key in self._entries:
            self.held_bytes -= self._entries.pop(key)[1]


class PrefixBudget:
    """Size of the prefix cache: the prefixes of a window of each stream, within a share of the device's free memory.

    Prefixes of one model need equal bytes for each token, so the first one tells the size of all.
    """

    # A kept batch may contain frames that have left the window.
    SLACK = 1.25
    MEMORY_SHARE = 0.5

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tokens = self._sized_tokens = 0

    def expect(self, tokens: int) -> None:
        """Announces windows whose prefixes have so many tokens."""
        self._tokens = max(self._tokens, tokens)

    def apply(self, cache: ByteCache[Any, Any], size: int, tokens: int) -> None:
        """Enlarges the cache if larger windows were announced. size: bytes of a new prefix of so many tokens."""
        if self._tokens <= self._sized_tokens:
            return
        self._sized_tokens = self._tokens
        needed = size * self._tokens // tokens
        free = free_bytes(self._device) + size + cache.held_bytes
        cache.max_bytes = min(int(self.SLACK * needed), int(self.MEMORY_SHARE * free))
        level = logging.WARNING if cache.max_bytes < needed else logging.INFO
        _log.log(
            level,
            "prefix cache: %d MiB; %d tokens of key frames need %d MiB%s; free on %s: %d MiB",
            cache.max_bytes // _MIB,
            self._tokens,
            needed // _MIB,
            ", so some of their prefixes run again" if level == logging.WARNING else "",
            self._device,
            free // _MIB,
        )
