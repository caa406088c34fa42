"""Proof that a foreign network's declared input conversion is its own: it separates faces better than others.

A wrong channel order or scale costs little accuracy and shows nowhere, but the spread of the scores tells it. d' is the
difference of the mean cosines of same and different pairs over the root mean of their variances.

Shapes: P pairs, N images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gkd.core.errors import CheckpointError, ConfigError, DataError
from gkd.data import PairSet
from gkd.evaluation.paired import d_prime, paired_d_prime_gap
from gkd.inference.check_teacher import pairs_digest
from gkd.inference.embed import input_size
from gkd.inference.input_check import InputCheck, from_plain, to_plain
from gkd.inference.input_cosines import Cosines, contending_cosines, d_prime_or_none, decode_pairs
from gkd.inference.network_digest import network_digest
from gkd.inference.record import measured_once
from gkd.models import InputSpec

__all__ = ["InputCheck", "alternatives", "check_input", "check_input_once"]

logger = logging.getLogger(__name__)

# In the order red, green, blue and in units of 0..255.
_USUAL = (
    ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
)
_MIN_PAIRS_OF_A_CLASS = 50
_MIN_BALANCE = 0.2  # one pair of the rarer class to four of the other
_FALSE_ALARMS = 0.05  # of all alternatives together
_NUM_RESAMPLES = 10_000
_RECORD_VERSION = 2  # of the values kept in a record; one with others is measured anew
# Conversions as close as 127.5 and 128, and gaps as small as rounding makes, are no difference.
_SAME_MEAN = 2.0
_SAME_STD_RATIO = 1.03
_MIN_RELATIVE_GAP = 0.01


def check_input(
    backbone: nn.Module,
    input_spec: InputSpec,
    pairs: PairSet,
    *,
    device: torch.device | str = "cpu",
    num_pairs: int = 600,
    batch_size: int = 64,
    seed: int = 0,
    origin: str = "declared",
) -> InputCheck:
    """Compare d' under the declared conversion with d' under the usual others, in both channel orders, without flip.

    All are measured on some of the pairs, the declared one and the best three others on all of them. With 600 pairs and
    seven others 5,600 images go through the network: about 20 minutes for an IResNet-100 on one CPU core.

    An alternative whose d' is higher is warned of; it is an error where the paired bootstrap interval of the gap
    excludes zero, at 95 % divided over the alternatives (Bonferroni), and the gap is at least 1 % of d'. The ranks
    share the alternatives, and all come to the same result.

    Args:
        backbone: has `input_size`; on `device`.
        input_spec: what was declared.
        pairs: the first `num_pairs` are looked at, or an even selection where these are of one class or nearly so.
        num_pairs: pairs to look at. 600 of LFW always told a swapped channel order from the right one, 300 did not.
        batch_size: images a forward pass.
        seed: start of the resampling.
        origin: how the input is known, for messages: `declared`, or `family's usual`.

    Raises:
        ConfigError: an alternative is better beyond doubt (the message says how to declare it), or a setting is unfit.
        CheckpointError, DataError: the network fails under the declared conversion, or an image cannot be decoded.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    size = input_size(backbone)
    chosen = _choose(pairs.is_same, num_pairs)
    is_same = pairs.is_same[chosen]
    if min(is_same.sum(), (~is_same).sum()) < _MIN_PAIRS_OF_A_CLASS:
        reason = (
            f"{pairs.name} has {is_same.sum()} same and {(~is_same).sum()} different pairs to look at, and "
            f"{_MIN_PAIRS_OF_A_CLASS} of each are needed"
        )
        logger.warning("input: %s is the %s one and cannot be checked: %s", input_spec, origin, reason)
        return InputCheck(input_spec, size, len(chosen), reason=reason, origin=origin)
    specs = [input_spec, *alternatives(input_spec)]
    logger.info("input: comparing %d conversions on %d pairs of %s", len(specs), len(chosen), pairs.name)
    images = decode_pairs(pairs, chosen, size)
    cosines, num_screened = contending_cosines(backbone, specs, images, is_same, device=device, batch_size=batch_size)
    check = replace(_compare(input_spec, size, cosines, is_same, seed, num_screened), origin=origin)
    logger.info("%s", check)
    _judge(check)
    return check


