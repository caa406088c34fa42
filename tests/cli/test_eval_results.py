"""Several models, intervals, identities, kept embeddings, IJB and every kind of result of the evaluation tool."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gkd.cli.eval import main
from gkd.cli.eval_run import _as_jpeg, _wrong_pairs
from gkd.data import PairSet
from gkd.data.ijb_miniature import make_miniature
from gkd.data.pair_identities import read_pair_identities, write_pair_identities
from gkd.evaluation import compare_models, verification_intervals
from gkd.inference.embed import evaluate_pairs
from gkd.inference.ijb_embed import evaluate_ijb
from gkd.models import load_student
from tests.cli.pair_files import logging_as_before, weights, without_extras, write_pairs, write_run

__all__ = ["logging_as_before", "weights"]  # fixtures

FEW = ["--resamples", "40", "--device", "cpu"]
BATCH_SIZE = 16  # the tool's on the CPU


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "set.bin", 40)


def figures_of(weights: Path, data: Path, flip: str = "sum") -> Any:
    backbone, spec, _ = load_student(weights)
    backbone.to(memory_format=torch.channels_last)
    return evaluate_pairs(backbone, spec, PairSet.load(data), flip=flip, batch_size=BATCH_SIZE)


def write_names(data: Path) -> Path:
    """Four persons a pair apart: the same pair of people is in several pairs."""
    is_same = PairSet.load(data).is_same
    names = [(f"p{i % 7}", f"p{i % 7}" if same else f"q{i % 5}") for i, same in enumerate(is_same)]
    path = data.with_name(data.stem + ".persons.txt")
    write_pair_identities(path, names)
    return path


def strict(path: Path) -> dict[str, Any]:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return document


def test_two_models_are_compared(
    weights: Path, other: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert main(["--weights", f"a={weights}", f"b={other}", "--data", str(data), "--json", str(out), *FEW]) == 0
    a, b = figures_of(weights, data), figures_of(other, data)
    document = strict(out)
    for model, expected in zip(document["models"], (a, b), strict=True):
        assert without_extras(model["sets"]["set"]) == expected.to_json()
        found = verification_intervals(expected.distances, expected.is_same, num_resamples=40)
        assert model["sets"]["set"]["intervals"] == json.loads(json.dumps(found.to_json()))
        assert model["sets"]["set"]["identity_intervals"] is None
    (comparison,) = document["comparisons"]
    expected = compare_models(b.distances, a.distances, a.is_same, num_resamples=40)
    assert (comparison["model"], comparison["baseline"], comparison["set"]) == ("b", "a", "set")
    assert comparison["accuracy_gap"] == expected.accuracy_gap._asdict()
    assert comparison["p"] == expected.mcnemar_p
    assert comparison["verdict"] == expected.verdict
    assert document["settings"]["resamples"] == 40
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["set", "model", "pairs"]
    assert [line.split()[1] for line in lines[2:4]] == ["a", "b"]
    assert lines[4] == ""
    assert "against a" in lines[5]
    assert expected.verdict in lines[7]
    assert f"{100 * expected.accuracy_gap.gap:+.2f}" in lines[7]


def test_the_baseline_can_be_chosen(weights: Path, other: Path, data: Path, tmp_path: Path) -> None:
    out, third = tmp_path / "out.json", write_run(tmp_path / "third", seed=2)
    given = [f"a={weights}", f"b={other}", f"c={third}"]
    assert main(["--weights", *given, "--baseline", "b", "--data", str(data), "--json", str(out), *FEW]) == 0
    assert [(each["model"], each["baseline"]) for each in strict(out)["comparisons"]] == [("a", "b"), ("c", "b")]


def test_a_model_has_the_same_figures_alone_and_beside_another(
    weights: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    found = []
    for name, given in (("both", [f"a={weights}", f"b={other}"]), ("one", [f"b={other}"])):
        out = tmp_path / f"{name}.json"
        assert main(["--weights", *given, "--data", str(data), "--json", str(out), *FEW]) == 0
        found.append(without_extras(strict(out)["models"][-1]["sets"]["set"]))
    assert found[0] == found[1]


def test_csv_and_markdown(weights: Path, other: Path, data: Path, tmp_path: Path) -> None:
    table, text = tmp_path / "new" / "out.csv", tmp_path / "new" / "out.md"
    write = ["--csv", str(table), "--markdown", str(text)]
    assert main(["--weights", f"a|*={weights}", f"b={other}", "--data", str(data), *write, *FEW]) == 0
    expected = figures_of(other, data)
    with table.open(newline="") as file:
        rows = {(row["model"], row["figure"]): row for row in csv.DictReader(file)}
    interval = verification_intervals(expected.distances, expected.is_same, num_resamples=40).accuracy
    row = rows["b", "accuracy"]
    assert (float(row["value"]), float(row["low"]), float(row["high"])) == (expected.accuracy, *interval[:2])
    assert row["persons_low"] == ""
    assert rows["b", "tar@far=1e-6"]["value"] == ""
    assert float(rows["b", "d_prime"]["value"]) == expected.d_prime
    assert rows["a|*", "accuracy"]["set"] == "set"
    content = text.read_text(encoding="utf-8")
    assert "a\\|\\*" in content
    assert f"| {100 * expected.accuracy:.2f} ± {100 * expected.accuracy_std:.2f} |" in content
    for title in ("Models", "Verification", "Comparison", "Notes"):
        assert f"## {title}\n" in content
    widths = {line.replace("\\|", "").count("|") for line in content.splitlines() if line.startswith("| ")}
    assert len(widths) == 3  # three tables, each with the same columns in all its lines


def test_plots_of_several_models(weights: Path, other: Path, data: Path, tmp_path: Path) -> None:
    plots = tmp_path / "plots"
    arguments = ["--weights", f"a/b={weights}", f"a b={weights}", "--data", str(data), "--plots", str(plots), *FEW]
    assert main(arguments) == 2  # a name is no path
    arguments[1] = f"x={weights}"
    assert main(arguments) == 0
    found = sorted(file.name for file in plots.iterdir())
    assert [name for name in found if name.endswith(".png")] == [
        "det_set.png",
        "pareto_gmacs_set.png",
        "pareto_speed_set.png",
        "roc_set.png",
        "scores_a_b_set.png",
        "scores_x_set.png",
    ]


def test_no_resamples_no_intervals(
    weights: Path, other: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    given = ["--weights", f"a={weights}", f"b={other}", "--data", str(data), "--json", str(out), "--resamples", "0"]
    assert main(given) == 0
    document = strict(out)
    assert document["comparisons"] == []
    assert document["models"][0]["sets"]["set"]["intervals"] is None
    shown = capsys.readouterr()
    assert "interval" not in shown.out
    assert "the models are not compared, since --resamples is 0" in shown.err
    assert main([*given, "--baseline", "a"]) == 2
    assert "--baseline compares models by resampling" in capsys.readouterr().err


def test_persons_are_taken_from_beside_the_set(
    weights: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_pairs(tmp_path / "set.bin", 40), tmp_path / "out.json"
    names = write_names(data)
    assert main(["--weights", f"a={weights}", f"b={other}", "--data", str(data), "--json", str(out), *FEW]) == 0
    a, b = figures_of(weights, data), figures_of(other, data)
    ids = read_pair_identities(names, a.is_same)
    document = strict(out)
    assert document["sets"]["set"]["identities"] == str(names)
    expected = verification_intervals(a.distances, a.is_same, ids=ids, num_resamples=40)
    figures = document["models"][0]["sets"]["set"]
    assert figures["identity_intervals"] == json.loads(json.dumps(expected.to_json()))
    assert figures["intervals"] != figures["identity_intervals"]
    gap = compare_models(b.distances, a.distances, a.is_same, ids, num_resamples=40).accuracy_gap
    assert document["comparisons"][0]["accuracy_gap"] == gap._asdict()
    assert document["comparisons"][0]["method"] == "percentile bootstrap over identities"
    shown = capsys.readouterr()
    assert "over persons" in shown.out
    assert "12 persons, fewer than 100" in shown.out


def test_persons_can_be_given(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_pairs(tmp_path / "set.bin", 40), tmp_path / "out.json"
    names = write_names(data).rename(tmp_path / "who.txt")
    arguments = ["--weights", str(weights), "--data", str(data), "--identities", str(names), *FEW]
    assert main([*arguments, "--json", str(out)]) == 0
    assert strict(out)["sets"]["set"]["identities"] == str(names)
    names.write_text(names.read_text().replace("p0\tp0", "p0\tp1", 1))
    capsys.readouterr()
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert f"error: {names}: line 1: 'p0' and 'p1', but pair 0 of the set is of one person" in shown.err
    assert shown.out == ""
    write_pairs(tmp_path / "more.bin", 20)
    assert main(["--weights", str(weights), "--data", str(tmp_path), "--identities", str(names)]) == 2
    assert "--identities is of one set, but --data gives 2: more, set" in capsys.readouterr().err
    assert main([*arguments[:5], str(tmp_path / "gone.txt")]) == 2
    assert "gone.txt: no such file" in capsys.readouterr().err


def test_too_few_persons_leave_the_figures(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_pairs(tmp_path / "set.bin", 20), tmp_path / "out.json"
    is_same = PairSet.load(data).is_same
    write_pair_identities(
        tmp_path / "set.persons.txt", [("ann", "ann") if same else ("ann", "bob") for same in is_same]
    )
    assert main(["--weights", str(weights), "--data", str(data), "--json", str(out), *FEW]) == 0
    figures = strict(out)["models"][0]["sets"]["set"]
    assert figures["intervals"] is not None
    if figures["identity_intervals"] is None:
        assert any("no intervals over persons" in note for note in figures["notes"])
        assert "no intervals over persons" in capsys.readouterr().out


def test_kept_embeddings_spare_the_network(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, keep = tmp_path / "out.json", tmp_path / "kept"
    arguments = ["--weights", str(weights), "--data", str(data), "--keep", str(keep), "--json", str(out), *FEW]
    assert main(arguments) == 0
    first = strict(out)["models"][0]
    assert first["images_per_second"] > 0
    assert "no image was read" not in capsys.readouterr().err
    assert main(arguments) == 0
    second = strict(out)["models"][0]
    shown = capsys.readouterr()
    assert f"no image was read, since the embeddings are kept in {keep}" in shown.err
    assert second["images_per_second"] is None
    assert shown.out.splitlines()[2].split()[-1] == "-"
    assert without_extras(first["sets"]["set"]) == without_extras(second["sets"]["set"])


def test_partly_kept_embeddings_give_no_speed(weights: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--weights", str(weights), "--data", str(data), "--keep", str(tmp_path / "kept"), *FEW]
    assert main([*arguments, "--no-flip"]) == 0
    assert main([*arguments, "--json", str(out)]) == 0  # the mirror images are new
    model = strict(out)["models"][0]
    assert model["images_per_second"] is None
    assert without_extras(model["sets"]["set"]) == figures_of(weights, data).to_json()


@pytest.mark.parametrize("fusion", ["none", "unit_sum", "norm_weighted"])
def test_fusion_reaches_the_embeddings(weights: Path, data: Path, tmp_path: Path, fusion: str) -> None:
    out = tmp_path / "out.json"
    arguments = ["--weights", str(weights), "--data", str(data), "--json", str(out), "--fusion", fusion]
    assert main([*arguments, "--resamples", "0"]) == 0
    assert without_extras(strict(out)["models"][0]["sets"]["set"]) == figures_of(weights, data, fusion).to_json()


def test_ijb(weights: Path, other: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out, table = make_miniature(tmp_path / "IJBC", 3, 4, seed=1), tmp_path / "out.json", tmp_path / "out.csv"
    write = ["--json", str(out), "--csv", str(table), "--markdown", str(tmp_path / "out.md")]
    given = ["--weights", f"a={weights}", f"b={other}", "--ijb", str(folder), *write, *FEW]
    assert main(given) == 0
    backbone, spec, _ = load_student(other)
    backbone.to(memory_format=torch.channels_last)
    expected = evaluate_ijb(backbone, spec, folder, batch_size=BATCH_SIZE).to_json()
    document = strict(out)
    found = document["models"][1]["ijb"]["IJBC"]
    assert {**found, "seconds": None} == {**expected, "seconds": None}
    assert document["comparisons"] == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["protocol", "model", "templates", "pairs"]
    assert lines[3].split()[:4] == ["IJBC", "b", "6", "9"]
    assert "b,IJBC,tar@far=1e-1," in table.read_text()
    assert "## IJB\n" in (tmp_path / "out.md").read_text()
    assert main([*given, "--ijb-no-detector-score", "--ijb-unit-features", "--no-flip", "--data", str(data)]) == 0
    options = {"use_flip_test": False, "use_detector_score": False, "use_norm_score": False}
    assert strict(out)["models"][0]["ijb"]["IJBC"]["options"] == options
    assert list(strict(out)["models"][0]["sets"]) == ["set"]


def test_an_unfit_ijb_folder_is_told_and_the_sets_are_evaluated(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_miniature(tmp_path / "IJBC", 3, 4, seed=1), tmp_path / "out.json"
    (folder / "loose_crop" / "1.jpg").write_bytes(b"no image")
    given = ["--weights", str(weights), "--data", str(data), "--ijb", str(folder), "--json", str(out), *FEW]
    assert main(given) == 2
    assert "1.jpg" in strict(out)["models"][0]["failed"]["IJBC"]
    assert "error: " in capsys.readouterr().err
    assert list(strict(out)["models"][0]["sets"]) == ["set"]


def test_a_model_that_fails_on_a_set_does_not_stop_the_other(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One takes images of 32 pixels, the other of 48."""
    large, data = write_run(tmp_path / "large", seed=0, side=48), write_pairs(tmp_path / "set.bin", 20)
    out = tmp_path / "out.json"
    given = ["--weights", f"a={large}", f"b={weights}", "--data", str(data)]
    assert main([*given, "--json", str(out), *FEW]) == 2
    document = strict(out)
    assert list(document["models"][0]["failed"]) == ["set"]
    assert list(document["models"][1]["sets"]) == ["set"]
    assert document["comparisons"] == []
    assert "error: a: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resamples", "-1"], "--resamples must be at least 0, got -1"),
        (["--show-faces"], "--show-faces puts faces into the report; give --report OUT.html too"),
        (["--robustness", "blurr"], "degradations must be different ones of blur, jpeg"),
        (["--ijb", "IJBC", "--fusion", "unit_sum"], "--fusion unit_sum is not known to IJB's protocol"),
        (
            ["--ijb-unit-features"],
            "--ijb-no-detector-score and --ijb-unit-features belong to --ijb FOLDER",
        ),
        (["--ijb", "gone"], "no such folder: gone; --ijb takes folders"),
        (["--json", "file/out.json"], "--json: cannot write in file: "),
        (["--json", "folder"], "--json folder: is a folder; give another name"),
        (["--plots", "file"], "--plots file: is a file; give another name"),
        (["--keep", "file/kept"], "--keep: cannot write in file/kept: "),
        (["--json", "out", "--csv", "./out"], "two results would be written to one place"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_computed(
    weights: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert main(["--weights", str(weights), "--data", str(data), *options]) == 2
    shown = capsys.readouterr()
    assert f"error: {message}" in shown.err
    assert "evaluating" not in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_there_must_be_something_to_evaluate_on(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(weights)]) == 2
    assert "error: nothing to evaluate on; give --data, --ijb or both" in capsys.readouterr().err
    assert main(["--weights", str(weights), "--ijb", "IJBC", "--plots", "plots"]) == 2
    assert "error: --plots belongs to pair sets; give --data" in capsys.readouterr().err


def test_the_page_shows_faces_only_where_asked(
    weights: Path, other: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = PairSet.load(data)
    wrong = tmp_path / "wrong.bin"
    PairSet(pairs.images, np.roll(pairs.is_same, 1)).save(wrong)  # whatever a network says of these is an error
    page = tmp_path / "page.html"
    given = ["--weights", f"<b>a={weights}", f"b={other}", "--data", str(wrong), "--report", str(page), *FEW]
    assert main(given) == 0
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;a" in text
    assert "<b>a" not in text
    assert "data:image/jpeg" not in text
    assert f"{100 * figures_of(other, wrong).accuracy:.2f}" in text
    assert "shows faces" not in capsys.readouterr().err
    assert main([*given, "--show-faces"]) == 0
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") >= 4
    assert f"{page} shows faces" in capsys.readouterr().err


def test_the_page_shows_accuracy_by_what_is_known_of_the_pairs(weights: Path, data: Path, tmp_path: Path) -> None:
    own, page = tmp_path / "set.bin", tmp_path / "page.html"
    own.write_bytes(data.read_bytes())
    given = ["--weights", str(weights), "--data", str(own), "--report", str(page), "--resamples", "0"]
    assert main(given) == 0
    text = page.read_text(encoding="utf-8")
    assert "the sharpness of the less sharp picture" in text
    assert "Accuracy by yaw" not in text
    num_pairs = len(PairSet.load(own))
    (tmp_path / "set.quality.txt").write_text("0.5\n" * num_pairs)
    (tmp_path / "set.yaw.txt").write_text("-40\n" * (num_pairs - 1) + "-\n")
    assert main(given) == 0
    text = page.read_text(encoding="utf-8")
    assert "the sharpness of the less sharp picture" not in text
    assert "Accuracy by yaw" in text
    (tmp_path / "set.yaw.txt").write_text("-40\n")
    assert main(given) == 2


def test_the_hardest_pairs_are_those_furthest_over_the_threshold(weights: Path, data: Path) -> None:
    pairs = PairSet.load(data)
    result = replace(figures_of(weights, data), threshold=1.0)
    distances = np.full(40, 0.5)
    distances[is_odd := ~result.is_same] = 1.5
    wrong_same, wrong_different = np.flatnonzero(result.is_same)[:3], np.flatnonzero(is_odd)[:14]
    distances[wrong_same] = [1.0, 3.0, 2.0]  # 1.0 is not below the threshold
    distances[wrong_different] = np.linspace(0.9, 0.1, 14)
    found = _wrong_pairs(replace(result, distances=distances), pairs)
    accepts = [pair for pair in found if not pair.is_same]
    rejects = [pair for pair in found if pair.is_same]
    assert [pair.index for pair in accepts] == wrong_different[:1:-1].tolist()  # the twelve lowest distances
    assert [pair.index for pair in rejects] == wrong_same[[1, 2, 0]].tolist()
    assert rejects[0].cosine == 1 - 3.0 / 2
    assert rejects[0].left == pairs.images[2 * wrong_same[1]]
    assert rejects[0].right == pairs.images[2 * wrong_same[1] + 1]


def test_pictures_of_other_formats_become_jpeg() -> None:
    pixels = np.full((8, 8, 3), 90, np.uint8)
    for ending in (".png", ".bmp"):
        encoded = _as_jpeg(cv2.imencode(ending, pixels)[1].tobytes())
        assert encoded[:3] == b"\xff\xd8\xff"
        assert np.abs(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) - pixels.astype(int)).max() <= 2


def test_robustness(weights: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    given = ["--weights", str(weights), "--data", str(data), "--json", str(out), *FEW]
    assert main([*given, "--robustness", "blur", "--robustness-pairs", "20"]) == 0
    assert strict(out)["models"][0]["robustness"]["set"]
