"""The signals that ask a run to stop."""

from __future__ import annotations

import os
import signal

import pytest

from gkd.train.stop import HANDLED, StopOnSignal
from tests.train.test_run import children_of, losses, wait_for_step
from tests.train.tiny_run import config, finish, train, write_data


@pytest.mark.parametrize("number", HANDLED)
def test_the_first_signal_is_kept_and_its_echoes_are_ignored(number: int) -> None:
    received: list[int] = []
    before = [signal.signal(each, lambda got, _: received.append(got)) for each in HANDLED]
    try:
        with StopOnSignal() as stop:
            assert stop.signal_number == 0
            for each in (number, *HANDLED, number):
                os.kill(os.getpid(), each)
            assert (stop.signal_number, received) == (number, [])
        os.kill(os.getpid(), number)
        assert received == [number]
    finally:
        for each, handler in zip(HANDLED, before, strict=True):
            signal.signal(each, handler)


@pytest.mark.parametrize("first", HANDLED)
def test_a_later_ctrl_c_ends_the_run_and_nothing_else_does(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with StopOnSignal() as stop:
        os.kill(os.getpid(), first)
        monkeypatch.setattr("gkd.train.stop.ECHO_SECONDS", 0.0)
        for each in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), each)
        assert stop.signal_number == first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_all_handlers_are_put_back():
    before = [signal.getsignal(number) for number in HANDLED]
    with StopOnSignal():
        assert all(signal.getsignal(number) != old for number, old in zip(HANDLED, before, strict=True))
    assert [signal.getsignal(number) for number in HANDLED] == before


@pytest.mark.slow
def test_sigusr1_saves_and_the_run_goes_on(tmp_path):
    """Clusters signal every process of a job, the loading ones too, which must outlive it until the save is done."""
    write_data(tmp_path)
    path = config(tmp_path)
    run = tmp_path / "run"
    process = train(path, "train.epochs=300", "evaluation.sets=[]", "data.workers=1")
    wait_for_step(process, run, 3)
    workers = children_of(process.pid)
    assert len(workers) == 1
    for process_id in (*workers, process.pid):
        os.kill(process_id, signal.SIGUSR1)
    output = finish(process, 128 + signal.SIGUSR1)
    assert process.returncode == 138
    assert "asked to stop: saved after step" in output
    done = max(losses(run)[0])
    checkpoint = run / "checkpoints" / f"step_{done:08d}"
    assert (checkpoint / "complete.json").exists()
    epochs = done // 6 + 1
    elsewhere = (f"train.epochs={epochs}", f"train.resume={checkpoint}", f"run.folder={tmp_path / 'on'}")
    output = finish(train(path, "evaluation.sets=[]", *elsewhere))
    assert f"starting at step {done}" in output
    assert losses(tmp_path / "on")[0] == list(range(done + 1, epochs * 6 + 1))
