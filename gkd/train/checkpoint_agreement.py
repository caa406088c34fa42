"""Actions that succeed on all ranks or fail on all of them with one message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.distributed import ProcessGroup

from gkd.core import distributed
from gkd.core.errors import CheckpointError, GkdError

_T = TypeVar("_T")


def attempt(action: Callable[[], _T]) -> tuple[_T | None, str | None, Exception | None]:
    """What `action` returns, or the text of what it raised and the exception itself."""
    # Whatever goes wrong must reach the other ranks, which wait for this one; the exception itself stays here.
    try:
        return action(), None, None
    except Exception as error:
        text = str(error) if isinstance(error, GkdError) else f"{type(error).__name__}: {error}"
        return None, text, error


def on_rank_0(action: Callable[[], _T], group: ProcessGroup | None = None) -> _T:
    """What `action` returns on rank 0, on every rank; its failure is raised on every rank.

    Args:
        action: called on rank 0 only.
        group: what the ranks agree over; None is the default group.

    Raises:
        CheckpointError: `action` failed on rank 0.
    """
    value, failure, error = attempt(action) if distributed.rank() == 0 else (None, None, None)
    value, failure = distributed.broadcast_object((value, failure), group)
    if failure is not None:
        raise CheckpointError(failure) from error
    result: _T = value
    return result


def on_every_rank(action: Callable[[], _T], group: ProcessGroup | None = None) -> list[_T]:
    """What `action` returns on each rank, in rank order; one rank's failure is raised on every rank.

    Raises:
        CheckpointError: `action` failed on some ranks, which are named.
    """
    value, failure, error = attempt(action)
    outcomes = distributed.gather_objects((value, failure), group)
    failures = [(number, text) for number, (_, text) in enumerate(outcomes) if text is not None]
    if failures:
        texts = [text if len(outcomes) == 1 else f"rank {number}: {text}" for number, text in failures]
        raise CheckpointError("; ".join(texts)) from error
    return [value for value, _ in outcomes]
