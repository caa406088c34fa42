"""The quickstart's report, from runs that are already there."""

from __future__ import annotations

import argparse
import json

import pytest

from gkd.cli import quickstart
from gkd.core.errors import GkdError
from gkd.data import PairSet
from tests.train.tiny_run import config, write_data


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Data and three runs per seed, laid out as the quickstart lays them out; all are copies of one short run."""
    folder = tmp_path_factory.mktemp("quickstart")
    write_data(folder)
    (folder / "pairs.bin").rename(folder / "test.bin")
    options = argparse.Namespace(folder=folder / "runs", data=folder, seeds=[1, 2])
    from gkd.cli.train import main

    for seed in options.seeds:
        for run in quickstart.RUNS:
            target = options.folder / f"{run}_seed{seed}"
            assert main([str(config(folder)), f"run.folder={target}", "evaluation.sets=[]", "train.epochs=1"]) == 0
    return options


def test_the_report_has_every_run_of_every_seed_means_plots_and_paths(arguments, capsys):
    pairs = PairSet.load(arguments.data / "test.bin")
    outcomes = [quickstart._outcome(arguments, run, seed, pairs) for seed in arguments.seeds for run in quickstart.RUNS]
    quickstart._report(arguments, outcomes)
    text = capsys.readouterr().out
    for title in quickstart.TITLES.values():
        rows = [line for line in text.splitlines() if line.startswith(title)]
        assert len(rows) == 3  # two seeds and their mean
    assert "40 pairs of identities never trained on" in text
    assert "TAR@FAR" in text
    assert "parameters" in text
    assert "img/s" in text
    for name in ("loss.png", "roc.png", "scores_teacher.png", "scores_control.png", "scores_gkd.png"):
        assert (arguments.folder / name).read_bytes().startswith(b"\x89PNG")
        assert str(arguments.folder / name) in text
    report = json.loads((arguments.folder / "report.json").read_text())
    assert [(entry["run"], entry["seed"]) for entry in report] == [
        (run, seed) for seed in (1, 2) for run in quickstart.RUNS
    ]


def test_control_and_student_get_the_same_seed_data_and_evaluation(arguments):
    control, student = (quickstart._overrides(arguments, run, 2) for run in ("control", "gkd"))
    assert control[1:] == student[1:4]
    assert student[4] == f"teacher.run={arguments.folder / 'teacher_seed2'}"
    assert "run.seed=2" in control


def test_a_tool_that_fails_ends_the_quickstart(capfd):
    with pytest.raises(GkdError, match=r"tools/train.py ended with exit code 2"):
        quickstart._tool("train.py", "/nowhere/config.yaml")
    assert "No such file" in capfd.readouterr().err
