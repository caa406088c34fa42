"""A run's figures: summed on the device, reduced over the ranks once an interval, written as JSONL and TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from gkd.core import distributed
from gkd.core.errors import ConfigError
from gkd.core.files import atomic_write
from gkd.train.board_hparams import session_start
from gkd.train.log_files import EventFile, LinesFile
from gkd.train.sinks import Sink

# In the run folder.
BOARD_FOLDER = "tensorboard"


class MetricSums:
    """Weighted sums of scalars since the last reading, kept on the device so that adding never waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor], count: int) -> None:
        """Add the means `values` of `count` samples."""
        for name, value in values.items():
            weighted = value.detach().float() * count
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
            self._counts[name] = self._counts.get(name, 0) + count

    def reduce(self) -> dict[str, float]:
        """The means over all samples of all ranks since the last call, then start again. One host read."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names]).double()
        counts = torch.tensor([self._counts[name] for name in names], dtype=torch.float64, device=sums.device)
        reduced = distributed.all_reduce_sum(torch.stack([sums, counts]))
        self._sums, self._counts = {}, {}
        return dict(zip(names, (reduced[0] / reduced[1]).tolist(), strict=True))


class RunLog:
    """`metrics.jsonl` and TensorBoard files of a run, and other sinks; on ranks other than 0 every call does nothing.

    A resumed run continues both: lines and points after `start_step` steps, written by a run that was killed after its
    last checkpoint, are dropped, for the resumed run writes them again. Once it is open, a full disk or a read-only
    folder costs no run: see `AppendFile`. Nor does a sink.

    Args:
        folder: the run folder.
        start_step: steps done before this start.
        sinks: more places that get every figure. They are closed with the log.
        config: the plain config, for TensorBoard's table of hyper-parameters; None for none.

    Raises:
        ConfigError: the files cannot be opened, or the lines of an earlier start cannot be read.
    """

    def __init__(
        self, folder: Path, start_step: int, sinks: Sequence[Sink] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        self.is_writer = distributed.rank() == 0
        self._sinks: list[Sink] = list(sinks)
        if not self.is_writer:
            return
        path = folder / "metrics.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _keep_lines_before(path, start_step)
            self._lines = LinesFile(path)
            self._board = EventFile(folder / BOARD_FOLDER, purge_step=start_step + 1 if start_step else None)
        except OSError as error:
            raise ConfigError(
                f"run.folder: cannot write {error.filename or folder}: {error.strerror}; free some space, make the "
                "folder writable, or choose another"
            ) from error
        self._sinks = [self._lines, self._board, *sinks]
        if config is not None:
            self._board.add(start_step, [session_start(config, folder.name)])

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(is_failed=error is not None)

    @property
    def num_failures(self) -> int:
        """How often a write to one of the files has failed."""
        return self._lines.file.num_failures + self._board.file.num_failures if self.is_writer else 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` as those reached after `step` steps."""
        if not self.is_writer:
            return
        wall_time = round(time.time(), 3)
        for sink in self._sinks:
            sink.scalars(step, values, wall_time)

    def show(self, step: int, summaries: Iterable[Summary.Value]) -> None:
        """Add summaries that only TensorBoard can show."""
        if self.is_writer:
            self._board.add(step, summaries)

    def close(self, is_failed: bool = False) -> None:
        """Write what is still waiting and close all."""
        if not self.is_writer:
            return
        for sink in self._sinks:
            sink.close(is_failed)


def read_metrics(path: Path, name: str) -> tuple[list[int], list[float]]:
    """The steps and values of metric `name` in a `metrics.jsonl`."""
    steps, values = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if name in record:
            steps.append(int(record["step"]))
            values.append(float(record[name]))
    return steps, values


def _keep_lines_before(path: Path, start_step: int) -> None:
    """Keep the lines of steps up to `start_step`; a line cut short by a kill is dropped too."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= start_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
