"""The loss scale: its course, its state, and that it changes no digit where nothing overflows."""

from __future__ import annotations

import pytest
import torch

from gkd.core.errors import CheckpointError, GkdError
from gkd.train.metrics import read_metrics
from gkd.train.optim import clip_gradients
from gkd.train.precision import LossScale
from tests.train.test_trainer import Toy, raw, trainer


def test_it_halves_on_overflow_and_doubles_after_enough_good_steps():
    scale = LossScale(initial=8.0, interval=3)
    seen = []
    for is_overflow in (False, False, True, False, False, False, False, True, True, True, True, True):
        scale.update(is_overflow)
        seen.append(scale.scale)
    assert seen == [8, 8, 4, 4, 4, 8, 8, 4, 2, 1, 1, 1]  # the overflow begins the count anew, and 1 is the floor


def test_it_has_a_ceiling():
    scale = LossScale(initial=2.0**23, interval=1)
    for _ in range(4):
        scale.update(False)
    assert scale.scale == 2.0**24


def test_state():
    scale, other = LossScale(initial=8.0, interval=5), LossScale(initial=2.0, interval=5)
    scale.update(False)
    other.restore(scale.state())
    assert (other.scale, other.num_good) == (8.0, 1)


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"scale": 3.0, "num_good": 0},
        {"scale": 0.5, "num_good": 0},
        {"scale": float("inf"), "num_good": 0},
        {"scale": float("nan"), "num_good": 0},
        {"scale": 2, "num_good": 0},
        {"scale": 2.0, "num_good": -1},
        {"scale": 2.0, "num_good": 2000},
        {"scale": 2.0, "num_good": True},
    ],
)
def test_a_damaged_state_is_refused(state):
    scale = LossScale()
    with pytest.raises(CheckpointError, match="the checkpoint's loss scale is damaged"):
        scale.restore(state)
    assert scale.scale == 2.0**16


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_scaled_steps_are_the_unscaled_ones_to_the_last_bit(tmp_path, clip_norm):
    """Powers of two move the exponent only."""
    weights = []
    for name, scale in (("plain", None), ("scaled", LossScale(initial=2.0**10, interval=2))):
        loop = trainer(tmp_path / name, Toy(), clip_norm=clip_norm)
        loop.loss_scale = scale
        with loop.run_log:
            loop.fit([raw(step) for step in range(6)], 0)
        weights.append(loop.objective.linear.weight.detach().clone())
    assert torch.equal(*weights)
    path = tmp_path / "scaled" / "metrics.jsonl"
    assert read_metrics(path, "optim/loss_scale")[1] == [2.0**10, 2.0**11, 2.0**11, 2.0**12, 2.0**12, 2.0**13]
    norms = [read_metrics(tmp_path / name / "metrics.jsonl", "optim/gradient_norm")[1] for name in ("plain", "scaled")]
    assert norms[0] == norms[1]


def test_sparse_gradients_are_divided_too():
    weight = torch.zeros(4, 2, requires_grad=True)
    rows = torch.tensor([[6.0, 0.0], [0.0, 8.0]])
    weight.grad = torch.sparse_coo_tensor([[1, 3]], rows, (4, 2), check_invariants=True)
    assert clip_gradients([weight], None, loss_scale=2.0) == pytest.approx(5.0)
    assert weight.grad.to_dense()[[1, 3]].tolist() == [[3.0, 0.0], [0.0, 4.0]]


def test_a_gradient_that_overflows_fp16_is_left_out_until_the_scale_fits(tmp_path):
    loop = trainer(tmp_path, Toy(), precision="fp16")
    loop.loss_scale = LossScale(initial=2.0**18)
    seen, original = [], loop.optimizer.step
    loop.optimizer.step = lambda: (seen.append(loop.loss_scale.scale), original())
    with loop.run_log:
        assert loop.fit([raw(step, size=4) for step in range(6)], 0) == 6
    num_overflows = loop.guard.num_overflows
    assert 0 < num_overflows < 6
    assert loop.guard.num_skipped == 0
    assert seen[0] < 2.0**18
    assert loop.loss_scale.scale == 2.0 ** (18 - num_overflows)
    assert len(seen) == 6 - num_overflows
    assert read_metrics(tmp_path / "metrics.jsonl", "fault/num_overflows")[1][-1] == num_overflows
    assert loop.objective.linear.weight.isfinite().all()


def test_a_loss_that_is_not_finite_is_a_fault_whatever_the_scale(tmp_path):
    loop = trainer(tmp_path, Toy(poison={1: "classification"}), precision="fp16")
    loop.loss_scale = LossScale()
    with loop.run_log, pytest.raises(GkdError, match=r"the loss classification is not finite \(loss scale \d+\)"):
        loop.fit([raw(step) for step in range(6)], 0)
