"""What a loading process does: read and decode some rows of a micro-batch into the memory that it shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError, GkdError
from gkd.data.batch_ring import BatchRing
from gkd.data.face_data import FaceData
from gkd.data.gpu_decoding import can_gpu_decode
from gkd.data.transforms import check_header, decode_image

_MAX_REPLACEMENTS = 64


class Part(NamedTuple):
    """Rows `start` to `stop` - 1 of a slot, whose sample ids stand there already."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True)
class Failure:
    """An error on its way from a loading process to the main one."""

    error_type: type[GkdError]
    message: str


# A description of each record of a part that could not be used and was replaced, or what stopped the reader there.
Result = tuple[str, ...] | Failure


class BatchReader:
    """Fills parts of slots; `reader[parts]` is how the loader of torch calls it.

    Args:
        data: the face data.
        ring: where pixels, labels and, for replaced records, sample ids are written.
        image_size: (H, W) of every image, in pixels.
        is_skipping: take the next usable record for one that is not, instead of failing.
        is_leaving_encoded: leave what a GPU can decode encoded.
    """

    def __init__(
        self,
        data: FaceData,
        ring: BatchRing,
        *,
        image_size: tuple[int, int],
        is_skipping: bool = False,
        is_leaving_encoded: bool = False,
    ) -> None:
        self._data = data
        self._ring = ring
        self._image_size = image_size
        self._is_skipping = is_skipping
        self._is_leaving_encoded = is_leaving_encoded
        # Files on disk have it: what a process is about to read is fetched together.
        self._will_need: Callable[[npt.NDArray[np.int64]], None] | None = getattr(data, "will_need", None)

    def __getitem__(self, parts: tuple[Part, ...]) -> tuple[Result, ...]:
        """Fill the parts, each by itself; after a failure, which ends the run, no more are tried."""
        results: list[Result] = []
        for part in parts:
            has_failed = bool(results) and isinstance(results[-1], Failure)
            results.append(results[-1] if has_failed else self._try_to_fill(part))
        return tuple(results)

    def _try_to_fill(self, part: Part) -> Result:
        try:
            return self._fill(part)
        except GkdError as error:
            return Failure(type(error), str(error))

    def _fill(self, part: Part) -> tuple[str, ...]:
        slot, rows = self._ring.slots[part.slot], slice(part.start, part.stop)
        if self._will_need is not None:
            self._will_need(slot.sample_ids[rows])
        sample_ids, replaced = slot.sample_ids[rows].tolist(), list[str]()
        labels, num_bytes = [0] * len(sample_ids), [0] * len(sample_ids)
        read = self._read_one
        for place, (sample_id, out) in enumerate(zip(sample_ids, slot.images[rows], strict=True)):
            if self._is_skipping:
                sample_ids[place], labels[place], num_bytes[place] = self._read_usable(sample_id, out, replaced)
            else:
                labels[place], num_bytes[place] = read(sample_id, out)
        slot.sample_ids[rows], slot.labels[rows], slot.encoded_bytes[rows] = sample_ids, labels, num_bytes
        return tuple(replaced)

    def _read_usable(self, sample_id: int, out: npt.NDArray[np.uint8], replaced: list[str]) -> tuple[int, int, int]:
        """Read the image `sample_id` or the next usable one; returns which, and as `_read_one`."""
        for attempt in range(_MAX_REPLACEMENTS + 1):
            candidate = (sample_id + attempt) % len(self._data)
            try:
                return (candidate, *self._read_one(candidate, out))
            except DataError as error:
                replaced.append(str(error))
        raise DataError(f"{replaced[-1]} (and the {_MAX_REPLACEMENTS} records before it cannot be used either)")

    def _read_one(self, sample_id: int, out: npt.NDArray[np.uint8]) -> tuple[int, int]:
        """Put the image into `out`; returns its label, and its bytes where it stays encoded, else 0."""
        try:
            encoded, label = self._data[sample_id]
            where = partial(self._data.describe, sample_id)
            if self._is_leaving_encoded and len(encoded) <= out.size and can_gpu_decode(encoded):
                check_header(encoded, self._image_size, where)
                out.reshape(-1)[: len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
                return label, len(encoded)
            decode_image(encoded, self._image_size, where, out)
            return label, 0
        except GkdError:
            raise
        except Exception as error:  # whatever else a data set raises has to name the record
            reason = str(error).split("\n", 1)[0]
            raise DataError(f"{self._data.describe(sample_id)}: {type(error).__name__}: {reason}") from error
