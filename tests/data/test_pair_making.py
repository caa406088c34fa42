"""Verification pairs of existing images: what is promised of them, over random sets of people, and the files."""

from __future__ import annotations

import logging
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.core.errors import ConfigError, DataError
from gkd.data import FaceFolder, PairSet, pack
from gkd.data.pair_choice import Key, choose_pairs, fold_flags, half_of_fold, two_of
from gkd.data.pair_identities import read_pair_identities
from gkd.data.pair_making import make_pair_file
from gkd.data.rec_split import split_faces
from gkd.evaluation import verify_pairs
from tests.data.faces import make_image


def pairs_of(keys: list[Key]) -> list[tuple[Key, Key]]:
    return list(zip(keys[0::2], keys[1::2], strict=True))


def people_by_fold(keys: list[Key], folds: int) -> list[set[int]]:
    size = len(keys) // folds
    return [{person for person, _ in keys[fold * size : (fold + 1) * size]} for fold in range(folds)]


def largest_by_loops(num_images: list[int]) -> int:
    """The largest number of pairs in one fold, counted pair by pair."""
    pictures = [(person, image) for person, images in enumerate(num_images) for image in range(images)]
    same = sum(left[0] == right[0] for left, right in combinations(pictures, 2))
    different = sum(left[0] != right[0] for left, right in combinations(pictures, 2))
    return 2 * min(same, different)


def write_folder(path: Path, num_images: dict[str, int]) -> Path:
    """A folder of that many images of each name; no two images are equal."""
    number = 0
    for name, images in num_images.items():
        (path / name).mkdir(parents=True)
        for image in range(images):
            (path / name / f"{image}.png").write_bytes(make_image(number, (8, 8)))
            number += 1
    return path


