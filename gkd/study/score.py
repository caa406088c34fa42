"""Scores of a study's runs on sets of pairs, kept in the run folders.

`study_<set>.json` holds the figures and `study_<set>.npz` each pair's distance and verdict. The figures name the
weights and the set by their sha256: a score is never taken for that of other weights, and no set is scored twice by
mistake.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.files import atomic_write, read_bounded

logger = logging.getLogger(__name__)

STUDENT_FILE = Path("weights/student.pt")
MAX_SCORE_BYTES = 1 << 20


@dataclass(frozen=True)
class SetKey:
    """A set of pairs, by its content, and how images are embedded for it."""

    path: Path
    sha256: str
    flip: bool


@dataclass(frozen=True)
class StudySets:
    """The sets of a study: what settings are chosen on, and what final runs are scored on."""

    tuning: SetKey
    tests: tuple[SetKey, ...]


@dataclass(frozen=True)
class Score:
    """The stored figures of one run on one set; `num_scorings` counts how often the set was looked at by this run."""

    student_sha256: str
    set_sha256: str
    flip: bool
    num_scorings: int
    figures: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Verification accuracy, a fraction."""
        return float(self.figures["accuracy"])

    def is_of(self, student_sha256: str, key: SetKey) -> bool:
        """Whether these are the figures of these weights on this set."""
        return (self.student_sha256, self.set_sha256, self.flip) == (student_sha256, key.sha256, key.flip)


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def score_path(run_folder: Path, set_path: Path) -> Path:
    """Where the score of a run on a set is kept."""
    return run_folder / f"study_{set_path.stem}.json"


def read_score(run_folder: Path, set_path: Path) -> Score | None:
    """The stored score of a run on a set, whatever weights it is of; None where there is none.

    Raises:
        DataError: the file is damaged.
    """
    path = score_path(run_folder, set_path)
    if not path.exists():
        return None
    try:
        plain = json.loads(read_bounded(path, MAX_SCORE_BYTES))
        score = Score(**{name: plain[name] for name in Score.__dataclass_fields__})
        float(score.figures["accuracy"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no score of a study ({error}); remove it to score the run again") from error
    return score


def current_score(run_folder: Path, key: SetKey) -> Score | None:
    """The stored score, if it is of the weights and the set that are there now."""
    score = read_score(run_folder, key.path)
    student = run_folder / STUDENT_FILE
    if score is None or not student.exists() or not score_path(run_folder, key.path).with_suffix(".npz").exists():
        return None
    return score if score.is_of(file_sha256(student), key) else None


def read_verdicts(run_folder: Path, set_path: Path) -> npt.NDArray[np.bool_]:
    """Whether the run judged each pair of the set rightly, (P,).

    Raises:
        DataError: the file is missing or damaged.
    """
    path = score_path(run_folder, set_path).with_suffix(".npz")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays["is_right"], dtype=np.bool_)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no verdicts of pairs can be read ({error}); remove it to score again") from error


def write_score(run_folder: Path, set_path: Path, score: Score, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Keep a score; the figures come last, for they stand for the whole."""
    path = score_path(run_folder, set_path)
    with atomic_write(path.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    plain = {name: getattr(score, name) for name in Score.__dataclass_fields__}
    plain["time"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def score_run(run_folder: Path, set_path: Path, flip: bool, batch_size: int = 64) -> None:
    """Embed a set with a run's student, judge its pairs, keep the result."""
    from gkd.core import distributed
    from gkd.data import PairSet
    from gkd.evaluation.verification import judge_pairs
    from gkd.inference.embed import evaluate_pairs
    from gkd.models import load_student

    earlier = read_score(run_folder, set_path)
    student = run_folder / STUDENT_FILE
    student_sha256, set_sha256 = file_sha256(student), file_sha256(set_path)
    backbone, input_spec, _ = load_student(student)
    device = distributed.device()
    result = evaluate_pairs(
        backbone.to(device),
        input_spec,
        PairSet.load(set_path),
        flip=flip,
        batch_size=batch_size,
        device=device,
        name=str(set_path),
    )
    num_scorings = 1 + (earlier.num_scorings if earlier else 0)
    score = Score(student_sha256, set_sha256, flip, num_scorings, result.to_json())
    is_right = judge_pairs(result.distances, result.is_same)
    arrays = {"is_right": is_right, "distances": result.distances, "is_same": result.is_same}
    write_score(run_folder, set_path, score, arrays)
