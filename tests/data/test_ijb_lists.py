"""The lists of IJB-B and IJB-C: what is read, what is refused and how it is told; the miniature that has them."""

from __future__ import annotations

import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.core.errors import ConfigError, GkdError
from gkd.data import ijb_lists, whole_number_lines
from gkd.data.alignment import estimate_similarity, template
from gkd.data.ijb_lists import IjbFaces, read_ijb_faces, read_ijb_pairs
from gkd.data.ijb_miniature import make_miniature
from gkd.data.synthetic import draw_face
from gkd.data.whole_number_lines import read_number_rows, text_lines

FACES, POINTS, PAIRS = "face_tid_mid", "name_5pts_score", "template_pair_label"
POINTS_OF_ONE = "10 20 30 20 20 30 12 40 28 40"


def write_set(folder: Path, prefix: str = "ijbc", **lists: str) -> Path:
    """A set of four images and three templates, with some of its lists replaced."""
    content = {
        FACES: "1.jpg 70 500\n2.jpg 7 501\n3.jpg 7 501\n4.jpg 1000 500\n",
        POINTS: "".join(f"{number}.jpg {POINTS_OF_ONE} 0.{number}\n" for number in (1, 2, 3, 4)),
        PAIRS: "70 7 1\n70 1000 0\n7 1000 0\n",
    } | lists
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "loose_crop").mkdir(exist_ok=True)
    for name, text in content.items():
        (folder / "meta" / f"{prefix}_{name}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    for number in (1, 2, 3, 4):
        (folder / "loose_crop" / f"{number}.jpg").touch()
    return folder


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(GkdError) as caught:
        call()
    return str(caught.value)


class TestFaces:
    def test_are_read(self, tmp_path: Path) -> None:
        faces = read_ijb_faces(write_set(tmp_path))
        assert (faces.name, len(faces), faces.num_templates) == ("IJBC", 4, 3)
        assert faces.image_names == ("1.jpg", "2.jpg", "3.jpg", "4.jpg")
        assert faces.template_ids.tolist() == [7, 70, 1000]
        assert faces.template_of.tolist() == [1, 0, 0, 2]
        assert faces.media_of.tolist() == [500, 501, 501, 500]
        assert faces.detector_scores.tolist() == [0.1, 0.2, 0.3, 0.4]
        assert faces.landmarks[3].tolist() == [[10, 20], [30, 20], [20, 30], [12, 40], [28, 40]]
        assert faces.path(2) == tmp_path / "loose_crop" / "3.jpg"
        assert faces.describe(0) == f"{tmp_path / 'loose_crop' / '1.jpg'} (template 70)"

    def test_of_ijbb(self, tmp_path: Path) -> None:
        assert read_ijb_faces(write_set(tmp_path, "ijbb")).name == "IJBB"

    @pytest.mark.parametrize("change", [("\n", "\r\n"), (" ", "\t"), (" ", "  "), ("\n", " \n\n")])
    def test_other_line_ends_and_blanks(self, tmp_path: Path, change: tuple[str, str]) -> None:
        plain = read_ijb_faces(write_set(tmp_path))
        for path in (tmp_path / "meta").iterdir():
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(*(text.encode() for text in change)))
        faces = read_ijb_faces(tmp_path)
        assert faces.image_names == plain.image_names
        np.testing.assert_array_equal(faces.landmarks, plain.landmarks)
        np.testing.assert_array_equal(faces.template_of, plain.template_of)
        assert read_ijb_pairs(faces).left.tolist() == read_ijb_pairs(plain).left.tolist()

    def test_a_last_line_without_its_end(self, tmp_path: Path) -> None:
        assert len(read_ijb_faces(write_set(tmp_path, **{FACES: "1.jpg 1 1\n2.jpg 2 1\n3.jpg 3 1\n4.jpg 4 1"}))) == 4

    @pytest.mark.parametrize("number", ["-3.5", "+3.5", "3.", ".5", "1e2", "1.5E-3", "007"])
    def test_numbers(self, tmp_path: Path, number: str) -> None:
        points = write_set(tmp_path) / "meta" / "ijbc_name_5pts_score.txt"
        points.write_text(points.read_text().replace("1.jpg 10", f"1.jpg {number}"))
        assert read_ijb_faces(tmp_path).landmarks[0, 0, 0] == float(number)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            (FACES, "1.jpg 70 500\n2.jpg 7\n", r"line 2: is '2.jpg 7', but `image template media`, .* is due"),
            (FACES, "1.jpg 70 500 1\n", "line 1: is '1.jpg 70 500 1', but"),
            (FACES, "1.jpg 70 500\n\n2.jpg 7 x\n", "line 3: is '2.jpg 7 x'"),
            (FACES, "1.jpg -1 500\n", "line 1: is '1.jpg -1 500'"),
            (FACES, "1.jpg 1.0 500\n", "line 1"),
            (FACES, "1.jpg 1234567890 500\n", "at most 9 digits is due"),
            (FACES, "../1.jpg 1 500\n", "line 1: is '../1.jpg 1 500'"),
            (FACES, "a/1.jpg 1 500\n", "line 1"),
            (FACES, "\udcff.jpg 1 500\n", "line 1"),
            (FACES, "1\0.jpg 1 500\n", "line 1"),
            (FACES, "1.jpg 1 500\n2.jpg 1 500\n1.jpg 2 500\n", "line 3: the image '1.jpg' is already on line 1"),
            (FACES, "", "is empty; `image template media`"),
            (FACES, " \n\n", "is empty"),
            (FACES, "1.jpg 1 " + "1" * 5000 + "\n", "line 1: is longer than the 4,096 bytes allowed"),
            (FACES, "1.jpg 1 1\n2.jpg 2 1\n", "has 4 images, but ijbc_face_tid_mid.txt has 2; download both again"),
            (POINTS, "1.jpg 1 2 3\n", r"line 1: is '1.jpg 1 2 3', but `image x1 y1 .* score` is due"),
            (POINTS, f"1.jpg {POINTS_OF_ONE} 0.5 0.5\n", "line 1"),
            (POINTS, f"1.jpg {POINTS_OF_ONE} nan\n", "line 1"),
            (POINTS, f"1.jpg {POINTS_OF_ONE} 0x1\n", "line 1"),
            (POINTS, f"1.jpg {POINTS_OF_ONE} 1_0\n", "line 1"),
            (POINTS, f"1.jpg {POINTS_OF_ONE} 0.5\n3.jpg {POINTS_OF_ONE} 1\n",
             r"line 2: the image is '3.jpg', but '2.jpg' on line 2 of ijbc_face_tid_mid.txt; .* the same order"),
            (POINTS, f"1.jpg {POINTS_OF_ONE} 0.5\n", "has 1 images, but ijbc_face_tid_mid.txt has 4"),
            (POINTS, "", "has 0 images, but ijbc_face_tid_mid.txt has 4"),
        ],
    )  # fmt: skip
    def test_wrong_lines(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        told = refusal(lambda: read_ijb_faces(write_set(tmp_path, **{name: text})))
        assert re.search(message, told), told
        assert "ijbc_" in told
        assert "\n" not in told

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (f"{POINTS_OF_ONE} 1.5", "line 2: 1.5 is no detector score; 0 to 1 is due"),
            (f"{POINTS_OF_ONE} -0.1", "line 2: -0.1 is no detector score"),
            (f"{POINTS_OF_ONE} 1e999", "line 2: inf is no detector score"),
            ("1e300 20 30 20 20 30 12 40 28 40 1", r"line 2: 1e\+300 pixels are beyond the 100,000 for a landmark"),
            ("1e999 20 30 20 20 30 12 40 28 40 1", "line 2: inf pixels are beyond"),
            ("5 5 5 5 5 5 5 5 5 5 1", r"line 2: \[5. 5.\] is the place of all landmarks: no face can be aligned"),
        ],
    )
    def test_wrong_values(self, tmp_path: Path, line: str, message: str) -> None:
        points = write_set(tmp_path) / "meta" / "ijbc_name_5pts_score.txt"
        points.write_text(points.read_text().replace(f"2.jpg {POINTS_OF_ONE} 0.2", f"2.jpg {line}"))
        assert re.search(message, refusal(lambda: read_ijb_faces(tmp_path)))

    def test_missing_images_are_named_together(self, tmp_path: Path) -> None:
        for number in (2, 4):
            (write_set(tmp_path) / "loose_crop" / f"{number}.jpg").unlink()
            (tmp_path / "loose_crop" / "2.jpg").unlink(missing_ok=True)
        told = refusal(lambda: read_ijb_faces(tmp_path))
        assert told.startswith(f"{tmp_path / 'loose_crop'}: 2 of 4 images are missing:")
        assert "2.jpg is missing" in told
        assert "4.jpg is missing" in told

    def test_missing_folders_and_lists(self, tmp_path: Path) -> None:
        assert refusal(lambda: read_ijb_faces(tmp_path / "no")) == f"{tmp_path / 'no'}: no such folder"
        assert "has no meta/ijbb_face_tid_mid.txt or meta/ijbc" in refusal(lambda: read_ijb_faces(tmp_path))
        inner = write_set(tmp_path / "IJBC")
        assert refusal(lambda: read_ijb_faces(tmp_path)).endswith(f"; give {inner}")
        (inner / "meta" / "ijbc_name_5pts_score.txt").unlink()
        assert refusal(lambda: read_ijb_faces(inner)).endswith("ijbc_name_5pts_score.txt: no such file")
        shutil.rmtree(write_set(inner) / "loose_crop")
        assert "loose_crop: the images cannot be listed: No such file" in refusal(lambda: read_ijb_faces(inner))

    def test_a_folder_for_a_list(self, tmp_path: Path) -> None:
        path = write_set(tmp_path) / "meta" / "ijbc_name_5pts_score.txt"
        path.unlink()
        path.mkdir()
        assert refusal(lambda: read_ijb_faces(tmp_path)) == f"{path}: is not a regular file"

    def test_names(self, tmp_path: Path) -> None:
        write_set(write_set(tmp_path), "ijbb")
        assert "holds the lists of IJBB and of IJBC; say which is meant" in refusal(lambda: read_ijb_faces(tmp_path))
        assert read_ijb_faces(tmp_path, "IJBB").name == "IJBB"
        with pytest.raises(ConfigError, match="must be one of IJBB, IJBC, got 'IJBA'"):
            read_ijb_faces(tmp_path, "IJBA")

    def test_too_many_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ijb_lists, "_MAX_IMAGES", 3)
        assert "has more than the 3 images allowed" in refusal(lambda: read_ijb_faces(write_set(tmp_path)))


