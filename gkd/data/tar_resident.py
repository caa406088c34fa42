"""Which tar shards a process keeps in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

# A shard that nobody asked for during so many images is not in use any more.
_MAX_IDLE_READS = 1 << 14


@dataclass
class _Resident:
    content: bytes
    num_unread: int
    last_read: int


class ResidentShards:
    """The shards in memory, least recently read first.

    A shard goes when each of its images has been read, when it has lain idle, or when there are too many.

    Attributes:
        capacity: how many there may be.
        wanted: the numbers of shards that are read in a moment; they stay, as far as possible.
        num_loads: how many have come.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.wanted: set[int] = set()
        self.num_loads = 0
        self._shards: OrderedDict[int, _Resident] = OrderedDict()
        self._clock = 0
        self._pushed_out: dict[int, int] = {}
        self._has_warned = False

    def find(self, number: int) -> bytes | None:
        """The content of shard `number`, if it is here."""
        shard = self._shards.get(number)
        return None if shard is None else shard.content

    def add(self, number: int, content: bytes, num_images: int) -> bool:
        """Keep a shard; returns whether it should be told, once, that it had to give way too early."""
        self._drop_idle()
        while len(self._shards) >= self.capacity:
            pushed_out = next((old for old in self._shards if old not in self.wanted), next(iter(self._shards)))
            del self._shards[pushed_out]
            self._pushed_out[pushed_out] = self._clock
        self._shards[number] = _Resident(content, num_images, self._clock)
        self.num_loads += 1
        went = self._pushed_out.pop(number, None)
        is_thrashing = went is not None and self._clock - went < _MAX_IDLE_READS and not self._has_warned
        self._has_warned |= is_thrashing
        return is_thrashing

    def count_read(self, number: int) -> None:
        """Note that an image of shard `number` has been read."""
        self._clock += 1
        shard = self._shards[number]
        shard.num_unread -= 1
        shard.last_read = self._clock
        self._shards.move_to_end(number)
        if not shard.num_unread:
            del self._shards[number]

    def _drop_idle(self) -> None:
        for number, shard in list(self._shards.items()):
            if self._clock - shard.last_read > _MAX_IDLE_READS:
                del self._shards[number]
