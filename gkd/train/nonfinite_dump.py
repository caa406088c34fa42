"""The batches of a step with a bad loss or gradient, as files: `<run>/nonfinite/step_00000012_rank0.pt`.

A dump holds plain tensors and numbers alone, so that `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd.core.errors import CheckpointError
from gkd.core.files import GIB, atomic_write, restricted_load_torch
from gkd.core.types import Batch, Losses

_NAME = re.compile(r"step_(\d{8,18})_rank(\d+)\.pt")
_MAX_BYTES = 4 * GIB
_DTYPES = {"images": torch.uint8, "labels": torch.int64, "sample_ids": torch.int64, "is_flipped": torch.bool}


@dataclass(frozen=True)
class Dump:
    """One rank's part of a bad step, on the CPU: its batches, one a micro-batch, and their losses by name.

    `scale` is the loss scale, where there was one; `norm` the global gradient norm.
    """

    step: int
    rank: int
    num_ranks: int
    scale: float | None
    norm: float
    losses: list[dict[str, float]]
    batches: list[Batch]


def make_dump(
    step: int,
    rank: int,
    num_ranks: int,
    norm: Tensor,
    losses: Sequence[Losses],
    batches: Sequence[Batch],
    scale: float | None,
) -> Dump:
    """A dump of tensors that may lie on a device or be views."""
    return Dump(
        step=step,
        rank=rank,
        num_ranks=num_ranks,
        scale=scale,
        norm=float(norm.detach()),
        losses=[{name: float(part.detach()) for name, part in one.parts.items()} for one in losses],
        # Cloned, for a view would bring the whole memory that it looks into.
        batches=[Batch(**{name: getattr(one, name).detach().cpu().clone() for name in _DTYPES}) for one in batches],
    )


def save_dump(folder: Path, dump: Dump, max_dumps: int) -> Path:
    """Write `dump` into `folder` and delete this rank's oldest ones beyond `max_dumps`; returns its path.

    Raises:
        OSError, RuntimeError, GkdError: it cannot be written.
    """
    path = folder / f"step_{dump.step:08d}_rank{dump.rank}.pt"
    plain = {field.name: getattr(dump, field.name) for field in fields(Dump)}
    plain["batches"] = [{name: getattr(batch, name) for name in _DTYPES} for batch in dump.batches]
    with atomic_write(path) as temporary:
        torch.save(plain, temporary)
    matches = [(_NAME.fullmatch(found.name), found) for found in folder.iterdir()]
    own = sorted((int(match[1]), found) for match, found in matches if match and int(match[2]) == dump.rank)
    for _, found in own[:-max_dumps]:
        found.unlink(missing_ok=True)
    return path


def load_dump(path: Path) -> Dump:
    """Read and check a dump; the file may come from anyone, and nothing in it is run.

    Raises:
        CheckpointError: missing, unsafe, damaged, or no dump.
    """
    plain = restricted_load_torch(path, _MAX_BYTES)
    try:
        numbers = {name: plain[name] for name in ("step", "rank", "num_ranks")}
        scale = None if plain["scale"] is None else float(plain["scale"])
        losses = [{str(name): float(value) for name, value in one.items()} for one in plain["losses"]]
        batches = [_checked(one) for one in plain["batches"]]
        if any(type(value) is not int or value < 0 for value in numbers.values()) or not batches:
            raise ValueError(f"its numbers are {numbers}, its batches {len(batches)}")
        return Dump(**numbers, scale=scale, norm=float(plain["norm"]), losses=losses, batches=batches)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: is no dump of a training step ({reason}); give a file from a run's nonfinite folder"
        ) from error


def _checked(plain: dict[str, Any]) -> Batch:
    count = len(plain["labels"])
    for name, dtype in _DTYPES.items():
        tensor = plain[name]
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype or len(tensor) != count or count == 0:
            raise ValueError(f"its {name} are not {count} of {dtype}")
        if tensor.ndim != (4 if name == "images" else 1) or (name == "images" and tensor.shape[1] != 3):
            raise ValueError(f"its {name} have the shape {tuple(tensor.shape)}")
    return Batch(**{name: plain[name] for name in _DTYPES})
