"""Hands the evaluation tool's figures to the page that shows them."""

from __future__ import annotations

import argparse

from gkd.cli.eval_run import ModelFigures, SetFigures
from gkd.cli.eval_statistics import Comparison, Evaluation
from gkd.cli.eval_tables import settings_note
from gkd.data.pair_values import values_path
from gkd.evaluation import ErrorPair, ReportEntry, ReportModel, ReportSet, far_name, write_report
from gkd.evaluation.report_inputs import DegradationCurve, DegradedAccuracy

_REVERSED = {"better": "worse", "worse": "better"}


def write_html(evaluation: Evaluation, arguments: argparse.Namespace) -> None:
    """Write the page; with `--show-faces` it holds the hardest pairs as pictures."""
    models = [
        ReportModel(
            name=each.model.name,
            source=each.model.source,
            num_parameters=each.model.num_parameters,
            gmacs=each.model.gmacs,
            file_bytes=each.model.file_bytes,
            images_per_second=each.images_per_second,
        )
        for each in evaluation.models
    ]
    sets = [
        ReportSet(name=name, num_pairs=facts.num_pairs, num_same=facts.num_same)
        for name, facts in evaluation.sets.items()
    ]
    entries = [
        ReportEntry(
            model=each.model.name,
            set=name,
            figures=_figures(of_set),
            intervals=_intervals(of_set),
            distances=of_set.result.distances,
            is_same=of_set.result.is_same,
            verdict_vs=_verdicts(evaluation.comparisons, each, name),
            pair_quality=evaluation.sets[name].quality,
            pair_yaw=evaluation.sets[name].yaw,
            degraded=_degraded(each, name),
        )
        for each in evaluation.models
        for name, of_set in each.sets.items()
    ]
    errors = [
        ErrorPair(
            model=each.model.name,
            set=name,
            index=pair.index,
            kind="false reject" if pair.is_same else "false accept",
            cosine=pair.cosine,
            left_jpeg=pair.left,
            right_jpeg=pair.right,
        )
        for each in evaluation.models
        for name, of_set in each.sets.items()
        for pair in of_set.wrong_pairs
    ]
    title = f"Verification: {', '.join(each.model.name for each in evaluation.models)}"
    notes = [settings_note(arguments), *_quality_notes(evaluation)]
    degraded = {
        f"{name} ({found.clean.num_pairs} pairs)"
        for each in evaluation.models
        for name, found in each.robustness.items()
    }
    if degraded:
        notes.append(f"robustness: measured on parts of the sets, {', '.join(sorted(degraded))}")
    write_report(arguments.report, title, models, sets, entries, error_pairs=errors, notes=notes)


def _quality_notes(evaluation: Evaluation) -> list[str]:
    measured = [name for name, facts in evaluation.sets.items() if not values_path(facts.path, "quality").is_file()]
    if not measured:
        return []
    return [
        f"quality of the pairs of {', '.join(measured)}: the sharpness of the less sharp picture (log2 of the variance "
        "of its Laplacian)"
    ]


def _figures(of_set: SetFigures) -> dict[str, float | None]:
    result = of_set.result
    tars = {f"tar@far={far_name(far)}": tar for far, tar in result.tar_at_far.items()}
    return {
        "accuracy": result.accuracy,
        "accuracy_std": result.accuracy_std,
        "auc": result.auc,
        "eer": result.eer,
        "d_prime": result.d_prime,
        **tars,
    }


def _intervals(of_set: SetFigures) -> dict[str, tuple[float, float]]:
    """Over persons where these are known, else over pairs."""
    found = of_set.identity_intervals or of_set.intervals
    if found is None:
        return {}
    named = {"accuracy": found.accuracy, "auc": found.auc, "eer": found.eer}
    tars = {f"tar@far={far_name(far)}": each for far, each in found.tar_at_far.items() if each is not None}
    return {name: (each.low, each.high) for name, each in {**named, **tars}.items()}


def _degraded(figures: ModelFigures, name: str) -> dict[str, DegradationCurve]:
    if name not in figures.robustness:
        return {}
    curves = figures.robustness[name].to_json()["curves"]
    return {
        degradation: DegradationCurve(
            curve["unit"],
            tuple(DegradedAccuracy(each["level"], each["accuracy"], each["accuracy_std"]) for each in curve["points"]),
        )
        for degradation, curve in curves.items()
    }


def _verdicts(comparisons: list[Comparison], figures: ModelFigures, name: str) -> dict[str, str] | None:
    """What the comparisons on a set say of a model, by the name of the other one."""
    verdicts = {}
    for each in comparisons:
        verdict = each.found.verdict
        if each.set_name == name and each.model == figures.model.name:
            verdicts[each.baseline] = verdict
        if each.set_name == name and each.baseline == figures.model.name:
            verdicts[each.model] = _REVERSED.get(verdict, verdict)
    return verdicts or None
