"""The loop alone, on a linear toy: what is updated, weighted, logged, saved, stopped and refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gkd.core.errors import GkdError
from gkd.core.types import Losses
from gkd.data.augment import Augment, Flip
from gkd.data.loader import RawBatch
from gkd.train.metrics import RunLog, read_metrics
from gkd.train.nonfinite import NonFiniteGuard
from gkd.train.nonfinite_dump import load_dump
from gkd.train.optim import build_sgd
from gkd.train.rank_watch import RankWatch
from gkd.train.trainer import LoopSettings, Trainer, prepare_batch


class Toy(nn.Module):
    """Mean square of a linear map of the pixels; `poison` maps a step to the part that turns to NaN there."""

    def __init__(self, poison=None):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, 1)
        self.step = 0
        self.poison = poison or {}
        self.secondary_size = 1.0

    def forward(self, batch):
        good = self.linear(batch.images.flatten(1).float() / 255).square().mean()
        parts = {"classification": good, "gkd/primary": 2 * good}
        if self.step in self.poison:
            parts[self.poison[self.step]] = parts[self.poison[self.step]] * float("nan")
        stats = {"gkd/secondary_size": torch.tensor(self.secondary_size)}
        return Losses(torch.stack(list(parts.values())).sum(), parts, stats)


def raw(step, size=4, micro_batch=0, replaced=()):
    generator = torch.Generator().manual_seed(step * 10 + micro_batch)
    images = torch.randint(0, 256, (size, 2, 2, 3), dtype=torch.uint8, generator=generator)
    return RawBatch(images, torch.zeros(size, dtype=torch.int64), torch.arange(size), step, 0, micro_batch, replaced)


class Saved(list):
    def __call__(self, step, score):
        self.append((step, score))


def trainer(folder, objective, stop=None, evaluate=lambda: ({}, None), action="stop", device=None, **changes):
    settings = {"total_steps": 6, "steps_per_epoch": 3, "batch_size": 4, "log_every": 1, "save_every": 2, **changes}
    return Trainer(
        objective,
        build_sgd(objective, lr=0.1),
        lambda step: 0.1,
        LoopSettings(**settings),
        device=device or torch.device("cpu"),
        augment=Augment([], 0),
        run_log=RunLog(folder, 0),
        evaluate=evaluate,
        save=Saved(),
        stop=stop or SimpleNamespace(signal_number=0),
        guard=NonFiniteGuard(folder, action=action),
        watch=RankWatch(),
    )


@pytest.mark.parametrize("part", ["classification", "gkd/primary"])
def test_a_loss_that_is_not_finite_is_named_and_updates_nothing(tmp_path, part):
    objective = Toy(poison={3: part})
    loop = trainer(tmp_path, objective)
    with loop.run_log:
        states = []
        original = loop.optimizer.step
        loop.optimizer.step = lambda: (original(), states.append(objective.linear.weight.detach().clone()))
        with pytest.raises(GkdError, match=rf"step 3: the loss {part} is not finite; nothing was updated"):
            loop.fit(iter([raw(step) for step in range(6)]), 0)
    assert len(states) == 3
    assert torch.equal(objective.linear.weight, states[-1])
    assert loop.save == [(2, None)]


@pytest.mark.parametrize(("bad", "log_every", "found_in"), [(2, 100, 3), (3, 100, 3), (2, 3, 2), (5, 100, 5)])
def test_a_check_put_off_ends_the_run_before_anything_is_made_of_the_step(tmp_path, bad, log_every, found_in):
    """Steps 2 and 4 make the third and fifth; the state is saved after the second, fourth and sixth."""
    loop = trainer(tmp_path, Toy(poison={bad: "gkd/primary"}), log_every=log_every)
    loop.checks_later = True
    started = []
    with loop.run_log:
        feed = (started.append(step) or raw(step) for step in range(6))
        with pytest.raises(GkdError, match=rf"^step {bad}: the loss gkd/primary .*; it is in no checkpoint\."):
            loop.fit(feed, 0)
    assert started[-1] == found_in
    assert [step for step, _ in loop.save] == [step for step in (2, 4, 6) if step <= bad]
    assert load_dump(tmp_path / "nonfinite" / f"step_{bad:08d}_rank0.pt").batches[0].sample_ids.tolist() == [0, 1, 2, 3]


def test_a_check_put_off_changes_nothing_of_a_good_run(tmp_path):
    weights = []
    for checks_later in (False, True):
        objective = Toy()
        loop = trainer(tmp_path / str(checks_later), objective)
        loop.checks_later = checks_later
        with loop.run_log:
            loop.fit([raw(step) for step in range(6)], 0)
        weights.append(objective.linear.weight)
    assert torch.equal(*weights)


def test_a_step_that_is_checked_later_keeps_no_graph(tmp_path):
    loop = trainer(tmp_path, Toy())
    loop.checks_later = True
    loop.guard.settle()
    with loop.run_log:
        loop._step(0, iter([raw(0)]))
    waiting = loop.guard._waiting
    assert not any(tensor.requires_grad for tensor in (waiting.norm, *waiting.seen_losses[0].parts.values()))
    assert not waiting.seen_losses[0].total.requires_grad


def test_a_step_that_may_be_left_out_is_never_checked_later(tmp_path):
    loop = trainer(tmp_path, Toy(), action="skip")
    with pytest.raises(AssertionError, match="before it is applied"):
        loop.guard.check_later(0, torch.ones(()), [], [])


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for_on_steps_that_do_not_log(tmp_path):
    device = torch.device("cuda")
    loop = trainer(tmp_path, Toy().to(device), log_every=100, clip_norm=1.0, device=device)
    assert loop.checks_later
    with loop.run_log:
        feed = [replace(raw(step), images=raw(step).images.cuda(), labels=raw(step).labels.cuda()) for step in range(6)]
        for step in range(3):
            loop._step(step, iter(feed[step:]))
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop._step(3, iter(feed[3:]))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_steps_save_evaluate_and_log_where_they_should(tmp_path):
    loop = trainer(tmp_path, Toy(), evaluate=lambda: ({"eval/set/accuracy": 0.5}, 0.5), evaluate_every=4, log_every=2)
    with loop.run_log:
        assert loop.fit([raw(step) for step in range(6)], 0) == 6
    assert loop.save == [(2, None), (4, 0.5), (6, 0.5)]
    assert read_metrics(tmp_path / "metrics.jsonl", "loss/total")[0] == [2, 4, 6]
    assert read_metrics(tmp_path / "metrics.jsonl", "eval/set/accuracy")[0] == [4, 6]


def test_a_request_to_stop_ends_after_the_step_and_saves(tmp_path):
    stop = SimpleNamespace(signal_number=0)

    def batches():
        for step in range(6):
            if step == 2:
                stop.signal_number = 15
            yield raw(step)

    loop = trainer(tmp_path, Toy(), stop=stop, save_every=None)
    with loop.run_log:
        assert loop.fit(batches(), 0) == 3
    assert loop.save == [(3, None)]


def test_micro_batches_of_unequal_size_weigh_by_their_images(tmp_path):
    whole, parts = Toy(), Toy()
    big = raw(0, size=5)
    first, second = (
        RawBatch(big.images[part], big.labels[part], big.sample_ids[part], 0, 0, 0)
        for part in (slice(0, 3), slice(3, 5))
    )
    for objective, batches, number in ((whole, [big], 1), (parts, [first, second], 2)):
        loop = trainer(tmp_path / str(number), objective, total_steps=1, batch_size=5, micro_batches=number)
        with loop.run_log:
            loop.fit(batches, 0)
    torch.testing.assert_close(whole.linear.weight, parts.linear.weight)
    one, two = (read_metrics(tmp_path / str(n) / "metrics.jsonl", "loss/total")[1] for n in (1, 2))
    assert one == pytest.approx(two)


def test_replaced_records_are_counted_and_named(tmp_path, caplog):
    loop = trainer(tmp_path, Toy(), total_steps=2)
    with loop.run_log, caplog.at_level(logging.WARNING):
        loop.fit([raw(0), raw(1, replaced=("a.rec: key 7: not an image",))], 0)
    assert "replaced a record that does not decode: a.rec: key 7: not an image" in caplog.text
    assert read_metrics(tmp_path / "metrics.jsonl", "data/num_replaced")[1] == [0.0, 1.0]


def test_an_empty_secondary_group_is_warned_of_once(tmp_path, caplog):
    objective = Toy()
    objective.secondary_size = 0.0
    loop = trainer(tmp_path, objective)
    with loop.run_log, caplog.at_level(logging.WARNING):
        loop.fit([raw(step) for step in range(6)], 0)
    assert caplog.text.count("every class is in Primary") == 1


def test_frozen_batch_norm_stays_frozen_after_an_evaluation(tmp_path):
    class Normed(Toy):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(12)

        def forward(self, batch):
            self.seen = self.norm.training
            self.norm(batch.images.flatten(1).float())
            return super().forward(batch)

    objective = Normed()
    loop = trainer(
        tmp_path,
        objective,
        evaluate=lambda: (objective.eval(), ({}, None))[1],
        evaluate_every=2,
        freeze_batch_norm=True,
    )
    with loop.run_log:
        loop.fit([raw(step) for step in range(6)], 0)
    assert not objective.seen
    assert objective.linear.training
    assert objective.norm.running_mean.abs().sum() == 0


def test_a_batch_is_changed_as_the_augmentations_say():
    batch = raw(0)
    result = prepare_batch(batch, Augment([Flip(probability=1.0)], 0))
    assert torch.equal(result.images, batch.images.permute(0, 3, 1, 2).flip(-1))
    assert result.is_flipped.all()
    unchanged = prepare_batch(batch, Augment([], 0))
    assert torch.equal(unchanged.images, batch.images.permute(0, 3, 1, 2))
    assert not unchanged.is_flipped.any()
