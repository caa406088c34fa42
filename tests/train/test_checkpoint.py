"""Checkpoints of one process: round trips, kills, full disks, what is kept."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gkd.core.errors import CheckpointError, ConfigError
from gkd.train.checkpoint import Checkpoints


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 4, 2, 2, generator=generator)
    return {
        "model/weight": base,
        "model/bf16": base.bfloat16(),
        "model/half": base.half(),
        "model/double": base.double(),
        "model/channels_last": base.to(memory_format=torch.channels_last),
        "model/part.of.a.larger": base[1:3],
        "model/transposed": base[:, :, 0, 0].t(),
        "model/num_batches": torch.tensor(7 + seed),
        "model/empty": torch.empty(0, 5),
        "model/labels": torch.arange(9) + (1 << 40),
        "model/bytes": torch.arange(256).to(torch.uint8),
        "model/flags": torch.tensor([True, False]),
        "model/special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def blank(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, 1) for name, tensor in tensors.items()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    def raw(tensor: Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return first.keys() == second.keys() and all(raw(first[name]) == raw(second[name]) for name in first)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in folder.iterdir() if path.name.startswith("step_"))


def hidden_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "run")
    tensors = some_tensors()
    values: dict[str, Any] = {"step": 3, "lr": 0.1 + 0.2, "names": ["é", None, True], "nested": {"a": {}}}
    path = checkpoints.save(3, tensors, values)
    assert path == tmp_path / "deep" / "run" / "step_00000003"
    found = blank(tensors)
    addresses = {name: tensor.data_ptr() for name, tensor in found.items()}
    assert checkpoints.load(path, found) == values
    assert same_bits(found, tensors)
    assert {name: tensor.data_ptr() for name, tensor in found.items()} == addresses


def test_parameters_are_filled_in_place_and_still_train(tmp_path: Path) -> None:
    layer, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    path = Checkpoints(tmp_path).save(0, dict(layer.named_parameters()), {})
    Checkpoints(tmp_path).load(path, dict(other.named_parameters()))
    assert torch.equal(layer.weight, other.weight)
    other(torch.ones(1, 3)).sum().backward()
    assert other.weight.grad is not None


def test_nothing_but_tensors_and_plain_values_is_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    bad_tensors: dict[str, Any] = {"step": 3}
    with pytest.raises(CheckpointError, match="`step` is a int, not a tensor; put plain values"):
        checkpoints.save(0, bad_tensors, {})
    with pytest.raises(CheckpointError, match="`mask` is sparse"):
        checkpoints.save(0, {"mask": torch.eye(2).to_sparse()}, {})
    for values, message in (
        ({"a": torch.ones(1)}, "cannot be stored: .*not JSON serializable"),
        ({"a": float("nan")}, "cannot be stored: .*not JSON compliant"),
        ({"a": (1, 2)}, "would change when stored"),
        ({"a": {1: 2}}, "would change when stored"),
    ):
        with pytest.raises(CheckpointError, match=f"the values of step 0 {message}"):
            checkpoints.save(0, {}, values)
    with pytest.raises(CheckpointError, match="score nan"):
        checkpoints.save(0, {}, {}, score=float("nan"))
    assert checkpoints.latest() is None


def test_no_checkpoint_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent").latest() is None
    (tmp_path / "step_00000001").write_text("a file")
    (tmp_path / "step_two").mkdir()
    assert Checkpoints(tmp_path).latest() is None
    assert Checkpoints(tmp_path).best() is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (9, 10, 100):
        checkpoints.save(step, {"a": torch.ones(1)}, {})
    assert steps_in(tmp_path) == [10, 100]
    assert hidden_in(tmp_path) == []
    assert checkpoints.latest() == tmp_path / "step_00000100"
    with pytest.raises(ConfigError, match="keep_last must be 1 or more, got 0"):
        Checkpoints(tmp_path, keep_last=0)


def test_the_best_is_kept_and_a_tie_goes_to_the_newer(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    for step, score, kept in (
        (1, 0.5, [1]),
        (2, 0.9, [2]),
        (3, 0.7, [2, 3]),
        (4, None, [2, 4]),
        (5, 0.9, [5]),
        (6, 0.1, [5, 6]),
    ):
        checkpoints.save(step, {"a": torch.ones(1)}, {}, score=score)
        assert steps_in(tmp_path) == kept
    assert checkpoints.best() == tmp_path / "step_00000005"


def test_every_nth_step_is_kept_for_good(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_every=10)
    for step, score, kept in (
        (0, None, [0]),
        (5, 0.9, [0, 5]),
        (10, 0.1, [0, 5, 10]),
        (15, 0.2, [0, 5, 10, 15]),
        (20, 0.95, [0, 10, 20]),
        (25, None, [0, 10, 20, 25]),
        (100, None, [0, 10, 20, 100]),
        (101, None, [0, 10, 20, 100, 101]),
    ):
        checkpoints.save(step, {"a": torch.ones(1)}, {}, score=score)
        assert steps_in(tmp_path) == kept
    for bad in (0, -5):
        with pytest.raises(ConfigError, match=f"keep_every must be 1 or more, or none, got {bad}"):
            Checkpoints(tmp_path, keep_every=bad)


def test_one_of_an_earlier_keep_every_goes_once_the_rule_is_gone(tmp_path: Path) -> None:
    for step in (10, 20, 25):
        Checkpoints(tmp_path, keep_last=1, keep_every=10).save(step, {"a": torch.ones(1)}, {})
    Checkpoints(tmp_path, keep_last=1, keep_every=20).save(26, {"a": torch.ones(1)}, {})
    assert steps_in(tmp_path) == [20, 26]


def test_the_one_just_saved_is_kept_though_later_steps_exist(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (20, 30, 15):
        checkpoints.save(step, {"a": torch.ones(1)}, {})
    assert steps_in(tmp_path) == [15, 20, 30]
    assert "later steps than 15: step_00000030, step_00000020" in caplog.text


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, some_tensors(0), {"n": 1})
    path = checkpoints.save(1, some_tensors(1), {"n": 2})
    found = blank(some_tensors())
    assert checkpoints.load(path, found) == {"n": 2}
    assert same_bits(found, some_tensors(1))
    assert steps_in(tmp_path) == [1]
    assert hidden_in(tmp_path) == []


def test_a_damaged_newer_one_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(step, some_tensors(), {})
    (tmp_path / "step_00000003" / "complete.json").unlink()
    data = bytearray((tmp_path / "step_00000002" / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "step_00000002" / "__0_0.distcp").write_bytes(data)
    assert checkpoints.latest() == tmp_path / "step_00000001"
    assert "step_00000003: " in caplog.text
    assert "no complete.json" in caplog.text
    assert "step_00000002/__0_0.distcp is damaged: its SHA-256" in caplog.text


def in_killed_child(action: Callable[[], None], kill_at: int) -> bool:
    """Run `action` in a fork that kills itself before its `kill_at`-th change on the disk; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            count = 0

            def killing(original: Callable[..., Any]) -> Callable[..., Any]:
                def wrapped(*args: Any, **kwargs: Any) -> Any:
                    nonlocal count
                    count += 1
                    if count == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args, **kwargs)

                return wrapped

            for owner, name in (
                (os, "fsync"),
                (os, "rename"),
                (os, "unlink"),
                (os, "mkdir"),
                (os, "rmdir"),
                (torch, "save"),
                (Path, "rename"),
                (Path, "write_text"),
                (Path, "mkdir"),
                (shutil, "rmtree"),
            ):
                setattr(owner, name, killing(getattr(owner, name)))
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("is_replacing", [False, True])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, is_replacing: bool) -> None:
    old, new = {"a": torch.zeros(1000), "b": torch.zeros(2)}, {"a": torch.ones(1000), "b": torch.ones(2)}
    step = 1 if is_replacing else 2
    outcomes = []
    for kill_at in range(1, 100):
        folder = tmp_path / str(kill_at)
        checkpoints = Checkpoints(folder, keep_last=1)
        checkpoints.save(1, old, {"is_new": False})
        was_killed = in_killed_child(lambda c=checkpoints: c.save(step, new, {"is_new": True}), kill_at)
        latest = checkpoints.latest()
        assert latest is not None
        found = blank(old)
        is_new = checkpoints.load(latest, found)["is_new"]
        assert same_bits(found, new if is_new else old)
        outcomes.append(is_new)
        # The next save clears what was left.
        checkpoints.save(3, new, {})
        assert steps_in(folder) == [3]
        assert hidden_in(folder) == []
        if not was_killed:
            break
    assert not was_killed
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) > 8
    assert outcomes[-2:] == [True, True]


def test_the_best_survives_a_kill_while_it_is_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    path = checkpoints.save(1, {"a": torch.zeros(1)}, {}, score=1.0)
    path.rename(tmp_path / f".replaced-{path.name}")
    assert checkpoints.latest() == tmp_path / f".replaced-{path.name}"
    checkpoints.save(2, {"a": torch.zeros(1)}, {}, score=0.5)
    assert steps_in(tmp_path) == [1, 2]


def test_a_full_disk_is_named_and_leaves_the_old_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, {"a": torch.ones(10)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not write .*step_00000002.*has space and can be written"):
            checkpoints.save(2, {"a": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest() == path
    assert hidden_in(tmp_path) == []
    assert checkpoints.save(2, {"a": torch.ones(100_000)}, {}) == tmp_path / "step_00000002"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match=r"FileExistsError.*run"):
        Checkpoints(tmp_path / "run").save(1, {}, {})


def test_an_old_one_that_cannot_be_deleted_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(1, {"a": torch.ones(1)}, {})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(shutil, "rmtree", refuse)
        path = checkpoints.save(2, {"a": torch.ones(1)}, {})
    assert "could not delete the old checkpoint" in caplog.text
    assert checkpoints.latest() == path
