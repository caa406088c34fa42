"""The learning rate of a step against the formulas, worked out by hand."""

import math

import pytest

from gkd.core.errors import ConfigError
from gkd.train.schedule import SCHEDULES, Cosine, Polynomial, Schedule, Step


def schedule(decay, **changes):
    settings = {"lr": 0.1, "total_steps": 100, "steps_per_epoch": 10, "warmup_epochs": 2.0, "warmup_start_lr": 0.01}
    return Schedule(decay, **{**settings, **changes})


@pytest.mark.parametrize("decay", [Cosine(), Polynomial(), Step(milestones=(5.0,))])
def test_warm_up_is_linear_and_ends_at_the_base_rate(decay):
    rate = schedule(decay)
    for step in range(20):
        assert rate(step) == pytest.approx(0.01 + 0.09 * (step + 1) / 20)


def test_cosine_follows_its_formula():
    rate = schedule(Cosine(final_lr=0.02))
    for step in range(20, 100):
        expected = 0.02 + 0.08 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        assert rate(step) == pytest.approx(expected)


def test_polynomial_follows_its_formula():
    rate = schedule(Polynomial(power=2.0))
    for step in range(20, 100):
        assert rate(step) == pytest.approx(0.1 * (1 - (step - 20) / 80) ** 2)


def test_step_falls_at_each_milestone_in_epochs_of_the_whole_run():
    rate = schedule(Step(milestones=(5.0, 8.0), factor=0.5))
    assert [rate(step) for step in (49, 50, 79, 80, 99)] == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025])


def test_without_warm_up_the_first_step_has_the_base_rate():
    assert schedule(Cosine(), warmup_epochs=0.0)(0) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"warmup_epochs: 10.0 epochs are 100 steps, but the run has only 100"):
        schedule(Cosine(), warmup_epochs=10.0)


def test_bad_values_are_refused():
    with pytest.raises(ConfigError, match=r"final_lr must not be negative, got -1"):
        Cosine(final_lr=-1.0)
    with pytest.raises(ConfigError, match=r"milestones must ascend"):
        Step(milestones=(3.0, 1.0))


def test_the_table_names_every_decay():
    assert set(SCHEDULES) == {"cosine", "polynomial", "step"}
