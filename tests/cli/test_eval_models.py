"""The networks of the evaluation tool: their names, and which of them a declared input is for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from gkd.cli.eval import main
from gkd.cli.eval_models import _models_meant, name_weights
from gkd.core.errors import CheckpointError, ConfigError
from gkd.models import InputSpec, LoadReport
from tests.cli.pair_files import logging_as_before, weights, write_pairs, write_run
from tests.models.onnx_nets import face_net

__all__ = ["logging_as_before", "weights"]  # fixtures


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def names(*given: object) -> list[str]:
    return list(name_weights([str(each) for each in given]))


def test_default_names_are_those_of_run_folders_and_files(tmp_path: Path) -> None:
    run = touch(tmp_path / "runs" / "small" / "weights" / "student.pt").parents[1]
    other = touch(tmp_path / "other" / "student.pt").parent
    net = touch(tmp_path / "r50.onnx")
    assert name_weights([str(run), str(other), f"onnx:{net}"]) == {
        "small": run / "weights" / "student.pt",
        "other": other / "student.pt",
        "r50": net,
    }
    assert names(run / "weights" / "student.pt", other / "student.pt") == ["small", "other"]


def test_names_that_would_be_the_same_are_made_longer(tmp_path: Path) -> None:
    a, b, c = (touch(tmp_path / name) for name in ("x/net.pt", "x/net.onnx", "y/net.pt"))
    assert names(a, b) == ["net.pt", "net.onnx"]
    assert names(a, c) == ["x/net.pt", "y/net.pt"]
    assert names(a, b, c) == ["x/net.pt", "net.onnx", "y/net.pt"]
    runs = [touch(tmp_path / name / "run" / "weights" / "student.pt").parents[1] for name in ("p", "q")]
    assert names(*runs) == ["p/run", "q/run"]


def test_names_can_be_given(tmp_path: Path) -> None:
    net = touch(tmp_path / "net.pt")
    other = touch(tmp_path / "lr=0.1" / "net.pt")
    assert name_weights([f"before={net}", f"after 2={other}", f"plain=onnx:{net}"]) == {
        "before": net,
        "after 2": other,
        "plain": net,
    }
    assert names(other) == ["net"]  # an equals sign in a path


def test_names_that_do_not_tell_models_apart_are_refused(tmp_path: Path) -> None:
    a, b = touch(tmp_path / "a.pt"), touch(tmp_path / "b.pt")
    with pytest.raises(ConfigError, match=r"a\.pt and .*b\.pt are both called 'm'; give each a NAME=PATH"):
        names(f"m={a}", f"m={b}")
    with pytest.raises(ConfigError, match=r"are both called 'b'"):
        names(f"b={a}", f"b={b}")
    with pytest.raises(ConfigError, match=r"a\.pt and .*a\.pt are both called"):
        names(a, a)
    for name in ("", " ", "two\nlines", "long" * 30):
        with pytest.raises(ConfigError, match="is no name; give a short NAME=PATH"):
            names(f"{name}={a}")
    with pytest.raises(CheckpointError, match=r"no such weights: .*gone"):
        names(a, tmp_path / "gone")


def report(spec: InputSpec | None, *, is_certain: bool) -> LoadReport:
    return LoadReport(Path("net"), "family", "", 1, input_spec=spec, is_input_certain=is_certain)


KNOWN, GUESSED, UNKNOWN = (
    report(InputSpec(), is_certain=True),
    report(InputSpec(), is_certain=False),
    report(None, is_certain=False),
)


def meant(color: str | None = "rgb", **reports: LoadReport) -> list[str]:
    return _models_meant(reports, argparse.Namespace(color=color, mean=None, std=None))


def test_a_declared_input_is_for_the_models_that_do_not_say_theirs() -> None:
    assert meant(a=KNOWN) == ["a"]
    assert meant(a=KNOWN, b=UNKNOWN, c=UNKNOWN) == ["b", "c"]
    assert meant(a=KNOWN, b=GUESSED) == ["b"]
    assert meant(None, a=KNOWN, b=GUESSED, c=UNKNOWN) == ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"--color: b do not say their input, and that of c is only the usual one"):
        meant(a=KNOWN, b=UNKNOWN, c=GUESSED)
    with pytest.raises(ConfigError, match=r"--color: each of a, b says its own input; leave it out, or evaluate"):
        meant(a=KNOWN, b=KNOWN)


DECLARED = ["--color", "bgr", "--mean", "100", "--std", "50", "60", "70"]


def test_each_model_takes_its_own_input(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, data, out = face_net(tmp_path / "net.onnx"), write_pairs(tmp_path / "set.bin", 20), tmp_path / "out.json"
    arguments = ["--weights", f"own={weights}", str(network), "--data", str(data), "--resamples", "20"]
    assert main([*arguments, "--json", str(out), *DECLARED]) == 0
    own, foreign = json.loads(out.read_text())["models"]
    assert (own["name"], own["input"]["color"], own["source"]) == ("own", "rgb", "student file of this project")
    assert (foreign["name"], foreign["input"]["color"], foreign["source"]) == ("net", "bgr", "ONNX file")
    assert foreign["input"]["mean"] == [100.0] * 3
    capsys.readouterr()
    assert main(arguments) == 2
    assert "net.onnx: ONNX file does not say how it takes its pixels" in capsys.readouterr().err


def test_an_input_for_several_models_that_all_say_theirs_is_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, data = write_run(tmp_path / "other", seed=1), write_pairs(tmp_path / "set.bin", 20)
    assert main(["--weights", f"a={weights}", f"b={other}", "--data", str(data), "--color", "bgr"]) == 2
    shown = capsys.readouterr()
    assert "error: --color: each of a, b says its own input" in shown.err
    assert "evaluating" not in shown.err


def test_a_damaged_model_is_refused_before_any_is_run(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, data = tmp_path / "damaged.pt", write_pairs(tmp_path / "set.bin", 20)
    damaged.write_bytes(weights.read_bytes()[:-500])
    assert main(["--weights", f"a={weights}", str(damaged), "--data", str(data)]) == 2
    shown = capsys.readouterr()
    assert "damaged.pt" in shown.err
    assert "evaluating" not in shown.err
    assert shown.out == ""


def test_an_unknown_baseline_is_refused_before_weights_are_read(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "set.bin", 20)
    assert main(["--weights", f"a={weights}", "--data", str(data), "--baseline", "b"]) == 2
    assert "error: --baseline b: no such model; there are a" in capsys.readouterr().err
