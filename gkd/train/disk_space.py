"""Room for a run's checkpoints, asked for before the first step instead of missed after the first epoch."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from gkd.core.errors import ConfigError

_GIB = 1 << 30
_TRIAL_BYTES = 1 << 20


def checkpoint_bytes(tensors: Iterable[Tensor]) -> int:
    """About what a checkpoint of `tensors` takes: their elements; files and plain values add little."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def folder_bytes(folder: Path) -> int:
    """What the files in `folder` and below hold; 0 where it is missing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            total += path.lstat().st_size if not path.is_dir() else 0
    return total


def require_space(folder: Path, num_bytes: int, key: str = "run.folder") -> None:
    """Refuse a folder on a disk with less than `num_bytes` free.

    Quotas are not seen here; `require_writing` meets one that is used up.

    Args:
        folder: need not exist yet: the nearest folder above it that does is asked.
        key: the setting that names the folder, for messages.

    Raises:
        ConfigError: with both figures.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if free < num_bytes:
        raise ConfigError(
            f"{key}: about {_in_words(num_bytes)} are needed in {folder} for checkpoints, and {_in_words(free)} are "
            "free there; free some, lower train.keep_last, or choose another folder"
        )


def require_writing(folder: Path, key: str = "run.folder") -> None:
    """Write a small file into `folder`, which is made where it is missing, and remove it again.

    Permissions alone do not tell: a disk may be full, a quota used up, a mount read-only, an owner mapped to nobody.

    Raises:
        ConfigError: it cannot be made or written, with the reason.
    """
    trial = folder / f".trial-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with trial.open("wb") as file:
                file.write(bytes(_TRIAL_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{key}: cannot write in {folder}: {error.strerror}; free some space, make it writable, or choose another "
            "folder"
        ) from error


def _in_words(num_bytes: int) -> str:
    """Bytes as GiB, or MiB where that says more."""
    return f"{num_bytes / _GIB:,.1f} GiB" if num_bytes >= _GIB else f"{num_bytes / (1 << 20):,.1f} MiB"
