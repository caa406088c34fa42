"""Verification sets: every kind of item that exists, and what must be refused."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data import PairSet, decode_image
from tests.data.faces import make_image

IMAGES = [make_image(number) for number in range(6)]
IS_SAME = [True, False, True]


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def _dump(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def _check(pairs: PairSet) -> None:
    assert pairs.images == IMAGES
    assert all(type(image) is bytes for image in pairs.images)
    assert pairs.is_same.dtype == np.bool_
    assert pairs.is_same.tolist() == IS_SAME
    assert len(pairs) == 3


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["bytes", "array", "row"])
def test_items_of_python_3(tmp_path: Path, protocol: int, kind: str) -> None:
    images: list[Any] = list(IMAGES)
    if kind != "bytes":
        images = [np.frombuffer(image, dtype=np.uint8) for image in IMAGES]
    if kind == "row":
        images = [image[None] for image in images]
    pairs = PairSet.load(_dump(tmp_path / "lfw.bin", (images, IS_SAME), protocol))
    _check(pairs)
    assert pairs.name == "lfw"
    assert pairs.describe(3) == "lfw: pair 1, right image"


@pytest.mark.parametrize("flags", [np.array(IS_SAME), np.array(IS_SAME, dtype=np.int64), [1, 0, 1], tuple(IS_SAME)])
def test_flags_of_every_kind(tmp_path: Path, flags: Any) -> None:
    _check(PairSet.load(_dump(tmp_path / "a.bin", [IMAGES, flags])))


def _python_2_pickle(numpy_items: bool) -> bytes:
    """What Python 2 writes with protocol 2: `str` as (SHORT_)BINSTRING, numpy below `numpy.core`."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def array(value: bytes) -> bytes:
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|")
        dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        return made + b"(K\x01(M" + len(value).to_bytes(2, "little") + b"t" + dtype + b"\x89" + text(value) + b"tb"

    items = b"".join((array if numpy_items else text)(image) for image in IMAGES)
    flags = b"".join(b"\x88" if same else b"\x89" for same in IS_SAME)
    return b"\x80\x02](" + items + b"e](" + flags + b"e\x86."


@pytest.mark.parametrize("numpy_items", [False, True])
def test_items_of_python_2(tmp_path: Path, numpy_items: bool) -> None:
    content = _python_2_pickle(numpy_items)
    pickletools.dis(content, out=io.StringIO())  # fails where the bytes above are no pickle
    (tmp_path / "a.bin").write_bytes(content)
    _check(PairSet.load(tmp_path / "a.bin"))


def test_saved_sets_read_back_here_and_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.bin"
    PairSet(IMAGES, np.array(IS_SAME)).save(path)
    _check(PairSet.load(path))
    images, is_same = pickle.loads(path.read_bytes(), encoding="bytes")
    assert (images, is_same) == (IMAGES, IS_SAME)
    assert all(type(flag) is bool for flag in is_same)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    path = _dump(tmp_path / "a.bin", ([_Runs(tmp_path / "made")], [True]), protocol)
    with pytest.raises(DataError, match=r"a\.bin: refused, since its pickle asks for `\w+\.mkdir`; nothing was run"):
        PairSet.load(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([IMAGES], r"holds list of 1, but a pair \(images, is_same\) is needed"),
        ({"images": IMAGES}, "holds dict of 1"),
        (7, "holds int, but"),
        ((IMAGES, True), "flags are bool, but a list is needed"),
        ((b"abc", IS_SAME), "images are bytes of 3, but a list is needed"),
        ((IMAGES[:5], IS_SAME), "5 images and 3 same-or-different flags"),
        ((IMAGES, IS_SAME[:2]), "6 images and 2 same-or-different flags"),
        (([], []), "holds no pairs"),
        ((IMAGES, [True, False, 2]), "the flag of pair 2 is 2"),
        ((IMAGES, [True, False, None]), "the flag of pair 2 is None"),
        (([*IMAGES[:5], "text"], IS_SAME), "image 5 is str of 4, but encoded image bytes"),
        (([*IMAGES[:5], b"text"], IS_SAME), "image 5 is not a JPEG, PNG, BMP or WebP image .begins with b'text'"),
        (([*IMAGES[:5], b""], IS_SAME), "image 5 is not a JPEG"),
        (([*IMAGES[:5], None], IS_SAME), "image 5 is NoneType"),
        (([*IMAGES[:5], np.zeros(3)], IS_SAME), "an array of type 'f8'"),
        (([*IMAGES[:5], np.array([1, 2])], IS_SAME), "image 5 is ndarray of 2"),
        (([*IMAGES[:5], np.array([None])], IS_SAME), "an array of type 'O8'"),
        (([*IMAGES[:5], np.zeros(2, dtype="V4")], IS_SAME), "an array of type 'V4'"),
    ],
)
def test_what_is_no_set_of_pairs(tmp_path: Path, value: Any, message: str) -> None:
    path = _dump(tmp_path / "a.bin", value)
    with pytest.raises(DataError, match=rf"a\.bin: .*{message}|a\.bin: {message}"):
        PairSet.load(path)


_U1 = b"cnumpy\ndtype\n(X\x02\0\0\0u1K\0K\1tR"
_EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(t"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (_EMPTY + b"R(K\1(J\xff\xff\xff\x7ft" + _U1 + b"\x89C\3abctb", "an array whose 3 items do not fill its shape"),
        (_EMPTY + b"R(K\1(J\xff\xff\xff\xffJ\xfd\xff\xff\xfft" + _U1 + b"\x89C\3abctb", "do not fill its shape"),
        (_EMPTY + b"R(K\1(t" + _U1 + b"\x89]tb", "an array of objects"),
        (_EMPTY + b"R(K\1(tN\x89C\3abctb", "an array of objects"),
        (_EMPTY + b"RNb", "an array with a damaged state"),
        (_EMPTY + b"R", "an array without content"),
        (b"cbuiltins\nbytes\n(J\xff\xff\xff\x7ftR", "a call of bytes with arguments"),
        (b"c_codecs\nencode\n(X\1\0\0\0aX\3\0\0\0hextR", "text in an encoding other than latin1"),
        (b"cbuiltins\nbool\nK\1b", "refused, since its pickle changes"),
    ],
)
def test_hostile_items(tmp_path: Path, item: bytes, message: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x80\x03](" + item + b"e](\x88e\x86.")
    with pytest.raises(DataError, match=rf"a\.bin: .*{message}"):
        PairSet.load(tmp_path / "a.bin")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(DataError, match="no such file"):
        PairSet.load(path)
    path.write_text("hello\n")
    with pytest.raises(DataError, match="damaged, truncated or not a pickle"):
        PairSet.load(path)
    PairSet(IMAGES, IS_SAME).save(path)
    content = path.read_bytes()
    with pytest.raises(DataError, match="bytes is more than the 100 bytes allowed"):
        PairSet.load(path, max_bytes=100)
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="damaged, truncated or not a pickle"):
            PairSet.load(path)


@pytest.mark.real
@pytest.mark.parametrize(("name", "num_pairs"), [("lfw/lfw.bin", 6000), ("recordio/faceid25-validation.bin", 749)])
def test_genuine_sets(real_data: Path, name: str, num_pairs: int) -> None:
    pairs = PairSet.load(real_data / name)
    assert len(pairs) == num_pairs
    assert pairs.is_same.sum() == (3000 if "lfw" in name else 749)
    for index in (0, 1, len(pairs.images) - 1):
        assert decode_image(pairs.images[index], (112, 112), pairs.describe(index)).shape == (112, 112, 3)
