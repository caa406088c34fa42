"""Randomness as a pure function of numbers that name it, so that a run's order does not depend on who computes it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def permutation(num_items: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch visits `num_items` samples: a function of (seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_items)


def uniform(sample_ids: npt.NDArray[np.int64], seed: int, epoch: int, stream: int = 0) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per sample: a function of (seed, epoch, sample id, stream) alone.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), applied once per key.
    """
    state = np.zeros(len(sample_ids), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in (np.uint64(seed), np.uint64(epoch), np.uint64(stream), np.asarray(sample_ids).astype(np.uint64)):
            state = _mix(state + key + np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
