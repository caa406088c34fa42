"""A loss or gradient that is not finite: who saw it, in which images, and what becomes of the step.

No checkpoint ever holds a step with such a gradient. The batches are kept in the run folder, so that `tools/replay.py`
can show afterwards where the first bad number arose.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gkd.core import distributed
from gkd.core.errors import ConfigError, GkdError
from gkd.core.types import Batch, Losses
from gkd.train.nonfinite_dump import make_dump, save_dump

logger = logging.getLogger(__name__)

Action = Literal["stop", "skip"]
_NUM_NAMED_IDS = 16


@dataclass(frozen=True)
class RankReport:
    """What one rank saw in a bad step.

    `bad_names` are its losses that are not finite, `sample_ids` the images of the micro-batches that gave them, `dump`
    the file of its batches, or None with `failure` as the reason.
    """

    bad_names: list[str]
    sample_ids: list[int]
    dump: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class _Waiting:
    """A step whose norm is on its way to the host; `done`, where there is one, is the CUDA event that follows it."""

    step: int
    norm: Tensor
    done: Any
    seen_losses: list[Losses]
    batches: Sequence[Batch]


class NonFiniteGuard:
    """Decides for every step whether it may be applied, from one number: the norm of the global gradient.

    With a loss scale (fp16), a gradient too large for fp16 beside finite losses is no fault: the step is left out
    and the caller lowers the scale. Only where the scale is down to 1 does it count like any other.

    Args:
        folder: the run's folder; dumps go to `<folder>/nonfinite/`.
        action: `stop` ends the run; `skip` leaves the step out and goes on.
        max_skipped: steps left out in a row before the run ends all the same.
        max_dumps: dumps kept a rank; the oldest are deleted.

    Attributes:
        num_skipped: steps left out so far, but for those due to the loss scale.
        num_overflows: steps left out because the loss scale was too large.

    Raises:
        ConfigError: an unknown action, or a count below 1.
    """

    def __init__(self, folder: Path, *, action: Action = "stop", max_skipped: int = 10, max_dumps: int = 4) -> None:
        if action not in get_args(Action):
            raise ConfigError(f"the action on values that are not finite must be stop or skip, got {action!r}")
        if max_skipped < 1 or max_dumps < 1:
            raise ConfigError(f"max_skipped and max_dumps must be 1 or more, got {max_skipped} and {max_dumps}")
        self.folder = folder
        self.action = action
        self.max_skipped = max_skipped
        self.max_dumps = max_dumps
        self.num_skipped = 0
        self.num_overflows = 0
        self._num_in_a_row = 0
        self._waiting: _Waiting | None = None
        self._is_late = False
        self._live: list[Tensor] = []
        self._kept: list[Tensor] = []

    @property
    def is_skipping(self) -> bool:
        """Whether the last step was left out, so that the weights are perhaps no longer worth a checkpoint."""
        return self._num_in_a_row > 0

    def keep(self, buffers: Iterable[Tensor]) -> None:
        """Remember `buffers` before a step's forward passes; where the step is left out, `check` puts them back.

        A forward pass writes its statistics into the batch norms, and one NaN there would stay for good. Does nothing
        where a bad step ends the run.
        """
        if self.action == "stop":
            return
        self._live = [buffer.detach() for buffer in buffers]
        if _kinds(self._live) == _kinds(self._kept):
            _copy_all(self._kept, self._live)
        else:
            self._kept = [buffer.clone() for buffer in self._live]

    def check(
        self,
        step: int,
        norm: Tensor,
        seen_losses: Sequence[Losses],
        batches: Sequence[Batch],
        scale: float | None = None,
    ) -> bool:
        """Whether step `step` may be applied. Reads one number from the device; only where that is bad, collective.

        Args:
            step: the global step, from 0.
            norm: the global gradient norm, a scalar, equal on all ranks.
            seen_losses: this rank's losses, one entry a micro-batch.
            batches: the batches that gave them.
            scale: the loss scale, where there is one.

        Raises:
            GkdError: on every rank, where the run is to end; says which losses, ranks and images, and what to do.
        """
        if bool(torch.isfinite(norm)):
            self._num_in_a_row = 0
            return True
        bad = [bad_parts(losses) for losses in seen_losses]
        if scale is not None and scale > 1 and not any(distributed.gather_objects(any(bad))):
            self.num_overflows += 1
            logger.info("step %d: the gradient overflows with loss scale %g; the step is left out", step, scale)
            _copy_all(self._live, self._kept)
            return False
        own = self._report(step, norm, seen_losses, batches, bad, scale)
        self._decide(step, scale, distributed.gather_objects(own))
        return False

    def check_later(self, step: int, norm: Tensor, seen_losses: Sequence[Losses], batches: Sequence[Batch]) -> None:
        """Check the step of the call before, and this one at the next call or at `settle`.

        So the host never waits for the device, which is through with the step before. For steps that end the run if
        they are bad: by then they and the next have been applied, and the weights in memory are lost.

        Raises:
            GkdError: as `check`, of the step before.
        """
        assert self.action == "stop", "a step that may be left out must be checked before it is applied"
        self.settle()
        on_host, done = norm.detach().to("cpu", non_blocking=True), None
        if norm.device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        # Without their graphs, which may hold much.
        plain = [
            Losses(one.total.detach(), {name: part.detach() for name, part in one.parts.items()}) for one in seen_losses
        ]
        self._waiting = _Waiting(step, on_host, done, plain, batches)

    def settle(self) -> None:
        """Check what `check_later` has put off; to be called before anything is made of the weights.

        Raises:
            GkdError: as `check`.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        if waiting.done is not None:
            waiting.done.synchronize()
        self._is_late = True
        self.check(waiting.step, waiting.norm, waiting.seen_losses, waiting.batches)

    def _report(
        self,
        step: int,
        norm: Tensor,
        seen_losses: Sequence[Losses],
        batches: Sequence[Batch],
        bad: Sequence[list[str]],
        scale: float | None,
    ) -> RankReport:
        """What this rank saw, once its batches are on the disk."""
        names = sorted({name for part in bad for name in part})
        ids = [number for batch, part in zip(batches, bad, strict=True) if part for number in batch.sample_ids.tolist()]
        try:
            dump = make_dump(step, distributed.rank(), distributed.world_size(), norm, seen_losses, batches, scale)
            path = save_dump(self.folder / "nonfinite", dump, self.max_dumps)
        except (OSError, RuntimeError, GkdError) as error:  # a full disk must not hide what the dump is about
            return RankReport(names, ids, failure=str(error).splitlines()[0])
        return RankReport(names, ids, dump=str(path))

    def _decide(self, step: int, scale: float | None, reports: Sequence[RankReport]) -> None:
        """End the run, or put the buffers back and warn."""
        self._num_in_a_row += 1
        what, details = what_happened(step, reports, scale), " ".join(_details(reports, self.folder))
        advice = "Lower optim.lr, set optim.clip_norm, or use train.precision=fp32"
        if self.action == "stop" or self._num_in_a_row > self.max_skipped:
            outcome = "it is in no checkpoint" if self._is_late else "nothing was updated"
            row = f" ({self._num_in_a_row} such steps in a row)" if self.action == "skip" else ""
            raise GkdError(
                f"{what}{row}; {outcome}. {details} {advice}, and go on with that from a checkpoint before it by "
                "train.resume=PATH"
            )
        self.num_skipped += 1
        _copy_all(self._live, self._kept)
        logger.warning("%s; the step is left out (%d so far). %s", what, self.num_skipped, details)


