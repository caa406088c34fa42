"""Which folders are taken for runs, in which order, and how the search ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.core.errors import DataError
from gkd.runs import find
from gkd.runs.find import find_runs
from tests.runs.made_runs import write_run


def names(found: find.FoundRuns, root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in found.paths]


def test_runs_are_found_at_any_level_in_natural_order(tmp_path: Path) -> None:
    for name in ("seed10", "seed2", "deep/er/run", "a"):
        write_run(tmp_path / name)
    (tmp_path / "no_run").mkdir()
    (tmp_path / "no_run" / "config.yaml").touch()
    assert names(find_runs([tmp_path]), tmp_path) == ["a", "deep/er/run", "seed2", "seed10"]


def test_a_run_itself_may_be_named_and_is_told_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert find_runs([run, tmp_path, run]).paths == [run]


def test_own_folders_of_a_run_and_hidden_ones_are_not_entered(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("run/checkpoints/step_1", "run/weights", "run/tensorboard", ".hidden"):
        write_run(tmp_path / name)
    inner = write_run(run / "fine_tuned")
    assert find_runs([tmp_path]).paths == [run, inner]


def test_a_profile_is_no_run(tmp_path: Path) -> None:
    run, profile = write_run(tmp_path / "run"), write_run(tmp_path / "run-profile")
    (profile / "profile.json").write_text("{}")
    assert find_runs([tmp_path]).paths == [run]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "run")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert len(find_runs([tmp_path]).paths) == 1


def test_depth_is_bounded(tmp_path: Path) -> None:
    write_run(tmp_path.joinpath(*"123456"))
    write_run(tmp_path.joinpath(*"abcdefg"))
    assert names(find_runs([tmp_path]), tmp_path) == ["1/2/3/4/5/6"]


def test_folder_with_several_paths_is_met_on_the_shortest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "z" / "b" / "c" / "run")
    (tmp_path / "a" / "1" / "2" / "3").mkdir(parents=True)
    (tmp_path / "a" / "1" / "2" / "3" / "link").symlink_to(tmp_path / "z")
    assert find_runs([tmp_path]).paths == [run]


@pytest.mark.parametrize(("limit", "value", "text"), [("MAX_RUNS", 2, "2 runs"), ("MAX_FOLDERS", 3, "3 folders")])
def test_number_is_bounded_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, text: str
) -> None:
    for place in range(5):
        write_run(tmp_path / f"run{place}")
    monkeypatch.setattr(find, limit, value)
    found = find_runs([tmp_path])
    assert names(found, tmp_path) == ["run0", "run1"]
    assert found.notes == [f"the search ended after {text}; name folders further down"]


def test_missing_folder_file_and_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; name run folders"):
        find_runs([tmp_path / "nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file: is not a folder"):
        find_runs([tmp_path / "file"])
    with pytest.raises(DataError, match=r"no run in .*: a run is a folder with config.yaml and run.json, at most 6"):
        find_runs([tmp_path])


def test_unreadable_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "shut").mkdir()
    scandir = find.os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(find.os, "scandir", refuse)
    found = find_runs([tmp_path])
    assert names(found, tmp_path) == ["run"]
    assert found.notes == [f"{tmp_path}/shut: cannot be read: Permission denied"]
