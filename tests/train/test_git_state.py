"""What a run notes of its source tree and its machine: enough to tell them, bounded, and no secrets."""

from __future__ import annotations

import json
import subprocess

import pytest

from gkd.train import git_state as module
from gkd.train import machine, run_folder
from gkd.train.git_state import GitState, git_state
from gkd.train.run_folder import record_start


def git(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init", "--initial-branch", "topic")
    (folder / "code.py").write_text("one\n")
    (folder / ".gitignore").write_text("ignored*\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "x")
    return folder


def test_a_clean_tree_has_a_commit_and_a_branch(tree):
    state = git_state(tree)
    assert state.commit is not None
    assert len(state.commit) == 40
    assert (state.branch, state.diff, state.num_untracked) == ("topic", b"", 0)


def test_changes_are_kept_and_untracked_files_only_counted(tree):
    commit = git_state(tree).commit
    (tree / "code.py").write_text("two\n")
    for name in ("new 1", "new 2", "ignored"):
        (tree / name).write_text("SECRET")
    state = git_state(tree)
    assert state.commit == f"{commit}-dirty"
    assert b"-one\n+two\n" in state.diff
    assert state.num_untracked == 2
    assert b"SECRET" not in state.diff
    assert b"new 1" not in state.diff


def test_staged_changes_count_and_no_branch_is_none(tree):
    (tree / "code.py").write_text("two\n")
    git(tree, "add", "code.py")
    git(tree, "checkout", "--detach")
    state = git_state(tree)
    assert b"+two\n" in state.diff
    assert state.branch is None


def test_a_large_diff_is_cut(tree, monkeypatch):
    monkeypatch.setattr(module, "MAX_DIFF_BYTES", 1000)
    (tree / "code.py").write_text("line\n" * 100_000)
    diff = git_state(tree).diff
    assert diff.endswith(b"\n... cut after 1,000 bytes\n")
    assert len(diff) < 1050


def test_programs_that_the_tree_names_are_not_run(tree, tmp_path):
    witness = tmp_path / "witness"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {witness}\n")
    program.chmod(0o755)
    (tree / ".gitattributes").write_text("*.py diff=mine\n")
    for key in ("diff.external", "diff.mine.command", "diff.mine.textconv", "core.fsmonitor"):
        git(tree, "config", key, str(program))
    (tree / "code.py").write_text("two\n")
    assert b"+two\n" in git_state(tree).diff
    assert not witness.exists()


def test_outside_of_git_all_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == GitState(None)


def test_without_git_or_with_one_that_hangs_all_is_unknown(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert git_state(tree) == GitState(None)
    (tmp_path / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 0.1)
    assert git_state(tree) == GitState(None)


def starts(folder):
    return json.loads((folder / "run.json").read_text())


def test_each_start_notes_the_tree_and_equal_changes_are_kept_once(tmp_path, monkeypatch):
    diffs = [b"", b"a\n", b"a\n", b"b\n", b"a\n"]
    for diff in diffs:
        state = GitState("abc-dirty" if diff else "abc", "topic", diff, 3)
        monkeypatch.setattr(run_folder, "git_state", lambda state=state: state)
        record_start(tmp_path, "a: 1\n", ["train.py"], {})
    found = starts(tmp_path)
    assert [start["git_diff"] for start in found] == [None, "git_2.diff", "git_2.diff", "git_4.diff", "git_5.diff"]
    assert (tmp_path / "git_2.diff").read_bytes() == b"a\n"
    assert (tmp_path / "git_4.diff").read_bytes() == b"b\n"
    first = {key: found[0][key] for key in ("git_commit", "git_branch", "num_untracked")}
    assert first == {"git_commit": "abc", "git_branch": "topic", "num_untracked": 3}


def test_a_first_start_with_changes_has_them_in_git_diff(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "git_state", lambda: GitState("abc-dirty", None, b"a\n", None))
    record_start(tmp_path, "a: 1\n", ["train.py"], {})
    assert starts(tmp_path)[0]["git_diff"] == "git.diff"
    assert (tmp_path / "git.diff").read_bytes() == b"a\n"


@pytest.mark.parametrize("name", ["../outside", "git.diff/../../outside", 7, "missing.diff"])
def test_a_hostile_name_of_a_diff_is_not_followed(tmp_path, monkeypatch, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(b"a\n")
    (folder / "run.json").write_text(json.dumps([{"git_diff": name}]))
    monkeypatch.setattr(run_folder, "git_state", lambda: GitState("abc-dirty", None, b"a\n", None))
    record_start(folder, "a: 1\n", ["train.py"], {})
    assert starts(folder)[-1]["git_diff"] == "git_2.diff"


def test_the_machine_is_described_without_secrets(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "NCCL_DEBUG"):
        monkeypatch.setenv(name, "7")
    for name in ("WANDB_API_KEY", "NCCL_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOME_PAGE"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9" * 5000)
    record_start(tmp_path, "a: 1\n", ["train.py"], {})
    text = (tmp_path / "environment.json").read_text()
    assert "hunter2" not in text
    found = json.loads(text)
    assert found["variables"]["OMP_NUM_THREADS"] == "7"
    assert found["variables"]["NCCL_DEBUG"] == "7"
    assert len(found["variables"]["CUDA_VISIBLE_DEVICES"]) == 300
    assert found["packages"]["torch"].startswith("2.")
    assert found["cpu"]["num_usable"] >= 1
    assert found["cpu"]["name"]
    assert "hunter2" not in (tmp_path / "run.json").read_text()


def test_what_is_described_is_bounded(monkeypatch):
    for index in range(500):
        monkeypatch.setenv(f"NCCL_{index}", "x")
    assert len(machine.variables()) == 100
    monkeypatch.setattr(machine, "_MAX_PACKAGES", 3)
    assert len(machine.packages()) == 3


def test_a_cpu_without_a_name_is_called_by_its_kind(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "missing")
    assert machine.machine()["cpu"]["name"]
