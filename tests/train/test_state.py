"""The values of a checkpoint that may come from anyone, and the generator's state."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch

from gkd.core.errors import CheckpointError, ConfigError
from gkd.train.state import check_values, environment, random_state, restore_random_state

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
