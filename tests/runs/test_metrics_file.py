"""`metrics.jsonl` read while it may be written, damaged or hostile."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from gkd.runs import metrics_file
from gkd.runs.metrics_file import Metrics, read_metrics_file
from tests.runs.made_runs import line


def read(tmp_path: Path, content: bytes) -> Metrics:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    return read_metrics_file(path)


def encode(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def points(metrics: Metrics, name: str) -> list[tuple[int, float]]:
    curve = metrics.curves[name]
    return list(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def test_curves_are_read_by_name(tmp_path: Path) -> None:
    found = read(tmp_path, encode(line(1, a=0.5, b=2), line(3, a=0.25), line(3, c=1)))
    assert points(found, "a") == [(1, 0.5), (3, 0.25)]
    assert points(found, "b") == [(1, 2.0)]
    assert points(found, "c") == [(3, 1.0)]
    assert (found.last_step, found.num_damaged, found.is_last_half, found.is_cut) == (3, 0, False, False)
    assert len(found.times) == 3


def test_missing_file_holds_nothing(tmp_path: Path) -> None:
    assert read_metrics_file(tmp_path / "metrics.jsonl").curves == {}


def test_half_written_last_line_is_told_and_left_out(tmp_path: Path) -> None:
    whole = encode(line(1, a=1.0), line(2, a=2.0))
    for length in range(len(encode(line(1, a=1.0))) + 1, len(whole) - 1):
        found = read(tmp_path, whole[:length])
        assert points(found, "a") == [(1, 1.0)]
        assert (found.is_last_half, found.num_damaged) == (True, 0), length
    assert points(read(tmp_path, whole[:-1]), "a") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"",
        b"[1, 2]",
        b"null",
        b'{"a": 1}',
        b'{"step": -1, "a": 1}',
        b'{"step": true, "a": 1}',
        b'{"step": 1.5, "a": 1}',
        b'{"step": "1", "a": 1}',
        b'{"step": 1e300, "a": 1}',
        b'{"step": 99999999999999999999, "a": 1}',
        b"\xff\xfe\x00",
        b"[" * 50_000,
        b'{"step": ' + b"9" * 10_000 + b"}",
    ],
)
def test_damaged_line_is_counted_and_the_rest_read(tmp_path: Path, bad: bytes) -> None:
    found = read(tmp_path, encode(line(1, a=1.0)) + bad + b"\n" + encode(line(2, a=2.0)))
    assert points(found, "a") == [(1, 1.0), (2, 2.0)]
    assert found.num_damaged == 1


def test_values_that_are_no_numbers_are_left_out_and_others_kept(tmp_path: Path) -> None:
    text = b'{"step": 1, "time": "noon", "a": NaN, "b": Infinity, "c": "x", "d": true, "e": [1], "f": -1e999, "g": 1'
    found = read(tmp_path, text + b"0" * 400 + b"}\n")
    assert sorted(found.curves) == ["a", "b", "f", "g"]
    assert math.isnan(found.curves["a"].values[0])
    assert [found.curves[name].values[0] for name in "bfg"] == [math.inf, -math.inf, math.inf]
    assert len(found.times) == 0
    assert len(found.curves["a"].finite.steps) == 0


@pytest.mark.parametrize(("text", "value"), [("1e100", 1e100), ("1.1e100", math.inf), ("-2e300", -math.inf)])
def test_huge_values_count_as_infinite(tmp_path: Path, text: str, value: float) -> None:
    assert points(read(tmp_path, f'{{"step": 1, "a": {text}}}\n'.encode()), "a") == [(1, value)]


def test_step_that_comes_again_replaces_what_followed(tmp_path: Path) -> None:
    written = [line(step, a=step) for step in (10, 20, 30, 40)] + [line(20, a=-20), line(30, b=-30)]
    found = read(tmp_path, encode(*written))
    assert points(found, "a") == [(10, 10.0), (20, -20.0)]
    assert points(found, "b") == [(30, -30.0)]
    assert found.last_step == 30
    assert len(found.times) == 3


def test_steps_grow_whatever_the_order(tmp_path: Path) -> None:
    steps = np.random.default_rng(3).integers(0, 50, 400).tolist()
    found = read(tmp_path, encode(*(line(step, a=1.0) for step in steps)))
    assert np.all(np.diff(found.curves["a"].steps) > 0)


def test_long_line_is_skipped_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "MAX_LINE_BYTES", 100)
    long = json.dumps({"step": 2, "text": "x" * 950}).encode() + b"\n"
    found = read(tmp_path, encode({"step": 1, "a": 1}) + long + encode({"step": 3, "a": 3}))
    assert points(found, "a") == [(1, 1.0), (3, 3.0)]
    assert found.num_damaged == 1


def test_line_of_just_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode({"step": 1, "a": 1})
    monkeypatch.setattr(metrics_file, "MAX_LINE_BYTES", len(first))
    found = read(tmp_path, first + encode({"step": 2, "a": 2}))
    assert (points(found, "a"), found.num_damaged) == ([(1, 1.0), (2, 2.0)], 0)


def test_large_file_is_read_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "MAX_FILE_BYTES", 1000)
    found = read(tmp_path, encode(*({"step": step, "a": 1} for step in range(500))))
    assert found.is_cut
    assert 30 < len(found.curves["a"].steps) < 100


def test_number_of_names_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "MAX_NAMES", 3)
    found = read(tmp_path, encode({"step": 1, **{f"n{place}": 1 for place in range(5)}}))
    assert list(found.curves) == ["n0", "n1", "n2"]
    assert found.num_names_left_out == 2


def test_names_are_printable_and_short(tmp_path: Path) -> None:
    found = read(tmp_path, encode({"step": 1, "a\x1b[31m\n": 1, "\ud800": 1, "x" * 500: 1}))
    assert list(found.curves)[:2] == ["a\\x1b[31m\\n", "\\ud800"]
    assert max(map(len, found.curves)) == metrics_file.MAX_NAME_LENGTH
    "".join(found.curves).encode("utf-8")


def test_pipe_and_folder_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="not a regular file"):
            read_metrics_file(tmp_path / name)
