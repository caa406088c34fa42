"""The learning rate as a pure function of the global step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from gkd.core.errors import ConfigError


class Decay(Protocol):
    """How the rate falls once the warm-up is over."""

    def __call__(self, lr: float, progress: float, epoch: float) -> float:
        """The rate at `progress` in [0, 1] of the steps after the warm-up, at `epoch` (a fraction) of the run."""
        ...


class Cosine:
    """Half a cosine from the base rate to `final_lr`.

    lr(p) = final + (base - final) * (1 + cos(pi * p)) / 2

    Source: Loshchilov and Hutter, SGDR, ICLR 2017, equation 5, without restarts.
    """

    def __init__(self, *, final_lr: float = 0.0) -> None:
        self.final_lr = _not_negative("final_lr", final_lr)

    def __call__(self, lr: float, progress: float, epoch: float) -> float:
        return self.final_lr + (lr - self.final_lr) * (1 + math.cos(math.pi * progress)) / 2


class Polynomial:
    """lr(p) = final + (base - final) * (1 - p)^power, the schedule of insightface's arcface_torch (power 2)."""

    def __init__(self, *, power: float = 2.0, final_lr: float = 0.0) -> None:
        self.power = _not_negative("power", power)
        self.final_lr = _not_negative("final_lr", final_lr)

    def __call__(self, lr: float, progress: float, epoch: float) -> float:
        return self.final_lr + (lr - self.final_lr) * float((1 - progress) ** self.power)


class Step:
    """The base rate times `factor` for each of `milestones` (in epochs of the whole run) that has been reached."""

    def __init__(self, *, milestones: tuple[float, ...], factor: float = 0.1) -> None:
        if list(milestones) != sorted(milestones):
            raise ConfigError(f"step schedule: milestones must ascend, got {list(milestones)}")
        self.milestones = milestones
        self.factor = _not_negative("factor", factor)

    def __call__(self, lr: float, progress: float, epoch: float) -> float:
        return float(lr * self.factor ** sum(epoch >= milestone for milestone in self.milestones))


SCHEDULES: dict[str, Callable[..., Decay]] = {"cosine": Cosine, "polynomial": Polynomial, "step": Step}


class Schedule:
    """Linear warm-up, then a decay; `schedule(step)` is the rate of that step, counted from 0.

    Warm-up: lr(t) = start + (base - start) * (t + 1) / warmup_steps for t < warmup_steps.
    """

    def __init__(
        self,
        decay: Decay,
        *,
        lr: float,
        total_steps: int,
        steps_per_epoch: int,
        warmup_epochs: float = 0.0,
        warmup_start_lr: float = 0.0,
    ) -> None:
        self.decay = decay
        self.lr = lr
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.warmup_steps = round(warmup_epochs * steps_per_epoch)
        self.warmup_start_lr = warmup_start_lr
        if self.warmup_steps >= total_steps and self.warmup_steps > 0:
            raise ConfigError(
                f"schedule.warmup_epochs: {warmup_epochs} epochs are {self.warmup_steps} steps, but the run has only "
                f"{total_steps}; lower it or train longer"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.warmup_start_lr + (self.lr - self.warmup_start_lr) * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.decay(self.lr, min(1.0, progress), step / self.steps_per_epoch)


def _not_negative(name: str, value: float) -> float:
    if not value >= 0:
        raise ConfigError(f"schedule: {name} must not be negative, got {value}")
    return value
