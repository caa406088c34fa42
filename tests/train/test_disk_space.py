"""Room for checkpoints: what is needed, what is there, and what only a trial shows."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from gkd.core.errors import ConfigError
from gkd.train.disk_space import checkpoint_bytes, folder_bytes, require_space, require_writing

GIB = 1 << 30


def test_sizes(tmp_path):
    assert checkpoint_bytes([torch.zeros(3, 4), torch.zeros(5, dtype=torch.int64), torch.zeros(())]) == 48 + 40 + 4
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(bytes(100))
    (tmp_path / "b").write_bytes(bytes(11))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert folder_bytes(tmp_path) - (tmp_path / "link").lstat().st_size == 111
    assert folder_bytes(tmp_path / "missing") == 0


@pytest.mark.parametrize(
    ("needed", "free", "words"),
    [(3 * GIB, 2 * GIB, ("3.0 GiB", "2.0 GiB")), (5 << 20, 1 << 19, ("5.0 MiB", "0.5 MiB"))],
)
def test_too_little_space_is_refused_with_both_figures(tmp_path, monkeypatch, needed, free, words):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (asked.append(path), SimpleNamespace(free=free))[1])
    with pytest.raises(ConfigError) as caught:
        require_space(tmp_path / "not" / "yet", needed)
    assert str(caught.value) == (
        f"run.folder: about {words[0]} are needed in {tmp_path / 'not' / 'yet'} for checkpoints, and {words[1]} are "
        "free there; free some, lower train.keep_last, or choose another folder"
    )
    assert asked == [tmp_path]
    require_space(tmp_path, free)


def test_a_trial_leaves_nothing_behind(tmp_path):
    require_writing(tmp_path / "new" / "run")
    assert not list((tmp_path / "new" / "run").iterdir())


def test_a_trial_that_fails_says_why_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=rf"^run.folder: cannot write in {tmp_path}: Disk quota exceeded; free some"):
        require_writing(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match=r"cannot write in .*/run: File exists"):
        require_writing(tmp_path / "run")


def test_a_real_full_disk_and_a_real_read_only_one(small_disk):
    require_space(small_disk, 1 << 20)
    require_writing(small_disk)
    with pytest.raises(ConfigError, match=r"about 3.0 MiB are needed .* and 2.0 MiB are free"):
        require_space(small_disk / "run", 3 << 20)
    (small_disk / "filler").write_bytes(bytes((2 << 20) - 65536))
    with pytest.raises(ConfigError, match="No space left on device"):
        require_writing(small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ConfigError, match="Read-only file system"):
        require_writing(small_disk)
