"""The meter around a loader: which steps it measures, and how it ends."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gkd.core.errors import ConfigError
from gkd.core.scopes import scope
from gkd.profiling import measuring
from gkd.profiling.attribution import attribute
from gkd.profiling.measuring import ProfileDone, ScopeClock, StepMeter, StepPlan
from gkd.profiling.trace import read_trace

CPU = torch.device("cpu")


class Loader:
    """As much of a loader as the meter needs: numbers for batches."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.is_open = True

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.is_open = False

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(range(self.count))


@pytest.fixture
def ticking(monkeypatch):
    """A clock that stands still but for what `work` adds."""
    now = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    return work


def train(meter: StepMeter, work, micro_batches: int = 1) -> int:
    """A loop that takes 2 seconds in the scope a, 1 within it in b, and 4 in none; returns the number of its steps."""
    batches, done = iter(meter), 0
    while True:
        for _ in range(micro_batches):
            next(batches)
        with scope("a"):
            work(1.5)
            with scope("b"):
                work(1.0)
            work(0.5)
        work(4.0)
        done += 1


def test_the_clock_gives_each_scope_its_own_time(ticking):
    clock = ScopeClock()
    ticking(1)
    with clock.timed("a"):
        ticking(2)
        with clock.timed("b"):
            ticking(4)
        ticking(8)
    ticking(16)
    clock.tick()
    assert clock.seconds == {"": 17, "a": 10, "b": 4}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_steps_are_measured_after_the_warm_up_and_the_run_ends(tmp_path, ticking, micro_batches):
    loader, plan = Loader(100), StepPlan(warmup=3, steps=4)
    meter = StepMeter(loader, plan, micro_batches, CPU, tmp_path / "trace.json.gz")
    num_asked = 0
    original = Loader.__iter__

    def counted(self):
        nonlocal num_asked
        for batch in original(self):
            num_asked += 1
            yield batch

    loader.__class__ = type("Counted", (Loader,), {"__iter__": counted})
    with pytest.raises(ProfileDone), meter:
        train(meter, ticking, micro_batches)
    assert not loader.is_open
    assert num_asked == plan.total * micro_batches == (3 + 4 + 1 + 4) * micro_batches
    assert meter.measured.step_seconds == [7.0] * 4
    assert meter.measured.scope_seconds == {"": 16.0, "data": 0.0, "a": 8.0, "b": 4.0}
    assert meter.measured.profiled_seconds == 28.0
    assert scope("a") is scope("b")  # nobody measures any more


def test_the_trace_holds_the_profiled_steps_and_their_scopes(tmp_path):
    meter = StepMeter(Loader(100), StepPlan(warmup=0, steps=3), 1, CPU, tmp_path / "trace.json.gz")
    with pytest.raises(ProfileDone), meter:
        train(meter, lambda seconds: time.sleep(seconds / 1000))
    found = attribute(read_trace(tmp_path / "trace.json.gz"))
    assert found.num_steps == 3
    assert {scope for scope, _ in found.host} == {"", "data", "a", "b"}
    assert found.host["b", "rest"] >= 3 * 1000
    assert meter.measured.num_page_faults >= 0


def test_a_run_that_fails_leaves_no_measurement_behind(tmp_path):
    for number in (2, 5):  # by the clock, under the profiler
        meter = StepMeter(Loader(number), StepPlan(warmup=1, steps=2), 1, CPU, tmp_path / "trace.json.gz")
        with pytest.raises(StopIteration), meter:
            train(meter, lambda seconds: None)
        assert scope("a") is scope("b")
        assert not meter.measured.profiled_seconds
    assert not (tmp_path / "trace.json.gz").exists()
    assert not torch.autograd._profiler_enabled()


def test_the_device_is_waited_for_only_between_measurements(tmp_path, monkeypatch):
    waits: list[int] = []
    device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(meter._num_asked))
    monkeypatch.setattr(measuring, "ProfilerActivity", SimpleNamespace(CPU=measuring.ProfilerActivity.CPU, CUDA=None))
    monkeypatch.setattr(measuring, "profile", lambda activities: SimpleNamespace(**Stub().__dict__))
    meter = StepMeter(Loader(100), StepPlan(warmup=2, steps=3), 1, device, tmp_path / "trace.json.gz")
    with pytest.raises(ProfileDone), meter:
        train(meter, lambda seconds: None)
    assert waits == [2, 5, 6, 9]


class Stub:
    """A profiler that does nothing."""

    def __init__(self) -> None:
        self.start = self.stop = lambda: None
        self.export_chrome_trace = lambda path: Path(path).touch()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "--steps must be at least 1, got 0"), ({"warmup": -1}, "--warmup must be 0")],
)
def test_a_plan_without_steps_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        StepPlan(**settings)
