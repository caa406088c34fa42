"""Each kind of fault of a .rec, made on purpose; and the repair."""

from __future__ import annotations

import csv
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data.check import CheckedRecords, check_records, repair
from gkd.data.check.layout_check import describe_keys
from gkd.data.record_format import frame, pack_record
from gkd.data.recordio import RecordFile
from tests.data.check.damaged import sample, small_jpeg

Row = tuple[int, tuple[float, ...], bytes]


def _rows() -> list[Row]:
    """Six images of three identities, in the layout with a header."""
    rows: list[Row] = [(0, (7.0, 10.0), b"")]
    rows += [(key, ((key - 1) // 2 * 1.0,), small_jpeg(key)) for key in range(1, 7)]
    return [*rows, *((7 + label, (2.0 * label + 1, 2.0 * label + 3), b"") for label in range(3))]


def _write(path: Path, rows: list[Row]) -> Path:
    lines, content = [], b""
    for key, labels, body in rows:
        lines.append(f"{key}\t{len(content)}\n")
        content += frame(pack_record(key, labels, body))
    path.write_bytes(content)
    path.with_suffix(".idx").write_text("".join(lines))
    return path


def _found(path: Path) -> dict[str, list[str]]:
    """Messages by kind, without the file's name; warnings' kinds end in `?`."""
    found: dict[str, list[str]] = {}
    faults = check_records(path).faults
    for fault in faults:
        text = faults.line(fault).removeprefix(f"{path}:").rsplit(" [", 1)[0].strip()
        found.setdefault(fault.kind + "?" * fault.is_warning, []).append(text)
    return found


@pytest.mark.parametrize("has_header", [True, False])
def test_a_clean_file(tmp_path: Path, has_header: bool) -> None:
    whole = sample(has_header=has_header)
    checked = check_records(whole.write(tmp_path / "a.rec"))
    assert list(checked.faults) == []
    assert checked.faults.summary() == "no faults"
    assert (checked.keys.tolist(), checked.labels.tolist()) == (
        [span.key for span in whole.images],
        [span.label for span in whole.images],
    )
    layout = "header and identity records" if has_header else "no header record"
    assert checked.describe() == f"12 usable images of 4 identities, 16x16 pixels, {layout}"
    (tmp_path / "a.idx").unlink()
    assert _found(tmp_path / "a.rec") == {"index-missing?": ["no a.idx beside it: other readers need one"]}


def test_an_index_in_another_order_is_fine(tmp_path: Path) -> None:
    path = sample().write(tmp_path / "a.rec")
    idx = path.with_suffix(".idx")
    idx.write_text("".join(sorted(idx.read_text().splitlines(keepends=True), reverse=True)))
    assert _found(path) == {}


def test_every_way_in_which_an_index_is_wrong(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.rec", _rows())
    lines = path.with_suffix(".idx").read_text().splitlines()
    offsets = [int(line.split("\t")[1]) for line in lines]
    lines[2] = f"2\t{offsets[2] + 4}"
    lines[3:5] = [f"3\t{offsets[4]}", f"4\t{offsets[3]}"]
    lines[5] = "five\t12"
    lines += [f"1\t{offsets[1]}"]
    path.with_suffix(".idx").write_text("\n".join(lines))
    assert _found(path) == {
        "index-line": ["a.idx line 6: not a key, a tab and a byte offset: b'five\\t12'"],
        "index-offset": [f"key 2 at byte {offsets[2] + 4}: no record starts there, but a.idx says so"],
        "index-missing": [f"key {key} at byte {offsets[key]}: the record is missing from a.idx" for key in (2, 5)],
        "index-key": [
            f"key 1 at byte {offsets[1]}: a.idx has this key more than once",
            f"key 4 at byte {offsets[3]}: the .idx names this place key 4, but the record there has id 3",
            f"key 3 at byte {offsets[4]}: the .idx names this place key 3, but the record there has id 4",
        ],
    }
    repaired = tmp_path / "b.rec"
    repair(check_records(path), repaired)
    assert repaired.read_bytes() == path.read_bytes()
    assert _found(repaired) == {}


def test_ids_that_are_wrong(tmp_path: Path) -> None:
    rows = _rows()
    rows[3] = (2, rows[3][1], rows[3][2])
    path = _write(tmp_path / "a.rec", rows)
    path.with_suffix(".idx").unlink()
    found = _found(path)
    assert any("has the same id" in text for text in found["id"])
    checked = check_records(path)
    assert checked.keys.tolist() == [1, 2, 3, 4, 5, 6]  # the gap tells which key the record lost
    assert [checked.labels.tolist(), checked.lost] == [[0, 0, 1, 1, 2, 2], []]


def test_labels(tmp_path: Path) -> None:
    rows = _rows()
    rows[1] = (1, (0.5,), rows[1][2])
    rows[4] = (4, (float("nan"),), rows[4][2])
    rows[5] = (5, (-1.0,), rows[5][2])
    rows[6] = (6, (9.0,), rows[6][2])
    found = _found(_write(tmp_path / "a.rec", rows))
    assert [text.split(": ")[1].split(";")[0] for text in found["label"]] == ["label 0.5", "label nan", "label -1.0"]
    assert found["missing-label"] == ["7 of the labels 0 to 9 have no image: 2-8"]


def test_a_label_that_its_identity_outvotes(tmp_path: Path) -> None:
    whole = sample()
    content = bytearray(whole.content)
    struct.pack_into("<f", content, whole.spans[5].start + 12, 3.0)
    checked = check_records(whole.write(tmp_path / "a.rec", bytes(content)))
    message = "label 3, but its identity record (keys 4 to 6) has images of label 1"
    assert [fault.what for fault in checked.faults] == [message]
    assert [(lost.key, lost.start, lost.label) for lost in checked.lost] == [(5, whole.spans[5].start, 3.0)]


def test_one_label_in_two_identity_records(tmp_path: Path) -> None:
    rows = [(key, (1.0,) if key in (3, 4, 5, 6) else labels, body) for key, labels, body in _rows()]
    found = _found(_write(tmp_path / "a.rec", rows))
    assert "label 1 belongs to the identity record of keys from 3 as well" in found["identity"][0]


def test_header_and_identity_records(tmp_path: Path) -> None:
    rows = _rows()
    found = _found(_write(tmp_path / "a.rec", [row for row in rows if row[0] not in (0, 2)]))
    assert found == {"header": ["at byte 0: the header record, key 0, is missing"]}
    found = _found(_write(tmp_path / "b.rec", [row for row in rows if row[0] not in (3, 4, 8)]))
    assert found["missing"] == [
        "the header says that keys 1 to 6 are images; missing: 3-4",
        "the header says that keys 7 to 9 are identity records; missing: 8",
    ]
    rows[0] = (0, (5.0, 10.0), b"")
    found = _found(_write(tmp_path / "c.rec", rows))
    assert "the header says that keys 1 to 4 are images; there are others: 5-6" in found["header"]
    rows[0] = (0, (float("nan"), 10.0), b"")
    found = _found(_write(tmp_path / "d.rec", rows))
    assert found == {"header": ["key 0 at byte 0: it says [nan, 10.0], which cannot be counts"]}
    rows = _rows()
    rows[8] = (8, (3.0, 500.0), b"")
    found = _found(_write(tmp_path / "e.rec", rows))
    assert found["identity"][0].endswith("the identity record says keys [3.0, 500.0) of 6 images")


def test_identity_records_that_overlap_are_no_witness(tmp_path: Path) -> None:
    rows = _rows()
    rows[7] = (7, (1.0, 4.0), b"")
    checked = check_records(_write(tmp_path / "a.rec", rows))
    assert [fault.what for fault in checked.faults] == ["the identity record says keys [3, 5), key 7 says [1, 4)"]
    assert checked.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_of_other_kinds(tmp_path: Path) -> None:
    rows = _rows()
    damaged = bytearray(rows[2][2])
    damaged[damaged.rfind(b"\xff\xda") + 20 : -2] = b""
    rows[1] = (1, (0.0,), b"GIF89a")
    rows[2] = (2, (0.0,), bytes(damaged))
    rows[4] = (4, (1.0,), rows[3][2])
    rows[5] = (5, (2.0,), rows[3][2])
    rows[6] = (6, (2.0,), small_jpeg(6) + b"\0")
    path = _write(tmp_path / "a.rec", rows)
    found = _found(path)
    assert found["no-image"][0].startswith("key 1 at byte 40: not a JPEG, PNG, BMP or WebP image")
    assert "the jpeg image is damaged: Corrupt JPEG data" in found["damaged"][0]
    assert found["duplicate?"][0].endswith("the image (label 1) is the same as that of key 3 (label 1)")
    assert found["duplicate-across"][0].endswith("the image (label 2) is the same as that of key 3 (label 1)")
    assert found["trailing?"][0].endswith("bytes follow the end of the image")


def test_sizes(tmp_path: Path) -> None:
    rows = _rows()
    rows[3] = (3, (1.0,), cv2.imencode(".png", np.zeros((8, 9, 3), np.uint8))[1].tobytes())
    assert _found(_write(tmp_path / "a.rec", rows))["size"][0].endswith("the image is 8x9 pixels, most are 16x16")


def test_list_and_property(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.rec", _rows())
    (tmp_path / "property").write_text("3,16,16\nmore\n")
    lines = [f"{key}\t{(key - 1) // 2}.000000\tx/{key}.jpg" for key in range(1, 7)]
    path.with_suffix(".lst").write_text("\n".join(reversed(lines)))
    assert _found(path) == {}
    (tmp_path / "property").write_text("4,112,112\n")
    path.with_suffix(".lst").write_text("\n".join([lines[0], "2\t7\tx", "99\t0\tx", "rubbish", *lines[3:]]))
    found = _found(path)
    assert found["property?"] == [
        "`property` says 4 classes, the largest label + 1 is 3",
        "`property` says 112x112 pixels, the images are 16x16",
    ]
    assert found["list"][0].endswith("label 0, but a.lst says 7")
    assert found["list"][1] == "key 99: a.lst lists key 99, which is no image"
    assert found["list?"] == ["a.lst line 4: not a key, a label and a path: b'rubbish'", *found["list?"][1:]]
    assert found["list?"][1].endswith("is missing from a.lst")
    (tmp_path / "property").write_text("three")
    assert "cannot be read as classes,height,width" in _found(path)["property?"][0]


def test_a_file_without_ids(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.rec", [(7, (float(n),), small_jpeg(n)) for n in range(4)])
    offsets = [line.split("\t")[1] for line in path.with_suffix(".idx").read_text().splitlines()]
    path.with_suffix(".idx").write_text("".join(f"{10 + n}\t{offset}\n" for n, offset in enumerate(offsets)))
    assert check_records(path).keys.tolist() == [10, 11, 12, 13]
    assert _found(path) == {}
    path.with_suffix(".idx").unlink()
    assert check_records(path).keys.tolist() == [0, 1, 2, 3]
    assert "its records do not bear their keys" in _found(path)["ids?"][0]


def _lose_key_four(path: Path) -> CheckedRecords:
    whole = sample()
    content = bytearray(whole.content)
    content[whole.spans[4].start] ^= 1
    whole.write(path, bytes(content))
    lines = [f"{span.key}\t{span.label}\tp{span.label}/{span.key}.jpg\n" for span in whole.images]
    path.with_suffix(".lst").write_text("".join(lines))
    path.with_suffix(".identities.txt").write_text("ann\nbo\ncleo\ndan\n")
    return check_records(path)


def test_repair_closes_the_gap(tmp_path: Path) -> None:
    checked = _lose_key_four(tmp_path / "a.rec")
    out = tmp_path / "new" / "b.rec"
    lost = repair(checked, out)
    whole = sample()
    kept = [span for span in whole.images if span.key != 4]
    file = RecordFile(out)
    assert list(file) == [(span.body, span.label) for span in kept]
    assert file.keys.tolist() == list(range(1, 12))
    assert file.identity_names == ("ann", "bo", "cleo", "dan")
    assert (out.parent / "property").read_text() == "4,16,16\n"
    assert out.with_suffix(".lst").read_text().splitlines()[3] == "4\t1.000000\tp1/5.jpg"
    assert _found(out) == {}
    with lost.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert lost.name == "b.lost.csv"
    assert [(row["start_byte"], row["end_byte"]) for row in rows] == [
        (str(whole.spans[4].start), str(whole.spans[4].end))
    ]
    assert rows[0]["reason"].startswith("no record starts here")
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    repair(checked, out)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before


def test_repair_with_new_numbers(tmp_path: Path) -> None:
    whole = sample(has_header=False)
    path = whole.write(
        tmp_path / "a.rec", whole.content[: whole.spans[3].start] + whole.content[whole.spans[6].start :]
    )
    path.with_suffix(".identities.txt").write_text("ann\nbo\ncleo\ndan\n")
    assert check_records(path).faults.counts["missing-label"] == 1
    repair(check_records(path), tmp_path / "same.rec")
    assert RecordFile(tmp_path / "same.rec").keys.tolist() == [0, 1, 2, *range(6, 12)]
    repair(check_records(path), tmp_path / "new.rec", renumber=True)
    file = RecordFile(tmp_path / "new.rec")
    assert [label for _, label in file] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert file.keys.tolist() == list(range(1, 10))
    assert file.identity_names == ("ann", "cleo", "dan")
    assert [body for body, _ in file] == [span.body for span in whole.images if span.label != 1]


def test_repair_keeps_label_vectors(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.rec", [(n, (n // 2 * 1.0, 0.25, 0.5), small_jpeg(n)) for n in range(4)])
    repair(check_records(path), tmp_path / "b.rec")
    assert (tmp_path / "b.rec").read_bytes() == path.read_bytes()


def test_repair_refuses(tmp_path: Path) -> None:
    checked = _lose_key_four(tmp_path / "a.rec")
    before = (tmp_path / "a.rec").read_bytes()
    with pytest.raises(ConfigError, match="is the damaged file itself"):
        repair(checked, tmp_path / "a.rec")
    (tmp_path / "link.rec").symlink_to(tmp_path / "a.rec")
    with pytest.raises(ConfigError, match="is the damaged file itself"):
        repair(checked, tmp_path / "link.rec")
    with pytest.raises(ConfigError, match=r"must end in \.rec"):
        repair(checked, tmp_path / "b.bin")
    _write(tmp_path / "empty.rec", [(1, (0.0,), b"no image")])
    with pytest.raises(DataError, match="holds no usable image"):
        repair(check_records(tmp_path / "empty.rec"), tmp_path / "c.rec")
    assert (tmp_path / "a.rec").read_bytes() == before
    assert not (tmp_path / "c.rec").exists()


def test_keys_are_described_in_runs() -> None:
    assert describe_keys(np.array([1, 2, 3, 7, 9, 10])) == "1-3, 7, 9-10"
    assert describe_keys(np.arange(0, 60, 2)).endswith("36, 38 and 10 more runs")


@pytest.mark.real
@pytest.mark.parametrize(("name", "num_images"), [("faceid25-testing", 217), ("faceid25-validation", 229)])
def test_genuine_files(real_data: Path, tmp_path: Path, name: str, num_images: int) -> None:
    path = real_data / "recordio" / f"{name}.rec"
    checked = check_records(path)
    assert list(checked.faults) == []
    assert (len(checked.keys), checked.has_header, checked.image_size) == (num_images, False, (112, 112))
    repair(checked, tmp_path / "b.rec")
    assert (tmp_path / "b.rec").read_bytes() == path.read_bytes()
    assert (tmp_path / "b.idx").read_text() == path.with_suffix(".idx").read_text()
    shutil.copy(path, tmp_path / "c.rec")
    assert [fault.is_warning for fault in check_records(tmp_path / "c.rec").faults] == [True]
