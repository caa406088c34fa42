"""The machine and the software that a run is started on, as plain values."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# The variables that change what a run computes or how fast. No others are written: some hold secrets.
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "LD_PRELOAD",
    "LOCAL_WORLD_SIZE",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "WORLD_SIZE",
)
_PREFIXES = ("GLOO_", "KMP_", "NCCL_", "OMP_", "TORCH_NCCL_")
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASS", "AUTH")
_MAX_VARIABLES = 100
_MAX_CHARACTERS = 300
_MAX_PACKAGES = 2000
_CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Versions of all installed packages, system, CPU, GPUs and the environment variables that matter."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {"name": _cpu_name(), "num_cores": os.cpu_count(), "num_usable": _num_usable_cores()},
        "gpus": _gpus(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
        "variables": variables(),
        "packages": packages(),
    }


def variables() -> dict[str, str]:
    """The environment variables that matter, by name; long values are cut."""
    names = sorted(name for name in os.environ if _is_wanted(name))[:_MAX_VARIABLES]
    return {name: os.environ[name][:_MAX_CHARACTERS] for name in names}


def packages() -> dict[str, str]:
    """The installed packages and their versions."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name and len(found) < _MAX_PACKAGES:
            found[name[:_MAX_CHARACTERS]] = str(distribution.version)[:_MAX_CHARACTERS]
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _is_wanted(name: str) -> bool:
    if any(word in name.upper() for word in _SECRET_WORDS):
        return False
    return name in _VARIABLES or name.startswith(_PREFIXES)


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    every = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_gib": round(gpu.total_memory / (1 << 30), 1)} for gpu in every]


def _num_usable_cores() -> int | None:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_name() -> str:
    try:
        with _CPU_INFO.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()[:_MAX_CHARACTERS]
    except OSError:
        pass
    return platform.processor() or platform.machine()
