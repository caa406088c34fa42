"""How far a study's runs have come, read from their folders: trained, scored, chosen; no weights are loaded for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gkd.core.config import load_config, to_plain
from gkd.core.errors import ConfigError
from gkd.schema import TrainRun
from gkd.study.plan import PlannedRun
from gkd.study.score import STUDENT_FILE, SetKey, current_score
from gkd.train.run_folder import FREE_TO_CHANGE

DONE_FILE = "study_done.json"
# These change what a run learns from, although `tools/train.py` lets a run that goes on change them.
DATA_KEYS = ("data.train.path", "teacher.run", "teacher.weights")
HARMLESS = tuple(key for key in FREE_TO_CHANGE if key not in DATA_KEYS)


def choose(runs: Sequence[PlannedRun], key: SetKey, skip: Mapping[str, str] = {}) -> int | None:
    """The trial with the best accuracy, of equals the earliest; 0 where there was nothing to try, None without scores.

    Runs named in `skip` failed. Others that have no score yet make the choice None.
    """
    if not runs:
        return 0
    scores = {run.trial: current_score(run.folder, key) for run in runs if run.name not in skip}
    if not scores or any(score is None for score in scores.values()):
        return None
    return max(scores, key=lambda trial: (scores[trial].accuracy, -trial))  # type: ignore[union-attr]


def is_finished(run: PlannedRun) -> bool:
    """Whether the run was trained to its end, with these settings."""
    is_done = (run.folder / DONE_FILE).exists() and (run.folder / STUDENT_FILE).exists()
    return is_done and not changed_settings(run)


def require_same_settings(run: PlannedRun) -> None:
    """Refuse to go on with, or to take for done, a run of other settings.

    Raises:
        ConfigError: the folder holds one.
    """
    changed = changed_settings(run)
    if changed:
        listed = "; ".join(f"{key}: {there!r} there, {now!r} now" for key, (there, now) in sorted(changed.items()))
        raise ConfigError(
            f"{run.folder} belongs to a run with other settings ({listed}); choose another study.folder, or remove it"
        )


def changed_settings(run: PlannedRun) -> dict[str, tuple[Any, Any]]:
    """What differs between the run's config and that of the run in its folder, where there is one."""
    path = run.folder / "config.yaml"
    if not path.exists():
        return {}
    there, now = _leaves(to_plain(load_config(path, TrainRun))), _leaves(to_plain(run.config))
    keys = [key for key in {**there, **now} if not any(key == free or key.startswith(free + ".") for free in HARMLESS)]
    return {key: (there.get(key), now.get(key)) for key in keys if there.get(key) != now.get(key)}


def _leaves(plain: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(plain, dict):
        return {key: plain}
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= _leaves(value, f"{key}.{name}" if key else name)
    return found


def is_scored(run: PlannedRun, keys: Sequence[SetKey]) -> bool:
    """Whether the run has its score on every set."""
    return all(current_score(run.folder, key) is not None for key in keys)
