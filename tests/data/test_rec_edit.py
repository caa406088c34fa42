"""Merging, choosing from and shuffling sets of faces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data import FaceFolder, RecordFile, RecordWriter, pack, rec_edit
from gkd.data.people_writing import Written
from gkd.data.rec_edit import merge, shuffle, subset
from gkd.data.rec_unpack import unpack
from tests.data.faces import make_image, write_faces
from tests.data.peer_reader import read_like_peers
from tests.data.test_pair_making import write_folder
from tests.data.test_rec_pack import files_of

PEOPLE = {"ann": 3, "bob": 1, "cid": 7, "dee": 4, "eve": 2}


def people_of(path: Path) -> dict[str, list[bytes]]:
    """Each name with its images in order, as peers read them."""
    names = RecordFile(path).identity_names
    assert names is not None
    found: dict[str, list[bytes]] = {name: [] for name in names}
    for _, label, body in read_like_peers(path):
        found[names[int(label)]].append(body)
    return found


def images_of(folder: Path, name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / name).iterdir())]


class TestMerge:
    def test_labels_are_shifted(self, tmp_path: Path) -> None:
        first = write_faces(tmp_path / "a.rec", num_images=6, num_identities=2)
        second = write_faces(tmp_path / "b.rec", num_images=9, num_identities=3)
        assert merge([tmp_path / "a.rec", tmp_path / "b.rec"], tmp_path / "out.rec") == Written(15, 5)
        wanted = first + [(body, label + 2) for body, label in second]
        assert list(RecordFile(tmp_path / "out.rec")) == wanted
        assert [(body, int(label)) for _, label, body in read_like_peers(tmp_path / "out.rec")] == wanted
        assert RecordFile(tmp_path / "out.rec").identity_names is None
        assert not (tmp_path / "out.lst").exists()

    def test_names_of_folders_and_records(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        left = write_folder(tmp_path / "left", {"ann": 2, "bob": 1})
        right = write_folder(tmp_path / "right", {"cid": 1, "dee": 2})
        pack(right, tmp_path / "right.rec")
        merge([left, tmp_path / "right.rec"], tmp_path / "out.rec")
        found = people_of(tmp_path / "out.rec")
        assert list(found) == ["ann", "bob", "cid", "dee"]
        assert found["ann"] == images_of(left, "ann")
        assert found["dee"] == images_of(right, "dee")
        assert caplog.text == ""
        unpack(tmp_path / "out.rec", tmp_path / "out")
        assert files_of(tmp_path / "out") == files_of(left) | files_of(right)

    def test_the_same_name_need_not_be_the_same_person(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        left, right = (
            write_folder(tmp_path / "left", {"ann": 2, "bob": 1}),
            write_folder(tmp_path / "right", {"ann": 1}),
        )
        merge([left, right], tmp_path / "out.rec")
        assert list(people_of(tmp_path / "out.rec")) == ["1_ann", "1_bob", "2_ann"]
        assert "the same name is in two sets" in caplog.text
        unpack(tmp_path / "out.rec", tmp_path / "out")
        assert sorted(files_of(tmp_path / "out")) == ["1_ann/0.png", "1_ann/1.png", "1_bob/0.png", "2_ann/0.png"]

    def test_by_name(self, tmp_path: Path) -> None:
        left, right = write_folder(tmp_path / "left", {"bob": 2, "ann": 1}), tmp_path / "right.rec"
        pack(write_folder(tmp_path / "right", {"bob": 3, "aaa": 1}), right)
        assert merge([left, right], tmp_path / "out.rec", by_name=True) == Written(7, 3)
        found = people_of(tmp_path / "out.rec")
        assert list(found) == ["aaa", "ann", "bob"]
        assert found["bob"] == images_of(left, "bob") + images_of(tmp_path / "right", "bob")
        unpack(tmp_path / "out.rec", tmp_path / "out")
        names = ["0.png", "1.png", "2.png", "2_0.png", "2_1.png"]
        assert sorted(path.name for path in (tmp_path / "out" / "bob").iterdir()) == names

    def test_some_sets_without_names(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {"ann": 1})
        with RecordWriter(tmp_path / "a.rec") as writer:
            writer.write(0, make_image(0, (8, 8)))
        merge([folder, tmp_path / "a.rec"], tmp_path / "out.rec")
        assert list(people_of(tmp_path / "out.rec")) == ["ann", "000000"]
        with pytest.raises(DataError, match=r"a\.rec: has no identity names, so --by-name cannot merge it"):
            merge([folder, tmp_path / "a.rec"], tmp_path / "out.rec", by_name=True)

    def test_labels_without_images_close_up(self, tmp_path: Path) -> None:
        with RecordWriter(tmp_path / "a.rec", layout="plain") as writer:
            for label in (4, 1, 4):
                writer.write(label, make_image(label))
        merge([tmp_path / "a.rec", tmp_path / "a.rec"], tmp_path / "out.rec")
        assert [label for _, label in RecordFile(tmp_path / "out.rec")] == [0, 1, 1, 2, 3, 3]

    def test_refusals(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {"ann": 1})
        write_faces(tmp_path / "a.rec")
        before = files_of(tmp_path)
        with pytest.raises(ConfigError, match="merging needs at least 2 sources, got 1"):
            merge([folder], tmp_path / "out.rec")
        with pytest.raises(ConfigError, match=r"a\.rec: is a source as well as the target; name another target"):
            merge([folder, tmp_path / "a.rec"], tmp_path / "in" / ".." / "a.rec")
        with pytest.raises(DataError, match=r"has size \(16, 16\) \(height, width\), but that of .* has \(8, 8\)"):
            merge([folder, tmp_path / "a.rec"], tmp_path / "out.rec")
        assert files_of(tmp_path) == before


class TestSubset:
    @pytest.mark.parametrize("seed", [0, 1, 5])
    def test_by_its_definition(self, tmp_path: Path, seed: int) -> None:
        """People with enough images, of them those with the smallest hashes, of each the images with the smallest."""

        def rank(*keys: object) -> str:
            return hashlib.sha256(" ".join(map(str, (seed, *keys))).encode()).hexdigest()

        folder = write_folder(tmp_path / "in", PEOPLE)
        subset(folder, tmp_path / "a.rec", num_identities=3, min_images=2, max_images=2, seed=seed)
        fit = [name for name, count in PEOPLE.items() if count >= 2]
        chosen = sorted(sorted(fit, key=rank)[:3])
        wanted = {}
        for name in chosen:
            kept = sorted(range(PEOPLE[name]), key=lambda index, name=name: rank(name, index))[:2]  # type: ignore[misc]
            wanted[name] = [images_of(folder, name)[index] for index in sorted(kept)]
        assert people_of(tmp_path / "a.rec") == wanted
        unpack(tmp_path / "a.rec", tmp_path / "out")
        assert files_of(tmp_path / "out").items() <= files_of(folder).items()

    def test_a_larger_one_holds_the_smaller(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        kept = []
        for number in (1, 3, 4):
            subset(folder, tmp_path / "a.rec", num_identities=number, max_images=number)
            kept.append({(name, body) for name, bodies in people_of(tmp_path / "a.rec").items() for body in bodies})
        assert kept[0] < kept[1] < kept[2]

    def test_without_names(self, tmp_path: Path) -> None:
        faces = write_faces(tmp_path / "in.rec", num_images=20, num_identities=5)
        assert subset(tmp_path / "in.rec", tmp_path / "a.rec", num_identities=2) == Written(8, 2)
        found = RecordFile(tmp_path / "a.rec")
        assert found.identity_names is None
        bodies = {body for body, _ in found}
        labels = sorted({label for body, label in faces if body in bodies})
        assert list(found) == [(body, labels.index(label)) for body, label in faces if label in labels]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "a subset needs --identities, --min-images above 1, or --max-images"),
            ({"num_identities": 0}, "--identities must be at least 1, got 0"),
            ({"max_images": 0}, "--max-images must be at least 1, got 0"),
            ({"min_images": -1, "max_images": 1}, "--min-images must be at least 1, got -1"),
            (
                {"num_identities": 4, "min_images": 3},
                "--identities 4: 3 identities have at least 3 images; ask for fewer",
            ),
            ({"min_images": 8}, "0 identities have at least 8 images"),
        ],
    )
    def test_refusals(self, tmp_path: Path, settings: dict[str, int], message: str) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        with pytest.raises(ConfigError, match=message):
            subset(folder, tmp_path / "a.rec", **settings)  # type: ignore[arg-type]
        assert not (tmp_path / "a.rec").exists()


class TestShuffle:
    @pytest.mark.parametrize("window", [1, 7, 1 << 17])
    def test_nothing_is_lost_and_the_window_changes_nothing(
        self, tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faces = write_faces(tmp_path / "in.rec", num_images=600, num_identities=20)
        monkeypatch.setattr(rec_edit, "_FIRST_WINDOW", min(window, 256))
        monkeypatch.setattr(rec_edit, "_MAX_WINDOW", window)
        assert shuffle(tmp_path / "in.rec", tmp_path / "a.rec", seed=3) == Written(600, 20)
        order = np.random.default_rng(3).permutation(600)
        wanted = [faces[index] for index in order]
        assert list(RecordFile(tmp_path / "a.rec")) == wanted
        assert read_like_peers(tmp_path / "a.rec") == [
            (key, float(label), body) for key, (body, label) in enumerate(wanted)
        ]
        shuffle(tmp_path / "in.rec", tmp_path / "b.rec", seed=4)
        assert (tmp_path / "b.rec").read_bytes() != (tmp_path / "a.rec").read_bytes()

    def test_names_and_files_are_kept(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        shuffle(folder, tmp_path / "a.rec")
        assert RecordFile(tmp_path / "a.rec").identity_names == FaceFolder(folder).identity_names
        unpack(tmp_path / "a.rec", tmp_path / "out")
        assert files_of(tmp_path / "out") == files_of(folder)
        shuffle(tmp_path / "a.rec", tmp_path / "b.rec", seed=1)
        unpack(tmp_path / "b.rec", tmp_path / "again")
        assert files_of(tmp_path / "again") == files_of(folder)

    def test_a_list_of_another_file_is_not_carried_over(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_faces(tmp_path / "in.rec")
        (tmp_path / "in.lst").write_text("1\t/path/image.jpg\t0\n")
        shuffle(tmp_path / "in.rec", tmp_path / "a.rec")
        assert "in.lst: line 1 is not a key" in caplog.text
        assert "the names of files are not carried over" in caplog.text
        assert not (tmp_path / "a.lst").exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda source, out: merge([source, source], out),
        lambda source, out: subset(source, out, max_images=5),
        shuffle,
    ],
)
def test_a_damaged_record_stops(tmp_path: Path, edit: Callable[[Path, Path], Written]) -> None:
    write_faces(tmp_path / "in.rec")
    offset = int((tmp_path / "in.idx").read_text().split()[15])
    content = bytearray((tmp_path / "in.rec").read_bytes())
    content[offset + 4 : offset + 8] = b"\xff\xff\xff\x1f"  # longer than the file
    (tmp_path / "in.rec").write_bytes(content)
    with pytest.raises(DataError, match=r"in\.rec: key 7, byte .*`prepare.py verify --repair` writes a file"):
        edit(tmp_path / "in.rec", tmp_path / "a.rec")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.idx", "in.rec", "property"]


@pytest.mark.real
def test_genuine_sets(real_data: Path, tmp_path: Path) -> None:
    sources = [real_data / "recordio" / f"faceid25-{part}.rec" for part in ("testing", "validation")]
    merged = merge(sources, tmp_path / "a.rec")
    assert merged.num_images == sum(len(RecordFile(path)) for path in sources)
    shuffle(tmp_path / "a.rec", tmp_path / "b.rec")
    assert sorted(RecordFile(tmp_path / "b.rec")) == sorted(RecordFile(tmp_path / "a.rec"))
