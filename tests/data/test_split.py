"""Setting people apart: who is held out, what the files hold, what is refused and what is not done twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data import FaceFolder, RecordFile, RecordWriter, pack, rec_split
from gkd.data.identities import find_identities, open_faces
from gkd.data.rec_split import split_faces
from tests.data.faces import make_image, write_faces
from tests.data.test_pair_making import write_folder

PEOPLE = {"ann": 3, "bob": 1, "cid": 2, "dee": 4, "eve": 2, "fay": 3}


def people_of(path: Path) -> dict[str, list[bytes]]:
    """Each name in a .rec with its images in order; labels must be 0, 1, 2 … in the file's order."""
    faces = RecordFile(path)
    labels = [faces[index][1] for index in range(len(faces))]
    assert labels == sorted(labels)
    assert sorted(set(labels)) == list(range(faces.num_identities))
    names = faces.identity_names or tuple(str(label) for label in range(faces.num_identities))
    found: dict[str, list[bytes]] = {name: [] for name in names}
    for index, label in enumerate(labels):
        found[names[label]].append(faces[index][0])
    assert list(found) == sorted(found)
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestFiles:
    def test_both_hold_the_images_under_their_names(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        report = split_faces([folder], tmp_path / "out", held_out=2)
        train, held_out = people_of(tmp_path / "out" / "train.rec"), people_of(tmp_path / "out" / "held_out.rec")
        assert len(held_out) == 2
        for name, images in {**train, **held_out}.items():
            assert images == [(folder / name / f"{image}.png").read_bytes() for image in range(PEOPLE[name])]
        assert sorted([*train, *held_out]) == sorted(PEOPLE)
        assert report["counts"] == {
            "held_out": {"identities": 2, "images": sum(PEOPLE[name] for name in held_out)},
            "train": {"identities": 4, "images": sum(PEOPLE[name] for name in train)},
        }
        assert json.loads((tmp_path / "out" / "split.json").read_text()) == report
        assert (tmp_path / "out" / "property").read_text() == "4,8,8\n"
        assert set(snapshot(tmp_path / "out")) == {
            *(f"{stem}{suffix}" for stem in ("train", "held_out") for suffix in (".rec", ".idx", ".identities.txt")),
            "property",
            "split.json",
        }

    def test_a_record_file_without_names(self, tmp_path: Path) -> None:
        faces = write_faces(tmp_path / "in.rec", num_images=20, num_identities=5)
        split_faces([tmp_path / "in.rec"], tmp_path / "out", held_out=1)
        train, held_out = RecordFile(tmp_path / "out" / "train.rec"), RecordFile(tmp_path / "out" / "held_out.rec")
        assert train.identity_names is None
        assert held_out.identity_names is None
        chosen = {encoded for encoded, _ in (held_out[index] for index in range(len(held_out)))}
        (label,) = {label for encoded, label in faces if encoded in chosen}
        kept = [(encoded, old - (old > label)) for encoded, old in faces if old != label]
        assert [train[index] for index in range(len(train))] == kept

    def test_a_label_without_images_is_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        (folder / "nobody").mkdir()
        split_faces([folder], tmp_path / "out", held_out=4)
        assert "nobody" not in {**people_of(tmp_path / "out" / "train.rec")}
        assert "identity nobody has no images" in caplog.text

    def test_several_sources_are_merged_by_name(self, tmp_path: Path) -> None:
        left = write_folder(tmp_path / "left", {"bob": 2, "ann": 1})
        right = tmp_path / "right.rec"
        images = [make_image(number, (8, 8)) for number in range(50, 54)]
        with RecordWriter(right, identity_names=["dee", "bob", "cid"]) as writer:
            for label, image in zip((0, 1, 1, 2), images, strict=True):
                writer.write(label, image)
        split_faces([left, right], tmp_path / "out", held_out=1)
        found = {**people_of(tmp_path / "out" / "train.rec"), **people_of(tmp_path / "out" / "held_out.rec")}
        own = [(left / "bob" / f"{image}.png").read_bytes() for image in range(2)]
        assert found == {
            "ann": [(left / "ann" / "0.png").read_bytes()],
            "bob": own + images[1:3],
            "cid": images[3:],
            "dee": images[:1],
        }


class TestChoice:
    def test_it_is_a_function_of_seed_and_names(self, tmp_path: Path) -> None:
        """By the definition: the names with the smallest SHA-256 of "seed name"."""
        folder = write_folder(tmp_path / "in", PEOPLE)
        for seed in (0, 1, 7):
            split_faces([folder], tmp_path / str(seed), held_out=2, seed=seed)
            digests = {name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in PEOPLE}
            wanted = sorted(PEOPLE, key=digests.__getitem__)[:2]
            assert set(people_of(tmp_path / str(seed) / "held_out.rec")) == set(wanted)

    def test_neither_order_nor_container_matter(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        pack(folder, tmp_path / "packed.rec")
        with RecordWriter(tmp_path / "shuffled.rec", identity_names=[*reversed(PEOPLE)]) as writer:
            for label, name in enumerate(reversed(PEOPLE)):
                for image in range(PEOPLE[name]):
                    writer.write(label, (folder / name / f"{image}.png").read_bytes())
        for source in (folder, tmp_path / "packed.rec", tmp_path / "shuffled.rec"):
            split_faces([source], tmp_path / f"of_{source.stem}", held_out=3)
        for name in ("train.rec", "held_out.rec", "train.identities.txt", "property"):
            assert len({(path / name).read_bytes() for path in tmp_path.glob("of_*")}) == 1

    def test_holding_out_more_keeps_who_is_held_out(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        for held_out in (1, 4):
            split_faces([folder], tmp_path / str(held_out), held_out=held_out)
        assert set(people_of(tmp_path / "1" / "held_out.rec")) < set(people_of(tmp_path / "4" / "held_out.rec"))


class TestAgain:
    def test_a_finished_split_is_left_alone(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        report = split_faces([folder], tmp_path / "out", held_out=2)
        before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        caplog.clear()
        assert split_faces([folder], tmp_path / "out", held_out=2) == report
        assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
        assert caplog.messages == [f"{tmp_path / 'out'}: already split with these settings"]

    @pytest.mark.parametrize("failing", ["held_out.rec", "train.rec"])
    def test_an_interrupted_split_leaves_no_half_file_and_is_finished(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
    ) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        split_faces([folder], tmp_path / "wanted", held_out=2)

        class Interrupted(RecordWriter):
            def write(self, label: int, encoded: bytes) -> None:
                if self.path.name == failing and label == 1:
                    raise KeyboardInterrupt
                super().write(label, encoded)

        monkeypatch.setattr(rec_split, "RecordWriter", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            split_faces([folder], tmp_path / "out", held_out=2)
        assert not (tmp_path / "out" / failing).exists()
        assert not list((tmp_path / "out").glob(".*"))
        monkeypatch.undo()
        split_faces([folder], tmp_path / "out", held_out=2)
        assert snapshot(tmp_path / "out") == snapshot(tmp_path / "wanted")

    @pytest.mark.parametrize("missing", ["train.rec", "held_out.rec", "train.idx", "held_out.idx"])
    def test_a_missing_file_is_written_again(self, tmp_path: Path, missing: str) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        split_faces([folder], tmp_path / "out", held_out=2)
        wanted = snapshot(tmp_path / "out")
        (tmp_path / "out" / missing).unlink()
        split_faces([folder], tmp_path / "out", held_out=2)
        assert snapshot(tmp_path / "out") == wanted

    @pytest.mark.parametrize("change", ["held_out", "seed", "image", "name", "source"])
    def test_another_split_is_not_replaced(self, tmp_path: Path, change: str) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        split_faces([folder], tmp_path / "out", held_out=2)
        before = snapshot(tmp_path / "out")
        held_out, seed, sources = 2, 0, [folder]
        if change == "held_out":
            held_out = 3
        elif change == "seed":
            seed = 1
        elif change == "image":
            (folder / "ann" / "0.png").write_bytes(make_image(99))
        elif change == "name":
            (folder / "ann").rename(folder / "anna")
        else:
            sources.append(write_folder(tmp_path / "more", {"gus": 2}))
        with pytest.raises(DataError) as caught:
            split_faces(sources, tmp_path / "out", held_out=held_out, seed=seed)
        assert str(caught.value) == (
            f"{tmp_path / 'out'}: holds another held_out.rec and train.rec (--held-out 2 --seed 0, or other sources); "
            "name another folder, or delete this one to split anew"
        )
        assert snapshot(tmp_path / "out") == before

    @pytest.mark.parametrize("text", [None, "{", "[]", '{"settings": 3, "counts": null}', "[" * 10_000])
    def test_files_of_unknown_origin_are_not_replaced(self, tmp_path: Path, text: str | None) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        (tmp_path / "out").mkdir()
        write_faces(tmp_path / "out" / "train.rec")
        if text is not None:
            (tmp_path / "out" / "split.json").write_text(text)
        before = snapshot(tmp_path / "out")
        with pytest.raises(DataError, match=r"holds another train\.rec; name another folder"):
            split_faces([folder], tmp_path / "out", held_out=2)
        assert snapshot(tmp_path / "out") == before

    def test_a_source_is_never_its_own_target(self, tmp_path: Path) -> None:
        write_faces(tmp_path / "train.rec")
        with pytest.raises(DataError, match="holds another train"):
            split_faces([tmp_path / "train.rec"], tmp_path, held_out=1)


class TestRefusals:
    @pytest.mark.parametrize("held_out", [-1, 0, 5, 6, 7])
    def test_nobody_held_out_or_too_few_left(self, tmp_path: Path, held_out: int) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        with pytest.raises(ConfigError) as caught:
            split_faces([folder], tmp_path / "out", held_out=held_out)
        assert str(caught.value) == (
            f"cannot hold out {held_out} of 6 identities: hold out at least 1 and leave 2 to train on, so --held-out "
            "goes from 1 to 4"
        )
        assert not (tmp_path / "out").exists()

    def test_too_few_people(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="splitting needs at least 3 identities, the sources have 2"):
            split_faces([write_folder(tmp_path / "in", {"a": 1, "b": 1})], tmp_path / "out", held_out=1)

    def test_missing_sources(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        for name, message in (("none", "no such folder"), ("none.rec", "no such file")):
            with pytest.raises(DataError, match=message):
                split_faces([folder, tmp_path / name], tmp_path / "out", held_out=1)

    def test_a_target_that_is_a_file(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        (tmp_path / "out").write_text("")
        with pytest.raises(DataError, match="out: cannot make this folder"):
            split_faces([folder], tmp_path / "out", held_out=1)

    def test_sets_without_names_are_not_merged(self, tmp_path: Path) -> None:
        write_faces(tmp_path / "a.rec")
        folder = write_folder(tmp_path / "in", PEOPLE)
        with pytest.raises(DataError, match=r"a\.rec: has no identity names, so it cannot be merged with other sets"):
            split_faces([folder, tmp_path / "a.rec"], tmp_path / "out", held_out=1)

    def test_one_name_twice_in_a_set(self, tmp_path: Path) -> None:
        write_faces(tmp_path / "a.rec", num_identities=4)
        (tmp_path / "a.identities.txt").write_text("x\ny\nx\nz\n")
        with pytest.raises(DataError, match=r"a\.rec: two identities are named 'x'; give each its own name"):
            split_faces([tmp_path / "a.rec"], tmp_path / "out", held_out=1)

    def test_a_damaged_image_stops_before_anything_is_written(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", PEOPLE)
        (folder / "cid" / "1.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"1\.png: the image is empty"):
            split_faces([folder], tmp_path / "out", held_out=1)
        assert not (tmp_path / "out").exists()


class TestIdentities:
    def test_images_of_one(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "in", {"a": 2, "b": 3})
        other = write_folder(tmp_path / "other", {"b": 1})
        people = find_identities([open_faces(folder), open_faces(other)])
        assert [person.key for person in people] == ["a", "b"]
        assert [len(person) for person in people] == [2, 4]
        assert people[1][3] == (other / "b" / "0.png").read_bytes()
        for index in (-1, 4):
            with pytest.raises(IndexError, match=f"identity b: no image {index}; there are 4"):
                people[1][index]

    def test_kinds_of_sources(self, tmp_path: Path) -> None:
        write_faces(tmp_path / "a.rec")
        assert isinstance(open_faces(tmp_path / "a.rec"), RecordFile)
        assert isinstance(open_faces(write_folder(tmp_path / "in", {"a": 1})), FaceFolder)
