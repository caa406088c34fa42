"""Label noise: what rules find, against slow loops; embeddings that are refused; and tables of images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gkd.core.errors import CheckpointError, ConfigError, DataError
from gkd.data import RecordFile, RecordWriter
from gkd.inference import clean, label_noise
from gkd.inference.clean import Findings, NoiseRule, find_noise, open_embeddings, write_left_out
from gkd.inference.embedding_store import EmbeddingStore
from gkd.inference.label_noise import nearest_other, spread_of
from gkd.inference.noise_list import read_image_list
from tests.inference.noisy_faces import embed, picture, some_wrong, write_labelled

CPU = torch.device("cpu")


def noisy(tmp_path: Path, num_people: int = 6) -> tuple[RecordFile, EmbeddingStore, list[int]]:
    shown, wrong = some_wrong(num_people)
    faces = write_labelled(tmp_path / "train.rec", shown)
    return faces, embed(tmp_path / "centres", faces), wrong


def random_noise(tmp_path: Path, seed: int) -> tuple[RecordFile, EmbeddingStore]:
    """Half of the images under a label drawn at random, one that cannot be read, and a label with one image."""
    rng = np.random.default_rng(seed)
    shown = [(person, person if rng.random() < 0.5 else int(rng.integers(5))) for person in range(5) for _ in range(7)]
    path = tmp_path / "random.rec"
    with RecordWriter(path, layout="plain") as writer:
        for number, (person, label) in enumerate([*shown, (9, 5)]):
            writer.write(label, b"\xff\xd8 no image" if number == 11 else picture(person, number))
    faces = RecordFile(path)
    return faces, embed(tmp_path / "random", faces, is_skipping=True)


def slow_views(store: EmbeddingStore) -> list[np.ndarray]:
    """Unit sums of both views in float64; NaN where there is no embedding."""
    sums = [
        np.array(rows[0], dtype=np.float64) + np.array(rows[1], dtype=np.float64) for rows in store.views(slice(None))
    ]
    return [total / np.linalg.norm(total) for total in sums]


def slow_noise(store: EmbeddingStore, num_classes: int, rule: NoiseRule) -> tuple[list[float], set[int], set[int]]:
    """Own cosines, outliers and mislabelled images of the last round, one image after the other."""
    views = slow_views(store)
    raw = [np.array(rows, dtype=np.float64).sum(0) for rows in store.views(slice(None))]
    labels = [int(label) for label in store.labels]
    readable = {i for i in range(len(labels)) if not np.isnan(views[i]).any()}
    used = set(readable)
    for _ in range(rule.rounds):
        cosines, outliers, mislabelled = [], set(), set()
        centres = []
        for label in range(num_classes):
            total = sum((raw[i] for i in used if labels[i] == label), np.zeros(len(raw[0])))
            centres.append(total / max(np.linalg.norm(total), 1e-300))
        for i in range(len(labels)):
            others = [raw[j] for j in used if labels[j] == labels[i] and j != i]
            rest = sum(others, np.zeros(len(raw[0])))
            cosine = float(views[i] @ rest / np.linalg.norm(rest)) if others and i in readable else float("nan")
            cosines.append(cosine)
            if rule.min_cosine is not None and cosine < rule.min_cosine:
                outliers.add(i)
            elsewhere = [(float(views[i] @ centres[c]), c) for c in range(num_classes) if c != labels[i]]
            best, nearest = max(elsewhere)
            is_twin = centres[labels[i]] @ centres[nearest] >= 0.7
            if rule.margin is not None and best - cosine > rule.margin and not is_twin:
                mislabelled.add(i)
        kept = readable - outliers - mislabelled
        emptied = {label for label in labels if not any(labels[i] == label for i in kept)}
        used = kept | {i for i in readable if labels[i] in emptied}
    return cosines, outliers, mislabelled


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("min_cosine", "margin"), [(0.4, None), (None, 0.05), (0.6, 0.0), (None, None), (-1, None)])
def test_findings_are_those_of_slow_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, rounds: int, min_cosine: float, margin: float
) -> None:
    for module, name in ((label_noise, "_BLOCK"), (label_noise, "_CLASS_BLOCK"), (clean, "_BLOCK")):
        monkeypatch.setattr(module, name, 4)
    faces, store = random_noise(tmp_path, seed)
    rule = NoiseRule(min_cosine=min_cosine, margin=margin, rounds=rounds)
    findings = find_noise(store, faces.num_identities, rule)
    cosines, outliers, mislabelled = slow_noise(store, faces.num_identities, rule)
    np.testing.assert_allclose(findings.own_cosines, cosines, atol=1e-6)
    assert set(np.flatnonzero(findings.is_outlier)) == outliers
    assert set(np.flatnonzero(findings.is_mislabelled)) == mislabelled
    assert np.flatnonzero(findings.is_unreadable).tolist() == [11]
    assert set(np.flatnonzero(findings.is_noise)) == outliers | mislabelled | {11}
    assert findings.num_by_round[-1] == len(outliers | mislabelled)


@pytest.mark.parametrize("rule", [NoiseRule(min_cosine=0.5), NoiseRule(margin=0.1)])
def test_wrong_labels_are_found_and_nothing_else(tmp_path: Path, rule: NoiseRule) -> None:
    faces, store, wrong = noisy(tmp_path)
    findings = find_noise(store, faces.num_identities, rule)
    assert np.flatnonzero(findings.is_noise).tolist() == wrong
    assert len(findings.num_by_round) == 2  # the second round changed nothing, so there was no third


def test_centres_without_the_noise_find_more_of_it(tmp_path: Path) -> None:
    # Three strangers who are one person, and three who are not: those of one person hold each other up at first.
    shown = [(0, 0)] * 7 + [(50, 0)] * 3 + [(51, 0), (52, 0), (53, 0)] + [(1, 1)] * 6
    faces = write_labelled(tmp_path / "train.rec", shown)
    store = embed(tmp_path / "centres", faces)
    first = find_noise(store, 2, NoiseRule(rounds=1)).own_cosines
    limit = float(first[7:10].min()) - 1e-3
    assert limit > first[10:13].max()
    once = find_noise(store, 2, NoiseRule(min_cosine=limit, rounds=1))
    thrice = find_noise(store, 2, NoiseRule(min_cosine=limit, rounds=3))
    assert np.flatnonzero(once.is_noise).tolist() == [10, 11, 12]
    assert np.flatnonzero(thrice.is_noise).tolist() == [7, 8, 9, 10, 11, 12]
    assert thrice.num_by_round[0] == 3


def test_one_person_under_two_labels_is_not_mislabelled(tmp_path: Path) -> None:
    faces = write_labelled(tmp_path / "twin.rec", [(0, 0)] * 5 + [(0, 1)] * 5 + [(2, 2)] * 5 + [(2, 0)])
    store = embed(tmp_path / "centres", faces)
    findings = find_noise(store, 3, NoiseRule(margin=0.0))
    assert np.flatnonzero(findings.is_noise).tolist() == [15]


def test_a_class_alone_has_no_other(tmp_path: Path) -> None:
    faces = write_labelled(tmp_path / "one.rec", [(0, 0), (0, 0), (1, 0)])
    store = embed(tmp_path / "centres", faces)
    assert not find_noise(store, 1, NoiseRule(margin=0.0)).is_noise.any()
    labels, cosines = nearest_other(store, np.ones((1, 32)), np.arange(3))
    assert labels.tolist() == [-1] * 3
    assert np.isneginf(cosines).all()


def test_the_nearest_other_class_is_that_of_both_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_noise, "_CLASS_BLOCK", 2)
    _, store, _ = noisy(tmp_path)
    centres = np.random.default_rng(0).standard_normal((6, 32))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    images = np.array([40, 3, 17])
    labels, cosines = nearest_other(store, centres, images, device=CPU)
    views = slow_views(store)
    for place, image in enumerate(images):
        scores = {c: float(views[image] @ centres[c]) for c in range(6) if c != int(store.labels[image])}
        assert labels[place] == max(scores, key=scores.__getitem__)
        assert cosines[place] == pytest.approx(max(scores.values()), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_cosine": 1.0}, r"--min-cosine must lie in \[-1, 1\), got 1.0"),
        ({"min_cosine": float("nan")}, "--min-cosine must lie"),
        ({"margin": -0.1}, r"--margin must lie in \[0, 2\), got -0.1"),
        ({"margin": float("nan")}, "--margin must lie"),
        ({"rounds": 0}, "--rounds must be at least 1, got 0"),
    ],
)
def test_rules_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NoiseRule(**settings)  # type: ignore[arg-type]


def test_the_spread_counts_every_known_cosine() -> None:
    spread = spread_of(np.array([np.nan, -1.0, 0.04, 0.06, 0.36, 1.0 + 1e-9]))
    counts, edges = spread["own_cosine_histogram"]["counts"], spread["own_cosine_histogram"]["edges"]
    assert {edges[place]: count for place, count in enumerate(counts) if count} == {
        -1.0: 1,
        0.0: 1,
        0.05: 1,
        0.35: 1,
        0.95: 1,
    }
    assert (spread["num_below"]["0.0"], spread["num_below"]["0.1"], spread["num_below"]["0.35"]) == (1, 3, 3)
    assert spread["own_cosine_quantiles"]["0.5"] == 0.06
    assert spread_of(np.array([np.nan]))["own_cosine_quantiles"] == {}


def test_the_spread_is_in_the_report(tmp_path: Path) -> None:
    faces, store, _ = noisy(tmp_path)
    report = json.loads((tmp_path / "centres" / "label_noise.json").read_text())
    cosines = find_noise(store, faces.num_identities, NoiseRule()).own_cosines
    assert sum(report["own_cosine_histogram"]["counts"]) == len(faces)
    assert report["num_below"]["0.3"] == int((cosines < 0.3).sum())


# The store


def test_embeddings_of_other_data_are_refused_naming_both(tmp_path: Path) -> None:
    faces, store, _ = noisy(tmp_path)
    assert open_embeddings(tmp_path / "centres", faces).is_complete
    other = write_labelled(tmp_path / "other.rec", [(0, 0), (1, 1)])
    with pytest.raises(CheckpointError) as caught:
        open_embeddings(tmp_path / "centres", other)
    for part in (f"{tmp_path / 'centres'}: holds embeddings of other data", store.origin.data, other.fingerprint):
        assert part in str(caught.value)


def test_a_folder_without_embeddings_stays_as_it_is(tmp_path: Path) -> None:
    faces = write_labelled(tmp_path / "train.rec", [(0, 0), (1, 1)])
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none"):
        with pytest.raises(CheckpointError, match=r"holds no embeddings \(store.json is missing\); make them with"):
            open_embeddings(tmp_path / folder, faces)
    assert not list((tmp_path / "empty").iterdir())
    assert not (tmp_path / "none").exists()


def test_unfinished_embeddings_are_refused(tmp_path: Path) -> None:
    faces, _, _ = noisy(tmp_path)
    (tmp_path / "centres" / "done.u8").write_bytes(b"\0")
    with pytest.raises(CheckpointError, match=r"are not finished; run `prepare.py centres` again"):
        open_embeddings(tmp_path / "centres", faces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": "48"}, "of another kind"),
        ({"num_images": True}, "of another kind"),
        ({"num_images": 47}, "speaks of 47 images"),
        ({"embedding_dim": -32}, "embeddings that cannot be"),
        ({"format_version": 0}, "has version 0 and this gkd reads"),
        ({"network": None}, "store.json: damaged"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    faces, _, _ = noisy(tmp_path)
    path = tmp_path / "centres" / "store.json"
    values = json.loads(path.read_text())
    values = {key: value for key, value in {**values, **change}.items() if value is not None}
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        open_embeddings(tmp_path / "centres", faces)


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b"\xff", b"null"])
def test_a_hostile_description_is_refused(tmp_path: Path, content: bytes) -> None:
    faces, _, _ = noisy(tmp_path)
    (tmp_path / "centres" / "store.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"store.json: damaged"):
        open_embeddings(tmp_path / "centres", faces)


def test_labels_that_changed_are_refused(tmp_path: Path) -> None:
    faces, _, _ = noisy(tmp_path)
    labels = np.fromfile(tmp_path / "centres" / "labels.i32", dtype=np.int32)
    labels[5] = 3
    labels.tofile(tmp_path / "centres" / "labels.i32")
    with pytest.raises(CheckpointError, match=r"key 5 .*has label 0, but 3 in .*; the labels changed since"):
        open_embeddings(tmp_path / "centres", faces)


# Tables


def test_what_is_left_out_is_listed_and_read_again(tmp_path: Path) -> None:
    faces, store = random_noise(tmp_path, 0)
    findings = find_noise(store, faces.num_identities, NoiseRule(margin=0.0))
    images = np.flatnonzero(findings.is_noise)[::-1]
    write_left_out(tmp_path / "a.csv", faces, store, findings, images, device=CPU)
    assert read_image_list(tmp_path / "a.csv", faces).tolist() == sorted(images.tolist())
    rows = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    unreadable = next(row for row in rows if row[0] == "11")
    assert unreadable[4:] == ["", "", "", "", "0"]
    others = [row for row in rows if row[0] != "11"]
    assert others
    assert all(float(row[7]) > float(row[4]) and row[5] != row[2] for row in others)


def test_a_table_by_hand(tmp_path: Path) -> None:
    faces = write_labelled(tmp_path / "train.rec", [(0, 0), (0, 0), (1, 1)])
    for text in (
        "\ufeffsample_id\r\n2\r\n0\r\n2\r\n",
        "x,sample_id,label\na, 2 ,\nb,0,0\n",
        'label,sample_id\n1,"2"\n0,0\n',
    ):
        (tmp_path / "a.csv").write_bytes(text.encode())
        assert read_image_list(tmp_path / "a.csv", faces).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no column `sample_id`"),
        (b"id\n1\n", "no column `sample_id`"),
        (b"sample_id\n", "lists no image"),
        (b"sample_id\n1\n3\n", "line 3: there is no image 3; the data have 3"),
        (b"sample_id\n-1\n", "line 2: sample_id must be a number from 0 on, got '-1'"),
        (b"sample_id\n1e2\n", "must be a number"),
        ("sample_id\n\u00b2\n".encode(), "must be a number"),
        (b"sample_id\n" + b"9" * 5000 + b"\n", "must be a number"),
        (b"label,sample_id\n1\n", "sample_id must be a number from 0 on, got ''"),
        (b"sample_id,label\n1,1\n", "image 1 has label 1 there and 0 in the data; the table is of other data"),
        (b"sample_id,label\n1,x\n", "label must be a number"),
        (b"sample_id\n\xff\n", "is not UTF-8"),
        (b'sample_id\n"' + b"1" * 200_000, "cannot be read"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: bytes, message: str) -> None:
    faces = write_labelled(tmp_path / "train.rec", [(0, 0), (0, 0), (1, 1)])
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(DataError, match=message):
        read_image_list(tmp_path / "a.csv", faces)


def test_a_table_that_cannot_be_written(tmp_path: Path) -> None:
    faces, store, _ = noisy(tmp_path)
    findings: Findings = find_noise(store, faces.num_identities, NoiseRule())
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match=r"a.csv: cannot be written: "):
        write_left_out(tmp_path / "a.csv", faces, store, findings, np.arange(2), device=CPU)
