"""Figures for servers that are slow, down, or gone: no call waits, nothing is raised, little is lost."""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import ModuleType

import pytest

from gkd.core.errors import ConfigError
from gkd.train import sinks
from gkd.train.metrics import RunLog, read_metrics
from gkd.train.sinks import BackgroundSink, require_package


class Server:
    """Takes what it is sent, unless `failures` are left; `gate` holds every call up while it is not set."""

    def __init__(self, failures: int = 0, opening_failures: int = 0) -> None:
        self.taken: list[tuple[int, dict[str, float], float]] = []
        self.closed: list[bool] = []
        self.failures = failures
        self.opening_failures = opening_failures
        self.num_tries = 0
        self.gate = threading.Event()
        self.gate.set()

    def open(self) -> Server:
        self.gate.wait()
        if self.opening_failures:
            self.opening_failures -= 1
            raise ConnectionError("no\nroute to host")
        return self

    def scalars(self, step, values, wall_time):
        self.gate.wait()
        self.num_tries += 1
        if self.failures:
            self.failures -= 1
            raise TimeoutError("too slow")
        self.taken.append((step, values, wall_time))

    def close(self, is_failed):
        self.closed.append(is_failed)


def sink_of(server, **settings):
    return BackgroundSink("Server", server.open, **{"first_pause_seconds": 0.001, **settings})


def wait_for(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("waited in vain")


def test_records_arrive_in_order_and_the_end_is_told(caplog):
    server = Server()
    sink = sink_of(server)
    for step in range(5):
        sink.scalars(step, {"loss": float(step)}, 10.0 + step)
    sink.close(is_failed=True)
    assert server.taken == [(step, {"loss": float(step)}, 10.0 + step) for step in range(5)]
    assert server.closed == [True]
    assert not caplog.records


def test_a_record_is_copied_when_it_is_given():
    server = Server()
    server.gate.clear()
    sink = sink_of(server)
    values = {"loss": 1.0}
    sink.scalars(1, values, 0.0)
    values["loss"] = 2.0
    server.gate.set()
    sink.close(is_failed=False)
    assert server.taken == [(1, {"loss": 1.0}, 0.0)]


def test_a_server_that_comes_back_gets_everything_and_is_warned_of_once(caplog):
    server = Server(failures=2, opening_failures=3)
    sink = sink_of(server)
    for step in range(4):
        sink.scalars(step, {}, 0.0)
    wait_for(lambda: len(server.taken) == 4)
    sink.close(is_failed=False)
    assert [step for step, _, _ in server.taken] == [0, 1, 2, 3]
    assert sink.num_lost == 0
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "Server: takes no figures (ConnectionError: no route to host); training goes on, and at most 10000 records "
        "wait until it does",
        "Server: takes figures again; 0 records were lost",
    ]


def test_a_record_that_is_always_refused_does_not_hold_up_the_others(monkeypatch):
    monkeypatch.setattr(sinks, "MAX_TRIES", 3)
    server = Server(failures=3)
    sink = sink_of(server)
    sink.scalars(0, {}, 0.0)
    sink.scalars(1, {}, 0.0)
    wait_for(lambda: server.taken)
    sink.close(is_failed=False)
    assert [step for step, _, _ in server.taken] == [1]
    assert sink.num_lost == 1


def test_what_waits_is_bounded_and_the_oldest_go_first(caplog):
    server = Server()
    server.gate.clear()
    sink = sink_of(server, max_waiting=3)
    for step in range(10):
        sink.scalars(step, {}, 0.0)
    server.gate.set()
    sink.close(is_failed=False)
    assert [step for step, _, _ in server.taken] == [7, 8, 9]
    assert "Server: 7 records are missing there" in caplog.text


def test_a_server_that_hangs_is_left_alone_when_the_run_ends(caplog):
    server = Server()
    server.gate.clear()
    sink = sink_of(server, close_seconds=0.05)
    sink.scalars(1, {}, 0.0)
    sink.scalars(2, {}, 0.0)
    sink.close(is_failed=False)  # returns
    assert server.taken == []
    assert "has not finished after 0.05 s and is left alone (2 records may be missing there)" in caplog.text
    server.gate.set()
    sink._thread.join(10)


def test_a_server_that_refuses_at_the_end_is_tried_once_more_and_no_longer(caplog):
    server = Server(failures=1_000_000)
    sink = sink_of(server, first_pause_seconds=3600.0)
    sink.scalars(1, {}, 0.0)
    wait_for(lambda: server.num_tries == 1)
    sink.close(is_failed=False)
    assert not sink._thread.is_alive()
    assert server.num_tries == 2
    assert "Server: 1 records are missing there" in caplog.text
    assert caplog.text.count("takes no figures") == 1


def test_nothing_to_send_opens_nothing():
    server = Server(opening_failures=1)
    sink_of(server).close(is_failed=False)
    assert server.opening_failures == 1
    assert server.closed == []


def test_the_run_log_feeds_its_sinks_and_survives_them(tmp_path, caplog):
    good, bad = Server(), Server(opening_failures=1_000_000)
    log = RunLog(tmp_path, 0, [sink_of(good), sink_of(bad)])
    log.write(3, {"loss/total": 1.5})
    with pytest.raises(ZeroDivisionError), log:
        raise ZeroDivisionError
    assert [(step, values) for step, values, _ in good.taken] == [(3, {"loss/total": 1.5})]
    assert good.closed == [True]
    assert read_metrics(tmp_path / "metrics.jsonl", "time")[1] == [good.taken[0][2]]
    assert read_metrics(tmp_path / "metrics.jsonl", "loss/total") == ([3], [1.5])
    assert caplog.text.count("takes no figures") == 1


def test_a_missing_package_is_refused_with_the_command():
    with pytest.raises(ConfigError) as caught:
        require_package("log.wandb", "no_such_package")
    assert str(caught.value) == (
        "log.wandb: needs the package no_such_package, which is missing; pip install no_such_package, or remove it"
    )
    require_package("log.wandb", "json")


def test_a_package_that_is_there_is_accepted(monkeypatch):
    module = ModuleType("wandb")
    module.__spec__ = logging.__spec__
    monkeypatch.setitem(sys.modules, "wandb", module)
    require_package("log.wandb", "wandb")
