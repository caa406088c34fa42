"""What a report of an evaluation shows, and the checks of it: models, sets of pairs, an entry for each of both.

Shapes: P pairs.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError

FALSE_ACCEPT = "false accept"
FALSE_REJECT = "false reject"
BETTER = "better"
VERDICTS = (BETTER, "worse", "no difference seen")
FIGURES = ("accuracy", "accuracy_std", "auc", "eer", "d_prime")
TAR_PREFIX = "tar@far="

_MAX_DISTANCE = 4 + 1e-9  # of unit vectors; the rest is rounding
_MAX_PICTURE_BYTES = 1 << 20
_INVISIBLE = ("Cc", "Cs")  # control characters and halves of a character


@dataclass(frozen=True)
class ReportModel:
    """A network and what it costs. Costs are None where they are not known; such a model is left out of that plot."""

    name: str
    source: str = ""
    num_parameters: float | None = None
    gmacs: float | None = None
    file_bytes: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class ReportSet:
    """A set of pairs and how many of them are of one person."""

    name: str
    num_pairs: int
    num_same: int


@dataclass(frozen=True)
class DegradedAccuracy:
    """Accuracy, a fraction, and its standard deviation over the folds, on images degraded to a level.

    `level`: None for the images as they are.
    """

    level: float | None
    accuracy: float
    accuracy_std: float


@dataclass(frozen=True)
class DegradationCurve:
    """Accuracy at growing levels of one degradation. `unit`: what a level counts."""

    unit: str
    points: tuple[DegradedAccuracy, ...]


@dataclass(frozen=True, eq=False)
class ReportEntry:
    """How one model did on one set.

    `figures`: fractions named `accuracy`, `accuracy_std`, `auc`, `eer`, `tar@far=1e-4`, and `d_prime`; None where a
        figure cannot be measured.
    `intervals`: low and high end of a figure's confidence interval, by the same names.
    `distances`, `is_same`: (P,), squared distances of unit embeddings.
    `verdict_vs`: by the name of another model, whether this one's accuracy is `better`, `worse`, or `no difference
        seen`.
    `pair_quality`, `pair_yaw`: (P,), any scale where higher is better, and degrees; NaN where a pair has none.
    `degraded`: by the name of a degradation.
    """

    model: str
    set: str
    figures: Mapping[str, float | None]
    distances: npt.NDArray[Any]
    is_same: npt.NDArray[Any]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    verdict_vs: Mapping[str, str] | None = None
    pair_quality: npt.NDArray[Any] | None = None
    pair_yaw: npt.NDArray[Any] | None = None
    degraded: Mapping[str, DegradationCurve] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorPair:
    """A pair that a model judges wrongly, with its two pictures as JPEG. `kind`: `false accept` or `false reject`."""

    model: str
    set: str
    index: int
    kind: str
    cosine: float
    left_jpeg: bytes = field(repr=False)
    right_jpeg: bytes = field(repr=False)


def check_report(
    title: str,
    models: Sequence[ReportModel],
    sets: Sequence[ReportSet],
    entries: Sequence[ReportEntry],
    error_pairs: Sequence[ErrorPair],
    notes: Sequence[str],
) -> None:
    """Raise a DataError that names the first thing which does not fit."""
    check_text("the report's title", title)
    for place, note in enumerate(notes):
        check_text(f"note {place}", note)
    _check_names("model", [model.name for model in models])
    _check_names("set", [one.name for one in sets])
    for model in models:
        _check_model(model)
    _check_unique_entries(entries)
    names, by_name = {model.name for model in models}, {one.name: one for one in sets}
    for entry in entries:
        _check_place(entry, names, by_name)
        _check_entry(entry, by_name[entry.set], names)
    for pair in error_pairs:
        _check_place(pair, names, by_name)
        _check_error_pair(pair, by_name[pair.set])


def check_text(what: str, text: str) -> None:
    """Raise a DataError unless `text` has something to show, and nothing that a page cannot hold."""
    if not text.strip():
        raise DataError(f"report: {what} is empty; give it a text")
    unfit = sorted({f"U+{ord(mark):04X}" for mark in text if unicodedata.category(mark) in _INVISIBLE})
    if unfit:
        raise DataError(f"report: {what} {text!r} holds {', '.join(unfit)}, which no page can show; take it out")


def _check_names(what: str, names: Sequence[str]) -> None:
    if not names:
        raise DataError(f"report: no {what} was given; a report needs one at least")
    for name in names:
        check_text(f"the {what} name", name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"report: two {what}s are named `{twice[0]}`; give each a name of its own")


def _check_model(model: ReportModel) -> None:
    if model.source:
        check_text(f"the source of model `{model.name}`", model.source)
    for what in ("num_parameters", "gmacs", "file_bytes", "images_per_second"):
        value = getattr(model, what)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise DataError(f"report: model `{model.name}`: {what} must be above 0 and finite, or None, got {value}")


def _check_unique_entries(entries: Sequence[ReportEntry]) -> None:
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.model, entry.set) in seen:
            raise DataError(f"report: two entries for model `{entry.model}` on set `{entry.set}`; give one")
        seen.add((entry.model, entry.set))


def _check_place(item: ReportEntry | ErrorPair, models: set[str], sets: Mapping[str, ReportSet]) -> None:
    what = "entry" if isinstance(item, ReportEntry) else "error pair"
    if item.model not in models:
        raise DataError(f"report: an {what} names model `{item.model}`, which is not among the report's models")
    if item.set not in sets:
        raise DataError(f"report: an {what} names set `{item.set}`, which is not among the report's sets")


def _check_entry(entry: ReportEntry, one: ReportSet, models: set[str]) -> None:
    where = f"report: model `{entry.model}` on set `{entry.set}`"
    _check_figures(where, entry)
    _check_pairs(where, entry, one)
    for name, values in (("pair_quality", entry.pair_quality), ("pair_yaw", entry.pair_yaw)):
        if values is not None and np.shape(values) != (one.num_pairs,):
            raise DataError(f"{where}: {name} must have one value a pair, ({one.num_pairs},), got {np.shape(values)}")
    for name, curve in entry.degraded.items():
        _check_degraded(f"{where}, degraded by {name}", name, curve)
    for other, verdict in (entry.verdict_vs or {}).items():
        if other not in models or other == entry.model:
            raise DataError(f"{where}: a verdict names `{other}`, which is not another model of the report")
        if verdict not in VERDICTS:
            raise DataError(f"{where}: the verdict against `{other}` must be one of {VERDICTS}, got `{verdict}`")


def _check_degraded(where: str, name: str, curve: DegradationCurve) -> None:
    check_text("the name of a degradation", name)
    check_text(f"the unit of degradation `{name}`", curve.unit)
    if not curve.points:
        raise DataError(f"{where}: no level was measured; leave it out")
    for point in curve.points:
        values = (point.level or 0.0, point.accuracy, point.accuracy_std)
        if not (all(map(math.isfinite, values)) and 0 <= point.accuracy <= 1 and point.accuracy_std >= 0):
            raise DataError(f"{where}: {point} must be finite, with an accuracy between 0 and 1")


def _check_figures(where: str, entry: ReportEntry) -> None:
    names: Iterable[str] = [*entry.figures, *entry.intervals]
    for name in names:
        if name not in FIGURES and not _is_tar_name(name):
            known = ", ".join(FIGURES)
            raise DataError(f"{where}: unknown figure `{name}`; known are {known} and {TAR_PREFIX}<rate>")
    values = [(name, value) for name, value in entry.figures.items() if value is not None]
    ends = [(f"interval of {name}", end) for name, interval in entry.intervals.items() for end in interval]
    for name, value in (*values, *ends):
        if not math.isfinite(value):
            raise DataError(f"{where}: {name} is {value}; give None for what cannot be measured")
    for name, (low, high) in entry.intervals.items():
        if low > high:
            raise DataError(f"{where}: interval of {name} begins at {low}, above its end {high}")


def _is_tar_name(name: str) -> bool:
    try:
        return name.startswith(TAR_PREFIX) and 0 < float(name.removeprefix(TAR_PREFIX)) <= 1
    except ValueError:
        return False


def _check_pairs(where: str, entry: ReportEntry, one: ReportSet) -> None:
    distances, is_same = np.asarray(entry.distances), np.asarray(entry.is_same)
    if distances.shape != (one.num_pairs,) or is_same.shape != (one.num_pairs,):
        raise DataError(
            f"{where}: distances {distances.shape} and is_same {is_same.shape} must have one value for each of the "
            f"set's {one.num_pairs} pairs"
        )
    if is_same.dtype != np.bool_:
        raise DataError(f"{where}: is_same must be booleans, got {is_same.dtype}")
    num_same = int(is_same.sum())
    if num_same != one.num_same or not 0 < num_same < one.num_pairs:
        raise DataError(
            f"{where}: {num_same} of {one.num_pairs} pairs are of one person, and the set says {one.num_same}; "
            "both must agree, and both kinds must be present"
        )
    with np.errstate(invalid="ignore"):
        unfit = np.flatnonzero(~((distances >= 0) & (distances <= _MAX_DISTANCE)))
    if len(unfit):
        raise DataError(
            f"{where}: {len(unfit)} distances are not squared distances of unit vectors (0 to 4), the first that of "
            f"pair {unfit[0]}: {distances[unfit[0]]}"
        )


def _check_error_pair(pair: ErrorPair, one: ReportSet) -> None:
    where = f"report: error pair {pair.index} of model `{pair.model}` on set `{pair.set}`"
    if not 0 <= pair.index < one.num_pairs:
        raise DataError(f"{where}: the set has pairs 0 to {one.num_pairs - 1}")
    if pair.kind not in (FALSE_ACCEPT, FALSE_REJECT):
        raise DataError(f"{where}: kind must be `{FALSE_ACCEPT}` or `{FALSE_REJECT}`, got `{pair.kind}`")
    if not -1.0001 <= pair.cosine <= 1.0001:
        raise DataError(f"{where}: cosine must be between -1 and 1, got {pair.cosine}")
    for side, picture in (("left", pair.left_jpeg), ("right", pair.right_jpeg)):
        if picture[:3] != b"\xff\xd8\xff":
            raise DataError(f"{where}: the {side} picture is not a JPEG file; encode it as JPEG")
        if len(picture) > _MAX_PICTURE_BYTES:
            raise DataError(
                f"{where}: the {side} picture has {len(picture):,} bytes, more than the {_MAX_PICTURE_BYTES:,} allowed"
            )