def pairs_of(folder: Path, text: str) -> ijb_lists.IjbPairs:
    return read_ijb_pairs(read_ijb_faces(write_set(folder, **{PAIRS: text})))


class TestPairs:
    @pytest.mark.parametrize("largest_table", [1, 1 << 24])
    def test_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest_table: int) -> None:
        """By a table of all numbers, and by search where numbers are large."""
        monkeypatch.setattr(ijb_lists, "_LARGEST_TABLE", largest_table)
        pairs = read_ijb_pairs(read_ijb_faces(write_set(tmp_path)))
        assert len(pairs) == 3
        assert (pairs.left.tolist(), pairs.right.tolist()) == ([1, 1, 0], [0, 2, 2])
        assert pairs.is_same.tolist() == [True, False, False]
        assert (pairs.left.dtype, pairs.is_same.dtype) == (np.int32, np.bool_)
        for number in ("8", "1001", "999999999", "0"):
            told = refusal(lambda number=number: pairs_of(tmp_path, f"70 7 1\n70 1000 0\n70 {number} 0\n"))
            assert told.endswith(f"line 3: {number} is no template in ijbc_face_tid_mid.txt")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("70 7 1\n70 7\n", r"line 2: is '70 7', but `template template label`, .* is due"),
            ("70 7 1\n70 7 1 0\n", "line 2: is '70 7 1 0'"),
            ("70 7\n70 7 1 0\n", "line 1: is '70 7'"),
            ("70 7 1 0\n70 7\n", "line 1: is '70 7 1 0'"),
            ("70 7 1\n\n7 1000 y\n", "line 3: is '7 1000 y'"),
            ("70 7 1\n7 1000 2\n", "line 2: 2 is no label; it must be 0 or 1"),
            ("70 7 1\n7 -1000 0\n", "line 2"),
            ("70 7 1\n7 10000000000 0\n", "line 2: is '7 10000000000 0'"),
            ("70 7 1\n7 1000 0\0\n", "line 2"),
            ("70,7,1\n", "line 1: is '70,7,1'"),
            ("", "is empty; `template template label`"),
            ("\n\n", "is empty"),
            ("70 7 1\n", "has 1 pairs of one person and 0 of two; needs both"),
            ("70 7 0\n", "has 0 pairs of one person and 1 of two"),
            ("70 7 1\n70 1000 0\n7 70 0\n",
             "the pair of templates 7 and 70 is labelled both 0 and 1, as are 0 more"),
            ("7" * 9000, "line 1: is longer than the 4,096 bytes allowed"),
        ],
    )  # fmt: skip
    def test_wrong_lists(self, tmp_path: Path, text: str, message: str) -> None:
        told = refusal(lambda: pairs_of(tmp_path, text))
        assert re.search(message, told), told
        assert str(tmp_path / "meta" / "ijbc_template_pair_label.txt") in told

    def test_repeated_pairs_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        pairs = pairs_of(tmp_path, "70 7 1\n7 70 1\n7 1000 0\n7 7 1\n")
        assert len(pairs) == 4
        assert "1 pairs come again, 1 are of a template with itself" in caplog.text

    def test_missing(self, tmp_path: Path) -> None:
        faces = read_ijb_faces(write_set(tmp_path))
        (tmp_path / "meta" / "ijbc_template_pair_label.txt").unlink()
        assert refusal(lambda: read_ijb_pairs(faces)).endswith("ijbc_template_pair_label.txt: no such file")

    def test_too_many(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ijb_lists, "_MAX_PAIRS", 2)
        assert "has more than the 2 pairs allowed" in refusal(lambda: pairs_of(tmp_path, "70 7 1\n" * 3))


