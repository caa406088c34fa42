"""The values of a checkpoint that may come from anyone, and the generator's state."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gkd.core.errors import CheckpointError, ConfigError
from gkd.train.ema import Ema
from gkd.train.optim import GroupRule, build_sgd
from gkd.train.state import check_values, environment, random_state, restore_random_state, run_tensors

PATH = Path("checkpoints") / "step_00000006"
MISSING = object()


def values(**changed: object) -> dict[str, Any]:
    """What a run writes, with some of it changed or left out."""
    written = {
        "step": 6,
        "config": {"run": {"seed": 5}},
        "fingerprint": "ab" * 32,
        "environment": environment(),
        "random_state": random_state(),
    }
    return {name: value for name, value in {**written, **changed}.items() if value is not MISSING}


@pytest.fixture(autouse=True)
def _keep_generator():
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


@pytest.mark.parametrize("step", [0, 6, 12])
def test_what_a_run_writes_is_accepted(step):
    check_values(PATH, values(step=step), total_steps=12)
    check_values(PATH, values(step=step, batch_norm=["AAAA", "AAAB"]), total_steps=12)


@pytest.mark.parametrize(
    ("damage", "what"), [(None, "batch_norm"), ("AAAA", "batch_norm"), ([3], "damaged"), (["AAAA", None], "damaged")]
)
def test_batch_norm_statistics_are_texts(damage, what):
    with pytest.raises(CheckpointError, match=rf"are not those of a training run \({what}\)"):
        check_values(PATH, values(batch_norm=damage), total_steps=12)


@pytest.mark.parametrize("damage", [MISSING, None, 6.0, True, b"6", "6", ()])
@pytest.mark.parametrize("name", ["step", "config", "fingerprint", "environment", "random_state"])
def test_a_value_that_is_missing_or_of_another_kind_is_named(name, damage):
    if name == "fingerprint" and isinstance(damage, str):
        damage = 6
    with pytest.raises(CheckpointError) as caught:
        check_values(PATH, values(**{name: damage}), total_steps=12)
    assert str(caught.value) == f"{PATH}: its values are not those of a training run ({name})"


def test_all_bad_values_are_named():
    with pytest.raises(CheckpointError, match=r"\(step, config, fingerprint, environment, random_state\)"):
        check_values(PATH, {}, total_steps=12)


@pytest.mark.parametrize("changed", [{"step": -1}, {"random_state": ["AA==", 3]}, {"random_state": [None]}])
def test_values_of_the_right_kind_that_no_run_writes(changed):
    with pytest.raises(CheckpointError, match=r"its values are not those of a training run \(damaged\)"):
        check_values(PATH, values(**changed), total_steps=12)


def test_a_step_past_the_end_is_a_setting_to_change():
    with pytest.raises(ConfigError) as caught:
        check_values(PATH, values(step=13), total_steps=12)
    assert str(caught.value) == f"{PATH}: was saved after step 13, but this run ends at step 12; raise train.epochs"


def test_the_generator_goes_on_where_it_was():
    torch.manual_seed(3)
    state = random_state()
    wanted = torch.rand(5)
    torch.manual_seed(99)
    restore_random_state(state, seed=5, step=6)
    assert torch.equal(torch.rand(5), wanted)


def test_for_another_number_of_ranks_it_starts_from_seed_and_step():
    drawn = []
    for seed, step in [(5, 6), (5, 6), (5, 7), (6, 6)]:
        restore_random_state(["", ""], seed, step)
        drawn.append(tuple(torch.rand(3).tolist()))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not base64!",
        "abc",
        "ä",
        base64.b64encode(bytes(16)).decode(),
        base64.b64encode(b"\xff" * 5056).decode(),
        base64.b64encode(bytes(1 << 20)).decode(),
    ],
    ids=["empty", "no base64", "cut", "no ascii", "short", "ones", "long"],
)
def test_a_damaged_generator_state_is_refused(text):
    before = torch.get_rng_state()
    with pytest.raises(CheckpointError, match="the checkpoint's random state of rank 0 is damaged: "):
        restore_random_state([text], seed=5, step=6)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_state_of_one_rank_is_refused_by_all(monkeypatch, rank):
    good, before = random_state()[0], torch.get_rng_state()
    monkeypatch.setattr("gkd.core.distributed.rank", lambda: rank)
    monkeypatch.setattr("gkd.core.distributed.world_size", lambda: 2)
    torch.rand(1)
    with pytest.raises(CheckpointError, match="random state of rank 1 is damaged"):
        restore_random_state([good, "AAAA"], seed=5, step=6)
    restore_random_state([good, good], seed=5, step=6)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_its_state_is_left_out():
    before = torch.get_rng_state()
    state = random_state()[0]
    torch.rand(1)
    restore_random_state([f"{state},AAAA"], seed=5, step=6)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_the_gpu_generator_goes_on_where_it_was():
    torch.cuda.manual_seed(3)
    state = random_state()
    wanted = torch.rand(5, device="cuda")
    restore_random_state(state, seed=5, step=6)
    assert torch.equal(torch.rand(5, device="cuda"), wanted)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_tensors_of_a_run_are_the_live_ones():
    module = network()
    optimizer, ema = build_sgd(module, lr=0.1), Ema(module, 0.9)
    tensors = run_tensors(module, optimizer, ema)
    trained = ["0.weight", "0.bias", "1.weight", "1.bias"]
    statistics = ["1.running_mean", "1.running_var"]
    assert list(tensors) == [
        *(f"model/{name}" for name in [*trained, *statistics, "1.num_batches_tracked"]),
        *(f"momentum/{name}" for name in trained),
        *(f"ema/{name}" for name in [*trained, *statistics]),
    ]
    assert tensors["model/0.weight"].data_ptr() == module[0].weight.data_ptr()
    assert tensors["momentum/0.weight"] is optimizer.state[module[0].weight]["momentum_buffer"]
    assert tensors["ema/0.weight"] is ema.tensors["0.weight"]
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_without_an_average_there_is_none():
    module = network()
    assert not [name for name in run_tensors(module, build_sgd(module, lr=0.1)) if name.startswith("ema/")]


def test_frozen_parameters_have_no_momentum():
    module = network()
    optimizer = build_sgd(module, lr=0.1, groups=[GroupRule("1.*", frozen=True)])
    names = run_tensors(module, optimizer)
    assert [name for name in names if name.startswith("momentum/")] == ["momentum/0.weight", "momentum/0.bias"]
    assert "model/1.weight" in names
    assert module[1].weight not in optimizer.state


def test_without_momentum_none_is_kept():
    module = network()
    names = run_tensors(module, build_sgd(module, lr=0.1, momentum=0.0))
    assert not [name for name in names if name.startswith("momentum/")]


def test_momentum_of_zeros_is_as_good_as_none():
    torch.manual_seed(0)
    results = []
    for is_made in (False, True):
        module = nn.Linear(3, 2)
        nn.init.constant_(module.weight, 0.5)
        nn.init.zeros_(module.bias)
        optimizer = build_sgd(module, lr=0.1)
        if is_made:
            run_tensors(module, optimizer)
        for step in range(3):
            optimizer.zero_grad()
            module(torch.full((1, 3), 1.0 + step)).square().sum().backward()
            optimizer.step()
        results.append(module.weight.detach().clone())
    assert torch.equal(*results)
