"""What the evaluation tool shows and writes: a table, a JSON file, plots."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.core.files import atomic_write
from gkd.evaluation import VerificationResult, format_table, plot_roc, plot_scores, roc_curve
from gkd.inference.check_input import InputCheck
from gkd.models import InputSpec


@dataclass(frozen=True)
class EvalReport:
    """The sets that gave figures, with the seconds each took, and the messages of those that did not."""

    results: dict[str, VerificationResult]
    seconds: dict[str, float]
    failures: dict[str, str]


def write_report(
    report: EvalReport,
    weights: Path,
    input_spec: InputSpec,
    arguments: argparse.Namespace,
    check: InputCheck | None = None,
) -> None:
    """Print the table and the messages, write the JSON and draw the plots that were asked for.

    Args:
        check: what was found of a foreign network's declared input, for the JSON.
    """
    if report.results:
        sys.stdout.write(format_table([_table_row(report, name) for name in report.results]))
        notes = [f"{name}: {note}\n" for name, result in report.results.items() for note in result.notes]
        sys.stdout.write("".join(notes))
    if arguments.json is not None:
        _write_json(report, weights, input_spec, arguments, check)
    if arguments.plots is not None and report.results:
        _draw(report, arguments.plots)
    for message in report.failures.values():
        sys.stderr.write(f"error: {message}\n")


def _table_row(report: EvalReport, name: str) -> dict[str, str]:
    result, seconds = report.results[name], report.seconds[name]
    return {
        "set": name,
        "pairs": str(result.num_pairs),
        "accuracy %": f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}",
        "TAR@FAR=1e-3 %": _percent(result.tar_at_far[1e-3]),
        "TAR@FAR=1e-4 %": _percent(result.tar_at_far[1e-4]),
        "AUC": f"{result.auc:.5f}",
        "EER %": _percent(result.eer),
        "same cosine": f"{result.mean_same_cosine:.3f}",
        "d'": "-" if result.d_prime is None else f"{result.d_prime:.2f}",
        "threshold": f"{result.threshold:.2f}",
        "seconds": f"{seconds:.1f}",
        "images/s": f"{2 * result.num_pairs / seconds:.0f}",
    }


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _write_json(
    report: EvalReport,
    weights: Path,
    input_spec: InputSpec,
    arguments: argparse.Namespace,
    check: InputCheck | None,
) -> None:
    figures = {name: {**result.to_json(), "seconds": report.seconds[name]} for name, result in report.results.items()}
    document = {
        "weights": str(weights),
        "input": _input_json(input_spec),
        "is_flip_summed": not arguments.no_flip,
        "sets": figures,
        "failed": report.failures,
    }
    if check is not None:
        document["input_check"] = _check_json(check)
    with atomic_write(arguments.json) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


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


def _draw(report: EvalReport, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    curves = {name: roc_curve(-result.distances, result.is_same) for name, result in report.results.items()}
    plot_roc(curves, folder / "roc.png")
    for name, result in report.results.items():
        title = f"{name}: {100 * result.accuracy:.2f} % of {result.num_pairs} pairs"
        same, different = result.cosines[result.is_same], result.cosines[~result.is_same]
        place = folder / f"scores_{name.replace('/', '_')}.png"
        plot_scores(same, different, place, title=title, threshold=1 - result.threshold / 2)
