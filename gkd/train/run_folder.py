"""A run's folder: one run at a time in it, and everything needed to tell, repeat or continue that run.

<folder>/config.yaml       the resolved config; alone it reruns the run
<folder>/run.json          command line, state of the source tree, versions, one entry a start
<folder>/git.diff          what the source tree had changed since its commit, where it had; git_2.diff … of later starts
<folder>/environment.json  packages, system, CPU, GPUs and the variables that matter, of the newest start
<folder>/metrics.jsonl     every logged figure
<folder>/tensorboard/      the same for TensorBoard
<folder>/checkpoints/      one folder a step
<folder>/nonfinite/        the batches of steps whose loss or gradient was not finite, for tools/replay.py
<folder>/weights/          student.pt (the trained backbone) and head.pt (its class weights)
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gkd.core import distributed
from gkd.core.errors import CheckpointError, ConfigError
from gkd.core.files import atomic_write, locked_folder, read_bounded
from gkd.train.checkpoint import Checkpoints
from gkd.train.git_state import git_state
from gkd.train.machine import machine

logger = logging.getLogger(__name__)

_MAX_RUN_BYTES = 64 << 20
_DIFF_NAME = re.compile(r"git(_\d+)?\.diff")

# Settings that may differ when a run goes on: they change where, how often or how fast, not what is computed.
FREE_TO_CHANGE = (
    "run.folder",
    "data.train.path",
    "data.workers",
    "data.timeout_seconds",
    "train.log_every",
    "train.save_every",
    "train.keep_last",
    "train.keep_every",
    "train.max_skipped",
    "train.compile",
    "train.channels_last",
    "train.checkpoint_activations",
    "start.weights",
    "train.resume",
    "train.timeout_minutes",
    "log",
    "evaluation",
    "teacher.run",
    "teacher.weights",
    "teacher.centres.folder",
    "teacher.check_pairs",
    "teacher.check_samples",
    "teacher.min_accuracy",
    "teacher.min_train_rank1",
)

# Settings that decide which images a step sees: changed, a run would repeat or lose some.
_FIXED = frozenset({"run.seed", "train.batch_size", "train.micro_batches"})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this run; the lock falls with the process, however it ends.

    Raises:
        GkdError: another run holds it, or the folder cannot be written.
    """
    if distributed.rank() != 0:
        yield
        return
    with locked_folder(folder, "run.folder", "another run is writing"):
        yield


def choose_checkpoint(resume: str | Path, checkpoints: Checkpoints, folder: Path) -> Path | None:
    """The checkpoint to continue from, or None to start anew.

    Raises:
        ConfigError: `never` in a folder that holds a run. CheckpointError: a path that holds no whole checkpoint, or
            `auto` where every checkpoint is damaged.
    """
    if resume == "auto":
        return _newest_or_none(checkpoints)
    if resume == "never":
        if checkpoints.latest() is not None:
            raise ConfigError(
                f"train.resume=never: {folder} already holds a run, which would be lost; choose another run.folder, "
                "or remove it"
            )
        return None
    path = Path(resume)
    if (path / "complete.json").exists():
        return path
    inside = path if path.name == "checkpoints" else path / "checkpoints"
    latest = Checkpoints(inside).latest() if inside.is_dir() else None
    if latest is None:
        raise CheckpointError(
            f"train.resume: {path} is no whole checkpoint and no run folder with one; give a folder such as "
            f"{folder}/checkpoints/step_00001000, or auto"
        )
    return latest


def _newest_or_none(checkpoints: Checkpoints) -> Path | None:
    """The newest whole checkpoint; where all are damaged an error, for starting anew would replace what is left."""
    latest = checkpoints.latest()
    if latest is None and any(checkpoints.folder.glob("step_*")):
        raise CheckpointError(
            f"{checkpoints.folder}: holds checkpoints, but none is whole (see the warnings above); repair one, or move "
            "the folder away to start anew"
        )
    return latest