def rows_of(path: Path, num_columns: int = 3) -> tuple[list[int], list[list[int]]]:
    parts = list(read_number_rows(path, num_columns, "numbers"))
    return [int(line) for lines, _ in parts for line in lines], [row for _, rows in parts for row in rows.tolist()]


class TestNumberRows:
    @pytest.mark.parametrize("block_bytes", [16, 100, 1 << 22])
    def test_equal_a_plain_split(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
        monkeypatch.setattr(whole_number_lines, "_BLOCK_BYTES", block_bytes)
        generator = np.random.default_rng(0)
        rows = (10 ** generator.uniform(0, 9, (500, 3))).astype(np.int64).tolist()
        path = tmp_path / "rows.txt"
        path.write_text("".join(f"{a}{' ' * (a % 3 + 1)}{b}\t{c}\n" + "\n" * (a % 50 == 0) for a, b, c in rows))
        lines, found = rows_of(path)
        assert found == rows
        text = path.read_text().split("\n")
        assert [[int(field) for field in text[line - 1].split()] for line in lines] == rows

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.sampled_from("019 \t\n\r-x\0"), max_size=60), st.sampled_from([8, 1 << 22]))
    def test_any_text_is_read_as_line_by_line_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, text: str, block_bytes: int
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "any.txt"
        path.write_bytes(text.encode())
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip(" \t\r")]
        whole = re.compile(r"[ \t\r]*\d{1,9}[ \t\r]+\d{1,9}[ \t\r]*")
        bad = [number for number, line in lines if not whole.fullmatch(line)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(whole_number_lines, "_BLOCK_BYTES", block_bytes)
            if bad:
                assert refusal(lambda: rows_of(path, 2)).startswith(f"{path}: line {bad[0]}: ")
            else:
                numbers = [number for number, _ in lines]
                assert rows_of(path, 2) == (numbers, [[int(field) for field in line.split()] for _, line in lines])

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 180), st.integers(0, 2), st.binary(max_size=3))
    def test_cut_and_damaged_lists_are_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, cut: int, which: int, junk: bytes
    ) -> None:
        """Whatever a cut leaves, nothing but a GkdError comes out, and it names a file."""
        folder = write_set(tmp_path_factory.getbasetemp() / "cut")
        path = folder / "meta" / f"ijbc_{(FACES, POINTS, PAIRS)[which]}.txt"
        path.write_bytes(path.read_bytes()[:cut] + junk)
        told = ""
        try:
            faces = read_ijb_faces(folder)
            assert len(faces) == 4
            assert 0 < len(read_ijb_pairs(faces)) <= 4
        except GkdError as error:
            told = str(error)
        assert told == "" or "ijbc_" in told or "loose_crop" in told

    def test_memory_is_bounded(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.txt"
        path.write_bytes(b"12345 23456 1\n" * 2_000_000)
        tracemalloc.start()
        num_rows = sum(len(rows) for _, rows in read_number_rows(path, 3, "numbers"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert num_rows == 2_000_000
        assert peak < 20 << 20  # of a file of 28 MB, and as little of one of 280

    def test_long_lines_are_refused_before_they_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.txt"
        path.write_bytes(b"1 2 3\n" + b"1" * (64 << 20))
        tracemalloc.start()
        told = refusal(lambda: rows_of(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert told == f"{path}: line 2: is longer than the 4,096 bytes allowed"
        assert peak < 8 << 20

    def test_text_lines_are_numbered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "lines.txt"
        path.write_bytes(b"a\n\nbc\nd")
        for block_bytes in (1, 3, 100):
            monkeypatch.setattr(whole_number_lines, "_BLOCK_BYTES", block_bytes)
            assert list(text_lines(path)) == [(1, b"a"), (2, b""), (3, b"bc"), (4, b"d")]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> IjbFaces:
    return read_ijb_faces(make_miniature(tmp_path_factory.mktemp("ijb") / "IJBC", 3, 9, seed=1))


class TestMiniature:
    def test_has_what_its_maker_says(self, faces: IjbFaces) -> None:
        assert (faces.name, len(faces), faces.num_templates) == ("IJBC", 27, 6)
        pairs = read_ijb_pairs(faces)
        assert (len(pairs), int(pairs.is_same.sum())) == (9, 3)
        assert sorted(np.bincount(faces.template_of).tolist()) == [4, 4, 4, 5, 5, 5]
        frames = {tuple(np.unique(faces.media_of[faces.template_of == one], return_counts=True)[1]) for one in range(6)}
        assert frames == {(1, 3), (1, 3, 1)}

    def test_landmarks_are_those_of_the_faces(self, faces: IjbFaces) -> None:
        """Brought back to the template, a photo is the drawn face again, but for resampling and JPEG."""
        for index in (0, 10, 26):
            photo = cv2.imread(str(faces.path(index)))[..., ::-1]
            matrix = estimate_similarity(faces.landmarks[index], template())
            aligned = cv2.warpAffine(photo, matrix, (112, 112))[25:95, 25:95].astype(float)
            drawn = draw_face(1, index // 9, index % 9)[25:95, 25:95].astype(float)
            assert np.abs(aligned - drawn).mean() < 0.6 * np.abs(aligned - draw_face(1, 7, 7)[25:95, 25:95]).mean()

    def test_is_a_function_of_the_seed(self, faces: IjbFaces, tmp_path: Path) -> None:
        again = make_miniature(tmp_path / "again", 3, 9, seed=1)
        other = make_miniature(tmp_path / "other", 3, 9, seed=2, name="IJBB")
        for path in sorted((faces.folder / "meta").iterdir()):
            assert path.read_bytes() == (again / "meta" / path.name).read_bytes()
            assert path.read_bytes() != (other / "meta" / path.name.replace("ijbc", "ijbb")).read_bytes()
        assert faces.path(5).read_bytes() == (again / "loose_crop" / "6.jpg").read_bytes()

    @pytest.mark.parametrize("arguments", [(1, 4, 0, "IJBC"), (2, 1, 0, "IJBC"), (2, 2, 0, "IJBA")])
    def test_wrong_numbers(self, tmp_path: Path, arguments: tuple[int, int, int, str]) -> None:
        with pytest.raises(ConfigError, match="at least 2 people, 2 images of each and a name of IJBB, IJBC, got"):
            make_miniature(tmp_path, *arguments)
