"""Two batches of images, as they are and degraded, to the distances of their pairs.

Shapes: M images, P pairs, D embedding dimension, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core.errors import DataError
from gkd.data.degrade import Degradation
from gkd.evaluation import squared_distances
from gkd.inference.embed import embed_pixels, image_of_pair
from gkd.inference.views import Rows, View, fuse_views, require_finite
from gkd.models import InputSpec

Sides = Literal["both", "right"]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


class Case(NamedTuple):
    """A degradation at a level; none of it where the level is None."""

    degradation: Degradation
    level: float | None


@dataclass(frozen=True)
class RobustnessStep:
    """How two batches of images, which are `batch_size` pairs, become distances."""

    backbone: nn.Module
    input_spec: InputSpec
    device: torch.device
    views: tuple[View, ...]
    flip: bool | str
    sides: Sides
    batch_size: int
    seed: int
    name: str

    def distances(self, cases: Sequence[Case], pixels: Tensor, numbers: Int64s) -> tuple[list[Float64s], int]:
        """The distances of the pairs of each case, and how many forward passes they took.

        Args:
            pixels: (2 · batch_size, 3, H, W), filled up.
            numbers: (M,) the places in the set of the images that count.
        """
        clean, num_passes = self._embed(pixels, numbers, cases[0])
        found = [squared_distances(clean[0::2], clean[1::2])]
        for case in cases[1:]:
            probes = slice(0, None) if self.sides == "both" else slice(1, None, 2)
            rows, more = self._embed(pixels[probes], numbers[probes], case)
            gallery = rows[0::2] if self.sides == "both" else clean[0::2]
            found.append(squared_distances(gallery, rows[1::2] if self.sides == "both" else rows))
            num_passes += more
        return found, num_passes

    def _embed(self, pixels: Tensor, numbers: Int64s, case: Case) -> tuple[Rows, int]:
        """Embeddings (M, D) of the images that count; a short batch is filled up with the last of them."""
        parts: dict[View, list[Rows]] = {view: [] for view in self.views}
        for start in range(0, len(numbers), self.batch_size):
            own = numbers[start : start + self.batch_size]
            degraded = case.degradation(pixels[start : start + len(own)], case.level, own, self.seed)
            filler = degraded[-1:].expand(self.batch_size - len(own), -1, -1, -1)
            batch = torch.cat([degraded, filler]).to(self.device)
            for view, rows in parts.items():
                seen = batch.flip(-1) if view == "mirror" else batch
                rows.append(embed_pixels(self.backbone, self.input_spec, seen).numpy()[: len(own)])
        views = {view: np.concatenate(rows) for view, rows in parts.items()}
        describe = self._describe(numbers, case)
        require_finite(views, describe)
        fused = fuse_views(views, self.flip, describe)
        _require_direction(fused, describe)
        return fused, len(self.views) * len(parts["image"])

    def _describe(self, numbers: Int64s, case: Case) -> Callable[[int], str]:
        where = "" if case.level is None else f", {case.degradation.name} {case.level:g}"
        return lambda index: image_of_pair(self.name)(int(numbers[index])) + where


def _require_direction(rows: Rows, describe: Callable[[int], str]) -> None:
    zero = np.flatnonzero(~rows.any(axis=1))
    if len(zero):
        raise DataError(f"{describe(int(zero[0]))}: the embedding is zero, which has no direction")
