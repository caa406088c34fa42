"""Cosines of pairs under several input conversions: all on a few pairs, the likeliest on all pairs.

Shapes: P pairs, H x W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import CheckpointError, DataError
from gkd.data import PairSet, decode_image
from gkd.evaluation import squared_distances
from gkd.evaluation.paired import d_prime
from gkd.inference.embed import embed_pixels, eval_mode, raise_first_failure
from gkd.models import InputSpec

logger = logging.getLogger(__name__)

# On 100 pairs of LFW the best of seven alternatives was always among the first three; not so on 50.
_NUM_SCREENING_PAIRS = 100
_NUM_CONTENDERS = 3
_MIN_STEP = 3  # fewer pairs are not worth the detour

Cosines = npt.NDArray[np.float64]


def decode_pairs(pairs: PairSet, chosen: npt.NDArray[np.intp], size: tuple[int, int]) -> Tensor:
    """Pixels uint8 (2P, 3, H, W) of the chosen pairs (P,), decoded once for all conversions."""
    indices = [int(image) for pair in chosen for image in (2 * pair, 2 * pair + 1)]
    decoded = np.stack([decode_image(pairs.images[index], size, pairs.describe(index)) for index in indices])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2)


def contending_cosines(
    backbone: nn.Module,
    specs: Sequence[InputSpec],
    images: Tensor,
    is_same: npt.NDArray[np.bool_],
    *,
    device: torch.device | str,
    batch_size: int,
) -> tuple[dict[InputSpec, Cosines], int]:
    """Cosines (P,) under the first of `specs` and under those others that have a chance to be the best.

    An alternative that the network cannot take is left out. The ranks share the conversions; all get the same.

    Args:
        images: uint8 (2P, 3, H, W), pair after pair.
        is_same: (P,).

    Returns:
        The cosines, and the number of alternatives that were tried and have a d'.

    Raises:
        CheckpointError, DataError: the network fails under the first conversion.
    """
    is_first = _screening_pairs(is_same)
    if is_first.all():
        cosines = _cosines(backbone, specs, images, device, batch_size)
        return cosines, len(_ranked(cosines, specs[0], is_same))
    paired = images.reshape(-1, 2, *images.shape[1:])
    few = _cosines(backbone, specs, paired[torch.from_numpy(is_first)].flatten(0, 1), device, batch_size)
    ranked = _ranked(few, specs[0], is_same[is_first])
    contenders = [specs[0], *ranked[:_NUM_CONTENDERS]]
    rest = _cosines(backbone, contenders, paired[torch.from_numpy(~is_first)].flatten(0, 1), device, batch_size)
    return {spec: _merged(is_first, few[spec], rest[spec]) for spec in rest}, len(ranked)


def d_prime_or_none(cosines: Cosines, is_same: npt.NDArray[np.bool_]) -> float | None:
    """d', or None where the network sees nothing through a conversion: all cosines are equal."""
    try:
        return d_prime(cosines, is_same)
    except DataError:
        return None


def _screening_pairs(is_same: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which pairs (P,) are looked at first: an even selection of each class, or all where there are few."""
    step = len(is_same) // _NUM_SCREENING_PAIRS
    if step < _MIN_STEP:
        return np.ones(len(is_same), dtype=np.bool_)
    is_first = np.zeros(len(is_same), dtype=np.bool_)
    for pairs_of_class in (np.flatnonzero(is_same), np.flatnonzero(~is_same)):
        is_first[pairs_of_class[::step]] = True
    return is_first


def _ranked(
    cosines: Mapping[InputSpec, Cosines], declared: InputSpec, is_same: npt.NDArray[np.bool_]
) -> list[InputSpec]:
    """The alternatives that have a d', the best first."""
    figures = {spec: d_prime_or_none(values, is_same) for spec, values in cosines.items() if spec != declared}
    known = {spec: figure for spec, figure in figures.items() if figure is not None}
    return sorted(known, key=lambda spec: -known[spec])


def _merged(is_first: npt.NDArray[np.bool_], few: Cosines, rest: Cosines) -> Cosines:
    cosines = np.empty(len(is_first))
    cosines[is_first], cosines[~is_first] = few, rest
    return cosines


def _cosines(
    backbone: nn.Module, specs: Sequence[InputSpec], images: Tensor, device: torch.device | str, batch_size: int
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
