"""What a start writes into the run folder, and how it fails."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from gkd.core.errors import ConfigError
from gkd.train.run_folder import record_start


def test_every_start_adds_one_entry(tmp_path):
    record_start(tmp_path, "a: 1\n", ["train.py", "x.yaml"], {"torch": "2"})
    record_start(tmp_path, "a: 2\n", ["train.py", "y.yaml"], {"torch": "3"})
    assert (tmp_path / "config.yaml").read_text() == "a: 2\n"
    starts = json.loads((tmp_path / "run.json").read_text())
    assert [start["command"][1] for start in starts] == ["x.yaml", "y.yaml"]
    assert [start["torch"] for start in starts] == ["2", "3"]


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_refused_and_keeps_what_it_has(tmp_path, monkeypatch, name, number):
    record_start(tmp_path, "a: 1\n", ["train.py"], {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_text = Path.write_text

    def fail(path, *arguments, **options):
        if path.suffix == Path(name).suffix:
            raise OSError(number, os.strerror(number))
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ConfigError) as caught:
        record_start(tmp_path, "a: 1\n", ["train.py"], {})
    assert str(caught.value) == (
        f"run.folder: cannot write in {tmp_path}: {os.strerror(number)}; free some space, make the folder writable, or "
        "choose another"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("text", "reason"), [('[{"time"', "is damaged"), ("{}", "is not a list"), ("[" * 100_000, "is damaged")]
)
def test_a_damaged_list_of_starts_is_named_and_kept(tmp_path, text, reason):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"run.json: {reason}.*move it away"):
        record_start(tmp_path, "a: 1\n", ["train.py"], {})
    assert (tmp_path / "run.json").read_text() == text
    assert not (tmp_path / "config.yaml").exists()
