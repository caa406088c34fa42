"""Start a run from weights that another run trained: the backbone whole, and of the head what still fits.

C classes, K of them on this rank, D embedding dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from gkd.core.class_shard import ClassShard
from gkd.core.errors import CheckpointError, ConfigError
from gkd.models import Backbone, load_head, load_weights
from gkd.train.class_weights import class_shards
from gkd.train.objective import ClassificationObjective

# Where a run folder keeps its backbone, and a folder of weights.
STUDENT_FILES = ("weights/student.pt", "student.pt", "weights/student.safetensors", "student.safetensors")
HEAD_FILES = ("head.pt", "head.safetensors")


def start_from(
    objective: ClassificationObjective,
    path: str | Path,
    *,
    num_classes: int,
    identity_names: Sequence[str] | None,
    fingerprint: str,
    is_head_kept: bool = True,
) -> list[str]:
    """Fill the backbone of `objective` from `path`, and its head as far as the classes are the same.

    The class weights lie in `head.pt` (or `head.safetensors`) beside the backbone's file. They are taken over where
    they were trained on the very same data; else row by row, for the identities whose names are in both. Every other
    row stays as it was drawn. Of class weights that are split over the ranks each rank takes its own rows. Called
    before the first step on every rank, before DDP and before an `Ema` is made; a run that resumes needs none.

    Args:
        objective: freshly built, on any device; filled in place.
        path: a run folder, or a weight file of any kind that `load_weights` reads.
        num_classes: C of this run.
        identity_names: C names of this run's classes by label, None where the data has none.
        fingerprint: of this run's training data.
        is_head_kept: False draws all class weights anew, such as where equal names mean other people.

    Returns:
        What was done, as lines for the log, the same on every rank.

    Raises:
        CheckpointError: a file is missing, damaged or unsafe, or of another network than this run's.
        ConfigError: the weights were trained with another input conversion than this run's.
    """
    path = _student_file(Path(path))
    report = load_weights(cast(Backbone, objective.backbone), path)
    if report.is_input_certain and report.input_spec != objective.input_spec:
        raise ConfigError(
            f"{path}: was trained with the input {report.input_spec}, and this run has {objective.input_spec}; "
            "set `input` to what the weights were trained with"
        )
    lines = [f"backbone: {report.family} from {path}"]
    if not report.is_input_certain:
        lines.append(f"input: the file does not say what it was trained with; this run has {objective.input_spec}")
    weight = objective.head.weight
    shard = class_shards(objective).get("head.weight", ClassShard(num_classes, 0, num_classes))
    assert (shard.num_classes, shard.size) == (num_classes, len(weight))
    anew = f"head: drawn anew for {num_classes} classes"
    if not is_head_kept:
        return [*lines, f"{anew}, as asked"]
    heads = [path.with_name(name) for name in HEAD_FILES if path.with_name(name).is_file()]
    if not heads:
        return [*lines, f"{anew}; there is no {path.with_name(HEAD_FILES[0])}"]
    return [*lines, _fill_head(weight, shard, heads[0], identity_names, fingerprint, anew)]


def _student_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in STUDENT_FILES if (path / name).is_file()]
    if not found:
        raise CheckpointError(
            f"{path}: holds none of {', '.join(STUDENT_FILES)}; give the folder of a run that has saved weights, or a "
            "weight file"
        )
    return found[0]


def _fill_head(
    weight: Tensor, shard: ClassShard, path: Path, names: Sequence[str] | None, fingerprint: str, anew: str
) -> str:
    """Copy what fits from the head file into `weight` (K, D); returns what was done, on all ranks together."""
    saved, meta = load_head(path)
    num_classes, num_saved = shard.num_classes, len(saved)
    if saved.shape[1] != weight.shape[1]:
        raise CheckpointError(
            f"{path}: its class weights have {saved.shape[1]} dimensions and this backbone's embeddings "
            f"{weight.shape[1]}; it does not belong to the backbone beside it"
        )
    if num_saved == num_classes and meta.get("fingerprint") == fingerprint:
        _copy_rows(weight, shard, saved, {row: row for row in range(shard.start, shard.stop)})
        return f"head: all {num_classes} classes from {path}, trained on the same data"
    if names is None or meta.get("identity_names") is None:
        return f"{anew}; {path} has {num_saved} classes of other data, and without identity names none can be matched"
    rows = _rows_by_name(names, meta["identity_names"])
    if not rows:
        return f"{anew}; none of the {num_saved} identities of {path} has the name of one of them"
    _copy_rows(weight, shard, saved, rows)
    rest = num_classes - len(rows)
    what = f"{len(rows)} of {num_classes} classes, those that" if rest else f"all {num_classes} classes, which"
    others = f"; the other {rest} are drawn anew" if rest else ""
    return f"head: {what} have the name of one of the {num_saved} identities of {path}{others}"


def _rows_by_name(names: Sequence[str], saved_names: Sequence[str]) -> dict[int, int]:
    """Our row and the saved row of each name that is in both; a name that is twice in one of them tells nothing."""
    own, theirs = _places(names), _places(saved_names)
    return {row: theirs[name] for name, row in own.items() if name in theirs}


def _places(names: Sequence[str]) -> dict[str, int]:
    counts: Counter[str] = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}


@torch.no_grad()
def _copy_rows(weight: Tensor, shard: ClassShard, saved: Tensor, rows: dict[int, int]) -> None:
    """weight[own] = saved[theirs] for every class `own` of this rank and `theirs` in `rows`."""
    pairs = [(own - shard.start, theirs) for own, theirs in rows.items() if shard.start <= own < shard.stop]
    own, theirs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    weight[own.to(weight.device)] = saved[theirs].to(weight)
