"""Figures from arrays: pair verification and the ROC quantities under it. Needs NumPy only; plots import matplotlib.

Shapes: P pairs, D embedding dimension.
"""

from gkd.evaluation.distances import squared_distances
from gkd.evaluation.report import format_table, plot_curves, plot_roc, plot_scores
from gkd.evaluation.tar_far import (
    FAR_TARGETS,
    RocCurve,
    area_under_curve,
    equal_error_rate,
    far_name,
    roc_curve,
    tar_at_far,
)
from gkd.evaluation.verification import VerificationResult, verify_distances, verify_pairs

__all__ = [
    "FAR_TARGETS",
    "RocCurve",
    "VerificationResult",
    "area_under_curve",
    "equal_error_rate",
    "far_name",
    "format_table",
    "plot_curves",
    "plot_roc",
    "plot_scores",
    "roc_curve",
    "squared_distances",
    "tar_at_far",
    "verify_distances",
    "verify_pairs",
]
