"""The folders of a run's checkpoints on the file system: which are whole, which go, how a new one takes its place.

Only one process, rank 0, works here. A name is changed by one rename each time, so that a kill between any two steps
leaves every checkpoint either where it was or where it should be.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from gkd.core.errors import CheckpointError
from gkd.train.checkpoint_marker import Marker, sync, verify

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step_(\d{8,18})")
_WRITING, _REPLACED, _DELETING = ".writing-", ".replaced-", ".deleting-"


def writing_folder(target: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return target.with_name(f"{_WRITING}{target.name}")


def put_in_place(writing: Path, target: Path) -> None:
    """Give a whole checkpoint its name, in place of one that may be there."""
    # Between the two renames the old one is still found, under its `.replaced-` name.
    replaced = target.with_name(f"{_REPLACED}{target.name}")
    if target.exists():
        target.rename(replaced)
    writing.rename(target)
    sync(target.parent)
    _remove(replaced)


def tidy(folder: Path) -> None:
    """Clear what a killed save left; a replaced checkpoint whose successor never came is put back."""
    for path in list(folder.iterdir()):
        original = folder / path.name.removeprefix(_REPLACED)
        if path.name.startswith(_REPLACED) and not original.exists():
            path.rename(original)
        elif path.name.startswith((_WRITING, _DELETING, _REPLACED)):
            _remove(path)


def candidates(folder: Path) -> list[Path]:
    """All checkpoint folders, newest first, whole or not."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    names = {path.name for path in paths}
    steps: list[tuple[int, Path]] = []
    for path in paths:
        name = path.name.removeprefix(_REPLACED)
        matched = _STEP.fullmatch(name)
        if matched and (name == path.name or name not in names):
            steps.append((int(matched[1]), path))
    return [path for _, path in sorted(steps, reverse=True)]


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files all have their digests; damaged newer ones are named in a warning."""
    for path in candidates(folder):
        try:
            verify(path)
        except (CheckpointError, OSError) as error:
            logger.warning("passing over the checkpoint %s: %s", path, error)
        else:
            return path
    return None


def sized(folder: Path) -> dict[Path, Marker]:
    """The markers of all checkpoints whose files have the right sizes, newest first."""
    markers = {}
    for path in candidates(folder):
        try:
            markers[path] = verify(path, with_digests=False)
        except (CheckpointError, OSError):
            continue  # `newest_whole` names it where it matters
    return markers


def best_of(markers: dict[Path, Marker]) -> Path | None:
    """The checkpoint with the highest score, of equals the newest, or None where none has a score."""
    scored = [(marker.score, marker.step, path) for path, marker in markers.items() if marker.score is not None]
    return max(scored)[2] if scored else None


def prune(folder: Path, keep_last: int, keep_every: int | None, saved: Path, step: int) -> None:
    """Delete all whole checkpoints but the newest `keep_last`, the best, every `keep_every`-th, and the one saved."""
    markers = sized(folder)
    kept = {*list(markers)[:keep_last], best_of(markers), saved}
    if keep_every is not None:
        # By the folder's name: a marker could name another step.
        kept |= {path for path in markers if _step_of(path) % keep_every == 0}
    later = [path.name for path, marker in markers.items() if marker.step > step]
    if later:
        logger.warning("%s holds checkpoints of later steps than %d: %s", folder, step, ", ".join(later))
    for path in markers.keys() - kept:
        doomed = folder / f"{_DELETING}{path.name}"
        try:
            path.rename(doomed)
            _remove(doomed)
        except OSError as error:
            logger.warning("could not delete the old checkpoint %s: %s", path, error)


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
