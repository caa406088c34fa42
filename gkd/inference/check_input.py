"""Proof that a foreign network's declared input conversion is its own: it separates faces better than others.

A wrong channel order or scale costs little accuracy and shows nowhere, but the spread of the scores tells it. d' is the
difference of the mean cosines of same and different pairs over the root mean of their variances.

Shapes: P pairs, N images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import CheckpointError, ConfigError, DataError
from gkd.data import PairSet, decode_image
from gkd.evaluation import squared_distances
from gkd.evaluation.paired import d_prime, paired_d_prime_gap
from gkd.inference.embed import embed_pixels, eval_mode, input_size, raise_first_failure
from gkd.models import InputSpec

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
# Conversions as close as 127.5 and 128, and gaps as small as rounding makes, are no difference.
_SAME_MEAN = 2.0
_SAME_STD_RATIO = 1.03
_MIN_RELATIVE_GAP = 0.01

Cosines = npt.NDArray[np.float64]


@dataclass(frozen=True)
class InputCheck:
    """What the check found; all figures None where it could not be made.

    `gap_low`, `gap_high`: the interval of the best alternative's d' minus the declared one's, at a confidence that
    allows for its being the best of several.
    """

    declared: InputSpec
    size: tuple[int, int]
    num_pairs: int
    d_prime: float | None = None
    best_alternative: InputSpec | None = None
    best_d_prime: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None

    def __str__(self) -> str:
        text = f"input: {self.declared}, {self.size[0]}x{self.size[1]}"
        if self.d_prime is None:
            return f"{text}; not checked"
        text += f"; d' {self.d_prime:.2f} on {self.num_pairs} pairs"
        if self.best_alternative is None:
            return text
        return f"{text}; best alternative {self.best_alternative}: {self.best_d_prime:.2f}"


def check_input(
    backbone: nn.Module,
    input_spec: InputSpec,
    pairs: PairSet,
    *,
    device: torch.device | str = "cpu",
    num_pairs: int = 600,
    batch_size: int = 64,
    seed: int = 0,
) -> InputCheck:
    """Compare d' under the declared conversion with d' under the usual others, in both channel orders, without flip.

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
        logger.warning(
            "input: %s is as declared and cannot be checked: %s has %d same and %d different pairs to look at, "
            "and %d of each are needed",
            input_spec,
            pairs.name,
            is_same.sum(),
            (~is_same).sum(),
            _MIN_PAIRS_OF_A_CLASS,
        )
        return InputCheck(input_spec, size, len(chosen))
    images = _decode(pairs, chosen, size)
    cosines = _cosines(backbone, [input_spec, *alternatives(input_spec)], images, device, batch_size)
    check = _compare(input_spec, size, cosines, is_same, seed)
    logger.info("%s", check)
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


def _decode(pairs: PairSet, chosen: npt.NDArray[np.intp], size: tuple[int, int]) -> Tensor:
    """Pixels uint8 (2P, 3, H, W) of the chosen pairs, decoded once for all conversions."""
    indices = [int(image) for pair in chosen for image in (2 * pair, 2 * pair + 1)]
    decoded = np.stack([decode_image(pairs.images[index], size, pairs.describe(index)) for index in indices])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2)


def _cosines(
    backbone: nn.Module, specs: list[InputSpec], images: Tensor, device: torch.device | str, batch_size: int
) -> dict[InputSpec, Cosines]:
    """Cosines (P,) of the pairs under each conversion; an alternative that the network cannot take is left out."""
    own: dict[int, Cosines] = {}
    failure: tuple[int, Exception] | None = None
    with torch.inference_mode(), eval_mode(backbone):
        for index in range(distributed.rank(), len(specs), distributed.world_size()):
            try:
                rows = [
                    embed_pixels(backbone, specs[index], part.to(device)) for part in torch.split(images, batch_size)
                ]
                embeddings = torch.cat(rows).numpy()
                own[index] = 1.0 - squared_distances(embeddings[0::2], embeddings[1::2]) / 2.0
            except Exception as error:  # told to the other ranks first, which wait below; then raised
                if index > 0 and isinstance(error, CheckpointError | DataError):
                    logger.debug("alternative input %s left out: %s", specs[index], error)
                    continue
                failure = (index, error)
                break
    raise_first_failure(failure)
    gathered = {index: values for part in distributed.gather_objects(own) for index, values in part.items()}
    return {specs[index]: gathered[index] for index in sorted(gathered)}


def _compare(
    declared: InputSpec,
    size: tuple[int, int],
    cosines: Mapping[InputSpec, Cosines],
    is_same: npt.NDArray[np.bool_],
    seed: int,
) -> InputCheck:
    own = d_prime(cosines[declared], is_same)
    others = {
        spec: figure
        for spec, values in cosines.items()
        if spec != declared and (figure := _d_prime_or_none(values, is_same)) is not None
    }
    if not others:
        return InputCheck(declared, size, len(is_same), own)
    best = max(others, key=others.__getitem__)
    _, low, high = paired_d_prime_gap(
        cosines[best],
        cosines[declared],
        is_same,
        num_resamples=_NUM_RESAMPLES,
        seed=seed,
        confidence=1 - _FALSE_ALARMS / len(others),
    )
    return InputCheck(declared, size, len(is_same), own, best, others[best], low, high)


def _d_prime_or_none(cosines: Cosines, is_same: npt.NDArray[np.bool_]) -> float | None:
    try:
        return d_prime(cosines, is_same)
    except DataError:  # all cosines equal: the network sees nothing through this conversion
        return None


def _judge(check: InputCheck) -> None:
    """Warn of a better alternative; refuse the declared conversion where it is better beyond doubt."""
    best, figure, own, low = check.best_alternative, check.best_d_prime, check.d_prime, check.gap_low
    if best is None or figure is None or own is None or low is None or figure <= own:
        return
    if low > 0 and figure - own >= _MIN_RELATIVE_GAP * abs(figure):
        raise ConfigError(
            f"the declared input ({check.declared}) is not what this network was trained with: it "
            f"separates faces better with {best}: d' {figure:.2f} instead of {own:.2f} on "
            f"{check.num_pairs} pairs (gap {low:.2f} to {check.gap_high:.2f}); declare "
            f"--color {best.color} --mean {_numbers(best.mean)} --std {_numbers(best.std)} on the command line, or "
            f"teacher.input: {{color: {best.color}, mean: {list(best.mean)}, std: {list(best.std)}}} in the YAML"
        )
    logger.warning(
        "input: d' is %.2f with %s and %.2f with the declared %s; no certain difference, but check the declaration",
        figure,
        best,
        own,
        check.declared,
    )
