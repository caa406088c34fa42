"""What single images of a step show: how their figures are spread and, where asked for, the images themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from gkd.core.types import Batch, Losses
from gkd.train import board_summaries
from gkd.train.metrics import RunLog
from gkd.train.sample_images import Pixels, picture_of

TARGET_COSINE = "target_cosine"


class SampleView:
    """Histograms and pictures of the images of single steps, for TensorBoard.

    They are those of this process, which for the one that writes the log is a random share of the batch. On all other
    steps nothing is kept, computed or read from the device.

    Args:
        run_log: what shows them.
        histograms_every: steps between histograms of `Losses.samples`; None for none.
        images_every: steps between pictures of images; None for none. They show the faces that are trained on.
        num_images: images of a picture.
    """

    def __init__(
        self, run_log: RunLog, *, histograms_every: int | None, images_every: int | None, num_images: int = 16
    ) -> None:
        self._run_log = run_log
        self._histograms_every = histograms_every
        self._images_every = images_every
        self._num_images = num_images

    def show(self, done: int, seen: Sequence[Losses], batches: Sequence[Batch]) -> None:
        """Show the micro-batches of the step that makes `done` steps, and what came of them, if their turn is now."""
        if not self._run_log.is_writer:
            return
        has_histograms, has_images = (
            every is not None and done % every == 0 for every in (self._histograms_every, self._images_every)
        )
        if not (has_histograms or has_images):
            return
        figures = _figures(seen)
        shown = []
        if has_histograms:
            shown += [board_summaries.histogram(f"samples/{name}", values) for name, values in figures.items()]
        if has_images:
            shown += self._pictures(batches, figures.get(TARGET_COSINE))
        self._run_log.show(done, [summary for summary in shown if summary is not None])

    def _pictures(self, batches: Sequence[Batch], target_cosine: npt.NDArray[np.float64] | None) -> list[Summary.Value]:
        first = np.arange(min(self._num_images, sum(len(batch) for batch in batches)))
        described = f"the first {len(first)} images of the step, as the student saw them"
        pictures = [board_summaries.image("images/augmented", _picture(batches, first, target_cosine), described)]
        if target_cosine is not None:
            hardest = np.argsort(target_cosine, kind="stable")[: self._num_images]  # NaN comes last
            described = f"the {len(hardest)} images of the step with the lowest cosine with their own class"
            pictures.append(
                board_summaries.image("images/hardest", _picture(batches, hardest, target_cosine), described)
            )
        return pictures


def _figures(seen: Sequence[Losses]) -> dict[str, npt.NDArray[np.float64]]:
    """The figures of every image of all micro-batches, (N,) each: one read of the device."""
    names = [name for name in seen[0].samples if all(name in losses.samples for losses in seen)]
    if not names:
        return {}
    rows = [torch.cat([losses.samples[name].double() for losses in seen]) for name in names]
    return dict(zip(names, torch.stack(rows).cpu().numpy(), strict=True))


def _picture(
    batches: Sequence[Batch], index: npt.NDArray[np.int64], target_cosine: npt.NDArray[np.float64] | None
) -> Pixels:
    """The images `index` of all micro-batches, counted through, with id, label and cosine under each."""
    images = _rows([batch.images for batch in batches], index).permute(0, 2, 3, 1)
    sample_ids = _rows([batch.sample_ids for batch in batches], index).tolist()
    labels = _rows([batch.labels for batch in batches], index).tolist()
    captions = [[f"id {sample_id}", f"label {label}"] for sample_id, label in zip(sample_ids, labels, strict=True)]
    if target_cosine is not None:
        for lines, cosine in zip(captions, target_cosine[index], strict=True):
            lines.append(f"cosine {cosine:.3f}")
    return picture_of(list(images.contiguous().numpy()), captions)


def _rows(tensors: Sequence[Tensor], index: npt.NDArray[np.int64]) -> Tensor:
    """Some rows of `tensors`, taken as one; only those leave the device."""
    starts = np.cumsum([0, *(len(tensor) for tensor in tensors)])
    numbers = np.searchsorted(starts, index, side="right") - 1
    found = [tensors[number][int(row - starts[number])] for number, row in zip(numbers, index, strict=True)]
    return torch.stack(found).cpu()
