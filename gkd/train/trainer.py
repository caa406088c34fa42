"""The training loop: batch, losses, backward, clip, finite, step; now and then log, evaluate, save."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gkd.core import distributed
from gkd.core.errors import GkdError
from gkd.core.scopes import scope
from gkd.core.types import Batch, Losses
from gkd.data.augment import Augment
from gkd.data.loader import RawBatch
from gkd.train.batch_norm import averaged, freeze_batch_norm, keep_frozen, statistics
from gkd.train.class_weights import class_shards, sharded_parameters
from gkd.train.ema import Ema
from gkd.train.memory_use import memory_gib
from gkd.train.metrics import MetricSums, RunLog
from gkd.train.nonfinite import NonFiniteGuard
from gkd.train.optim import clip_gradients, set_lr
from gkd.train.precision import LossScale, Precision, autocast
from gkd.train.progress_line import progress_line
from gkd.train.rank_watch import RankWatch
from gkd.train.row_sgd import RowSgd
from gkd.train.sample_view import SampleView
from gkd.train.step_timer import StepTimer

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Stop(Protocol):
    """Whether the user or the machine asked this process to stop, as the number of the signal, else 0."""

    signal_number: int


@dataclass(frozen=True)
class LoopSettings:
    """The loop's plain settings; steps are optimiser steps, `batch_size` counts the images of a step on all ranks."""

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    micro_batches: int = 1
    precision: Precision = "fp32"
    clip_norm: float | None = None
    freeze_batch_norm: bool = False
    log_every: int = 10
    evaluate_every: int | None = None
    save_every: int | None = None


@dataclass
class _Clock:
    """Wall time since the last log, and the part of it that was spent waiting for data."""

    started: float = field(default_factory=time.perf_counter)
    data_seconds: float = 0.0
    num_images: int = 0
    num_steps: int = 0


