"""Figures from arrays: pair verification, the ROC quantities under it, and how sure they are. Needs NumPy only; plots
import matplotlib.

Shapes: P pairs, D embedding dimension.
"""

from gkd.evaluation.distances import squared_distances
from gkd.evaluation.fusion import FUSIONS, fuse
from gkd.evaluation.html_report import write_report
from gkd.evaluation.ijb import IjbOptions, IjbResult, verify_templates
from gkd.evaluation.intervals import Interval, VerificationIntervals, verification_intervals
from gkd.evaluation.report import (
    format_table,
    pareto_front,
    plot_curves,
    plot_det,
    plot_pareto,
    plot_roc,
    plot_scores,
)
from gkd.evaluation.report_inputs import ErrorPair, ReportEntry, ReportModel, ReportSet
from gkd.evaluation.robustness_plot import plot_robustness
from gkd.evaluation.significance import McNemar, ModelComparison, compare_models, mcnemar_test
from gkd.evaluation.tar_far import (
    FAR_TARGETS,
    OperatingPoint,
    RocCurve,
    area_under_curve,
    equal_error_rate,
    far_name,
    operating_points,
    roc_curve,
    tar_at_far,
)
from gkd.evaluation.verification import VerificationResult, verify_distances, verify_pairs

__all__ = [
    "FAR_TARGETS",
    "FUSIONS",
    "ErrorPair",
    "IjbOptions",
    "IjbResult",
    "Interval",
    "McNemar",
    "ModelComparison",
    "OperatingPoint",
    "ReportEntry",
    "ReportModel",
    "ReportSet",
    "RocCurve",
    "VerificationIntervals",
    "VerificationResult",
    "area_under_curve",
    "compare_models",
    "equal_error_rate",
    "far_name",
    "format_table",
    "fuse",
    "mcnemar_test",
    "operating_points",
    "pareto_front",
    "plot_curves",
    "plot_det",
    "plot_pareto",
    "plot_robustness",
    "plot_roc",
    "plot_scores",
    "roc_curve",
    "squared_distances",
    "tar_at_far",
    "verification_intervals",
    "verify_distances",
    "verify_pairs",
    "verify_templates",
    "write_report",
]
