"""Drawn faces: reproducible, telling people apart, hard for pixels, and written as the files that training reads."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import astuple, fields, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from gkd.core.errors import ConfigError
from gkd.data import PairSet, RecordFile, decode_image
from gkd.data.synthetic import SyntheticFaces, contact_sheet, draw_face, make_pairs, write_synthetic
from gkd.data.synthetic.canvas import Canvas, ellipse, shade, smooth
from gkd.data.synthetic.identity import Identity, Shot, draw_identity, draw_shot, generator
from gkd.data.synthetic.photo import _positions
from gkd.data.synthetic.surface import build_surface
from gkd.data.synthetic.verification import pair_keys
from gkd.evaluation import verify_pairs

SMALL = {"num_identities": 3, "images_per_identity": 2, "eval_identities": 4, "eval_pairs": 8, "folds": 2, "size": 32}
IDENTITY_0 = (36.133636838823655, 0.9798041853399919)
SHOT_0 = (0.11109652804301273, 0.6360271820028146)


def _vector(numbers: Identity | Shot) -> npt.NDArray[np.float64]:
    """The numbers, each scaled to 0 … 1 by its range."""
    low, high = (np.array([item.metadata[end] for item in fields(numbers)]) for end in ("low", "high"))
    return (np.array(astuple(numbers)) - low) / (high - low)


def test_a_face_is_a_function_of_its_numbers() -> None:
    first = draw_face(3, 5, 7)
    build_surface.cache_clear()
    for identity, image in [(4, 0), (5, 6), (5, 8), (0, 7)]:
        assert not np.array_equal(draw_face(3, identity, image), first)
    np.testing.assert_array_equal(draw_face(3, 5, 7), first)
    assert not np.array_equal(draw_face(4, 5, 7), first)


def test_a_face_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from gkd.data.synthetic import draw_face; "
        "print(hashlib.sha256(draw_face(3, 5, 7, 48).tobytes()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    draw_face(3, 6, 0)  # this process has drawn others before
    here = hashlib.sha256(draw_face(3, 5, 7, 48).tobytes()).hexdigest()
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).strip() == here


def test_the_numbers_of_a_seed_stay() -> None:
    """Written down once: a change means other faces for every seed, so VERSION must go up."""
    identity, shot = draw_identity(0, 0), draw_shot(0, 0, 0)
    assert identity.cheek_width == pytest.approx(IDENTITY_0[0], abs=1e-12)
    assert identity.glasses_lot_colour == pytest.approx(IDENTITY_0[1], abs=1e-12)
    assert shot.yaw == pytest.approx(SHOT_0[0], abs=1e-12)
    assert shot.background_seed == pytest.approx(SHOT_0[1], abs=1e-12)


@pytest.mark.parametrize("size", [16, 56, 112, 160])
def test_size_and_type(size: int) -> None:
    face = draw_face(0, 1, 2, size)
    assert face.shape == (size, size, 3)
    assert face.dtype == np.uint8
    assert face.std() > 10


def test_every_number_lies_in_its_range() -> None:
    for number in range(50):
        for numbers in (draw_identity(1, number), draw_shot(1, number, 3)):
            vector = _vector(numbers)
            assert vector.min() >= 0
            assert vector.max() < 1


def test_people_differ_in_every_number() -> None:
    vectors = np.stack([_vector(draw_identity(0, number)) for number in range(200)])
    assert vectors.std(axis=0).min() > 0.25  # a uniform number has 0.289
    correlations = np.corrcoef(vectors.T) - np.eye(vectors.shape[1])
    assert np.abs(correlations).max() < 0.35


def test_no_two_people_are_close() -> None:
    vectors = np.stack([_vector(draw_identity(0, number)) for number in range(200)])
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    assert distances[~np.eye(200, dtype=bool)].min() > 1.5
    assert np.array_equal(_vector(draw_identity(0, 17)), vectors[17])


def test_difficulty_0_is_the_plain_portrait() -> None:
    first, second = draw_shot(0, 1, 0, 0.0), draw_shot(0, 1, 1, 0.0)
    for item in fields(Shot):
        if item.metadata["rest"] is not None:
            assert getattr(first, item.name) == getattr(second, item.name) == item.metadata["rest"]


def test_every_difficulty_can_be_drawn() -> None:
    for image in range(30):
        assert draw_shot(0, 1, image, 1.5).small_lot >= 0
        assert draw_face(0, 1, image, 32, 1.5).shape == (32, 32, 3)


def _mean_change(difficulty: float) -> float:
    """How much two pictures of a person differ, mean over people."""
    changes = []
    for person in range(12):
        first, second = (draw_face(0, person, image, 32, difficulty).astype(float) for image in range(2))
        changes.append(np.abs(first - second).mean())
    return float(np.mean(changes))


def test_difficulty_drives_the_pictures_of_a_person_apart() -> None:
    assert _mean_change(0.0) < 0.8 * _mean_change(1.0)


def test_the_face_is_where_the_template_says() -> None:
    """Of many plain portraits the mean is dark at the eyes' centres and the mouth's line, and light between."""
    mean = np.mean([draw_face(0, person, 0, difficulty=0.0).mean(axis=2) for person in range(40)], axis=0)

    def around(x: float, y: float) -> float:
        return float(mean[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].mean())

    for x in (38.3, 73.5):
        assert around(x, 51.6) < around(x, 64.0) - 15
    assert around(56, 92.3) < around(56, 64.0) - 15


def test_the_nose_moves_with_yaw_against_the_eyes() -> None:
    """Parallax: the alignment holds the landmarks, so turning moves the outline of the head across the frame."""
    surface, shot = build_surface(0, 0), draw_shot(0, 0, 0, 0.0)
    ahead, _ = _positions(surface, shot)
    turned, _ = _positions(surface, replace(shot, yaw=0.5))
    mirrored, _ = _positions(surface, replace(shot, yaw=-0.5))
    assert abs(ahead[72, 56] - 56) < 2
    # The side that turns away shows less of the head over the same width.
    width_left, width_right = turned[60, 50] - turned[60, 20], turned[60, 92] - turned[60, 62]
    assert (width_left - width_right) * (
        (mirrored[60, 50] - mirrored[60, 20]) - (mirrored[60, 92] - mirrored[60, 62])
    ) < 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 0), r"must lie in \[0, 2\^32\), got -1"),
        ((0, 2**32, 0), r"got 4294967296"),
        ((0, 0, 0, 8), "size must lie between 16 and 1024 pixels, got 8"),
        ((0, 0, 0, 112, 2.0), "difficulty must lie between 0 and 1.5, got 2.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_face(*arguments)


def test_streams_do_not_meet() -> None:
    """Keys that concatenate to the same digits give different numbers."""
    assert generator(1, 23).random() != generator(12, 3).random()
    assert draw_shot(0, 1, 2) != draw_shot(0, 2, 1)


def test_contact_sheet_has_a_row_for_each_person() -> None:
    sheet = contact_sheet(2, [4, 9], range(3), size=40)
    assert sheet.shape == (80, 120, 3)
    np.testing.assert_array_equal(sheet[40:, 80:], draw_face(2, 9, 2, 40))


class TestSyntheticFaces:
    def test_is_face_data(self) -> None:
        faces = SyntheticFaces(num_identities=3, images_per_identity=4, seed=5, size=48, first_identity=10)
        assert len(faces) == 12
        assert faces.num_identities == 3
        assert faces.identity_names == ("synthetic-5-000010", "synthetic-5-000011", "synthetic-5-000012")
        encoded, label = faces[7]
        assert label == 1
        assert faces.describe(7) == "synthetic faces (seed 5): identity 11, image 3"
        decoded = decode_image(encoded, (48, 48), faces.describe(7))
        difference = np.abs(decoded.astype(int) - draw_face(5, 11, 3, 48)).mean()
        assert difference < 12  # JPEG loses a little; another face, or swapped colours, is further away

    def test_images_do_not_depend_on_how_many_there_are(self) -> None:
        few = SyntheticFaces(num_identities=2, images_per_identity=2, size=32)
        many = SyntheticFaces(num_identities=5, images_per_identity=7, size=32)
        assert few[3] == many[8]

    def test_fingerprint_names_the_set(self) -> None:
        base = {"num_identities": 2, "images_per_identity": 3, "seed": 0, "size": 32}
        sets = [base, {**base, "seed": 1}, {**base, "size": 33}, {**base, "first_identity": 1}]
        sets += [{**base, "num_identities": 3, "images_per_identity": 2}, {**base, "difficulty": 0.5}]
        prints = {SyntheticFaces(**settings).fingerprint for settings in sets}
        assert len(prints) == len(sets)
        assert SyntheticFaces(**base).fingerprint in prints

    def test_refuses_nobody(self) -> None:
        with pytest.raises(ConfigError, match="must be at least 1, got 0 and 30"):
            SyntheticFaces(num_identities=0)

    def test_ends(self) -> None:
        faces = SyntheticFaces(num_identities=1, images_per_identity=2, size=32)
        assert len([faces[index] for index in range(len(faces))]) == 2
        for index in (-1, 2):
            with pytest.raises(IndexError, match=f"image {index} of 2"):
                faces[index]


class TestPairs:
    def test_folds_are_balanced_and_share_nobody(self) -> None:
        keys, is_same = pair_keys(0, 100, 57, 400, folds=10)
        assert len(keys) == 800
        assert len(set(keys)) == 800, "a picture is used twice"
        people = [person for person, _ in keys]
        assert all(
            (left == right) == same for left, right, same in zip(people[0::2], people[1::2], is_same, strict=True)
        )
        folds = [set(people[start : start + 80]) for start in range(0, 800, 80)]
        assert sum(len(fold) for fold in folds) == len(set.union(*folds)) == 57
        assert set.union(*folds) == set(range(100, 157))
        for start in range(0, 400, 40):
            assert is_same[start : start + 40] == [True] * 20 + [False] * 20

    def test_same_pairs_are_the_same_person_drawn(self) -> None:
        keys, _ = pair_keys(1, 7, 4, 4, folds=2)
        images, is_same = make_pairs(1, 7, 4, 4, folds=2, size=32)
        assert len(images) == 8
        assert len(is_same) == 4
        faces = SyntheticFaces(num_identities=4, images_per_identity=50, seed=1, first_identity=7, size=32)
        assert images == [faces[(person - 7) * 50 + image][0] for person, image in keys]

    def test_other_people_other_pairs(self) -> None:
        assert pair_keys(0, 0, 40, 40) == pair_keys(0, 0, 40, 40)
        assert pair_keys(0, 0, 40, 40) != pair_keys(1, 0, 40, 40)

    @pytest.mark.parametrize(
        ("people", "pairs", "folds", "message"),
        [
            (40, 30, 10, "30 pairs do not split into 10 folds of equal halves; use a positive multiple of 20"),
            (40, 0, 10, "0 pairs do not split"),
            (19, 40, 10, "need at least 20 identities, got 19"),
        ],
    )
    def test_impossible_pairs_are_refused(self, people: int, pairs: int, folds: int, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make_pairs(0, 0, people, pairs, folds)

    def test_pixels_do_not_solve_it(self) -> None:
        """The cosine of raw pixels, ten folds, best threshold: above chance, but below 70 %."""
        images, is_same = make_pairs(0, 10_000, 60, 600, size=64)
        decoded = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).reshape(-1) for image in images]
        vectors = np.stack(decoded).astype(np.float32)
        for candidates in (vectors, vectors - vectors.mean(axis=1, keepdims=True)):
            result = verify_pairs(candidates[0::2], candidates[1::2], np.array(is_same))
            assert 0.45 < result.accuracy < 0.70


class TestWriting:
    def test_files_hold_what_was_asked(self, tmp_path: Path) -> None:
        write_synthetic(tmp_path, **SMALL, seed=4)
        records = RecordFile(tmp_path / "train.rec")
        faces = SyntheticFaces(num_identities=3, images_per_identity=2, seed=4, size=32)
        assert [records[index] for index in range(len(records))] == [faces[index] for index in range(len(faces))]
        assert records.num_identities == 3
        assert records.identity_names == faces.identity_names
        assert (tmp_path / "property").read_text() == "3,32,32\n"
        for first, name in [(3, "validation"), (7, "test")]:
            pairs = PairSet.load(tmp_path / f"{name}.bin")
            images, is_same = make_pairs(4, first, 4, 8, 2, size=32)
            assert pairs.images == images
            assert pairs.is_same.tolist() == is_same
        sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
        assert sheet.shape == (3 * 112, 10 * 112, 3)
        np.testing.assert_array_equal(sheet[:112, :112, ::-1], draw_face(4, 0, 0))

    def test_the_same_settings_are_not_drawn_again(self, tmp_path: Path) -> None:
        write_synthetic(tmp_path, **SMALL)
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        write_synthetic(tmp_path, **SMALL, num_workers=1)
        assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("damage", ["settings", "missing", "interrupted", "text"])
    def test_anything_else_is_drawn_anew(self, tmp_path: Path, damage: str) -> None:
        write_synthetic(tmp_path, **SMALL)
        wanted = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        settings = tmp_path / "synthetic.json"
        if damage == "settings":
            write_synthetic(tmp_path, **SMALL, seed=9)
            assert json.loads(settings.read_text())["seed"] == 9
        elif damage == "missing":
            (tmp_path / "test.bin").unlink()
        elif damage == "interrupted":
            settings.unlink()
        else:
            settings.write_text("{")
        write_synthetic(tmp_path, **SMALL)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == wanted

    def test_several_processes_write_the_same(self, tmp_path: Path) -> None:
        write_synthetic(tmp_path / "one", **SMALL)
        write_synthetic(tmp_path / "two", **SMALL, num_workers=2)
        for path in (tmp_path / "one").iterdir():
            assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()

    def test_bad_numbers_are_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="do not split into 2 folds"):
            write_synthetic(tmp_path / "new", **{**SMALL, "eval_pairs": 7})
        with pytest.raises(ConfigError, match="num_workers must be at least 1, got 0"):
            write_synthetic(tmp_path / "new", **SMALL, num_workers=0)
        assert not (tmp_path / "new").exists()


class TestCanvas:
    def test_a_curve_goes_through_its_points(self) -> None:
        points = [(0.0, 0.0), (4.0, 1.0), (5.0, 6.0), (1.0, 4.0)]
        for is_closed in (True, False):
            curve = smooth(points, is_closed)
            for point in points:
                assert np.abs(curve - point).sum(axis=1).min() < 1e-12
            assert max(float(np.hypot(*(b - a))) for a, b in pairwise(curve)) < 1.6

    def test_filling_covers_the_area_and_no_more(self) -> None:
        canvas = Canvas(np.zeros((240, 240, 4), np.uint8))
        canvas.spot((56.0, 50.0), (10.0, 6.0), (200.0, 100.0, 50.0))
        area = (canvas.pixels[..., 3] / 255.0).sum() / 1.5**2
        assert area == pytest.approx(np.pi * 60, rel=0.12)  # OpenCV's outline is a pixel wide
        canvas.spot((56.0, 50.0), (4.0, 4.0), (0.0, 0.0, 0.0), opacity=0.5)
        centre = canvas.pixels[round((50 + 32) * 1.5), round((56 + 24) * 1.5), :3]
        assert np.abs(centre - np.array([100, 50, 25])).max() <= 1

    def test_a_lighter_shade_stops_at_white(self) -> None:
        assert shade((240.0, 120.0, 0.0), 1.5) == (255.0, 180.0, 0.0)

    def test_clipping_keeps_what_lies_outside(self) -> None:
        canvas = Canvas(np.full((240, 240, 4), 7, np.uint8))
        with canvas.clipped_to(ellipse((56.0, 50.0), (5.0, 5.0))):
            canvas.spot((56.0, 50.0), (9.0, 9.0), (250.0, 250.0, 250.0))
        assert canvas.pixels[round((50 + 32) * 1.5), round((56 + 24) * 1.5), 0] == 250
        assert canvas.pixels[round((50 + 32) * 1.5), round((56 + 24 + 7) * 1.5), 0] == 7

    def test_shapes_may_lie_outside_the_map(self) -> None:
        canvas = Canvas(np.zeros((240, 240, 4), np.uint8))
        for centre in [(-500.0, 50.0), (900.0, 900.0), (56.0, -90.0)]:
            canvas.spot(centre, (5.0, 5.0), (250.0, 250.0, 250.0), opacity=0.5, blur=1.0)
            canvas.stroke(ellipse(centre, (3.0, 3.0)), (250.0, 250.0, 250.0), 2.0, 0.5)
        assert canvas.pixels.max() <= 1