def bad_parts(losses: Losses) -> list[str]:
    """The parts of `losses` that are not finite; `total` only where no part explains it."""
    bad = sorted(name for name, part in losses.parts.items() if not bool(torch.isfinite(part).all()))
    return bad if bad or bool(torch.isfinite(losses.total).all()) else ["total"]


def what_happened(step: int, reports: Sequence[RankReport], scale: float | None) -> str:
    """Step, losses, loss scale and, of several ranks, those that saw it."""
    names = sorted({name for report in reports for name in report.bad_names})
    ranks = [str(rank) for rank, report in enumerate(reports) if report.bad_names]
    if not names:
        what = "the gradient is not finite (all losses are finite)"
    else:
        what = f"the loss {names[0]} is not finite" if len(names) == 1 else f"losses {', '.join(names)} are not finite"
    details = [f"loss scale {scale:g}"] if scale is not None else []
    if ranks and len(reports) > 1:
        details.append(f"seen by rank {', '.join(ranks)} of {len(reports)} ranks")
    return f"step {step}: {what}" + (f" ({'; '.join(details)})" if details else "")


def _details(reports: Sequence[RankReport], folder: Path) -> list[str]:
    """Sentences: the images of the bad micro-batches, where the batches are, and how to look at them."""
    sentences = []
    for rank, report in enumerate(reports):
        if report.sample_ids:
            named = ", ".join(map(str, report.sample_ids[:_NUM_NAMED_IDS]))
            more = f" … ({len(report.sample_ids)} in all)" if len(report.sample_ids) > _NUM_NAMED_IDS else ""
            who = f" on rank {rank}" if len(reports) > 1 else ""
            sentences.append(f"The images of the micro-batches that gave it{who} are samples {named}{more}.")
    # The dump of a rank that saw a bad loss says more than that of one that got the gradient from it.
    dumps = [report.dump for report in sorted(reports, key=lambda one: not one.bad_names) if report.dump]
    if dumps:
        sentences.append(f"To see where it arises: python tools/replay.py {folder} {dumps[0]}.")
    failures = sorted({report.failure for report in reports if report.failure})
    if failures:
        sentences.append(f"A batch could not be kept for a replay ({'; '.join(failures)}).")
    return sentences


def _kinds(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
