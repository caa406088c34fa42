"""A .bin from a list: its images and order, missing images, folds, sizes."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data import PairSet
from gkd.data.pair_folds import count_folds, drop_pairs, tell_folds
from gkd.data.pair_lists import ListedPair, read_csv_pairs, read_lfw_pairs
from gkd.data.pair_making import make_listed_pair_file, make_pair_file
from tests.data.faces import make_image

NAMES = ("a", "b", "c", "d")


def write_lfw(folder: Path, images_of_each: int = 4) -> Path:
    for person, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for image in range(1, images_of_each + 1):
            suffix = ".png" if image % 2 else ".JPG"
            (folder / name / f"{name}_{image:04d}{suffix}").write_bytes(make_image(10 * person + image, suffix=suffix))
    return folder


def write_list(folder: Path, num_folds: int = 2, half: int = 2) -> Path:
    """Each fold has two people of its own."""
    lines = [f"{num_folds}\t{half}"]
    for fold in range(num_folds):
        left, right = NAMES[2 * fold], NAMES[2 * fold + 1]
        lines += [f"{left}\t1\t{2 + place}" for place in range(half)]
        lines += [f"{left}\t{1 + place}\t{right}\t1" for place in range(half)]
    path = folder / "pairs.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def file_of(folder: Path, name: str, image: int) -> Path:
    return next((folder / name).glob(f"{name}_{image:04d}.*"))


class TestFiles:
    def test_bytes_and_order(self, tmp_path: Path) -> None:
        source, out = write_lfw(tmp_path / "in"), tmp_path / "a.bin"
        made = make_listed_pair_file(source, out, read_lfw_pairs(write_list(tmp_path)))
        with out.open("rb") as file:
            images, is_same = pickle.load(file, encoding="bytes")
        assert type(images) is list
        assert type(is_same) is list
        assert is_same == [True, True, False, False] * 2 == made.is_same.tolist()
        expected = [("a", 1), ("a", 2), ("a", 1), ("a", 3), ("a", 1), ("b", 1), ("a", 2), ("b", 1)]
        assert images[:8] == [file_of(source, *key).read_bytes() for key in expected]
        assert PairSet.load(out).images == images
        assert (tmp_path / "a.persons.txt").read_text().split("\n")[:4] == ["a\ta", "a\ta", "a\tb", "a\tb"]

    def test_an_image_in_several_pairs_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, reads = write_lfw(tmp_path / "in"), list[Path]()

        def count(path: Path, max_bytes: int) -> bytes:
            reads.append(path)
            return path.read_bytes()

        monkeypatch.setattr("gkd.data.pair_making.read_bounded", count)
        made = make_listed_pair_file(source, tmp_path / "a.bin", read_lfw_pairs(write_list(tmp_path)))
        assert len(made.images) == 16
        assert len(reads) == len(set(reads)) == 8

    def test_csv_names_files_with_their_suffix(self, tmp_path: Path) -> None:
        source = write_lfw(tmp_path / "in")
        (tmp_path / "pairs.csv").write_text("left,right,is_same\na/a_0001.png,b/b_0002.JPG,0\n")
        made = make_listed_pair_file(source, tmp_path / "a.bin", read_csv_pairs(tmp_path / "pairs.csv"))
        assert made.images == [file_of(source, "a", 1).read_bytes(), file_of(source, "b", 2).read_bytes()]

    def test_two_files_of_one_image(self, tmp_path: Path) -> None:
        source = write_lfw(tmp_path / "in")
        (source / "a" / "a_0001.webp").write_bytes(make_image(1))
        with pytest.raises(DataError, match=r"a_0001\.png and a_0001\.webp are both image a_0001"):
            make_listed_pair_file(source, tmp_path / "a.bin", read_lfw_pairs(write_list(tmp_path)))

    def test_refusals(self, tmp_path: Path) -> None:
        pairs = read_lfw_pairs(write_list(tmp_path))
        with pytest.raises(DataError, match=r"a\.pkl: the name must end in \.bin"):
            make_listed_pair_file(tmp_path, tmp_path / "a.pkl", pairs)
        with pytest.raises(DataError, match=r"a\.rec: no such folder; pairs of a list need a folder"):
            make_listed_pair_file(tmp_path / "a.rec", tmp_path / "a.bin", pairs)


class TestMissing:
    def test_all_are_told(self, tmp_path: Path) -> None:
        source, out = write_lfw(tmp_path / "in"), tmp_path / "a.bin"
        file_of(source, "a", 3).unlink()
        file_of(source, "d", 1).unlink()
        with pytest.raises(DataError) as caught:
            make_listed_pair_file(source, out, read_lfw_pairs(write_list(tmp_path)))
        assert "2 images are missing" in str(caught.value)
        assert "no image a/a_0003 (line 3)" in str(caught.value)
        assert "no image d/d_0001 (line 8)" in str(caught.value)
        assert str(caught.value).endswith("--on-missing skip")
        assert not out.exists()

    def test_skipping_keeps_folds_even(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        source = write_lfw(tmp_path / "in")
        file_of(source, "a", 3).unlink()
        made = make_listed_pair_file(
            source, tmp_path / "a.bin", read_lfw_pairs(write_list(tmp_path)), skip_missing=True
        )
        assert made.is_same.tolist() == [True, False] * 2
        assert made.images[:4] == [
            file_of(source, *key).read_bytes() for key in (("a", 1), ("a", 2), ("a", 1), ("b", 1))
        ]
        assert "no image a/a_0003" in caplog.text
        assert "3 more pairs were left out so that each fold has 1 pairs of one person and 1 of two" in caplog.text

    def test_an_empty_half_is_refused(self, tmp_path: Path) -> None:
        source = write_lfw(tmp_path / "in")
        file_of(source, "b", 1).unlink()
        with pytest.raises(DataError, match="fold 0 is left with 2 pairs of one person and 0 of two"):
            make_listed_pair_file(source, tmp_path / "a.bin", read_lfw_pairs(write_list(tmp_path)), skip_missing=True)

    def test_a_name_that_no_file_system_takes_is_missing(self, tmp_path: Path) -> None:
        (tmp_path / "pairs.csv").write_text(f"left,right,is_same\n{'x' * 3000}.jpg,b.jpg,0\n")
        with pytest.raises(DataError, match="2 images are missing"):
            make_listed_pair_file(tmp_path, tmp_path / "a.bin", read_csv_pairs(tmp_path / "pairs.csv"))


def listed(fold: int, is_same: bool, number: int) -> ListedPair:
    return ListedPair(f"{fold}{is_same}{number}", f"other{fold}{is_same}{number}", is_same, fold, number)


class TestFolds:
    def test_uneven_lists_lose_only_what_is_missing(self) -> None:
        pairs = [listed(fold, is_same, n) for fold in (0, 1) for is_same in (True, False) for n in range(2 + fold)]
        kept = drop_pairs(pairs, frozenset({"0True0"}))
        assert count_folds(kept) == {0: (1, 2), 1: (3, 3)}

    def test_unequal_halves_are_cut_each_to_its_own(self) -> None:
        pairs = [listed(fold, is_same, n) for fold in (0, 1) for is_same in (True, False) for n in range(3 + is_same)]
        kept = drop_pairs(pairs, frozenset({"0True0"}))
        assert count_folds(kept) == {0: (3, 3), 1: (3, 3)}

    def test_one_fold_is_not_cut(self) -> None:
        pairs = [listed(0, is_same, n) for is_same in (True, False) for n in range(3)]
        assert count_folds(drop_pairs(pairs, frozenset({"0True1"}))) == {0: (2, 3)}

    def test_notes(self, caplog: pytest.LogCaptureFixture) -> None:
        even = [listed(fold, is_same, n) for fold in (0, 1) for is_same in (True, False) for n in range(3)]
        with caplog.at_level(logging.WARNING):
            tell_folds(even)
        assert not caplog.records
        tell_folds(even[:-2])
        assert "the 2 folds have 4 to 6 pairs" in caplog.text
        tell_folds(even[:-3])
        assert "pairs of one kind only: 1" in caplog.text


class TestImages:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        source = write_lfw(tmp_path / "in")
        file_of(source, "a", 1).write_bytes(make_image(99, (24, 24)))
        return source

    def test_several_sizes(self, source: Path, tmp_path: Path) -> None:
        pairs = read_lfw_pairs(write_list(tmp_path))
        with pytest.raises(DataError, match=r"images of 2 sizes \(7 of 16x16, .*1 of 24x24, such as .*a_0001"):
            make_listed_pair_file(source, tmp_path / "a.bin", pairs)

    def test_resizing_touches_only_the_others(self, source: Path, tmp_path: Path) -> None:
        made = make_listed_pair_file(source, tmp_path / "a.bin", read_lfw_pairs(write_list(tmp_path)), size=16)
        assert made.images[1] == file_of(source, "a", 2).read_bytes()
        before = cv2.imread(str(file_of(source, "a", 1)))
        after = cv2.imdecode(np.frombuffer(made.images[0], np.uint8), cv2.IMREAD_COLOR)
        assert before is not None
        assert after is not None
        assert np.array_equal(after, cv2.resize(before, (16, 16), interpolation=cv2.INTER_AREA))

    def test_no_distortion(self, source: Path, tmp_path: Path) -> None:
        file_of(source, "a", 1).write_bytes(make_image(99, (24, 20)))
        with pytest.raises(DataError, match=r"a_0001\.png: 24x20 pixels cannot become square"):
            make_listed_pair_file(source, tmp_path / "a.bin", read_lfw_pairs(write_list(tmp_path)), size=16)

    def test_damaged_images_are_told_together(self, source: Path, tmp_path: Path) -> None:
        file_of(source, "a", 1).write_bytes(b"<html>")
        file_of(source, "c", 1).write_bytes(make_image(3)[:-20])
        with pytest.raises(DataError) as caught:
            make_listed_pair_file(source, tmp_path / "a.bin", read_lfw_pairs(write_list(tmp_path)))
        assert "2 images are unfit" in str(caught.value)
        assert "not a JPEG, PNG, BMP or WebP image" in str(caught.value)
        assert "cut short" in str(caught.value)

    @pytest.mark.parametrize("size", [0, -1, 5000])
    def test_sizes_out_of_range(self, source: Path, tmp_path: Path, size: int) -> None:
        with pytest.raises(ConfigError, match=f"--size: must be 1 to 4096 pixels, got {size}"):
            make_listed_pair_file(source, tmp_path / "a.bin", read_lfw_pairs(write_list(tmp_path)), size=size)

    def test_random_pairs_are_checked_too(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="images of 2 sizes"):
            make_pair_file(source, tmp_path / "a.bin", num_pairs=40, folds=1)
        made = make_pair_file(source, tmp_path / "a.bin", num_pairs=40, folds=1, size=16)
        assert len(made) == 40


@pytest.mark.real
def test_lfw_is_rebuilt_byte_for_byte(real_data: Path, tmp_path: Path) -> None:
    official = PairSet.load(real_data / "lfw" / "lfw.bin")
    pairs = read_lfw_pairs(real_data / "lfw" / "pairs.txt")
    names = [name for pair in pairs.pairs for name in (pair.left, pair.right)]
    for name, image in zip(names, official.images, strict=True):
        path = tmp_path / "in" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists() or path.read_bytes() == image
        path.write_bytes(image)
    made = make_listed_pair_file(tmp_path / "in", tmp_path / "lfw.bin", pairs)
    again = PairSet.load(tmp_path / "lfw.bin")
    assert made.images == again.images == official.images
    assert np.array_equal(again.is_same, official.is_same)