class TestChoice:
    @given(
        num_images=st.lists(st.integers(1, 6), min_size=2, max_size=30),
        folds=st.integers(1, 5),
        half=st.integers(1, 8),
        seed=st.integers(0, 9),
    )
    @settings(max_examples=300, deadline=None)
    def test_what_is_promised(self, num_images: list[int], folds: int, half: int, seed: int) -> None:
        try:
            keys, is_same = choose_pairs(num_images, 2 * half * folds, folds, seed)
        except DataError:
            return  # when that is, the tests below say
        pairs = pairs_of(keys)
        assert is_same == ([True] * half + [False] * half) * folds
        assert [left[0] == right[0] for left, right in pairs] == is_same
        assert all(left != right for left, right in pairs), "a picture is paired with itself"
        assert len({frozenset(pair) for pair in pairs}) == len(pairs), "a pair comes twice"
        assert all(0 <= image < num_images[person] for person, image in keys)
        if sum(images > 1 for images in num_images) >= 2 * folds:
            parts = people_by_fold(keys, folds)
            assert sum(len(part) for part in parts) == len(set.union(*parts)), "folds share people"

    @given(num_images=st.lists(st.integers(1, 5), min_size=2, max_size=6))
    @settings(max_examples=100, deadline=None)
    def test_the_largest_number_works_and_no_larger(self, num_images: list[int]) -> None:
        largest = largest_by_loops(num_images)
        if largest:
            keys, _ = choose_pairs(num_images, largest, folds=1)
            assert len(keys) == 2 * largest
            with pytest.raises(DataError, match=f"the largest --num-pairs that works is {largest}"):
                choose_pairs(num_images, largest + 2, folds=1)
        else:
            with pytest.raises(DataError, match=f"all {len(num_images)} have one"):
                choose_pairs(num_images, 2, folds=1)

    @pytest.mark.parametrize("num_images", [[3] * 40, [2, 9] * 20, [5, 1, 4, 2] * 11, [30] * 3])
    def test_the_largest_number_that_is_named_works(self, num_images: list[int]) -> None:
        with pytest.raises(DataError, match="the largest --num-pairs that works is") as caught:
            choose_pairs(num_images, 1_000_000, folds=10)
        largest = int(str(caught.value).rsplit(" ", 1)[1])
        assert len(choose_pairs(num_images, largest, folds=10)[0]) == 2 * largest
        with pytest.raises(DataError, match=f"works is {largest}$"):
            choose_pairs(num_images, largest + 20, folds=10)

    def test_too_few_people_share_folds_and_it_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        keys, _ = choose_pairs([20] * 4 + [1], 80, folds=4)
        parts = people_by_fold(keys, 4)
        assert sum(len(part) for part in parts) > len(set.union(*parts))
        assert caplog.messages == [
            "the 4 folds of pairs share identities: for folds that share none, 8 identities with at least 2 images are "
            "needed, but there are 4"
        ]

    def test_nothing_is_said_where_folds_share_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        choose_pairs([3] * 8 + [1], 16, folds=4)
        choose_pairs([3, 3], 2, folds=1)
        assert not caplog.messages

    def test_folds_have_about_as_many_images(self) -> None:
        num_images = [2 + 7 * (person % 11) for person in range(110)]
        keys, _ = choose_pairs(num_images, 400)
        sizes = [sum(num_images[person] for person in part) for part in people_by_fold(keys, 10)]
        assert max(sizes) - min(sizes) <= 70

    def test_people_come_evenly(self) -> None:
        """Pairs of one person go round all people; in pairs of two everybody comes within 5 sigma of the mean."""
        keys, _ = choose_pairs([4, 100, 12, 7, 30], 400, folds=1)
        firsts = [left[0] for left, _ in pairs_of(keys)[:200]]
        uses = np.bincount(firsts)
        assert uses[0] == 6, "all pairs of the person with four pictures"
        assert uses[3] == 21
        assert set(uses[[1, 2, 4]].tolist()) <= {57, 58}
        keys, _ = choose_pairs([100] * 10, 10_000, folds=1)
        shares = np.bincount([person for person, _ in keys[10_000:]], minlength=10) / 10_000
        assert np.abs(shares - 0.1).max() < 5 * np.sqrt(0.1 * 0.9 / 10_000)

    def test_images_come_evenly(self) -> None:
        keys, _ = choose_pairs([10] * 20, 1600, folds=1, seed=3)
        for part in (keys[:1600], keys[1600:]):
            shares = np.bincount([image for _, image in part], minlength=10) / 1600
            assert np.abs(shares - 0.1).max() < 0.04

    def test_seeds(self) -> None:
        assert choose_pairs([5] * 20, 40) == choose_pairs([5] * 20, 40)
        assert choose_pairs([5] * 20, 40) != choose_pairs([5] * 20, 40, seed=1)

    @pytest.mark.parametrize(
        ("num_images", "message"),
        [
            ([], "pairs of two people need at least 2 identities, but there are 0"),
            ([9], "pairs of two people need at least 2 identities, but there are 1"),
            ([1, 1, 1], "an identity with at least 2 images, but all 3 have one; add images"),
            (
                [3, 3],
                "40 pairs in 10 folds need 2 distinct pairs of one person in each fold, but with 2 identities and 6 "
                "images there are only 0; use fewer --folds",
            ),
        ],
    )
    def test_impossible_pairs_are_refused(self, num_images: list[int], message: str) -> None:
        with pytest.raises(DataError) as caught:
            choose_pairs(num_images, 40)
        assert message in str(caught.value)

    def test_too_few_pairs_of_two_people_are_named(self) -> None:
        with pytest.raises(DataError) as caught:
            choose_pairs([9, 1], 20, folds=1)
        assert str(caught.value) == (
            "20 pairs in 1 folds need 10 distinct pairs of two people in each fold, but with 2 identities and 10 "
            "images there are only 9; the largest --num-pairs that works is 18"
        )

    @pytest.mark.parametrize(("num_pairs", "folds"), [(30, 10), (0, 10), (-20, 10), (20, 0), (20, -1)])
    def test_numbers_that_do_not_split(self, num_pairs: int, folds: int) -> None:
        with pytest.raises(ConfigError, match=r"pairs: .* pairs do not split into .* folds of equal halves; use a"):
            choose_pairs([5] * 40, num_pairs, folds)

    def test_a_negative_seed(self) -> None:
        with pytest.raises(ConfigError, match="pairs: the seed must be at least 0, got -1"):
            choose_pairs([5] * 40, 20, seed=-1)


class TestShared:
    """What drawn faces use as well."""

    def test_halves(self) -> None:
        assert half_of_fold("x", 60, 10) == 3
        assert fold_flags(2, 2) == [True, True, False, False] * 2

    @given(num_people=st.integers(2, 9), seed=st.integers(0, 99))
    def test_two_of(self, num_people: int, seed: int) -> None:
        pairs = list(two_of(num_people, 50, np.random.default_rng(seed)))
        assert len(pairs) == 50
        assert all(left != right and {left, right} <= set(range(num_people)) for left, right in pairs)


