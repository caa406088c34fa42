"""The state of a run as tensors and plain values, for its checkpoints."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import CheckpointError, ConfigError
from gkd.train.class_weights import as_whole, class_shards
from gkd.train.ema import Ema

# What is kept of a parameter.
_KINDS = ("model", "momentum", "ema")


def run_tensors(objective: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> dict[str, Tensor]:
    """Every tensor that a run must keep, by name: `model/…`, `momentum/…` of what is trained, and `ema/…`.

    The tensors are the live ones, so a checkpoint loaded into them restores the run. Momentum that does not exist yet
    is made as zeros, which SGD's first step treats alike. What the optimiser does not hold, such as a frozen
    parameter, has none. Of the `class_shards` of the objective each rank gives its rows of the whole (C, D), under the
    name and with the shape that they have where one rank holds every class. No rank talks to another.
    """
    tensors = {f"model/{name}": tensor.detach() for name, tensor in objective.state_dict().items()}
    momentum = {id(member): group["momentum"] for group in optimizer.param_groups for member in group["params"]}
    for name, parameter in objective.named_parameters():
        if momentum.get(id(parameter), 0.0) == 0.0:
            continue
        state = optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        tensors[f"momentum/{name}"] = state["momentum_buffer"]
    averages = {} if ema is None else ema.tensors
    tensors |= {f"ema/{name}": tensor for name, tensor in averages.items()}
    for name, shard in class_shards(objective).items():
        for kept in (f"{kind}/{name}" for kind in _KINDS):
            if kept in tensors:
                tensors[kept] = as_whole(tensors[kept], shard)
    return tensors


def random_state() -> list[str]:
    """Torch's generator states of every rank, in rank order, each as text: the CPU's, and that of a GPU."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    texts = [base64.b64encode(state.numpy().tobytes()).decode("ascii") for state in states]
    return distributed.gather_objects(",".join(texts))


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
    # Runs of one process write no batch-norm statistics.
    if type(saved.get("batch_norm", [])) is not list:
        bad.append("batch_norm")
    if bad or saved["step"] < 0 or not _are_texts([*saved["random_state"], *saved.get("batch_norm", [])]):
        raise CheckpointError(f"{path}: its values are not those of a training run ({', '.join(bad) or 'damaged'})")
    if saved["step"] > total_steps:
        raise ConfigError(
            f"{path}: was saved after step {saved['step']}, but this run ends at step {total_steps}; raise train.epochs"
        )


def restore_random_state(states: Sequence[str], seed: int, step: int) -> None:
    """Restore this rank's generators; where the number of ranks has changed, seed them from (seed, step, rank).

    A GPU's state is left out where this process has none, as a run that moves to the CPU is another run anyway.

    Raises:
        CheckpointError: a state, of whichever rank, is not one of a generator; no generator has changed then.
    """
    rank = distributed.rank()
    if len(states) != distributed.world_size():
        torch.manual_seed(hash((seed, step, rank)) & 0x7FFF_FFFF_FFFF_FFFF)
        return
    # Every rank checks what is meant for each, so that all of them refuse a damaged file.
    own = [_generator_states(text, number) for number, text in enumerate(states)][rank]
    torch.set_rng_state(own[0])
    if len(own) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(own[1])


def _generator_states(text: str, rank: int) -> list[Tensor]:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    try:
        raw = [bytearray(base64.b64decode(part, validate=True)) for part in text.split(",", 1)]
        states = [torch.frombuffer(each, dtype=torch.uint8) for each in raw]
        for device, state in zip(devices, states, strict=False):
            torch.Generator(device).set_state(state)
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"the checkpoint's random state of rank {rank} is damaged: {error}") from error
    return states


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


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
