"""The evaluation tool's figures in files that programs read: JSON and CSV."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gkd.cli.eval_run import ModelFigures, SetFigures
from gkd.cli.eval_statistics import CONFIDENCE, SEED, Comparison, Evaluation
from gkd.core import distributed
from gkd.core.files import atomic_write
from gkd.evaluation import Interval, VerificationIntervals, far_name
from gkd.inference.check_input import InputCheck
from gkd.models import InputSpec

FORMAT = "gkd.evaluation"
FORMAT_VERSION = 2
_COLUMNS = ("model", "set", "figure", "value", "low", "high", "persons_low", "persons_high")


def write_json(evaluation: Evaluation, arguments: argparse.Namespace) -> None:
    """Write every figure, with what it was measured with, as strict JSON: what is not known is null."""
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "models": [_model_json(figures) for figures in evaluation.models],
        "sets": {
            name: {
                "path": str(facts.path),
                "num_pairs": facts.num_pairs,
                "num_same": facts.num_same,
                "identities": None if facts.identities is None else str(facts.identities),
            }
            for name, facts in evaluation.sets.items()
        },
        "comparisons": [_comparison_json(each) for each in evaluation.comparisons],
        "settings": {
            "fusion": arguments.fusion,
            "batch_size": arguments.batch_size,
            "device": str(evaluation.device),
            "num_ranks": distributed.world_size(),
            "num_threads": torch.get_num_threads(),
            "resamples": arguments.resamples,
            "confidence": CONFIDENCE,
            "seed": SEED,
        },
    }
    with atomic_write(arguments.json) as temporary:
        text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _model_json(figures: ModelFigures) -> dict[str, Any]:
    model = figures.model
    check = figures.input_check
    return {
        "name": model.name,
        "weights": str(model.path),
        "source": model.source,
        "family": model.family,
        "input": {**_input_json(model.input_spec), "size": list(model.size)},
        "input_check": None if check is None else _check_json(check),
        "parameters": model.num_parameters,
        "gmacs": model.gmacs,
        "file_bytes": model.file_bytes,
        "images_per_second": figures.images_per_second,
        "sets": {name: _set_json(of_set) for name, of_set in figures.sets.items()},
        "ijb": {name: result.to_json() for name, result in figures.ijb.items()},
        "robustness": {name: result.to_json() for name, result in figures.robustness.items()},
        "failed": figures.failed,
    }


def _set_json(of_set: SetFigures) -> dict[str, Any]:
    figures = of_set.result.to_json()
    return {
        **figures,
        "notes": [*figures["notes"], *of_set.notes],
        "intervals": None if of_set.intervals is None else of_set.intervals.to_json(),
        "identity_intervals": None if of_set.identity_intervals is None else of_set.identity_intervals.to_json(),
        "seconds": of_set.seconds,
        "images_per_second": of_set.images_per_second,
    }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "set": comparison.set_name,
        "model": comparison.model,
        "baseline": comparison.baseline,
        "verdict": comparison.found.verdict,
        "p": comparison.found.mcnemar_p,
        **comparison.found.to_json(),
    }


def _input_json(spec: InputSpec) -> dict[str, Any]:
    return {"color": spec.color, "mean": list(spec.mean), "std": list(spec.std)}


def _check_json(check: InputCheck) -> dict[str, Any]:
    best = check.best_alternative
    return {
        "size": list(check.size),
        "num_pairs": check.num_pairs,
        "d_prime": check.d_prime,
        "best_alternative": None if best is None else _input_json(best),
        "best_d_prime": check.best_d_prime,
        "gap_interval": None if check.gap_low is None else [check.gap_low, check.gap_high],
    }


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write one line a figure; fractions, with their intervals over pairs and over persons where there are any."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for figures in evaluation.models:
        for name, of_set in figures.sets.items():
            writer.writerows([figures.model.name, name, *line] for line in _set_lines(of_set))
        for name, result in figures.ijb.items():
            for far, tar in result.tar_at_far.items():
                writer.writerow([figures.model.name, name, f"tar@far={far_name(far)}", _cell(tar), "", "", "", ""])
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _set_lines(of_set: SetFigures) -> Iterator[list[str]]:
    result = of_set.result
    both = (of_set.intervals, of_set.identity_intervals)
    for name, value in (("accuracy", result.accuracy), ("auc", result.auc), ("eer", result.eer)):
        yield [name, _cell(value), *(cell for each in both for cell in _ends(_named(each, name)))]
    for far, tar in result.tar_at_far.items():
        found = (None if each is None else each.tar_at_far[far] for each in both)
        yield [f"tar@far={far_name(far)}", _cell(tar), *(cell for each in found for cell in _ends(each))]
    for name in ("accuracy_std", "mean_same_cosine", "mean_different_cosine", "d_prime", "threshold"):
        yield [name, _cell(getattr(result, name)), "", "", "", ""]


def _named(intervals: VerificationIntervals | None, name: str) -> Interval | None:
    found: Interval | None = None if intervals is None else getattr(intervals, name)
    return found


def _ends(interval: Interval | None) -> tuple[str, str]:
    return ("", "") if interval is None else (_cell(interval.low), _cell(interval.high))


def _cell(value: float | None) -> str:
    """All digits, so that a reader gets the figure itself."""
    return "" if value is None else repr(float(value))
