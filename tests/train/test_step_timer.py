"""Time and memory of a step."""

from __future__ import annotations

import os

import pytest
import torch

from gkd.train import memory_use, step_timer
from gkd.train.memory_use import memory_gib
from gkd.train.step_timer import StepTimer

CPU = torch.device("cpu")


def test_the_time_inside_is_added_up_and_taken_once(monkeypatch):
    clock = iter([10.0, 11.5, 20.0, 20.25, 30.0])
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: next(clock))
    timer = StepTimer(CPU)
    for _ in range(2):
        with timer.timed():
            pass
    assert timer.take_seconds() == pytest.approx(1.75)
    assert timer.take_seconds() == 0.0
    with pytest.raises(ZeroDivisionError), timer.timed():
        raise ZeroDivisionError
    assert timer.take_seconds() == 0.0


class Event:
    """In place of a CUDA event: records the next tick of a stream, in milliseconds, and counts waits."""

    made = 0
    waits = 0
    ticks = 0.0

    def __init__(self, enable_timing):
        assert enable_timing
        Event.made += 1
        self.at = None

    def record(self):
        Event.ticks += 100.0
        self.at = Event.ticks

    def synchronize(self):
        Event.waits += 1

    def elapsed_time(self, end):
        return end.at - self.at


def test_on_cuda_events_are_read_only_when_asked_and_used_again(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.made = Event.waits = 0
    timer = StepTimer(torch.device("cuda", 0))
    assert timer.take_seconds() == 0.0
    for _ in range(2):
        for _ in range(3):
            with timer.timed():
                pass
        assert timer.take_seconds() == pytest.approx(0.3)
    assert (Event.made, Event.waits) == (6, 2)
    with pytest.raises(ZeroDivisionError), timer.timed():
        raise ZeroDivisionError
    assert timer.take_seconds() == 0.0


@pytest.mark.gpu
def test_a_real_gpu_is_timed():
    device = torch.device("cuda", 0)
    timer = StepTimer(device)
    matrix = torch.rand(4096, 4096, device=device)
    with timer.timed():
        for _ in range(20):
            matrix = matrix @ matrix / 4096
    assert timer.take_seconds() > 1e-4
    memory = memory_gib(device)
    assert memory["memory/peak_gib"] >= memory["memory/allocated_gib"] >= 4096 * 4096 * 4 / (1 << 30)


def test_resident_memory_is_that_of_the_process(monkeypatch, tmp_path):
    before = memory_gib(CPU)["memory/resident_gib"]
    block = torch.ones(64 << 20)  # 256 MiB
    assert memory_gib(CPU)["memory/resident_gib"] - before == pytest.approx(0.25, abs=0.05)
    del block
    file = tmp_path / "statm"
    file.write_text(f"9 {(1 << 31) // os.sysconf('SC_PAGE_SIZE')} 5 1 0 3 0")
    monkeypatch.setattr(memory_use, "_STATM", file)
    assert memory_gib(CPU) == {"memory/resident_gib": 2.0}


@pytest.mark.parametrize("text", [None, "", "x y z"])
def test_memory_that_is_not_known_is_left_out(monkeypatch, tmp_path, text):
    file = tmp_path / "statm"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(memory_use, "_STATM", file)
    assert memory_gib(CPU) == {}
