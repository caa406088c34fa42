"""The last step of loading: from a filled slot to the micro-batch that training gets, on its device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.core.errors import DataError
from gkd.data.batch_ring import BatchRing, Slot
from gkd.data.batches import Task
from gkd.data.face_data import FaceData
from gkd.data.gpu_decoding import Decoder, decode_rows
from gkd.data.transforms import decode_image

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawBatch:
    """One rank's share of a micro-batch, before anything is done to the pixels.

    images: uint8 (N, H, W, 3), RGB. labels: int64 (N,). sample_ids: int64 (N,), on the CPU. replaced: a description of
    each record that could not be used and gave way to a following one.

    On the CPU, `images` is memory of the loader: it is valid until the next micro-batch is asked for; copy what has to
    stay. On a GPU, images and labels are copies of their own.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    step: int
    epoch: int
    micro_batch: int
    replaced: tuple[str, ...] = ()

    @property
    def num_replaced(self) -> int:
        """How many records could not be used."""
        return len(self.replaced)

    def __len__(self) -> int:
        return len(self.labels)


class Delivery(Protocol):
    """Makes micro-batches of filled slots, and knows when a slot may be filled anew."""

    def deliver(self, slot_number: int, task: Task, replaced: tuple[str, ...]) -> RawBatch:
        """The micro-batch of a slot."""

    def wait(self, slot_number: int) -> None:
        """Return when the slot may be filled again."""

    def close(self) -> None:
        """Let go of the slots."""


class DeliveryOnCpu:
    """Hands out the slots themselves."""

    def __init__(self, ring: BatchRing) -> None:
        self._ring = ring

    def deliver(self, slot_number: int, task: Task, replaced: tuple[str, ...]) -> RawBatch:
        """The micro-batch of a slot; its images are the slot's own."""
        slot, num_rows = self._ring.slots[slot_number], len(task.sample_ids)
        return _raw_batch(torch.from_numpy(slot.images[:num_rows]), _copy(slot.labels[:num_rows]), slot, task, replaced)

    def wait(self, slot_number: int) -> None:
        """Nothing to wait for: the consumer has asked for another micro-batch since."""

    def close(self) -> None:
        """Nothing to do: the memory goes with the last batch made from it."""


class DeliveryOnGpu:
    """Copies slots to a CUDA device on a stream of its own, while the device computes.

    Args:
        ring: the slots; they are locked in memory, which lets the device read them without the processor.
        device: where to.
    """

    def __init__(self, ring: BatchRing, device: torch.device) -> None:
        self._ring = ring
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: list[Any] = [None] * len(ring.slots)
        self._is_locked = _lock(ring.memory)

    def deliver(self, slot_number: int, task: Task, replaced: tuple[str, ...]) -> RawBatch:
        """The micro-batch of a slot, on its way to the device; whatever the device does next waits for it."""
        slot, num_rows = self._ring.slots[slot_number], len(task.sample_ids)
        with torch.cuda.stream(self._stream):
            images = torch.from_numpy(slot.images[:num_rows]).to(self._device, non_blocking=True)
            labels = torch.from_numpy(slot.labels[:num_rows]).to(self._device, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        self._copied[slot_number] = copied
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copied)
        for tensor in (images, labels):
            tensor.record_stream(computing)
        return _raw_batch(images, labels, slot, task, replaced)

    def wait(self, slot_number: int) -> None:
        """Return when the slot has been copied."""
        if self._copied[slot_number] is not None:
            self._copied[slot_number].synchronize()

    def close(self) -> None:
        """Finish copying and unlock the memory."""
        for slot_number in range(len(self._copied)):
            self.wait(slot_number)
        if self._is_locked:
            _unlock(self._ring.memory)
            self._is_locked = False


class DecodingDelivery:
    """Decodes the rows that loading processes have left encoded.

    Args:
        ring: the slots.
        data: the face data, for messages.
        device: where micro-batches go.
        decode: the decoder. What it refuses is decoded on the CPU, the whole micro-batch with it.
    """

    def __init__(self, ring: BatchRing, data: FaceData, device: torch.device, decode: Decoder) -> None:
        self._ring = ring
        self._data = data
        self._device = device
        self._decode = decode
        self._has_warned = False

    def deliver(self, slot_number: int, task: Task, replaced: tuple[str, ...]) -> RawBatch:
        """The micro-batch of a slot, decoded."""
        slot, num_rows = self._ring.slots[slot_number], len(task.sample_ids)
        pixels, num_bytes = slot.images[:num_rows], slot.encoded_bytes[:num_rows]
        try:
            images = decode_rows(pixels, num_bytes, self._decode, self._device)
        except RuntimeError as error:
            self._warn(error)
            images = self._decode_on_cpu(slot, num_rows).to(self._device)
        return _raw_batch(images, _copy(slot.labels[:num_rows]).to(self._device), slot, task, replaced)

    def wait(self, slot_number: int) -> None:
        """Nothing to wait for: `deliver` returns when the slot has been read."""

    def close(self) -> None:
        """Nothing to do."""

    def _decode_on_cpu(self, slot: Slot, num_rows: int) -> Tensor:
        images = slot.images[:num_rows].copy()
        for row in np.flatnonzero(slot.encoded_bytes[:num_rows]):
            encoded = slot.images[row].reshape(-1)[: slot.encoded_bytes[row]].tobytes()
            where = self._data.describe(int(slot.sample_ids[row]))
            decode_image(encoded, (images.shape[1], images.shape[2]), where, images[row])
        return torch.from_numpy(images)

    def _warn(self, error: RuntimeError) -> None:
        if not self._has_warned:
            reason = str(error).split("\n", 1)[0]
            _log.warning("the GPU refused to decode a micro-batch (%s); such ones are decoded on the CPU", reason)
        self._has_warned = True


def _raw_batch(images: Tensor, labels: Tensor, slot: Slot, task: Task, replaced: tuple[str, ...]) -> RawBatch:
    sample_ids = _copy(slot.sample_ids[: len(labels)])
    return RawBatch(images, labels, sample_ids, task.step, task.epoch, task.micro_batch, replaced)


def _copy(values: npt.NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(values.copy())


def _lock(memory: npt.NDArray[np.uint8]) -> bool:
    runtime: Any = torch.cuda
    code = int(runtime.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    if code != 0:
        _log.warning(
            "%d MiB cannot be locked in memory (CUDA error %d): copies to the GPU take longer and wait for the "
            "processor; raise the limit of locked memory (ulimit -l)",
            memory.nbytes >> 20,
            code,
        )
    return code == 0


def _unlock(memory: npt.NDArray[np.uint8]) -> None:
    runtime: Any = torch.cuda
    code = int(runtime.cudart().cudaHostUnregister(memory.ctypes.data))
    if code != 0:
        raise DataError(f"the loader's memory cannot be unlocked (CUDA error {code})")
