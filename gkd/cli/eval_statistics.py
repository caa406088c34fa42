"""How sure the evaluation tool's figures are, and how its models compare."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gkd.cli.eval_run import ModelFigures, SetFacts, SetFigures
from gkd.core.errors import DataError
from gkd.evaluation import ModelComparison, VerificationIntervals, compare_models, verification_intervals

_LOG = logging.getLogger(__name__)

CONFIDENCE = 0.95
SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found."""

    models: list[ModelFigures]
    sets: dict[str, SetFacts]
    comparisons: list[Comparison]
    device: torch.device


@dataclass(frozen=True)
class Comparison:
    """A model against the baseline on one set."""

    set_name: str
    model: str
    baseline: str
    found: ModelComparison

    @property
    def text(self) -> str:
        """Such as `worse by 0.52 points (0.20 to 0.83), p 0.003`."""
        gap, p = self.found.accuracy_gap, self.found.mcnemar_p
        figures = f"{100 * gap.gap:+.2f} points ({100 * gap.low:+.2f} to {100 * gap.high:+.2f}), p {p:.2g}"
        return f"{self.found.verdict}: {figures}"


def add_intervals(models: Sequence[ModelFigures], facts: dict[str, SetFacts], arguments: argparse.Namespace) -> None:
    """Fill in the intervals of every model's figures on every set, over pairs and, where known, over persons."""
    if arguments.resamples == 0:
        return
    for figures in models:
        for name, of_set in figures.sets.items():
            _LOG.info("intervals of %s on %s", figures.model.name, name)
            of_set.intervals = _intervals(of_set, None, arguments.resamples)
            ids = facts[name].ids
            if ids is not None:
                of_set.identity_intervals = _intervals(of_set, ids, arguments.resamples)


def _intervals(
    of_set: SetFigures, ids: npt.NDArray[np.int64] | None, num_resamples: int
) -> VerificationIntervals | None:
    result = of_set.result
    try:
        return verification_intervals(
            result.distances,
            result.is_same,
            ids=ids,
            folds=len(result.fold_accuracies),
            num_resamples=num_resamples,
            confidence=CONFIDENCE,
            seed=SEED,
        )
    except DataError as error:  # too few persons or pairs for it: the figures themselves stand
        of_set.notes.append(f"no intervals over {'pairs' if ids is None else 'persons'}: {error}")
        return None


def compare(
    models: Sequence[ModelFigures], facts: dict[str, SetFacts], arguments: argparse.Namespace
) -> list[Comparison]:
    """Each model against the baseline on every set that both have figures of; over persons where these are known."""
    if len(models) < 2:
        return []
    if arguments.resamples == 0:
        _LOG.warning("the models are not compared, since --resamples is 0")
        return []
    by_name = {figures.model.name: figures for figures in models}
    baseline = by_name[arguments.baseline or models[0].model.name]
    found = []
    for name, of_set in facts.items():
        for figures in models:
            if figures is baseline or name not in figures.sets or name not in baseline.sets:
                continue
            _LOG.info("comparing %s with %s on %s", figures.model.name, baseline.model.name, name)
            made = _compare_one(figures.sets[name], baseline.sets[name], of_set.ids, arguments.resamples)
            if made is not None:
                found.append(Comparison(name, figures.model.name, baseline.model.name, made))
    return found


def _compare_one(
    a: SetFigures, b: SetFigures, ids: npt.NDArray[np.int64] | None, num_resamples: int
) -> ModelComparison | None:
    try:
        return compare_models(
            a.result.distances,
            b.result.distances,
            a.result.is_same,
            ids,
            folds=len(a.result.fold_accuracies),
            num_resamples=num_resamples,
            confidence=CONFIDENCE,
            seed=SEED,
        )
    except DataError as error:
        a.notes.append(f"not compared: {error}")
        return None
