"""Lists of pairs: the format of LFW and CSV, and all that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.core.errors import DataError
from gkd.data.pair_lists import PairList, read_csv_pairs, read_lfw_pairs

TWO_FOLDS = "2\t1\nAnn_A\t1\t2\nAnn_A\t1\tBob\t12\nCy\t1\t10000\nBob\t3\tCy\t4\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    return path


def rows(pairs: PairList) -> list[tuple[str, str, bool, int]]:
    return [(pair.left, pair.right, pair.is_same, pair.fold) for pair in pairs.pairs]


class TestLfw:
    def test_folds(self, tmp_path: Path) -> None:
        pairs = read_lfw_pairs(write(tmp_path, TWO_FOLDS))
        assert rows(pairs) == [
            ("Ann_A/Ann_A_0001", "Ann_A/Ann_A_0002", True, 0),
            ("Ann_A/Ann_A_0001", "Bob/Bob_0012", False, 0),
            ("Cy/Cy_0001", "Cy/Cy_10000", True, 1),
            ("Bob/Bob_0003", "Cy/Cy_0004", False, 1),
        ]
        assert [pair.line for pair in pairs.pairs] == [2, 3, 4, 5]
        assert not pairs.has_suffixes

    def test_blanks_instead_of_tabs(self, tmp_path: Path) -> None:
        spaced = read_lfw_pairs(write(tmp_path, TWO_FOLDS.replace("\t", "  ")))
        assert rows(spaced) == rows(read_lfw_pairs(write(tmp_path, TWO_FOLDS)))

    def test_names_with_blanks_need_tabs(self, tmp_path: Path) -> None:
        pairs = read_lfw_pairs(write(tmp_path, "1\t1\nAnn A\t1\t2\nAnn A\t1\tBob\t1\n"))
        assert pairs.pairs[0].left == "Ann A/Ann A_0001"

    @pytest.mark.parametrize("header", ["2\n", ""])
    def test_one_part_is_mixed(self, tmp_path: Path, header: str) -> None:
        text = f"{header}a\t1\t2\nb\t1\t2\na\t1\tb\t1\na\t2\tb\t2\n"
        pairs = read_lfw_pairs(write(tmp_path, text))
        assert [pair.line - (header != "") for pair in pairs.pairs] == [1, 3, 2, 4]
        assert {pair.fold for pair in pairs.pairs} == {0}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("2\t1\na\t1\t2\na\t1\tb\t1\n", r"line 1: says 2 x \(1 \+ 1\) = 4 pairs, but 2 lines follow"),
            ("0\t3\n", "line 1: '0.t3' is no header"),
            ("2\t-1\n", "is no header"),
            ("9999999\n", "is no header"),
            ("hello\n", "is no header"),
            ("1\t1\na\t1\t2\nb\t1\t2\n", r"fold 1 \(from line 2\) has 2 pairs of one person and 0 of two"),
            ("1\t1\na\t1\t2\na\t1\tb\n", "line 3: 'b' is no number"),
            ("1\t1\na\t1\t2\na\t1\tb\t1\t2\n", "line 3: 5 fields"),
            ("1\t1\na\t1\t1\na\t1\tb\t1\n", "line 2: image '1' of 'a' is paired with itself"),
            ("1\t1\na\t1\t2\na\t1\ta\t2\n", "line 3: 'a' twice"),
            ("1\t1\n../x\t1\t2\na\t1\tb\t1\n", "line 2: '../x' is no name"),
            ("1\t1\n..\t1\t2\na\t1\tb\t1\n", "line 2: '..' is no name"),
            ("1\t1\n/etc\t1\t2\na\t1\tb\t1\n", "line 2: '/etc' is no name"),
            ("1\t1\na\t-1\t2\na\t1\tb\t1\n", "line 2: '-1' is no number"),
            ("1\t1\na\t1\t12345678\na\t1\tb\t1\n", "line 2: '12345678' is no number"),
            ("1\t1\na\t1\t²\na\t1\tb\t1\n", "line 2: '²' is no number"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_lfw_pairs(write(tmp_path, text))

    def test_all_wrong_lines_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            read_lfw_pairs(write(tmp_path, "6\n" + "a\tx\t1\n" * 12))
        assert "12 lines are wrong" in str(caught.value)
        assert "line 11:" in str(caught.value)
        assert "line 12:" not in str(caught.value)

    @pytest.mark.real
    def test_the_official_list(self, real_data: Path) -> None:
        pairs = read_lfw_pairs(real_data / "lfw" / "pairs.txt")
        assert [pair.is_same for pair in pairs.pairs] == ([True] * 300 + [False] * 300) * 10
        assert [pair.fold for pair in pairs.pairs] == [fold for fold in range(10) for _ in range(600)]


class TestCsv:
    def test_columns_in_any_order_and_pairs_by_fold(self, tmp_path: Path) -> None:
        text = 'fold,is_same,right,left\n1,0,b.jpg,"a, 1.jpg"\n0,True,./x/c.png,d.png\n1,1,e.jpg,f.jpg\n'
        pairs = read_csv_pairs(write(tmp_path, text))
        assert rows(pairs) == [
            ("d.png", "x/c.png", True, 0),
            ("a, 1.jpg", "b.jpg", False, 1),
            ("f.jpg", "e.jpg", True, 1),
        ]
        assert pairs.has_suffixes

    def test_without_folds_the_order_stays(self, tmp_path: Path) -> None:
        pairs = read_csv_pairs(write(tmp_path, "left,right,is_same\nb,c,false\na,d,1\n"))
        assert rows(pairs) == [("b", "c", False, 0), ("a", "d", True, 0)]

    @pytest.mark.parametrize("header", ["left,right", "a,b,c", "left,right,is_same,flod", "left,left,right,is_same"])
    def test_headers_that_are_refused(self, tmp_path: Path, header: str) -> None:
        with pytest.raises(DataError, match=r"line 1: the header is .* but `left,right,is_same`"):
            read_csv_pairs(write(tmp_path, f"{header}\na,b,1\n"))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("a,b", "line 2: 2 fields, but the header has 4"),
            ("a,b,2,0", "is_same is '2'"),
            ("a,b,yes,0", "is_same is 'yes'"),
            ("a,b,1,-1", "fold is '-1'"),
            ("a,b,1,nan", "fold is 'nan'"),
            ("a,b,1,1e3", "fold is '1e3'"),
            ("a,./a,1,0", "'a' is paired with itself"),
            ("/a,b,1,0", "no path below the folder"),
            ("a,x/../../b,1,0", "no path below the folder"),
            (",b,1,0", "no path below the folder"),
            ('"a,b,1,0', "no CSV line"),
        ],
    )
    def test_lines_that_are_refused(self, tmp_path: Path, line: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_csv_pairs(write(tmp_path, f"left,right,is_same,fold\n{line}\n"))

    def test_a_header_alone(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has a header, but no pairs"):
            read_csv_pairs(write(tmp_path, "left,right,is_same\n"))
