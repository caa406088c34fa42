"""A small report with drawn scores, for tests of the page with and without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gkd.evaluation import far_name, verify_distances
from gkd.evaluation.html_report import ErrorPair, ReportEntry, ReportModel, ReportSet
from gkd.evaluation.report_inputs import DegradationCurve, DegradedAccuracy

HOSTILE = '</script><img src=x onerror=alert(1)>&"\u2028name'
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(64)) + b"\xff\xd9"


def drawn_cosines(
    strength: float, num_pairs: int, num_same: int, seed: int, spread: float = 0.12
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    is_same = generator.permutation(num_pairs) < num_same
    return np.clip(generator.normal(is_same * strength, spread), -1, 1), is_same


def drawn_entry(model: str, one: ReportSet, strength: float, seed: int, **more: Any) -> ReportEntry:
    """An entry whose figures are those of its distances; `more` goes to the entry as it is."""
    cosines, is_same = drawn_cosines(strength, one.num_pairs, one.num_same, seed)
    result = verify_distances(2 - 2 * cosines, is_same)
    figures: dict[str, float | None] = {
        "accuracy": result.accuracy,
        "accuracy_std": result.accuracy_std,
        "auc": result.auc,
        "eer": result.eer,
        "d_prime": result.d_prime,
    }
    figures |= {f"tar@far={far_name(far)}": tar for far, tar in result.tar_at_far.items() if far <= 1e-2}
    return ReportEntry(model, one.name, figures, result.distances, result.is_same, **more)


def drawn_curves(levels: Sequence[float | None]) -> dict[str, DegradationCurve]:
    points = [DegradedAccuracy(level, 0.9 - 0.1 * (level or 0.0), 0.01) for level in levels]
    return {"low_blur": DegradationCurve("sigma <in> pixels", tuple(points))}


def example(num_pairs: int = 640, with_pictures: bool = True) -> dict[str, Any]:
    """Arguments of `write_report`: three models, one with a hostile name, on two sets; one entry is missing."""
    models = [
        ReportModel("teacher", "public <weights>", 65.2e6, 12.1, 261e6, 92.0),
        ReportModel(HOSTILE, num_parameters=2.06e6, gmacs=0.45),
        ReportModel("student"),
    ]
    sets = [ReportSet("lfw", num_pairs, num_pairs // 2), ReportSet("a & b", num_pairs + 2, num_pairs // 4)]
    generator = np.random.default_rng(5)
    quality, yaw = generator.normal(size=num_pairs), generator.normal(0, 40, num_pairs)
    verdicts = {HOSTILE: "better", "student": "better"}
    entries = [
        drawn_entry(
            "teacher",
            sets[0],
            0.6,
            0,
            intervals={"accuracy": (0.987, 0.998)},
            verdict_vs=verdicts,
            pair_quality=quality,
            pair_yaw=yaw,
            degraded={**drawn_curves([None, 0.5, 1.0, 2.0]), HOSTILE: drawn_curves([9.0])["low_blur"]},
        ),
        drawn_entry(HOSTILE, sets[0], 0.4, 1, verdict_vs={"teacher": "worse", "student": "no difference seen"}),
        drawn_entry("student", sets[0], 0.42, 2, degraded=drawn_curves([None, 0.5, 2.0, 3.0])),
        drawn_entry("teacher", sets[1], 0.5, 3, verdict_vs={HOSTILE: "no difference seen"}),
        drawn_entry(HOSTILE, sets[1], 0.5, 4),
    ]
    pairs = [
        ErrorPair("teacher", "lfw", 7, "false accept", 0.4321, JPEG, JPEG[:-2] + b"\x00\xff\xd9"),
        ErrorPair("teacher", "lfw", 9, "false accept", 0.5432, JPEG, JPEG),
        ErrorPair("teacher", "lfw", 8, "false reject", 0.0123, JPEG, JPEG),
    ]
    return {
        "title": "Report of <b>three</b> models",
        "models": models,
        "sets": sets,
        "entries": entries,
        "error_pairs": pairs if with_pictures else [],
        "notes": ["drawn & not measured", HOSTILE],
    }
