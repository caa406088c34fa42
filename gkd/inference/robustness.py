"""Verification under growing degradation of the images.

Shapes: N images, P pairs, D embedding dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import ConfigError, DataError
from gkd.data.degrade import DEGRADATIONS, find_degradations
from gkd.evaluation import VerificationResult, format_table, verify_distances
from gkd.evaluation.folds import checked_labels, fold_sizes
from gkd.inference.decoding import UndecodableBatchError, decoded_batches
from gkd.inference.embed import Pairs, eval_mode, image_of_pair, input_size, raise_first_failure
from gkd.inference.robustness_step import Case, Float64s, Int64s, RobustnessStep, Sides
from gkd.inference.views import needed_views
from gkd.models import InputSpec

_LOG = logging.getLogger(__name__)

_FOLDS = 10
_FAR = 1e-3


@dataclass(frozen=True)
class RobustnessResult:
    """The figures of one network on one set.

    clean: without any degradation. curves: by degradation, the level and the figures at it, in the order of the levels.
    sides: which image of a pair is degraded. seed: of what is drawn at random. num_forward_passes: of all ranks, each
    of one batch.
    """

    clean: VerificationResult
    curves: dict[str, tuple[tuple[float, VerificationResult], ...]]
    sides: Sides
    seed: int
    num_forward_passes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`; a curve begins with the clean figures, whose level is None."""
        return {
            "num_pairs": self.clean.num_pairs,
            "sides": self.sides,
            "seed": self.seed,
            "num_forward_passes": self.num_forward_passes,
            "curves": {
                name: {
                    "unit": DEGRADATIONS[name].unit,
                    "points": [{"level": level, **_figures(result)} for level, result in [(None, self.clean), *points]],
                }
                for name, points in self.curves.items()
            },
        }

    def table(self) -> str:
        """Plain text: a line for the clean figures and for each level."""
        rows = [_row("none", "", self.clean)]
        rows += [_row(name, f"{level:g}", result) for name, points in self.curves.items() for level, result in points]
        return format_table(rows)


