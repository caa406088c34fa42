"""What advice depends on: the settings and the machine of a profiled run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gkd.core import distributed
from gkd.core.config import to_plain
from gkd.schema import TrainRun

_FLIP = "flip"


@dataclass(frozen=True)
class Setup:
    """Settings of a run under the names of their keys, and where it runs.

    teacher: "none", "live" or "kept" (its embeddings are read). changes: augmentations other than mirroring. num_cores:
    that this process may use. keeps_memory: whether the environment tells the C library to keep freed memory.
    """

    device: str
    device_name: str
    num_cores: int
    num_threads: int
    num_ranks: int
    batch_size: int
    micro_batches: int
    num_classes: int
    workers: int
    decode: str
    changes: tuple[str, ...]
    head: str
    precision: str
    tf32: bool
    is_compiled: bool
    channels_last: bool
    is_recomputing: bool
    teacher: str
    teacher_precision: str
    is_teacher_compiled: bool
    keeps_memory: bool


def setup_of(config: TrainRun, device: torch.device, num_classes: int) -> Setup:
    """The facts of a run on `device`."""
    plain: Mapping[str, Any] = to_plain(config)
    train, teacher = plain["train"], plain["teacher"] or {}
    centres = teacher.get("centres")
    is_kept = bool(teacher.get("cache") or (centres and centres["reuse_embeddings"]))
    return Setup(
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        num_ranks=distributed.world_size(),
        batch_size=config.train.batch_size,
        micro_batches=config.train.micro_batches,
        num_classes=num_classes,
        workers=config.data.workers,
        decode=config.data.decode,
        changes=tuple(part.name for part in config.data.augment if part.name != _FLIP),
        head=config.head.name,
        precision=train["precision"],
        tf32=train.get("tf32", False),
        is_compiled=train.get("compile", False),
        channels_last=train["channels_last"],
        is_recomputing=train.get("checkpoint_activations", False),
        teacher=("kept" if is_kept else "live") if teacher else "none",
        teacher_precision=teacher.get("precision", "fp32"),
        is_teacher_compiled=teacher.get("compile", False),
        keeps_memory="MALLOC_TRIM_THRESHOLD_" in os.environ or "LD_PRELOAD" in os.environ,
    )