class TestFiles:
    def test_the_file_holds_the_images(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {f"p{number:02d}": 3 + number % 3 for number in range(20)})
        made = make_pair_file(folder, tmp_path / "out" / "mine.bin", num_pairs=40, seed=2)
        pairs = PairSet.load(tmp_path / "out" / "mine.bin")
        assert pairs.name == made.name == "mine"
        assert pairs.images == made.images
        assert pairs.is_same.tolist() == fold_flags(2, 10)
        faces = FaceFolder(folder)
        person = dict(faces[index] for index in range(len(faces)))
        shown = [person[image] for image in pairs.images]
        is_same = [left == right for left, right in zip(shown[0::2], shown[1::2], strict=True)]
        assert is_same == pairs.is_same.tolist()
        ids = read_pair_identities(tmp_path / "out" / "mine.persons.txt", pairs.is_same)
        number = {name: place for place, name in enumerate(sorted({faces.identity_names[label] for label in shown}))}
        names = [number[faces.identity_names[label]] for label in shown]
        assert ids.tolist() == [list(pair) for pair in zip(names[0::2], names[1::2], strict=True)]

    def test_names_that_fit_on_no_line(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {"a\tb": 3, " c": 3, "d": 3})
        made = make_pair_file(folder, tmp_path / "a.bin", num_pairs=12, folds=1)
        ids = read_pair_identities(tmp_path / "a.persons.txt", made.is_same)
        assert len(np.unique(ids)) == 3

    def test_a_record_file_gives_the_pairs_of_its_folder(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {f"p{number}": 4 for number in range(5)})
        pack(folder, tmp_path / "faces.rec")
        for source, name in ((folder, "a"), (tmp_path / "faces.rec", "b"), (folder, "c")):
            make_pair_file(source, tmp_path / f"{name}.bin", num_pairs=20, folds=2)
        (tmp_path / "faces.identities.txt").unlink()
        make_pair_file(tmp_path / "faces.rec", tmp_path / "d.bin", num_pairs=20, folds=2)
        assert len({(tmp_path / f"{name}.bin").read_bytes() for name in "abcd"}) == 1

    def test_an_image_in_several_pairs_is_written_once(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {"a": 3, "b": 3})
        make_pair_file(folder, tmp_path / "a.bin", num_pairs=12, folds=1)
        content = (tmp_path / "a.bin").read_bytes()
        assert [content.count(make_image(number, (8, 8))) for number in range(6)] == [1] * 6

    def test_the_pairs_suit_the_protocol(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {f"p{number:02d}": 3 for number in range(20)})
        pairs = make_pair_file(folder, tmp_path / "a.bin", num_pairs=40)
        person = {path.read_bytes(): int(path.parent.name[1:]) for path in folder.rglob("*.png")}
        vectors = np.eye(20)[[person[image] for image in pairs.images]]
        assert verify_pairs(vectors[0::2], vectors[1::2], pairs.is_same).accuracy == 1.0

    def test_errors_name_the_source(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {"a": 3, "b": 3})
        with pytest.raises(DataError, match=r"in: 60 pairs in 1 folds .* the largest --num-pairs that works is 12"):
            make_pair_file(folder, tmp_path / "a.bin", num_pairs=60, folds=1)
        with pytest.raises(DataError, match=r"a\.rec: the name must end in \.bin"):
            make_pair_file(folder, tmp_path / "a.rec")
        with pytest.raises(DataError, match=r"none: no such folder"):
            make_pair_file(tmp_path / "none", tmp_path / "a.bin")
        with pytest.raises(DataError, match=r"none\.rec: no such file"):
            make_pair_file(tmp_path / "none.rec", tmp_path / "a.bin")
        assert not list(tmp_path.glob("*.bin"))

    def test_an_image_that_is_none_is_refused(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {"a": 3, "b": 3})
        (folder / "a" / "0.png").write_bytes(b"<html>")
        with pytest.raises(DataError, match="identity a, image 0: not a JPEG, PNG, BMP or WebP image"):
            make_pair_file(folder, tmp_path / "a.bin", num_pairs=12, folds=1)
        assert not list(tmp_path.glob("*.bin"))


@pytest.mark.real
def test_pairs_of_held_out_people(real_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    report = split_faces([real_data / "celeba"], tmp_path, held_out=30)
    assert report["counts"]["held_out"]["identities"] == 30
    assert report["counts"]["train"]["identities"] == 198
    assert report["counts"]["train"]["images"] + report["counts"]["held_out"]["images"] == 4892
    pairs = make_pair_file(tmp_path / "held_out.rec", tmp_path / "a.bin")
    assert len(pairs) == 2000
    assert len(set(pairs.images)) > 600
    assert not caplog.messages, "the folds share nobody"