def measure_robustness(
    backbone: nn.Module,
    input_spec: InputSpec,
    pair_set: Pairs,
    *,
    degradations: Sequence[str] | None = None,
    levels: Mapping[str, Sequence[float]] | None = None,
    sides: Sides = "both",
    max_pairs: int | None = None,
    flip: bool | str = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    seed: int = 0,
    name: str = "pair set",
) -> RobustnessResult:
    """Verification figures of a backbone on a set of pairs, as it is and under each degradation at each level.

    Every image is decoded once. Two batches at a time are embedded as they are and at each level, so the clean figures
    are those of `evaluate_pairs`, bit for bit, and all figures are the same on any number of ranks with equal threads.
    Forward passes: about (1 + number of levels) · N / batch_size a view where both sides are degraded; half as many for
    the levels where only the right one is, since the left ones' embeddings are known.

    Args:
        degradations: names of `gkd.data.degrade.DEGRADATIONS`; None is all.
        levels: other levels of some of the degradations, each in order of growing damage; the rest keep their own.
        sides: whether both images of a pair are degraded, or only the right one, as a probe against a clean gallery.
        max_pairs: evaluate so many pairs only, spread evenly over each fold's same and different pairs.
        seed: of what is drawn at random; an image keeps its numbers whatever `max_pairs` is.
        name: names the set in error messages. The others are as in `embed_images`.

    Raises:
        ConfigError: an unknown degradation, a level that it cannot have, or another setting that does not exist.
        DataError: an image cannot be decoded, an embedding is unfit, or the set allows no figures.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if sides not in ("both", "right"):
        raise ConfigError(f"sides must be both or right, got `{sides}`")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must lie between 0 and 2^63 - 1, got {seed}")
    cases = _cases(degradations, levels or {}, input_size(backbone))
    pairs = choose_pairs(pair_set.is_same, max_pairs, name)
    step = RobustnessStep(
        backbone, input_spec, torch.device(device), needed_views(flip), flip, sides, batch_size, seed, name
    )
    distances, num_passes = _all_distances(step, cases, pair_set, pairs)
    return _result([_judge(each, pair_set.is_same[pairs], name) for each in distances], cases, sides, seed, num_passes)


def choose_pairs(is_same: npt.NDArray[np.bool_], max_pairs: int | None, name: str = "pair set") -> Int64s:
    """The pairs to evaluate, in order: all, or `max_pairs` of them.

    The chosen pairs of a fold are spread evenly over its same and its different pairs, whose shares stay, and the
    protocol's folds of the chosen pairs are parts of its folds of all.

    Raises:
        ConfigError: fewer pairs than folds.
        DataError: a set that the protocol cannot judge.
    """
    try:
        labels = checked_labels(is_same, _FOLDS)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if max_pairs is not None and max_pairs < _FOLDS:
        raise ConfigError(f"max_pairs must be at least the number of folds, {_FOLDS}, got {max_pairs}")
    if max_pairs is None or max_pairs >= len(labels):
        return np.arange(len(labels))
    sizes = fold_sizes(len(labels), _FOLDS)
    wanted = fold_sizes(max_pairs, _FOLDS)
    starts = np.cumsum(sizes) - sizes
    parts = [
        start + _spread(labels[start : start + size], int(count))
        for start, size, count in zip(starts, sizes, wanted, strict=True)
    ]
    return np.concatenate(parts).astype(np.int64)


def _spread(labels: npt.NDArray[np.bool_], count: int) -> Int64s:
    same, different = np.flatnonzero(labels), np.flatnonzero(~labels)
    num_same = (2 * count * len(same) + len(labels)) // (2 * len(labels))
    return np.sort(np.concatenate([_evenly(same, num_same), _evenly(different, count - num_same)]))


def _evenly(places: npt.NDArray[np.intp], count: int) -> Int64s:
    return np.asarray(places[np.arange(count) * len(places) // max(count, 1)], dtype=np.int64)


def _cases(names: Sequence[str] | None, levels: Mapping[str, Sequence[float]], size: tuple[int, int]) -> list[Case]:
    """The clean case, then each degradation at each level, all checked."""
    chosen = find_degradations(None if names is None else tuple(names))
    unknown = sorted(set(levels) - {each.name for each in chosen})
    if unknown:
        raise ConfigError(f"levels are given for {', '.join(unknown)}, which is not among the degradations to measure")
    cases = [Case(chosen[0], None)]
    for each in chosen:
        own = tuple(levels.get(each.name, each.levels))
        if not own or len(set(own)) < len(own):
            raise ConfigError(f"degradation {each.name}: levels must be one or more different ones, got {list(own)}")
        for level in own:
            each.check(level, size)
        cases += [Case(each, level) for level in own]
    return cases


def _all_distances(step: RobustnessStep, cases: Sequence[Case], pair_set: Pairs, pairs: Int64s) -> tuple[Float64s, int]:
    """The distances (cases, P) of the chosen pairs, on every rank, and the number of forward passes of all ranks."""
    numbers = np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)
    found: dict[int, list[Float64s]] = {}
    num_passes = current = 0
    failure: tuple[int, Exception] | None = None
    try:
        with torch.inference_mode(), eval_mode(step.backbone):
            for current, pixels, own in _decoded(step, pair_set.images, numbers):
                found[current], more = step.distances(cases, pixels, own)
                num_passes += more
    except UndecodableBatchError as error:
        failure = (error.batch, error.cause)
    except Exception as error:  # told to the other ranks first, which wait in the gathering below; then raised
        failure = (current, error)
    raise_first_failure(failure)
    parts = distributed.gather_objects((found, num_passes))
    by_step = {number: each for own, _ in parts for number, each in own.items()}
    joined = [np.concatenate([by_step[number][case] for number in sorted(by_step)]) for case in range(len(cases))]
    return np.stack(joined), sum(passes for _, passes in parts)


def _decoded(step: RobustnessStep, images: Sequence[bytes], numbers: Int64s) -> Iterator[tuple[int, Tensor, Int64s]]:
    """This rank's steps of 2 · batch_size images: their number, their pixels, and the images that count."""
    chosen = [images[number] for number in numbers]
    size, describe = input_size(step.backbone), image_of_pair(step.name)
    length = 2 * step.batch_size
    own_steps = range(distributed.rank(), -(-len(chosen) // length), distributed.world_size())
    decoded = decoded_batches(chosen, own_steps, length, size, lambda index: describe(int(numbers[index])))
    for number, pixels, num_images in decoded:
        yield number, pixels, numbers[number * length : number * length + num_images]
        _LOG.debug("%s: %d of %d images", step.name, number * length + num_images, len(chosen))


def _judge(distances: Float64s, is_same: npt.NDArray[np.bool_], name: str) -> VerificationResult:
    try:
        return verify_distances(distances, is_same)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _result(
    results: Sequence[VerificationResult], cases: Sequence[Case], sides: Sides, seed: int, num_passes: int
) -> RobustnessResult:
    curves: dict[str, tuple[tuple[float, VerificationResult], ...]] = {}
    for case, result in zip(cases[1:], results[1:], strict=True):
        assert case.level is not None, "only the first case is clean"
        curves[case.degradation.name] = (*curves.get(case.degradation.name, ()), (case.level, result))
    return RobustnessResult(results[0], curves, sides, seed, num_passes)


def _figures(result: VerificationResult) -> dict[str, float | None]:
    return {
        "accuracy": result.accuracy,
        "accuracy_std": result.accuracy_std,
        "tar_at_far_1e-3": result.tar_at_far[_FAR],
        "auc": result.auc,
    }


def _row(name: str, level: str, result: VerificationResult) -> dict[str, str]:
    tar = result.tar_at_far[_FAR]
    return {
        "degradation": name,
        "level": level,
        "accuracy": f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}",
        "TAR@1e-3": "-" if tar is None else f"{100 * tar:.2f}",
        "AUC": f"{result.auc:.5f}",
    }
