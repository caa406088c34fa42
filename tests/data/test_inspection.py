"""What a set holds, told in numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data import PairSet
from gkd.data.inspection import as_text, choose, inspect, sheet_of
from tests.data.check.damaged import sample, small_jpeg
from tests.data.faces import make_image


def test_a_record_file(tmp_path: Path) -> None:
    path = sample().write(tmp_path / "a.rec")
    report = inspect(path)
    json.dumps(report)
    lengths = [len(span.body) for span in sample().images]
    assert report["images_per_identity"] == {"min": 3, "median": 3.0, "mean": 3.0, "max": 3, "histogram": [[3, 3, 4]]}
    expected = {
        "kind": "records",
        "num_images": 12,
        "bytes": path.stat().st_size,
        "num_identities": 4,
        "is_sorted_by_label": True,
        "has_names": False,
        "header": "insightface header",
        "has_idx": True,
        "has_lst": False,
        "has_property": False,
        "looked_at": 12,
        "formats": {"jpeg": 12},
        "sizes": {"16x16": 12},
        "jpeg_quality": {"60": 12},
        "bytes_per_image": {"min": min(lengths), "mean": round(float(np.mean(lengths)), 1), "max": max(lengths)},
    }
    assert {name: report[name] for name in expected} == expected
    text = as_text(report)
    assert "num_images             12\n" in text
    assert text.endswith("images   identities\n        3        4 ########################################\n")


def test_headers(tmp_path: Path) -> None:
    path = sample(has_header=False).write(tmp_path / "a.rec", with_idx=False)
    report = inspect(path, num_sampled=3)
    assert (report["header"], report["has_idx"], report["looked_at"]) == (
        "headerless (im2rec)",
        False,
        3,
    )


def test_a_folder(tmp_path: Path) -> None:
    for number in range(5):
        person = tmp_path / f"p{min(number, 1)}"
        person.mkdir(exist_ok=True)
        (person / f"{number}.img.png").write_bytes(make_image(number, (8 + number % 2, 9)))
    report = inspect(tmp_path, num_sampled=None)
    assert (report["kind"], report["num_identities"], report["has_names"]) == ("folder", 2, True)
    assert report["sizes"] == {"8x9": 3, "9x9": 2}
    assert report["formats"] == {"png": 5}
    assert report["images_per_identity"]["histogram"] == [[1, 1, 1], [2, 2, 0], [3, 3, 0], [4, 4, 1]]


def test_pairs(tmp_path: Path) -> None:
    images = [small_jpeg(number) for number in range(40)]
    images[2:4] = images[1], images[0]
    PairSet(images, [number % 2 == 0 for number in range(19)] + [True]).save(tmp_path / "a.bin")
    report = inspect(tmp_path / "a.bin")
    expected = {"num_pairs": 20, "num_same": 11, "num_different": 9, "is_multiple_of_10": True}
    expected |= {"unbalanced_folds": [9], "distinct_images": 38, "repeated_pairs": 1}
    assert {name: report[name] for name in expected} == expected
    PairSet(images[:4], [True, True]).save(tmp_path / "b.bin")
    assert inspect(tmp_path / "b.bin")["unbalanced_folds"].startswith("no folds")


def test_what_is_chosen() -> None:
    assert choose(5, None, 0).tolist() == choose(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    chosen = choose(1000, 50, 1)
    assert len(np.unique(chosen)) == 50
    assert np.array_equal(chosen, choose(1000, 50, 1))
    assert not np.array_equal(chosen, choose(1000, 50, 2))
    with pytest.raises(ConfigError, match="at least 1 image must be looked at, got 0"):
        choose(5, 0, 0)


def test_sheets(tmp_path: Path) -> None:
    path = sample().write(tmp_path / "a.rec")
    assert sheet_of(path, 5).shape == (34 + 4, 5 * 20 + 4, 3)
    assert np.array_equal(sheet_of(path, 5, seed=1), sheet_of(path, 5, seed=1))
    PairSet([make_image(0, (600, 300)), make_image(1)], [True]).save(tmp_path / "a.bin")
    assert sheet_of(tmp_path / "a.bin", 9).shape[0] == 256 + 18 + 4


def test_images_that_cannot_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"a\.jpg: not an image whose header can be read"):
        sheet_of(tmp_path, 1)
    assert inspect(tmp_path)["sizes"] == {"unknown": 1}
