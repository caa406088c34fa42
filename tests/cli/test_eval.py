"""The evaluation tool on small synthetic pair sets and a small network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from gkd.cli.eval import main
from gkd.cli.eval_models import find_student
from gkd.cli.eval_sets import find_sets
from gkd.core.errors import CheckpointError, ConfigError, DataError
from gkd.data import PairSet
from gkd.inference.embed import evaluate_pairs
from gkd.models import InputSpec, count_macs, create_backbone, load_student
from tests.cli.pair_files import logging_as_before, weights, without_extras, write_pairs, write_run
from tests.models.onnx_nets import face_net, plain_graph, save

__all__ = ["logging_as_before", "weights"]  # fixtures

ROOT = Path(__file__).resolve().parents[2]
FLOAT = TensorProto.FLOAT


def test_table_json_and_plots(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bins = tmp_path / "bins"
    bins.mkdir()
    write_pairs(bins / "one.bin", 20)
    write_pairs(bins / "three.bin", 13)
    out, plots = tmp_path / "out" / "figures.json", tmp_path / "plots"
    run_folder = weights.parent.parent
    arguments = ["--weights", str(run_folder), "--data", str(bins), "--batch-size", "7", "--device", "cpu"]
    assert main([*arguments, "--json", str(out), "--plots", str(plots)]) == 0
    title, _, first, second, *notes = capsys.readouterr().out.splitlines()
    assert title.split()[:3] == ["set", "pairs", "accuracy"]
    assert first.split()[:2] == ["one", "20"]
    assert second.split()[:2] == ["three", "13"]
    assert notes[0].startswith("one: few errors, so the intervals of these are likely too narrow: ")
    assert notes[1].startswith("three: 13 pairs do not divide into 10 folds")
    document = json.loads(out.read_text())
    assert (document["format"], document["format_version"]) == ("gkd.evaluation", 2)
    (model,) = document["models"]
    backbone, spec, _ = load_student(weights)
    backbone.to(memory_format=torch.channels_last)
    expected = evaluate_pairs(backbone, spec, PairSet.load(bins / "one.bin"), batch_size=7)
    assert without_extras(model["sets"]["one"]) == expected.to_json()
    assert model["sets"]["one"]["seconds"] > 0
    assert model["sets"]["one"]["images_per_second"] > 0
    assert model["failed"] == {}
    assert (model["name"], model["weights"]) == (run_folder.name, str(weights))
    assert model["input"] == {"color": "rgb", "mean": [127.5] * 3, "std": [127.5] * 3, "size": [32, 32]}
    assert model["parameters"] == sum(parameter.numel() for parameter in backbone.parameters())
    assert model["gmacs"] == count_macs(backbone) / 1e9
    assert model["file_bytes"] == weights.stat().st_size
    assert document["settings"]["fusion"] == "sum"
    assert document["settings"]["batch_size"] == 7
    assert document["comparisons"] == []
    assert sorted(file.name for file in plots.iterdir()) == sorted(
        f"{name}.{suffix}" for name in ("det", "roc", "scores_one", "scores_three") for suffix in ("pdf", "png")
    )


def test_no_flip_and_input_conversion_reach_the_network(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_pairs(tmp_path / "set.bin", 20), tmp_path / "out.json"
    options = ["--no-flip", "--color", "bgr", "--mean", "100", "--std", "50", "60", "70", "--device", "cpu"]
    assert main(["--weights", str(weights), "--data", str(data), "--json", str(out), *options]) == 0
    backbone, _, _ = load_student(weights)
    backbone.to(memory_format=torch.channels_last)
    spec = InputSpec(color="bgr", mean=(100.0,) * 3, std=(50.0, 60.0, 70.0))
    expected = evaluate_pairs(backbone, spec, PairSet.load(data), flip=False, batch_size=16)
    document = json.loads(out.read_text())
    (model,) = document["models"]
    assert model["sets"]["set"]["mean_same_cosine"] == expected.mean_same_cosine
    assert model["input"]["color"] == "bgr"
    assert document["settings"]["fusion"] == "none"
    assert "the command line makes it" in capsys.readouterr().err


def test_what_the_weights_declare_anyway_gives_no_warning(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "set.bin", 20)
    assert main(["--weights", str(weights), "--data", str(data), "--color", "rgb", "--mean", "127.5"]) == 0
    assert "command line" not in capsys.readouterr().err


def test_a_set_that_fails_is_told_and_the_others_are_evaluated(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_pairs(tmp_path / "good.bin", 20)
    positive = write_pairs(tmp_path / "positive.bin", 12, np.ones(12, dtype=bool))
    few = write_pairs(tmp_path / "few.bin", 4)
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(good.read_bytes()[:-900])
    out = tmp_path / "out.json"
    sets = [str(path) for path in (positive, few, damaged, good)]
    assert main(["--weights", str(weights), "--data", *sets, "--json", str(out)]) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert errors[0].startswith(f"error: {positive}: 12 same and 0 different pairs")
    assert errors[1].startswith(f"error: {few}: 4 pairs (2 same, 2 different) are fewer than the 10 folds")
    assert str(damaged) in errors[2]
    assert shown.out.splitlines()[2].split()[:2] == ["good", "20"]
    (model,) = json.loads(out.read_text())["models"]
    assert list(model["sets"]) == ["good"]
    assert list(model["failed"]) == ["positive", "few", "damaged"]


def test_where_every_set_fails_there_is_no_table(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_pairs(tmp_path / "few.bin", 4)
    assert main(["--weights", str(weights), "--data", str(few), "--plots", str(tmp_path / "plots")]) == 2
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "plots").exists()


def test_missing_sets_are_refused_before_any_is_evaluated(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_pairs(tmp_path / "good.bin", 20)
    gone = [str(tmp_path / "gone.bin"), str(tmp_path / "away")]
    assert main(["--weights", str(weights), "--data", str(good), *gone]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"error: no such pair set: {gone[0]}, {gone[1]}" in shown.err


def test_sets_are_found_and_named(tmp_path: Path) -> None:
    for name in ("a/lfw.bin", "b/lfw.bin", "b/agedb.bin", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_sets([tmp_path / "a" / "lfw.bin", tmp_path / "b", tmp_path / "a"])
    assert list(found) == [str(tmp_path / "a/lfw.bin"), "agedb", str(tmp_path / "b/lfw.bin")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.bin file in the folder .*empty"):
        find_sets([tmp_path / "a", tmp_path / "empty"])


def test_weights_are_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such weights: .*gone\.pt; give a weight file or a run folder"):
        find_student(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match=r"no weights/student\.pt or student\.pt in the folder"):
        find_student(tmp_path)
    (tmp_path / "student.pt").touch()
    assert find_student(tmp_path) == tmp_path / "student.pt"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "student.pt").touch()
    assert find_student(tmp_path) == tmp_path / "weights" / "student.pt"
    assert find_student(tmp_path / "student.pt") == tmp_path / "student.pt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "1", "2"], "--mean takes one number or three, got 2"),
        (["--std", "0"], "input std must be above 0"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_unfit_options_are_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    data = write_pairs(tmp_path / "set.bin", 20)
    assert main(["--weights", str(weights), "--data", str(data), *options]) == 2
    assert f"error: {message}" in capsys.readouterr().err


DECLARED = ["--color", "bgr", "--mean", "100", "--std", "50", "60", "70"]


@pytest.mark.parametrize("prefix", ["onnx:", ""])
def test_a_foreign_network_is_evaluated_with_its_declared_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    network, data = face_net(tmp_path / "net.onnx"), write_pairs(tmp_path / "set.bin", 20)
    out = tmp_path / "out.json"
    options = ["--data", str(data), "--json", str(out), "--device", "cpu", *DECLARED]
    assert main(["--weights", f"{prefix}{network}", *options]) == 0
    spec = InputSpec(color="bgr", mean=(100.0,) * 3, std=(50.0, 60.0, 70.0))
    expected = evaluate_pairs(create_backbone(f"onnx:{network}"), spec, PairSet.load(data), batch_size=16)
    (model,) = json.loads(out.read_text())["models"]
    assert without_extras(model["sets"]["set"]) == expected.to_json()
    assert model["input"] == {"color": "bgr", "mean": [100.0] * 3, "std": [50.0, 60.0, 70.0], "size": [32, 32]}
    assert model["input_check"]["d_prime"] is None
    assert model["parameters"] > 0
    shown = capsys.readouterr()
    assert "input bgr, mean 100, std 50 60 70, 32x32, as declared" in shown.err
    assert "cannot be checked: set has 10 same and 10 different pairs" in shown.err
    title, _, row, *_ = shown.out.splitlines()
    assert title.split()[-6:] == ["same", "cosine", "d'", "threshold", "seconds", "images/s"]
    assert f"{expected.mean_same_cosine:.3f}  {expected.d_prime:.2f}" in row


def test_the_declared_input_is_checked_on_the_first_fit_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = face_net(tmp_path / "net.onnx")
    positive = write_pairs(tmp_path / "positive.bin", 12, np.ones(12, dtype=bool))
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(positive.read_bytes()[:-900])
    good, later = write_pairs(tmp_path / "good.bin", 110), write_pairs(tmp_path / "later.bin", 20)
    sets = [str(path) for path in (positive, damaged, good, later)]
    out = tmp_path / "out.json"
    arguments = ["--weights", str(network), "--data", *sets, "--json", str(out), "--color", "rgb"]
    monkeypatch.setattr("gkd.inference.check_input._judge", lambda check: None)
    assert main([*arguments, "--mean", "127.5", "--std", "127.5"]) == 2  # two sets fail
    check = json.loads(out.read_text())["models"][0]["input_check"]
    assert (check["num_pairs"], check["size"]) == (110, [32, 32])
    assert check["d_prime"] > 0
    assert set(check["best_alternative"]) == {"color", "mean", "std"}
    assert check["gap_interval"][0] < check["gap_interval"][1]
    assert (
        f"input: rgb, mean 127.5, std 127.5, 32x32; d' {check['d_prime']:.2f} on 110 pairs" in capsys.readouterr().err
    )
    assert main([*arguments, "--mean", "127.5", "--std", "127.5", "--no-input-check"]) == 2
    assert json.loads(out.read_text())["models"][0]["input_check"] is None


def test_a_wrong_declaration_stops_before_any_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("better with bgr")

    monkeypatch.setattr("gkd.cli.eval_run.check_input", refuse)
    network, data = face_net(tmp_path / "net.onnx"), write_pairs(tmp_path / "set.bin", 20)
    assert main(["--weights", str(network), "--data", str(data), *DECLARED]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error: better with bgr" in shown.err


def test_no_set_to_check_with_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = face_net(tmp_path / "net.onnx")
    positive = write_pairs(tmp_path / "positive.bin", 12, np.ones(12, dtype=bool))
    assert main(["--weights", str(network), "--data", str(positive), *DECLARED]) == 2
    assert "is not checked: no set has both same and different pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "does not say how it takes its pixels, and --color, --mean, --std is not given; declare all three"),
        (
            ["--color", "rgb", "--std", "127.5"],
            "and --mean is not given; declare all three in units of 0..255, such as",
        ),
        (
            ["--color", "rgb", "--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"],
            "--std 0.229 0.224 0.225 is in units of 0..1, but pixels are 0..255 here; give "
            "--mean 123.675 116.28 103.53 --std 58.395 57.12 57.375",
        ),
        (["--color", "rgb", "--mean", "0.5", "--std", "0.5"], "give --mean 127.5 --std 127.5"),
        ([*DECLARED, "--size", "112", "112"], "input_size [112, 112] was given, but "),
        ([*DECLARED, "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_unfit_declarations_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    network, data = face_net(tmp_path / "net.onnx"), write_pairs(tmp_path / "set.bin", 20)
    assert main(["--weights", str(network), "--data", str(data), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_size_is_for_a_network_that_leaves_it_open(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("GlobalMaxPool", ["pooled"], ["largest"]),
        helper.make_node("Flatten", ["largest"], ["out"]),
    ]
    shapes = {"images": (FLOAT, ["N", 3, "H", "W"]), "out": (FLOAT, ["N", 3])}
    graph = plain_graph({"images": shapes["images"]}, {"out": shapes["out"]})
    del graph.node[:]
    graph.node.extend(nodes)
    network, data = save(tmp_path / "open.onnx", graph), write_pairs(tmp_path / "set.bin", 20)
    arguments = ["--data", str(data), "--no-input-check"]
    assert main(["--weights", str(network), *arguments, *DECLARED, "--size", "32", "32"]) == 0
    assert "32x32, as declared" in capsys.readouterr().err
    assert main(["--weights", str(network), *arguments, *DECLARED]) == 2
    assert "112" in capsys.readouterr().err
    assert main(["--weights", str(weights), *arguments, "--size", "32", "32"]) == 2
    assert "--size is for an .onnx file that leaves it open" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pretrained_network_verifies_real_faces_as_published(real_data: Path, tmp_path: Path) -> None:
    """All pairs of LFW, without mirror images."""
    out = tmp_path / "out.json"
    network, data = real_data / "models" / "mobilefacenet128.onnx", real_data / "lfw" / "lfw.bin"
    options = [
        "--no-flip",
        "--no-input-check",
        "--color",
        "rgb",
        "--mean",
        "123.675",
        "116.28",
        "103.53",
        "--std",
        "58.395",
        "57.12",
        "57.375",
    ]
    assert main(["--weights", f"onnx:{network}", "--data", str(data), "--json", str(out), *options]) == 0
    figures = json.loads(out.read_text())["models"][0]["sets"]["lfw"]
    assert figures["accuracy"] == pytest.approx(0.9925, abs=5e-4)
    assert figures["mean_same_cosine"] == pytest.approx(0.639, abs=3e-3)


@pytest.mark.slow
def test_the_script_runs_on_two_ranks_as_on_one(weights: Path, tmp_path: Path) -> None:
    """Two models, with embeddings that are kept by two ranks and read by one."""
    data, few = write_pairs(tmp_path / "set.bin", 20), write_pairs(tmp_path / "few.bin", 4)
    other = write_run(tmp_path / "other", seed=1)
    given = ["--weights", f"a={weights}", f"b={other}", "--batch-size", "7", "--device", "cpu", "--resamples", "20"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    kept = ["--keep", str(tmp_path / "kept")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = {"one": ([sys.executable], []), "two": (launch, kept), "again": ([sys.executable], kept)}
    documents = {}
    for name, (command, options) in runs.items():
        out = tmp_path / f"{name}.json"
        full = [*command, str(ROOT / "tools" / "eval.py"), *given, "--data", str(data), str(few), *options]
        done = subprocess.run(
            [*full, "--json", str(out)], capture_output=True, text=True, env=environment, timeout=240, cwd=tmp_path
        )
        assert done.returncode != 0  # one set has too few pairs
        assert done.stdout.count("accuracy %") == 1
        assert done.stderr.count("error: ") == 1
        documents[name] = json.loads(out.read_text())
    first, *others = (
        [
            document["comparisons"],
            [(without_extras(model["sets"]["set"]), list(model["failed"])) for model in document["models"]],
        ]
        for document in documents.values()
    )
    assert others == [first, first]
    assert first[1][0][1] == ["few"]
    assert [documents[name]["settings"]["num_ranks"] for name in runs] == [1, 2, 1]
    assert [documents[name]["models"][0]["images_per_second"] is None for name in runs] == [False, False, True]