def require_same_run(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any], *, is_explicit: bool) -> None:
    """Refuse to continue another run's checkpoint as if it were this one's.

    `saved` and `now` hold `config` (plain), `fingerprint` (of the training data) and `environment`. Other data, another
    seed or batch size would repeat or lose samples and are always refused; other differences are refused where the
    checkpoint was found by itself and only told where the user named it.
    """
    if saved["fingerprint"] != now["fingerprint"]:
        raise CheckpointError(
            f"{path}: was saved while training on other data; resume with the same data, or start a new run"
        )
    changed = _differences(saved["config"], now["config"])
    fixed = {key for key in changed if key in _FIXED or key.startswith("data.sampling")}
    if changed and (fixed or not is_explicit):
        listed = "; ".join(f"{key}: {changed[key][0]!r} there, {changed[key][1]!r} now" for key in sorted(changed))
        on_purpose = "" if fixed else f", or go on from it with the new ones by train.resume={path}"
        raise ConfigError(
            f"{path} belongs to a run with other settings ({listed}); choose another run.folder, restore them"
            f"{on_purpose}"
        )
    for key, (before, after) in sorted(changed.items()):
        logger.warning("resuming with %s=%r, which was %r", key, after, before)
    for key, value in now["environment"].items():
        if saved["environment"].get(key) != value:
            logger.warning(
                "resuming with %s=%r, which was %r: the result is no longer bit-identical to an uninterrupted run",
                key,
                value,
                saved["environment"].get(key),
            )


def record_start(folder: Path, config_yaml: str, command: Sequence[str], environment: Mapping[str, Any]) -> None:
    """Write `config.yaml` and `environment.json` and add this start to `run.json`; rank 0 only.

    Raises:
        ConfigError: the folder cannot be written, or its `run.json` is not one of ours.
    """
    if distributed.rank() != 0:
        return
    git = git_state()
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "git_commit": git.commit,
        "git_branch": git.branch,
        "num_untracked": git.num_untracked,
        "python": sys.version.split()[0],
        **environment,
    }
    try:
        earlier = _earlier_starts(folder / "run.json")
        start["git_diff"] = _keep_diff(folder, git.diff, earlier)
        _write(folder / "config.yaml", config_yaml)
        _write(folder / "environment.json", json.dumps(machine(), indent=2) + "\n")
        _write(folder / "run.json", json.dumps([*earlier, start], indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"run.folder: cannot write in {folder}: {error.strerror or error}; free some space, make the folder "
            "writable, or choose another"
        ) from error


def _earlier_starts(path: Path) -> list[Any]:
    """The starts that `run.json` holds already."""
    if not path.exists():
        return []
    try:
        starts = json.loads(read_bounded(path, _MAX_RUN_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is damaged ({error}); move it away, and the run goes on without it") from error
    if not isinstance(starts, list):
        raise ConfigError(f"{path}: is not a list of this run's starts; move it away, and the run goes on without it")
    return starts


def _keep_diff(folder: Path, diff: bytes, earlier: Sequence[Any]) -> str | None:
    """Keep `diff` in a file of its own, unless it is that of the last start; returns the file's name."""
    if not diff:
        return None
    last = earlier[-1].get("git_diff") if earlier and isinstance(earlier[-1], dict) else None
    if isinstance(last, str) and _DIFF_NAME.fullmatch(last) and (folder / last).is_file():
        is_same = read_bounded(folder / last, _MAX_RUN_BYTES) == diff
        if is_same:
            return last
    name = f"git_{len(earlier) + 1}.diff" if earlier else "git.diff"
    with atomic_write(folder / name) as temporary:
        temporary.write_bytes(diff)
    return name


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _differences(before: Any, after: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """The leaves in which two plain configs differ, but for those that are free to change."""
    if any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE):
        return {}
    if isinstance(before, dict) and isinstance(after, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in sorted({*before, *after}):
            found |= _differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        return found
    return {} if before == after else {key: (before, after)}