class Trainer:
    """Runs an objective over a loader.

    `evaluate()` gives figures to log and a score to keep checkpoints by; it is called with the means of the ranks'
    batch-norm statistics and, with `ema`, the averaged weights in place. `save(step, score)` keeps the state. Both are
    collective. The learning rate is `schedule(step)`. `guard` decides what becomes of a step whose loss or gradient is
    not finite, and `watch` is told where this rank is. `loss_scale` goes with the precision fp16.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: RowSgd,
        schedule: Callable[[int], float],
        settings: LoopSettings,
        *,
        device: torch.device,
        augment: Augment,
        run_log: RunLog,
        evaluate: Callable[[], tuple[dict[str, float], float | None]],
        save: Callable[[int, float | None], None],
        stop: Stop,
        guard: NonFiniteGuard,
        watch: RankWatch,
        ema: Ema | None = None,
        loss_scale: LossScale | None = None,
        sample_view: SampleView | None = None,
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.settings = settings
        self.device = device
        self.augment = augment
        self.run_log = run_log
        self.evaluate = evaluate
        self.save = save
        self.stop = stop
        self.guard = guard
        self.watch = watch
        self.ema = ema
        self.loss_scale = loss_scale
        # Where nothing is decided by the norm but whether the run ends, the host need not wait for it.
        self.checks_later = device.type == "cuda" and guard.action == "stop" and loss_scale is None
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.sharded = sharded_parameters(objective)
        self.model = _wrap(objective, device)
        self.sample_view = sample_view
        self.student_timer = StepTimer(device)
        self.sums = MetricSums()
        self.clock = _Clock()
        self.num_replaced = 0
        self.has_warned = False

    def fit(self, loader: Iterable[RawBatch], start_step: int) -> int:
        """Train from `start_step` to the end, or until asked to stop; returns the number of steps done in all."""
        settings = self.settings
        batches = iter(loader)
        self._train_mode()
        self.clock = _Clock()
        for step in range(start_step, settings.total_steps):
            self.watch.step, self.watch.doing = step, "training"
            set_lr(self.optimizer, self.schedule(step))
            self._step(step, batches)
            done = step + 1
            is_last = done == settings.total_steps
            if done % settings.log_every == 0 or is_last:
                self._log(done)
            stop_signal = self._agreed_stop()
            score = None
            if is_last or _is_due(done, settings.evaluate_every):
                score = self._evaluate_or_save(done)
            # A checkpoint of weights that give no finite step would push out a good one.
            is_wanted = _is_due(done, settings.save_every) and not self.guard.is_skipping
            if is_last or stop_signal or is_wanted:
                self._save(done, score)
            if stop_signal and not is_last:
                logger.warning("asked to stop: saved after step %d of %d", done, settings.total_steps)
                return done
        return settings.total_steps

    def _step(self, step: int, incoming: Iterator[RawBatch]) -> None:
        """One optimiser step over all micro-batches; nothing is kept of it where a loss or gradient is not finite."""
        objective: Any = self.objective  # any module that maps a Batch to Losses and has a `step`
        objective.step = step
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.keep(objective.buffers())
        batches = [self._next_batch(incoming) for _ in range(self.settings.micro_batches)]
        with scope("teacher"):
            self._look_ahead(batches)
        seen: list[Losses] = []
        for index, batch in enumerate(batches):
            with self._no_sync_before(index), self.student_timer.timed():
                seen.append(self._forward_backward(batch))
        scale = None if self.loss_scale is None else self.loss_scale.scale
        num_overflows = self.guard.num_overflows
        with scope("clip"):
            norm = clip_gradients(self.parameters, self.settings.clip_norm, self.sharded, scale or 1.0, self.optimizer)
            if self.checks_later:
                self.guard.check_later(step, norm, seen, batches)
            is_applied = self.checks_later or self.guard.check(step, norm, seen, batches, scale)
        if is_applied:
            with scope("optimizer"):
                self.optimizer.step()
                if self.ema is not None:
                    self.ema.update(step)
            self._count(norm, seen, batches)
            if self.sample_view is not None:
                self.sample_view.show(step + 1, seen, batches)
        if self.loss_scale is not None:
            self.loss_scale.update(self.guard.num_overflows > num_overflows)
        self.clock.num_images += self.settings.batch_size
        self.clock.num_steps += 1

    def _look_ahead(self, batches: list[Batch]) -> None:
        """Show the step's micro-batches to an objective that wants to see them together."""
        look_ahead = getattr(self.objective, "look_ahead", None)
        if look_ahead is not None:
            look_ahead(batches)

    def _teacher_share(self, elapsed: float) -> dict[str, float]:
        """The part of `elapsed` seconds that went into a teacher, where there is one and that is known."""
        take_seconds = getattr(self.objective, "take_teacher_seconds", None)
        seconds = None if take_seconds is None else take_seconds()
        return {} if seconds is None else {"time/teacher_share": seconds / elapsed}

    def _count(self, norm: Tensor, seen: list[Losses], batches: list[Batch]) -> None:
        """Add the figures of a step to those that are logged next."""
        self.sums.add({"optim/gradient_norm": norm}, 1)
        for losses, batch in zip(seen, batches, strict=True):
            named = {f"loss/{name}": part for name, part in losses.parts.items()} | {"loss/total": losses.total}
            self.sums.add(named | {f"stats/{name}": value for name, value in losses.stats.items()}, len(batch))

    def _next_batch(self, batches: Iterator[RawBatch]) -> Batch:
        started = time.perf_counter()
        raw = next(batches)
        self.clock.data_seconds += time.perf_counter() - started
        for description in raw.replaced:
            logger.warning("replaced a record that does not decode: %s", description)
        self.num_replaced += len(raw.replaced)
        return prepare_batch(raw, self.augment)

    def _forward_backward(self, batch: Batch) -> Losses:
        """Add this micro-batch's gradient, weighted so that the sum over ranks and micro-batches is the global mean.

        DDP averages over ranks, so the local mean of n images counts n * world_size / batch_size.
        """
        settings = self.settings
        with autocast(self.device, settings.precision):
            losses: Losses = self.model(batch)
        share = len(batch) * distributed.world_size() / settings.batch_size
        scale = 1.0 if self.loss_scale is None else self.loss_scale.scale
        with scope("backward"):
            torch.autograd.backward(losses.total * (share * scale))
        return losses

    def _no_sync_before(self, index: int) -> AbstractContextManager[None]:
        """DDP reduces gradients with the last micro-batch only."""
        if isinstance(self.model, DistributedDataParallel) and index < self.settings.micro_batches - 1:
            return self.model.no_sync()
        return nullcontext()

    def _log(self, done: int) -> None:
        self.guard.settle()
        clock, settings = self.clock, self.settings
        elapsed = max(time.perf_counter() - clock.started, 1e-9)
        values = self.sums.reduce()
        values |= {
            "optim/lr": self.schedule(done - 1),
            "epoch": done / settings.steps_per_epoch,
            "time/step_seconds": elapsed / max(1, clock.num_steps),
            "time/data_share": clock.data_seconds / elapsed,
            "time/images_per_second": clock.num_images / elapsed,
            "data/num_replaced": float(self.num_replaced),
            "fault/num_skipped": float(self.guard.num_skipped),
        }
        values |= self._teacher_share(elapsed) | memory_gib(self.device)
        values["time/student_share"] = self.student_timer.take_seconds() / elapsed
        if self.loss_scale is not None:
            values |= {
                "optim/loss_scale": self.loss_scale.scale,
                "fault/num_overflows": float(self.guard.num_overflows),
            }
        self._warn_of_empty_secondary(values)
        self.run_log.write(done, values)
        logger.info("%s", progress_line(done, settings.total_steps, values))
        self.clock = _Clock()

    def _warn_of_empty_secondary(self, values: dict[str, float]) -> None:
        empty = [name for name, value in values.items() if name.endswith("/secondary_size") and value == 0]
        if empty and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "every class is in Primary, so the grouping drops nothing and Binary is 0 (%s is 0); lower the "
                "grouping's threshold or k",
                ", ".join(empty),
            )

    def _agreed_stop(self) -> int:
        """The signal that any rank received, known to all, so that all stop after the same step."""
        if distributed.world_size() == 1:
            return self.stop.signal_number
        flag = torch.tensor(float(self.stop.signal_number))
        return int(distributed.all_reduce_max(flag).item())

    def _evaluate_or_save(self, done: int) -> float | None:
        """Evaluate; where that is refused, because of a set's images, the steps done are kept all the same."""
        self.guard.settle()
        try:
            return self._evaluate(done)
        except GkdError:
            self._train_mode()
            self._save(done, None)
            raise

    def _evaluate(self, done: int) -> float | None:
        def evaluate() -> float | None:
            values, score = self.evaluate()
            if values:
                self.run_log.write(done, values)
                accuracies = [f"{name[5:]} {value:.4f}" for name, value in values.items() if name.endswith("accuracy")]
                logger.info("step %d  evaluation  %s", done, "  ".join(accuracies))
            return score

        self.watch.doing = "evaluating"
        with averaged(*self._statistics()), nullcontext() if self.ema is None else self.ema.applied():
            score = self._untimed(evaluate)
        self._train_mode()
        return score

    def _save(self, done: int, score: float | None) -> None:
        self.guard.settle()
        self.watch.doing = "saving"
        self._untimed(lambda: self.save(done, score))

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What differs from rank to rank."""
        return statistics(self.objective), {} if self.ema is None else self.ema.statistics()

    def _untimed(self, function: Callable[[], Result]) -> Result:
        """Call `function` and keep its time out of the step's figures."""
        started = time.perf_counter()
        result = function()
        self.clock.started += time.perf_counter() - started
        return result

    def _train_mode(self) -> None:
        self.model.train()
        if self.settings.freeze_batch_norm:
            freeze_batch_norm(self.objective)
        keep_frozen(self.objective)


def prepare_batch(raw: RawBatch, augment: Augment) -> Batch:
    """The batch as a network sees it: its (N, H, W, 3) images, on their device, as (N, 3, H, W) and changed."""
    given = raw.images.permute(0, 3, 1, 2)
    with scope("augment"):
        images, is_flipped = augment(given, raw.sample_ids, raw.epoch)
    if images is given and given.device.type == "cpu":
        with scope("copy"):
            images = given.clone()  # the loader's own memory, which the next micro-batch may overwrite
    return Batch(images, raw.labels, raw.sample_ids, is_flipped)


def _wrap(objective: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return objective
    # A class shard's gradient is that of its rank's classes alone, and comes averaged as DDP would.
    shards = list(class_shards(objective))
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(objective, shards)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # The setting's successor would overwrite each rank's own batch-norm statistics once, here.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        return DistributedDataParallel(
            objective, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
        )


def _is_due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0
