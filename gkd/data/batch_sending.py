"""How micro-batches are handed to loading processes: large ones in parts, small ones several together.

Each piece of work takes a way through pipes that costs about as much as decoding 5 images, so it should be worth that;
and a process should not be alone with a large micro-batch for which training waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from gkd.data.batch_delivery import Delivery
from gkd.data.batch_reader import Part
from gkd.data.batch_ring import BatchRing
from gkd.data.batches import Task, share

# Pieces of work that each loading process has to do, or has done, before they are asked for.
NUM_AHEAD = 2
_LEAST_ROWS = 256


@dataclass(frozen=True)
class Cut:
    """A piece of work is one of `num_parts` parts of a micro-batch, or `num_together` whole ones; one of both is 1.

    Attributes:
        num_slots: how many micro-batches can be under way, be in the consumer's hands, or on their way to a device.
    """

    num_parts: int
    num_together: int
    num_slots: int


def choose_cut(num_rows: int, num_workers: int, is_streamed: bool = False) -> Cut:
    """The cut for micro-batches of `num_rows` images; without loading processes, one whole micro-batch at a time.

    Of a set that is streamed every micro-batch is cut into as many parts as there are processes (some may be empty), so
    that a process always has the same rows, and with them the same lanes of shards.
    """
    if not num_workers:
        return Cut(1, 1, 2)
    if is_streamed:
        return Cut(num_workers, 1, NUM_AHEAD + 2)
    num_parts = min(max(num_rows // _LEAST_ROWS, 1), num_workers)
    num_ahead = NUM_AHEAD * num_workers
    if num_parts > 1:
        return Cut(num_parts, 1, -(-num_ahead // num_parts) + 2)
    num_together = -(-_LEAST_ROWS // num_rows)
    return Cut(1, num_together, (num_ahead + 1) * num_together + 1)


class Sending:
    """All pieces of work in order, as the loader of torch wants them: something to iterate over.

    Attributes:
        under_way: the slot and task of each micro-batch that has been sent off, oldest first.
    """

    def __init__(self, tasks: Iterator[Task], ring: BatchRing, delivery: Delivery, cut: Cut) -> None:
        self.under_way: deque[tuple[int, Task]] = deque()
        self._tasks = tasks
        self._ring = ring
        self._delivery = delivery
        self._cut = cut

    def __iter__(self) -> Iterator[tuple[Part, ...]]:
        together: tuple[Part, ...] = ()
        for number, task in enumerate(self._tasks):
            slot_number = self._fill_slot(number, task)
            for rows in self._parts(len(task.sample_ids)):
                together += (Part(slot_number, rows.start, rows.stop),)
                if len(together) == self._cut.num_together:
                    yield together
                    together = ()
        if together:
            yield together

    def _fill_slot(self, number: int, task: Task) -> int:
        # Work is asked for when the piece NUM_AHEAD * num_workers before has arrived. There are so many slots that this
        # one is by then not only free, but was given up one micro-batch ago: a copy to a device has had time to end.
        slot_number = number % len(self._ring.slots)
        self._delivery.wait(slot_number)
        self._ring.slots[slot_number].sample_ids[: len(task.sample_ids)] = task.sample_ids
        self.under_way.append((slot_number, task))
        return slot_number

    def _parts(self, num_rows: int) -> list[slice]:
        return [share(num_rows, self._cut.num_parts, part) for part in range(self._cut.num_parts)]
