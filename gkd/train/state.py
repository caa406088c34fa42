"""The state of a run as tensors and plain values, for its checkpoints."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import CheckpointError, ConfigError


def run_tensors(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that a run must keep, by name: parameters, buffers and momentum.

    The tensors are the live ones, so a checkpoint loaded into them restores the run. Momentum that does not exist yet
    is made as zeros, which SGD's first step treats alike.
    """
    tensors = {f"model/{name}": tensor.detach() for name, tensor in objective.state_dict().items()}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad or _momentum_of(optimizer, parameter) == 0:
            continue
        state = optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        tensors[f"momentum/{name}"] = state["momentum_buffer"]
    return tensors


def random_state() -> list[str]:
    """Torch's generator state of every rank, in rank order, as text."""
    return distributed.gather_objects(base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode("ascii"))


def check_values(path: Path, saved: Mapping[str, Any], total_steps: int) -> None:
    """Refuse a checkpoint whose plain values a run did not write: the file may come from anyone.

    Raises:
        CheckpointError: a value is missing or of another kind. ConfigError: the run is already past `total_steps`.
    """
    kinds: dict[str, type] = {
        "step": int,
        "config": dict,
        "fingerprint": str,
        "environment": dict,
        "random_state": list,
    }
    bad = [name for name, kind in kinds.items() if type(saved.get(name)) is not kind]
    if bad or not all(isinstance(state, str) for state in saved["random_state"]) or saved["step"] < 0:
        raise CheckpointError(f"{path}: its values are not those of a training run ({', '.join(bad) or 'damaged'})")
    if saved["step"] > total_steps:
        raise ConfigError(
            f"{path}: was saved after step {saved['step']}, but this run ends at step {total_steps}; raise train.epochs"
        )


def restore_random_state(states: list[str], seed: int, step: int) -> None:
    """Restore this rank's generator; where the number of ranks has changed, seed it from (seed, step, rank)."""
    rank = distributed.rank()
    if len(states) == distributed.world_size():
        try:
            raw = bytearray(base64.b64decode(states[rank], validate=True))
            torch.set_rng_state(torch.frombuffer(raw, dtype=torch.uint8))
        except (ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"the checkpoint's random state of rank {rank} is damaged: {error}") from error
    else:
        torch.manual_seed(hash((seed, step, rank)) & 0x7FFF_FFFF_FFFF_FFFF)


def environment() -> dict[str, Any]:
    """What a bit-exact continuation must share with the run that it continues."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else torch.backends.cpu.get_cpu_capability(),
        "num_ranks": distributed.world_size(),
        "num_threads": torch.get_num_threads(),
    }


def _momentum_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> float:
    for group in optimizer.param_groups:
        if any(parameter is member for member in group["params"]):
            return float(group["momentum"])
    return 0.0
