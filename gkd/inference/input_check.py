"""What a check of a network's input found, in words and as plain values for a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gkd.core.errors import ConfigError, DataError
from gkd.core.yaml_lines import printable
from gkd.models import InputSpec

_FIGURES = ("d_prime", "best_d_prime", "gap_low", "gap_high")


@dataclass(frozen=True)
class InputCheck:
    """What the check found; all figures None where it could not be made.

    `gap_low`, `gap_high`: the interval of the best alternative's d' minus the declared one's, at a confidence that
    allows for its being the best of several. `num_alternatives`: how many others were measured. `reason`: why no
    check could be made. `origin`: how the input is known, for messages.
    """

    declared: InputSpec
    size: tuple[int, int]
    num_pairs: int
    d_prime: float | None = None
    best_alternative: InputSpec | None = None
    best_d_prime: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None
    num_alternatives: int = 0
    reason: str | None = None
    origin: str = "declared"

    @property
    def outcome(self) -> str:
        """Such as `best of 8 inputs on 600 pairs, d' 5.50; next rgb, mean 127.5, std 127.5: 5.26`."""
        best, figure = self.best_alternative, self.best_d_prime
        if self.d_prime is None:
            return f"not checked: {self.reason}"
        on_pairs = f"on {self.num_pairs} pairs, d' {self.d_prime:.2f}"
        if best is None or figure is None:
            return f"{on_pairs}; the network takes no other input to compare with"
        if figure <= self.d_prime:
            return f"best of {self.num_alternatives + 1} inputs {on_pairs}; next {best}: {figure:.2f}"
        return f"not the best of {self.num_alternatives + 1} inputs {on_pairs}; in doubt against {best}: {figure:.2f}"

    def __str__(self) -> str:
        text = f"input: {self.declared}, {self.size[0]}x{self.size[1]}"
        if self.d_prime is None:
            return f"{text}; not checked: {self.reason}"
        text += f"; d' {self.d_prime:.2f} on {self.num_pairs} pairs"
        if self.best_alternative is None:
            return text
        return f"{text}; best alternative {self.best_alternative}: {self.best_d_prime:.2f}"


def to_plain(check: InputCheck) -> dict[str, Any]:
    """All that a check found as plain values, for a JSON file."""
    best = check.best_alternative
    return {
        **asdict(check),
        "declared": _spec_to_plain(check.declared),
        "size": list(check.size),
        "best_alternative": None if best is None else _spec_to_plain(best),
    }


def from_plain(values: Mapping[str, Any]) -> InputCheck:
    """What `to_plain` wrote; it may have been changed by anyone since.

    Raises:
        DataError: values of other names or kinds.
    """
    try:
        best, reason, (height, width) = values["best_alternative"], values["reason"], values["size"]
        d_prime, best_d_prime, gap_low, gap_high = (_number_or_none(values[name]) for name in _FIGURES)
        check = InputCheck(
            declared=_spec_from_plain(values["declared"]),
            size=(int(height), int(width)),
            num_pairs=int(values["num_pairs"]),
            d_prime=d_prime,
            best_alternative=None if best is None else _spec_from_plain(best),
            best_d_prime=best_d_prime,
            gap_low=gap_low,
            gap_high=gap_high,
            num_alternatives=int(values["num_alternatives"]),
            reason=None if reason is None else printable(str(reason), 300),
            origin=printable(str(values["origin"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise DataError(f"no outcome of an input check: {str(dict(values))[:200]}") from error
    if check.d_prime is None and check.reason is None:
        raise DataError(f"no outcome of an input check: {str(dict(values))[:200]}")
    return check


def _spec_to_plain(spec: InputSpec) -> dict[str, Any]:
    return {"color": spec.color, "mean": list(spec.mean), "std": list(spec.std)}


def _spec_from_plain(values: Mapping[str, Any]) -> InputSpec:
    return InputSpec(color=values["color"], mean=values["mean"], std=values["std"])


def _number_or_none(value: Any) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{value} is no figure")
    return None if value is None else float(value)
