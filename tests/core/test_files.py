"""Files that are hostile, damaged or half written."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from gkd.core.errors import CheckpointError, DataError, GkdError
from gkd.core.files import atomic_write, locked_folder, read_bounded, restricted_load_torch, restricted_unpickle
from tests.conftest import ROOT


class _Runs:
    """Pickles as a call that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_read_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(DataError, match=r"a: 5 bytes is more than the 4 bytes allowed"):
        read_bounded(path, 4)
    with pytest.raises(DataError, match="none: no such file"):
        read_bounded(tmp_path / "none", 4)
    with pytest.raises(DataError, match="is a folder"):
        read_bounded(tmp_path, 4)
    with pytest.raises(DataError, match="is not a regular file"):
        read_bounded("/dev/null", 4)


def test_atomic_write_replaces_only_at_success(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.npz"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".npz"
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_names_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make this folder"), atomic_write(tmp_path / "file" / "sub" / "a"):
        pass


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_restricted_unpickle_reads_plain_values(protocol: int) -> None:
    value = {"a": [1, 2.5, None, True], "b": ("x", {"y": 1})}
    assert restricted_unpickle(pickle.dumps(value, protocol), {}, "f") == value
    assert restricted_unpickle(io.BytesIO(pickle.dumps(value, protocol)), {}, "f") == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_restricted_unpickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    data = pickle.dumps(_Runs(target), protocol)
    with pytest.raises(DataError, match=rf"some\.bin: refused.*`{os.mkdir.__module__}\.mkdir`"):
        restricted_unpickle(data, {}, "some.bin")
    assert not target.exists()
    pickle.loads(data)
    assert target.exists()  # so the pickle was one that runs


def test_restricted_unpickle_does_not_change_the_table() -> None:
    class Allowed:
        marker = 1

    # GLOBAL, then BUILD with a state that would set an attribute on the class itself.
    data = b"cm\nAllowed\n" + pickle.dumps((None, {"marker": 2}), 0)[:-1] + b"b."
    with pytest.raises(DataError, match="refused, since its pickle changes"):
        restricted_unpickle(data, {("m", "Allowed"): Allowed}, "f")
    assert Allowed.marker == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<html>",
        b"\x80\x04",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",  # bytes of a length of 2^63 - 1
        b"\x80\x04\x95\xff",
        b"(((R.",
    ],
)
def test_restricted_unpickle_refuses_damage(data: bytes) -> None:
    with pytest.raises(DataError, match="f: damaged, truncated or not a pickle"):
        restricted_unpickle(data, {}, "f")


def test_restricted_unpickle_takes_no_memory_for_a_huge_memo() -> None:
    assert restricted_unpickle(b"\x80\x02]r\xff\xff\xff\x7f.", {}, "f") == []


def test_restricted_load_torch_reads_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(3), "n": 1}, path)
    assert restricted_load_torch(path)["w"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match="more than the 10 bytes allowed"):
        restricted_load_torch(path, max_bytes=10)


@pytest.mark.parametrize("is_zip", [True, False])
def test_restricted_load_torch_runs_nothing(tmp_path: Path, is_zip: bool) -> None:
    path, target = tmp_path / "a.pt", tmp_path / "made"
    torch.save({"w": _Runs(target)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"a\.pt: refused, since loading it would run `\w+\.mkdir`"):
        restricted_load_torch(path)
    assert not target.exists()


def test_restricted_load_torch_counts_what_a_zip_unpacks_to(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match="10,000,000 bytes is more than the 1,000,000 bytes allowed"):
        restricted_load_torch(path, max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is an HTML or XML page"),
        (b"Not Found", "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a text file"),
        (b"\x80\x02}", "damaged"),
        (bytes(range(256)), "damaged"),
    ],
)
def test_restricted_load_torch_names_what_it_got(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pt: {message}"):
        restricted_load_torch(path)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_restricted_load_torch_finds_truncation(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"a\.pt: damaged"):
        restricted_load_torch(path)


def test_restricted_load_torch_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        restricted_load_torch(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        restricted_load_torch(tmp_path)


LOCKING = """
import os, signal, sys, time
from pathlib import Path
from gkd.core.files import locked_folder

with locked_folder(Path(sys.argv[1]), "run.folder", "another run is writing"):
    if os.fork() == 0:
        os.write(1, f"{os.getpid()}\\n".encode())
        time.sleep(60)
        os._exit(0)
    signal.pause()
"""


def test_a_fork_does_not_hold_its_parents_lock(tmp_path: Path) -> None:
    """A loading process that outlives its killed rank must not keep the next run out."""
    with subprocess.Popen([sys.executable, "-c", LOCKING, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        fork = int(process.stdout.readline())
        try:
            with (
                pytest.raises(GkdError, match="another run is writing"),
                locked_folder(tmp_path, "x", "another run is writing"),
            ):
                pass
            process.kill()
            process.wait(10)
            with locked_folder(tmp_path, "run.folder", "another run is writing"):
                os.kill(fork, 0)  # it lives
        finally:
            process.kill()
            os.kill(fork, signal.SIGKILL)