def check_input_once(
    record: Path | None,
    backbone: nn.Module,
    input_spec: InputSpec,
    pairs: PairSet,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    origin: str = "declared",
) -> InputCheck:
    """What `record` holds of this very network, input and pairs, or what `check_input` finds, which is then kept there.

    An input that is refused is not kept. The warning of one in doubt comes again each time.

    Args:
        record: a file; None keeps nothing. The others are as in `check_input`.

    Raises:
        ConfigError, CheckpointError, DataError: as `check_input`; CheckpointError also where the record is damaged.
    """
    key = {
        "version": _RECORD_VERSION,
        "network": network_digest(backbone),
        "input": str(input_spec),
        "size": list(input_size(backbone)),
        "pairs": pairs_digest(pairs),
    }
    measured: list[InputCheck] = []

    def measure() -> dict[str, Any]:
        measured.append(check_input(backbone, input_spec, pairs, device=device, batch_size=batch_size, origin=origin))
        return to_plain(measured[0])

    values = measured_once(record, key, measure)
    if measured:
        return measured[0]
    try:
        check = replace(from_plain(values), origin=origin)
    except DataError as error:
        raise CheckpointError(f"{record}: damaged: {error}; remove it to check the input anew") from error
    logger.info("%s (from %s)", check, record)
    _judge(check)
    return check


def alternatives(declared: InputSpec) -> list[InputSpec]:
    """The likely conversions other than the declared one, in both channel orders, without near copies.

    The numbers follow their channels: where the order is swapped, so are the means and deviations.
    """
    found: list[InputSpec] = []
    mean, std = _in_order(declared, "rgb", declared.mean), _in_order(declared, "rgb", declared.std)
    for color in (declared.color, "bgr" if declared.color == "rgb" else "rgb"):
        for usual_mean, usual_std in ((mean, std), *_USUAL):
            rgb = InputSpec("rgb", usual_mean, usual_std)
            spec = InputSpec(color, _in_order(rgb, color, usual_mean), _in_order(rgb, color, usual_std))
            if not any(_is_near(spec, other) for other in (declared, *found)):
                found.append(spec)
    return found


def _numbers(values: tuple[float, float, float], separator: str = " ") -> str:
    distinct = values[:1] if len(set(values)) == 1 else values
    return separator.join(f"{value:.6g}" for value in distinct)


def _in_order(spec: InputSpec, color: str, values: tuple[float, float, float]) -> tuple[float, float, float]:
    return values if spec.color == color else (values[2], values[1], values[0])


def _is_near(spec: InputSpec, other: InputSpec) -> bool:
    means = np.abs(np.subtract(spec.mean, other.mean))
    ratios = np.exp(np.abs(np.log(np.divide(spec.std, other.std))))
    return spec.color == other.color and bool((means <= _SAME_MEAN).all() and (ratios <= _SAME_STD_RATIO).all())


def _choose(is_same: npt.NDArray[np.bool_], num_pairs: int) -> npt.NDArray[np.intp]:
    if num_pairs < 1:
        raise ConfigError(f"num_pairs must be at least 1, got {num_pairs}")
    share = float(is_same[:num_pairs].mean())
    if min(share, 1 - share) >= _MIN_BALANCE:
        return np.arange(min(num_pairs, len(is_same)))
    return np.unique(np.linspace(0, len(is_same) - 1, min(num_pairs, len(is_same))).astype(np.intp))


def _compare(
    declared: InputSpec,
    size: tuple[int, int],
    cosines: Mapping[InputSpec, Cosines],
    is_same: npt.NDArray[np.bool_],
    seed: int,
    num_screened: int,
) -> InputCheck:
    own = d_prime(cosines[declared], is_same)
    others = {
        spec: figure
        for spec, values in cosines.items()
        if spec != declared and (figure := d_prime_or_none(values, is_same)) is not None
    }
    if not others:
        return InputCheck(declared, size, len(is_same), own)
    best = max(others, key=others.__getitem__)
    num_tried = max(len(others), num_screened)
    _, low, high = paired_d_prime_gap(
        cosines[best],
        cosines[declared],
        is_same,
        num_resamples=_NUM_RESAMPLES,
        seed=seed,
        confidence=1 - _FALSE_ALARMS / num_tried,
    )
    return InputCheck(declared, size, len(is_same), own, best, others[best], low, high, num_tried)


def _judge(check: InputCheck) -> None:
    """Warn of a better alternative; refuse the declared conversion where it is better beyond doubt."""
    best, figure, own, low = check.best_alternative, check.best_d_prime, check.d_prime, check.gap_low
    if best is None or figure is None or own is None or low is None or figure <= own:
        return
    if low > 0 and figure - own >= _MIN_RELATIVE_GAP * abs(figure):
        raise ConfigError(
            f"the {check.origin} input ({check.declared}) is not what this network was trained with: it "
            f"separates faces better with {best}: d' {figure:.2f} instead of {own:.2f} on "
            f"{check.num_pairs} pairs (gap {low:.2f} to {check.gap_high:.2f}); declare "
            f"--color {best.color} --mean {_numbers(best.mean)} --std {_numbers(best.std)} on the command line, or "
            f"teacher.input: {{color: {best.color}, mean: {list(best.mean)}, std: {list(best.std)}}} in the YAML"
        )
    logger.warning(
        "input: d' is %.2f with %s and %.2f with the %s %s; no certain difference, but make sure which it is",
        figure,
        best,
        own,
        check.origin,
        check.declared,
    )
