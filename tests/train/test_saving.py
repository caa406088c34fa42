"""Background saves of one process: what is saved, what a failure costs, what is waited for."""

from __future__ import annotations

import errno
import logging
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystem

from gkd.train.checkpoint import Checkpoints
from gkd.train.checkpoint_staging import HostCopies
from gkd.train.saving import BackgroundSaver
from tests.train.test_checkpoint import blank, same_bits, some_tensors, steps_in


class Gate:
    """Holds back every write to the disk until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open = threading.Event()
        original = FileSystem.create_stream

        def create_stream(*arguments: Any, **options: Any) -> Any:
            assert self.is_open.wait(60)
            return original(*arguments, **options)

        monkeypatch.setattr(FileSystem, "create_stream", create_stream)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def loaded(path: Path | None, like: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    assert path is not None
    found = blank(like)
    return found, Checkpoints(path.parent).load(path, found)


def full_disk(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_saved_is_the_state_at_the_time_of_the_call(tmp_path: Path, gate: Gate) -> None:
    tensors, values = some_tensors(), {"step": 3, "nested": {"list": [1]}}
    with BackgroundSaver(Checkpoints(tmp_path)) as saver:
        saver.save(3, tensors, values, score=0.5)
        for tensor in tensors.values():
            tensor.zero_()
        values["nested"]["list"].append(2)  # type: ignore[index]
        assert Checkpoints(tmp_path).latest() is None  # so it returned before anything was written
        gate.is_open.set()
        saver.wait()
        found, stored = loaded(saver.last_path, tensors)
    assert same_bits(found, some_tensors())
    assert stored == {"step": 3, "nested": {"list": [1]}}
    assert Checkpoints(tmp_path).best() == saver.last_path == tmp_path / "step_00000003"
    assert (saver.num_failed, saver.last_error) == (0, None)


def test_the_files_are_those_of_a_save_that_waits(tmp_path: Path) -> None:
    tensors = some_tensors()
    Checkpoints(tmp_path / "waiting").save(1, tensors, {"a": 1})
    with BackgroundSaver(Checkpoints(tmp_path / "background")) as saver:
        saver.save(1, tensors, {"a": 1})
    files = ["values.json", "__0_0.distcp"]
    for name in files:
        one, two = (tmp_path / kind / "step_00000001" / name for kind in ("waiting", "background"))
        assert one.read_bytes() == two.read_bytes()


def test_the_next_save_waits_for_the_previous_one_and_uses_its_memory_again(tmp_path: Path) -> None:
    weight = torch.zeros(1000)
    with BackgroundSaver(Checkpoints(tmp_path, keep_last=9)) as saver:
        addresses = set()
        for step in range(5):
            saver.save(step, {"weight": weight, "count": torch.tensor(step)}, {"step": step})
            addresses.add(saver.staged["weight"].data_ptr())
            weight += 1
    assert len(addresses) == 1
    for step in range(5):
        found, values = loaded(tmp_path / f"step_{step:08d}", {"weight": weight, "count": torch.tensor(0)})
        assert found["weight"].unique().tolist() == [step]
        assert (int(found["count"]), values) == (step, {"step": step})


def test_other_shapes_and_names_take_other_memory(tmp_path: Path) -> None:
    with BackgroundSaver(Checkpoints(tmp_path)) as saver:
        for tensors in ({"a": torch.ones(3), "b": torch.ones(1)}, {"a": torch.ones(4)}, {"a": torch.ones(4).half()}):
            saver.save(1, tensors, {})
            saver.wait()
            assert same_bits(loaded(saver.last_path, tensors)[0], tensors)
        assert saver.num_failed == 0


def test_parameters_are_copied_without_their_graph() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
    copies = HostCopies().take({"a": parameter, "b": parameter * 2})
    assert not any(copy.requires_grad for copy in copies.values())
    assert copies["a"].is_contiguous(memory_format=torch.channels_last)
    assert copies["a"].data_ptr() != parameter.data_ptr()


def test_also_is_called_once_the_checkpoint_is_whole_and_reads_the_copies(tmp_path: Path, gate: Gate) -> None:
    weight, seen = torch.ones(3), []
    with BackgroundSaver(Checkpoints(tmp_path)) as saver:
        saver.save(2, {"w": weight}, {}, also=lambda: seen.append((saver.last_path, saver.staged["w"].tolist())))
        weight.zero_()
        assert seen == []
        gate.is_open.set()
        saver.wait()
    assert seen == [(tmp_path / "step_00000002", [1.0, 1.0, 1.0])]


def test_a_full_disk_costs_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {"a": torch.ones(3)}
    with BackgroundSaver(Checkpoints(tmp_path)) as saver:
        saver.save(1, tensors, {})
        saver.wait()
        with monkeypatch.context() as patched:
            patched.setattr(FileSystem, "create_stream", full_disk)
            saver.save(2, tensors, {}, also=lambda: pytest.fail("the checkpoint is not there"))
            saver.wait()
        assert saver.num_failed == 1
        assert saver.last_error is not None
        assert saver.last_error.startswith("the save of step 2 failed: could not write the checkpoint")
        assert "No space left on device" in saver.last_error
        assert saver.last_path == tmp_path / "step_00000001"
        saver.save(3, tensors, {})
    assert steps_in(tmp_path) == [1, 3]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].getMessage() == f"{saver.last_error}; training goes on, and the checkpoints before it stand"


@pytest.mark.parametrize(
    ("tensors", "values", "message"),
    [
        ({"a": 1}, {}, "`a` is a int, not a tensor"),
        ({"a": torch.eye(2).to_sparse()}, {}, "`a` is sparse"),
        ({"a": torch.ones(2, device="meta")}, {}, "`a` is sparse or has no memory"),
        ({}, {"a": float("nan")}, "the values of step 1 cannot be stored"),
        ({}, {"a": threading.Lock()}, "the state could not be copied to host memory: TypeError: cannot pickle"),
    ],
)
def test_a_state_that_cannot_be_saved_is_counted(
    tmp_path: Path, tensors: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with BackgroundSaver(Checkpoints(tmp_path)) as saver:
        saver.save(1, tensors, values)
    assert saver.num_failed == 1
    assert message in str(saver.last_error)
    assert Checkpoints(tmp_path).latest() is None


def test_too_little_memory_for_the_copies_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BackgroundSaver(Checkpoints(tmp_path)) as saver, monkeypatch.context() as patched:
        patched.setattr(HostCopies, "take", lambda *_: (_ for _ in ()).throw(MemoryError("too much")))
        saver.save(1, {"a": torch.ones(1)}, {})
    assert "could not be copied to host memory: MemoryError: too much" in str(saver.last_error)


def test_a_failure_of_also_is_counted_and_the_checkpoint_stays(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no such network")

    with BackgroundSaver(Checkpoints(tmp_path)) as saver:
        saver.save(1, {"a": torch.ones(1)}, {}, also=fail)
    assert saver.num_failed == 1
    assert "step 1 failed: ValueError: no such network" in str(saver.last_error)
    assert Checkpoints(tmp_path).latest() == saver.last_path == tmp_path / "step_00000001"


def test_close_leaves_a_save_that_hangs(tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    saver = BackgroundSaver(Checkpoints(tmp_path), timeout_minutes=0.001)
    saver.save(7, {"a": torch.ones(1)}, {})
    thread = saver._thread
    assert thread is not None
    assert thread.daemon
    saver.close()
    assert "save-7 did not end within 0.001 minutes and is left" in caplog.text
    assert saver.num_failed == 1
    saver.close()
    assert saver.num_failed == 1
    gate.is_open.set()
    thread.join()


def test_leaving_the_block_by_an_error_still_ends_the_save(tmp_path: Path) -> None:
    def diverge() -> None:
        with BackgroundSaver(Checkpoints(tmp_path)) as saver:
            saver.save(1, {"a": torch.ones(1)}, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        diverge()
    assert Checkpoints(tmp_path).latest() == tmp_path / "step_00000001"


def test_nothing_is_left_to_the_warning_filters_of_the_process(tmp_path: Path) -> None:
    """A thread that changed them would change them for training too. Warnings are errors here and would fail a save."""
    before = list(warnings.filters)
    seen: list[Any] = []
    with BackgroundSaver(Checkpoints(tmp_path)) as saver:
        saver.save(1, {"a": torch.ones(1)}, {}, also=lambda: seen.extend(warnings.filters))
    assert saver.num_failed == 0
    assert seen == before == warnings.filters
