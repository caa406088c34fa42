"""`tools/runs.py`: its tasks, its files, what it refuses; and runs that training really wrote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gkd.cli.runs import main
from tests.runs.made_runs import DISTILLED, HOSTILE, lines, write_run
from tests.train.tiny_run import ROOT, config, write_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "control", metrics=lines(accuracy=0.7))
    write_run(tmp_path / "runs" / "gkd", config=DISTILLED, metrics=lines(accuracy=0.9))
    return tmp_path / "runs"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_list_prints_a_line_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", folder, "--sort", "accuracy") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [one.split()[0] for one in shown[2:4]] == ["gkd", "control"]
    assert run("list", folder, "--sort", "accuracy", "--reverse") == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("control")


def test_list_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["runs"]] == ["control", "gkd"]
    assert found["runs"][1]["figures"]["accuracy"]["best"] == 0.9
    assert found["notes"] == []


def test_compare_prints_and_writes_its_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "out"
    code = run("compare", folder / "control", folder / "gkd", "--png", out / "c.png", "--markdown", out / "t" / "c.md")
    assert code == 0
    assert "0.9000 (+0.2000)" in capsys.readouterr().out
    assert (out / "c.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "t" / "c.md").read_text()
    assert "(<../c.png>)" in text
    assert "| distill.0.loss.name | - | gkd |" in text


def test_compare_by_named_metrics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", folder, "--metric", "optim/lr", "--metric", "loss/total") == 0
    figures = capsys.readouterr().out.split("Figures")[1]
    assert "optim/lr" in figures
    assert "eval/lfw/accuracy" not in figures


def test_page_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "runs.html"
    assert run("page", folder, "--out", out, "--title", HOSTILE) == 0
    assert capsys.readouterr().out == f"2 runs: {out}\n"
    assert "&lt;/script&gt;&lt;img" in out.read_text(encoding="utf-8")
    assert run("page", folder / "gkd", "--out", out) == 0
    assert capsys.readouterr().out == f"1 run: {out}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "{runs}/nowhere"], "no such folder"),
        (["list", "{runs}", "--sort", "loss/totla"], "did you mean loss/total"),
        (["compare", "{runs}/gkd"], "needs 2 to 32 runs, got 1"),
        (["compare", "{runs}/gkd", "{runs}/gkd"], "needs 2 to 32 runs, got 1"),
        (["compare", "{runs}", "--metric", "nothing/like/it"], "--metric nothing/like/it: none of the runs"),
        (["compare", "{runs}", "--png", "{runs}/x.jpg"], "--png .*x.jpg: the file is to end in .png"),
        (["page", "{runs}", "--out", "{runs}/x.txt"], "--out .*x.txt: the file is to end in .html"),
        (["page", "{runs}", "--out", "{runs}/gkd/config.yaml/x.html"], "cannot make this folder"),
    ],
)
def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    before = sorted(folder.rglob("*"))
    assert run(*(argument.replace("{runs}", str(folder)) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert re.search(message, captured.err)
    assert sorted(folder.rglob("*")) == before


def test_run_folders_stay_as_they_are(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for arguments in (["list", folder], ["compare", folder], ["page", folder, "--out", folder.parent / "p.html"]):
        assert run(*arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_tool_starts_without_torch(folder: Path) -> None:
    code = (
        "import sys; sys.argv[1:] = ['list', sys.argv[1]]\n"
        "from gkd.cli.runs import main\n"
        "code = main(); assert not {'torch', 'cv2', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shim = subprocess.run(
        [sys.executable, ROOT / "tools" / "runs.py", "list", folder], cwd=folder, capture_output=True, text=True
    )
    assert shim.returncode == 0, shim.stderr
    assert shim.stdout == done.stdout


def test_runs_that_training_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gkd.cli.train import main as train

    write_data(tmp_path)
    for name, epochs in (("first", 1), ("second", 2)):
        path = config(tmp_path, train={"epochs": epochs})
        assert train([str(path), f"run.folder={tmp_path / 'runs' / name}"]) == 0
    capsys.readouterr()
    assert run("list", tmp_path / "runs", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert [(one["state"], one["step"], one["total_steps"]) for one in (first, second)] == [
        ("finished", 6, 6),
        ("finished", 12, 12),
    ]
    assert second["figures"]["eval/pairs/accuracy"]["last"] > 0.4
    assert second["figures"]["time/images_per_second"]["median"] > 0
    assert second["notes"] == []
    assert run("compare", tmp_path / "runs") == 0
    assert "train.epochs" in capsys.readouterr().out
