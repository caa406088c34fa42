"""Sets written without some of their images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data import FaceFolder, RecordFile
from gkd.data.rec_clean import lost_identities, write_clean
from tests.inference.noisy_faces import picture, some_wrong, write_labelled


def test_bytes_names_and_files_are_kept(tmp_path: Path) -> None:
    shown, wrong = some_wrong(3)
    faces = write_labelled(tmp_path / "in" / "train.rec", shown, names=["ann", "bob", "eve"])
    is_left_out = np.isin(np.arange(len(faces)), wrong)
    written = write_clean(faces, tmp_path / "out" / "clean.rec", is_left_out)
    again = RecordFile(tmp_path / "out" / "clean.rec")
    kept = [index for index in np.argsort(faces.labels, kind="stable") if not is_left_out[index]]
    assert [again[i] for i in range(len(again))] == [faces[index] for index in kept]
    assert again.identity_names == ("ann", "bob", "eve")
    assert (written.num_images, written.num_identities) == (21, 3)
    first = (tmp_path / "out" / "clean.lst").read_text().splitlines()[0]
    assert first.split("\t")[2] == f"ann/{kept[0]}.png"


def test_identities_that_would_be_empty_are_named_and_refused(tmp_path: Path) -> None:
    faces = write_labelled(tmp_path / "train.rec", [(0, 0), (1, 1), (1, 1), (2, 2)], names=["ann", "bob", "eve"])
    is_left_out = np.array([False, True, True, False])
    assert lost_identities(faces, is_left_out).tolist() == [1]
    with pytest.raises(
        DataError, match=r"1 identities would lose all their images: bob; let them go with --drop-empty"
    ):
        write_clean(faces, tmp_path / "out" / "clean.rec", is_left_out)
    assert not (tmp_path / "out").exists()
    write_clean(faces, tmp_path / "out" / "clean.rec", is_left_out, drop_empty=True)
    again = RecordFile(tmp_path / "out" / "clean.rec")
    assert again.identity_names == ("ann", "eve")
    assert [again[i] for i in range(2)] == [(faces[0][0], 0), (faces[3][0], 1)]


def test_labels_that_had_no_image_are_not_lost(tmp_path: Path) -> None:
    faces = write_labelled(tmp_path / "train.rec", [(0, 0), (2, 2), (2, 2)])
    assert lost_identities(faces, np.array([False, False, True])).tolist() == []
    write_clean(faces, tmp_path / "out" / "clean.rec", np.array([False, False, True]))
    assert RecordFile(tmp_path / "out" / "clean.rec").labels.tolist() == [0, 1]


def test_many_lost_labels_are_cut_short(tmp_path: Path) -> None:
    faces = write_labelled(tmp_path / "train.rec", [(label, label) for label in range(9)])
    with pytest.raises(DataError, match=r"8 identities would lose all their images: 1, 2, 3, 4, 5 …; "):
        write_clean(faces, tmp_path / "clean.rec", np.arange(9) > 0)
    with pytest.raises(ConfigError, match="nothing would be left"):
        write_clean(faces, tmp_path / "out" / "clean.rec", np.ones(9, dtype=bool), drop_empty=True)


def test_a_property_of_the_source_is_not_replaced_by_another_count(tmp_path: Path) -> None:
    faces = write_labelled(tmp_path / "train.rec", [(0, 0), (1, 1)])
    before = (tmp_path / "property").read_text()
    with pytest.raises(ConfigError, match=r"would replace the .*property of both; write into another folder"):
        write_clean(faces, tmp_path / "clean.rec", np.array([False, True]), drop_empty=True)
    assert (tmp_path / "property").read_text() == before
    assert not (tmp_path / "clean.rec").exists()


@pytest.mark.parametrize("kind", ["itself", "symlink", "hard link", "another"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    faces = write_labelled(tmp_path / "train.rec", [(0, 0), (0, 0)])
    out = tmp_path / "out.rec"
    if kind == "itself":
        out = tmp_path / "." / "train.rec"
    elif kind == "symlink":
        out.symlink_to(faces.path)
    elif kind == "hard link":
        os.link(faces.path, out)
    else:
        out.write_bytes(b"precious")
    before = faces.path.read_bytes(), out.read_bytes()
    is_source = kind in ("itself", "symlink")
    problem = "is the source as well as the target" if is_source else "exists; name another file, or remove it"
    with pytest.raises(ConfigError, match=problem):
        write_clean(faces, out, np.array([True, False]))
    assert (faces.path.read_bytes(), out.read_bytes()) == before
    with pytest.raises(ConfigError, match=r"the name must end in .rec"):
        write_clean(faces, tmp_path / "out", np.array([True, False]))


def test_a_damaged_image_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "in" / "ann").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "in" / "ann" / f"{number}.png").write_bytes(picture(0, number))
    faces = FaceFolder(tmp_path / "in")
    (tmp_path / "in" / "ann" / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2.png: the image is empty"):
        write_clean(faces, tmp_path / "clean.rec", np.array([True, False, False]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
