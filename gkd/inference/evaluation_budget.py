"""Evaluation of several sets of pairs within a time, the same sets on every rank."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from gkd.core import distributed
from gkd.core.errors import ConfigError
from gkd.evaluation import VerificationResult
from gkd.inference.embed import Pairs

logger = logging.getLogger(__name__)

PairsKind = TypeVar("PairsKind", bound=Pairs)


class Evaluated(NamedTuple):
    """The figures by set, and the names of the sets that were left out, both in the order of the sets."""

    results: dict[str, VerificationResult]
    left_out: tuple[str, ...]


def evaluate_within(
    seconds: float | None,
    pair_sets: Mapping[str, PairsKind],
    evaluate: Callable[[str, PairsKind], VerificationResult],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Evaluated:
    """Evaluate sets in their order, each whole, as long as they fit into a time.

    The first set is always evaluated. Before each other one its time is estimated, from its number of images and the
    time that an image took in the sets so far; where it does not fit it is left out, with a warning, and a smaller one
    after it may still fit. Rank 0 decides for all.

    Args:
        seconds: the time for all sets together, in seconds; None is no limit.
        pair_sets: the sets by name.
        evaluate: gives the figures of a set, from its name and the set.
        clock: tells the time, in seconds.

    Raises:
        ConfigError: a time that is not positive. Beside that, what `evaluate` raises.
    """
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"the time for an evaluation must be above 0 seconds, got {seconds}")
    started, num_images = clock(), 0
    results: dict[str, VerificationResult] = {}
    for name, pair_set in pair_sets.items():
        spent = clock() - started
        estimate = spent / num_images * len(pair_set.images) if num_images else 0.0
        spent, estimate = distributed.broadcast_object((spent, estimate))
        if seconds is not None and results and spent + estimate > seconds:
            logger.warning(
                "%s is not evaluated: it would take about %.3g s, and %.3g s are spent of the %.3g s for all sets",
                name,
                estimate,
                spent,
                seconds,
            )
            continue
        results[name] = evaluate(name, pair_set)
        num_images += len(pair_set.images)
    return Evaluated(results, tuple(name for name in pair_sets if name not in results))
