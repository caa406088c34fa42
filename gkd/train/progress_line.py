"""A run in one line: where it is, its losses, its speed, where the time goes, its memory and the time left."""

from __future__ import annotations

from collections.abc import Mapping

# What takes part in a step's time, as the line and the log call it.
_SHARES = {"data": "time/data_share", "teacher": "time/teacher_share", "student": "time/student_share"}


def progress_line(done: int, total_steps: int, values: Mapping[str, float]) -> str:
    """One line of the figures that are logged after `done` steps; that of a long distilled run fits 160 columns.

    The total loss is followed by its unweighted parts, with the name of their term only where there are several; `ce`
    is the cross entropy of classification. The shares are of the time since the last line. Memory is what is allocated
    and the peak on CUDA, and the process's resident memory on a CPU.
    """
    num_epochs = values["epoch"] * total_steps / done
    groups = [
        f"step {done} ep {values['epoch']:.1f}/{round(num_epochs, 1):g}",
        _losses(values),
        f"lr {values['optim/lr']:.3g} {values['time/images_per_second']:.0f} img/s",
        _shares(values),
        _memory(values),
        f"ETA {format_seconds((total_steps - done) * values['time/step_seconds'])}",
    ]
    return "  ".join(group for group in groups if group)


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _losses(values: Mapping[str, float]) -> str:
    if "loss/total" not in values:  # every step since the last line was skipped
        return "no loss"
    parts = {
        name.removeprefix("loss/"): value
        for name, value in sorted(values.items())
        if name.startswith("loss/") and name != "loss/total" and not name.endswith("/weighted")
    }
    terms = {name.split("/")[0] for name in parts if "/" in name}
    named = [f"{_part_name(name, len(terms))} {_short(value)}" for name, value in parts.items()]
    return f"loss {_short(values['loss/total'])} ({' '.join(named)})"


def _part_name(name: str, num_terms: int) -> str:
    if name == "classification":
        return "ce"
    return name if num_terms > 1 else name.split("/")[-1]


def _shares(values: Mapping[str, float]) -> str:
    shares = [f"{what} {100 * values[name]:.0f}" for what, name in _SHARES.items() if name in values]
    return f"{' '.join(shares)}%"


def _memory(values: Mapping[str, float]) -> str:
    if "memory/peak_gib" in values:
        return f"{values['memory/allocated_gib']:.1f}/{values['memory/peak_gib']:.1f}G"
    return f"{values['memory/resident_gib']:.1f}G" if "memory/resident_gib" in values else ""


def _short(value: float) -> str:
    """Three digits that count: 12.3, 0.0123."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
