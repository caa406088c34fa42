"""Logs on a disk that fills up and is emptied again: the run goes on, no half line stays, and little is lost."""

from __future__ import annotations

import errno
import json
import logging
import os
from contextlib import suppress

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gkd.core.errors import ConfigError
from gkd.train import log_files
from gkd.train.log_files import AppendFile, EventFile
from gkd.train.metrics import RunLog, read_metrics


class Disk:
    """In place of `os.write`: takes `room` more bytes, then fails with `number`."""

    def __init__(self, monkeypatch, room: int = 0, number: int = errno.ENOSPC) -> None:
        self.room = room
        self.number = number
        self._write = os.write
        monkeypatch.setattr(log_files.os, "write", self.write)

    def write(self, descriptor, data):
        part = bytes(data)[: self.room]
        if not part:
            raise OSError(self.number, os.strerror(self.number))
        self.room -= len(part)
        return self._write(descriptor, part)


def test_a_half_written_record_is_cut_off_and_written_whole_later(tmp_path, monkeypatch, caplog):
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    file = AppendFile(path)
    disk = Disk(monkeypatch, room=9)
    with caplog.at_level(logging.WARNING):
        file.append(b"first\n")
        file.append(b"second\n")  # three bytes of it fit
        assert path.read_bytes() == b"old\nfirst\n"
        file.append(b"third\n")
        assert (file.num_failures, file.num_lost) == (2, 0)
        disk.room = 1000
        file.append(b"fourth\n")
        assert path.read_bytes() == b"old\nfirst\nsecond\nthird\nfourth\n"
        file.close()
    assert caplog.text.count("cannot be written (No space left on device); training goes on") == 1
    assert "can be written again after 2 failures; 0 records were lost" in caplog.text


def test_what_could_not_be_cut_off_at_once_is_cut_off_before_the_next_write(tmp_path, monkeypatch):
    path = tmp_path / "log"
    file = AppendFile(path)
    file.append(b"first\n")
    disk = Disk(monkeypatch, room=3, number=errno.EROFS)
    original = os.ftruncate

    def read_only(descriptor, size):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(log_files.os, "ftruncate", read_only)
    file.append(b"second\n")
    assert path.read_bytes() == b"first\nsec"
    disk.room = 1000
    file.append(b"third\n")  # the half line cannot be removed yet, so nothing may follow it
    assert path.read_bytes() == b"first\nsec"
    monkeypatch.setattr(log_files.os, "ftruncate", original)
    file.append(b"fourth\n")
    file.close()
    assert path.read_bytes() == b"first\nsecond\nthird\nfourth\n"


def test_a_second_fault_is_told_again(tmp_path, monkeypatch, caplog):
    file = AppendFile(tmp_path / "log")
    disk = Disk(monkeypatch)
    for room in (0, 100, 0):
        disk.room = room
        file.append(b"x\n")
    file.close()
    assert caplog.text.count("training goes on") == 2


def test_what_waits_is_bounded_and_what_is_lost_is_counted(tmp_path, monkeypatch, caplog):
    path = tmp_path / "log"
    file = AppendFile(path, max_waiting=2)
    disk = Disk(monkeypatch)
    for number in range(5):
        file.append(b"%d\n" % number)
    assert file.num_lost == 3
    disk.room = 100
    file.append(b"5\n")
    assert path.read_bytes() == b"3\n4\n5\n"
    disk.room = 0
    file.append(b"6\n")
    file.close()
    assert file.num_lost == 4
    assert "closed with 1 records that could not be written" in caplog.text


def test_closing_writes_what_waited(tmp_path, monkeypatch):
    file = AppendFile(tmp_path / "log")
    disk = Disk(monkeypatch)
    file.append(b"late\n")
    disk.room = 100
    file.close()
    assert (tmp_path / "log").read_bytes() == b"late\n"
    assert file.num_lost == 0


def test_another_file_in_its_place_is_not_stretched(tmp_path, monkeypatch):
    path = tmp_path / "log"
    file = AppendFile(path)
    file.append(b"a long line\n")
    disk = Disk(monkeypatch)
    file.append(b"second\n")
    path.unlink()
    disk.room = 100
    file.append(b"third\n")
    assert path.read_bytes() == b"second\nthird\n"


def points(folder):
    board = EventAccumulator(str(folder))
    board.Reload()
    found = board.Scalars("loss/total")
    return [(point.step, point.value) for point in found]


def test_tensorboard_reads_the_points_as_soon_as_they_are_added(tmp_path):
    events = EventFile(tmp_path, None)
    events.scalars(1, {"loss/total": 2.5, "optim/lr": 0.5}, 1e9)
    events.scalars(2, {"loss/total": float("nan")}, 1e9)
    assert points(tmp_path)[0] == (1, 2.5)
    assert len(points(tmp_path)) == 2
    events.close()
    later = EventFile(tmp_path, 2)
    later.scalars(2, {"loss/total": 1.5}, 1e9)
    later.close()
    assert points(tmp_path) == [(1, 2.5), (2, 1.5)]


def test_a_run_log_survives_a_full_disk_and_loses_nothing(tmp_path, monkeypatch, caplog):
    log = RunLog(tmp_path, 0)
    log.write(1, {"loss/total": 1.0})
    disk = Disk(monkeypatch, room=20)
    for step in (2, 3):
        log.write(step, {"loss/total": float(step)})
    assert read_metrics(tmp_path / "metrics.jsonl", "loss/total") == ([1], [1.0])
    assert log.num_failures == 4
    disk.room = 100_000
    log.write(4, {"loss/total": 4.0})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl", "loss/total") == ([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0])
    assert points(tmp_path / "tensorboard") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert caplog.text.count("training goes on") == 2  # each file once


def test_a_log_that_cannot_be_opened_is_refused_at_the_start(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        ConfigError, match=r"^run.folder: cannot write .*metrics.jsonl: Is a directory; free some space"
    ):
        RunLog(tmp_path, 0)


def test_a_real_full_disk_is_survived(small_disk, caplog):
    log = RunLog(small_disk, 0)
    log.write(1, {"loss/total": 1.0})
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    for step in range(2, 200):
        log.write(step, {"loss/total": float(step)})
    lines = (small_disk / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert all(line.endswith("\n") and json.loads(line) for line in lines)
    assert log.num_failures > 0
    filler.unlink()
    log.write(200, {"loss/total": 200.0})
    log.close()
    assert read_metrics(small_disk / "metrics.jsonl", "loss/total")[0] == list(range(1, 201))
    assert [step for step, _ in points(small_disk / "tensorboard")] == list(range(1, 201))
