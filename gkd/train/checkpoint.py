"""Checkpoints of one run: a folder a step, whole or absent at every instant, the newest and the best kept.

Layout of `<folder>/step_00001234/`: DCP's `.metadata` and `__<rank>_0.distcp` with the tensors, `values.json` with the
plain values, and `complete.json`, written last, with the size and SHA-256 of every file. A save works in
`.writing-step_00001234` and ends with one rename. Several machines must share the folder.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from gkd.core import distributed
from gkd.core.errors import CheckpointError, ConfigError
from gkd.train.checkpoint_agreement import on_every_rank, on_rank_0
from gkd.train.checkpoint_folders import best_of, newest_whole, prune, put_in_place, sized, tidy, writing_folder
from gkd.train.checkpoint_marker import (
    MARKER_NAME,
    FileRecord,
    Marker,
    describe_file,
    json_text,
    read_json,
    verify,
    write_marker,
)
from gkd.train.checkpoint_metadata import METADATA_NAME, StoredTensor, read_stored_tensors
from gkd.train.checkpoint_tensors import compare, read_tensors, write_tensors

VALUES_NAME = "values.json"


class Checkpoints:
    """Saves, finds and loads the checkpoints of one run.

    Every method is collective: all ranks call it with the same arguments, and where it fails on one rank it raises
    on all of them. Only one run may save into a folder.

    Args:
        folder: where the checkpoints lie; made by the first save.
        keep_last: how many of the newest whole checkpoints stay. The one with the best score stays besides.
        keep_every: checkpoints of steps divisible by it stay for good; None: no such.

    Raises:
        ConfigError: `keep_last` or `keep_every` is below 1.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, keep_every: int | None = None) -> None:
        if keep_last < 1:
            raise ConfigError(f"keep_last must be 1 or more, got {keep_last}")
        if keep_every is not None and keep_every < 1:
            raise ConfigError(f"keep_every must be 1 or more, or none, got {keep_every}")
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.keep_every = keep_every

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        *,
        score: float | None = None,
        group: ProcessGroup | None = None,
    ) -> Path:
        """Write one checkpoint; one of the same step is replaced once the new one is whole.

        Args:
            step: the global step.
            tensors: by name; the same names and shapes on every rank. Of replicated tensors rank 0's are stored.
            values: plain JSON values; rank 0's are stored.
            score: higher is better; the best (of equals the newest) is never deleted.
            group: what the ranks talk over, all of them; None is the default group.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: on every rank: the disk is full, the folder cannot be written or is not shared by all
                machines, the ranks' tensors differ, or a value is not plain. No new checkpoint is left behind.
        """
        target = self.folder / f"step_{step:08d}"
        writing = writing_folder(target)
        _check_same(on_every_rank(lambda: _check_tensors(tensors), group))
        on_rank_0(lambda: self._start(step, writing, values, score), group)
        try:
            names = write_tensors(writing, tensors, group)
            records = on_every_rank(lambda: _describe_own_files(writing), group)
            files = {name: record for own in records for name, record in own.items()}
            on_rank_0(lambda: self._finish(writing, target, Marker(step, score, files), names), group)
        except CheckpointError as error:
            on_rank_0(lambda: shutil.rmtree(writing, ignore_errors=True), group)
            raise CheckpointError(f"{error}; see that {self.folder} has space and can be written") from error
        on_rank_0(lambda: prune(self.folder, self.keep_last, self.keep_every, target, step), group)
        return target

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None; damaged newer ones are named in a warning and passed over."""
        return on_rank_0(lambda: newest_whole(self.folder))

    def best(self) -> Path | None:
        """The checkpoint with the highest score, of equals the newest, or None where none has a score."""
        return on_rank_0(lambda: best_of(sized(self.folder)))

    def load(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Fill `tensors` in place with the checkpoint's and return its values.

        The names, shapes and dtypes must be equal; the number of ranks may differ from the one that saved.

        Raises:
            CheckpointError: on every rank: no checkpoint there, an unfinished, damaged or unsafe one, or one of
                another network (missing, unexpected and different tensors are named). Nothing that a file names is
                ever run. Before the last check passes `tensors` are untouched.
        """
        path = Path(path)
        marker, values = on_rank_0(lambda: _verified(path))
        sizes = {name: record.size for name, record in marker.files.items()}
        stored = on_every_rank(lambda: _fitting(path, sizes, tensors))[distributed.rank()]
        read_tensors(path, stored, tensors)
        return values

    def _start(self, step: int, writing: Path, values: dict[str, Any], score: float | None) -> None:
        if step < 0 or (score is not None and not math.isfinite(score)):
            raise CheckpointError(
                f"cannot save step {step} with score {score}: the step must be >= 0, the score finite"
            )
        text = json_text(values, f"the values of step {step}")
        self.folder.mkdir(parents=True, exist_ok=True)
        tidy(self.folder)
        writing.mkdir()
        (writing / VALUES_NAME).write_text(text)

    def _finish(self, writing: Path, target: Path, marker: Marker, names: set[str]) -> None:
        for name in (METADATA_NAME, VALUES_NAME):
            marker.files[name] = describe_file(writing / name, is_synced=True)
        absent = sorted(name for name in names | set(marker.files) if not (writing / name).is_file())
        if absent or not names <= set(marker.files):
            raise CheckpointError(f"rank 0 does not see {absent} in {writing}: all machines must share this folder")
        write_marker(writing, marker)
        put_in_place(writing, target)


def _verified(path: Path) -> tuple[Marker, dict[str, Any]]:
    marker = verify(path)
    for name in (METADATA_NAME, VALUES_NAME):
        if name not in marker.files:
            raise CheckpointError(f"{path / MARKER_NAME} is damaged: it does not list {name}; give another checkpoint")
    values = read_json(path / VALUES_NAME)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path / VALUES_NAME} is damaged: not a JSON object; give another checkpoint")
    return marker, values


def _fitting(path: Path, sizes: dict[str, int], tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
    """What the checkpoint stores, once it is known to fit `tensors`."""
    _check_tensors(tensors)
    stored = read_stored_tensors(path, sizes)
    compare(path, stored, tensors)
    return stored


def _check_tensors(tensors: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and dtypes, which must be the same on every rank."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"`{name}` is a {type(tensor).__name__}, not a tensor; put plain values in `values`")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(f"`{name}` is sparse or has no memory; only dense tensors are stored")
    return sorted((name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items())


def _check_same(described: list[list[tuple[str, tuple[int, ...], str]]]) -> None:
    for number, other in enumerate(described):
        if other != described[0]:
            first = min(set(other) ^ set(described[0]))
            raise CheckpointError(f"ranks 0 and {number} differ in the tensors to save, first in {first}")


def _describe_own_files(folder: Path) -> dict[str, FileRecord]:
    """Force this rank's tensor files to the disk and describe them."""
    paths = folder.glob(f"__{distributed.rank()}_*")
    return {path.name: describe_file(path, is_synced=True) for path in paths}
