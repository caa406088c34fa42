"""What an alignment keeps beside its crops: its settings, a journal to go on from, and two tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

from gkd.core.errors import DataError
from gkd.core.files import atomic_write, read_bounded
from gkd.data.text_lists import inner_path
from gkd.inference.align_photo import AlignedFace, PhotoOutcome

FACES_NAME = "faces.csv"
NOT_FOUND_NAME = "not_found.csv"
_SETTINGS_NAME = "align.json"
_JOURNAL_NAME = "align.jsonl"
_LOCK_NAME = ".lock"
_MAX_SETTINGS_BYTES = 1 << 20
_MAX_JOURNAL_BYTES = 4 << 30
_POINT_NAMES = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]

Stamp = tuple[int, int]  # a photo file's size in bytes and time of change in nanoseconds


def check_folder(out: Path, settings: dict[str, Any]) -> None:
    """See that `out` may become the folder of an alignment with these settings, or is it.

    Raises:
        DataError: it is a file, holds other things, or an alignment with other settings.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file, but a folder is needed")
    if (out / _SETTINGS_NAME).exists():
        _require_settings(out / _SETTINGS_NAME, settings)
    elif any(entry.name != _LOCK_NAME for entry in out.iterdir()):
        raise DataError(f"{out}: is not empty and no alignment was made there; name a new folder")


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into `out`, or see that they are there.

    Raises:
        DataError: as `check_folder`.
    """
    check_folder(out, settings)
    if not (out / _SETTINGS_NAME).exists():
        with atomic_write(out / _SETTINGS_NAME) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _require_settings(file: Path, settings: dict[str, Any]) -> None:
    try:
        found = json.loads(read_bounded(file, _MAX_SETTINGS_BYTES))
        before = dict(found)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: is damaged; name a new folder, or delete this one") from error
    changed = [
        f"{key} {before.get(key)!r} there, {settings.get(key)!r} now"
        for key in sorted({*before, *settings})
        if before.get(key) != settings.get(key)
    ]
    if changed:
        raise DataError(
            f"{file.parent}: was aligned with other settings ({'; '.join(changed)}); name another folder, or delete "
            "this one"
        )


class Journal:
    """The outcome of every photo so far, one JSON line each, so that an interrupted alignment goes on.

    A line is written after its crops. A last line that is cut short is taken off.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path = out / _JOURNAL_NAME
        self._file: TextIO | None = None

    def read(self) -> dict[str, tuple[Stamp, PhotoOutcome]]:
        """The outcomes that are written down, by photo; of two for one photo the later."""
        if not self._path.exists():
            return {}
        content = read_bounded(self._path, _MAX_JOURNAL_BYTES)
        outcomes: dict[str, tuple[Stamp, PhotoOutcome]] = {}
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                stamp, outcome = _parse(line)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise DataError(
                    f"{self._path}: line {number}: is damaged; delete this file to align all photos again"
                ) from error
            outcomes[outcome.photo] = (stamp, outcome)
        return outcomes

    def is_finished(self, entry: tuple[Stamp, PhotoOutcome] | None, stamp: Stamp) -> bool:
        """Whether the photo is as it was and its crops are there."""
        if entry is None or entry[0] != stamp:
            return False
        return all((self._out / face.crop).is_file() for face in entry[1].faces)

    def __enter__(self) -> Self:
        with suppress(FileNotFoundError), self._path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, outcome: PhotoOutcome, stamp: Stamp) -> None:
        """Write an outcome down."""
        assert self._file is not None, "the journal is written inside `with`"
        faces = [[face.crop, face.points, face.score] for face in outcome.faces]
        line = {"photo": outcome.photo, "stamp": stamp, "faces": faces, "why_not": outcome.why_not}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _parse(line: bytes) -> tuple[Stamp, PhotoOutcome]:
    found = json.loads(line)
    num_bytes, changed = found["stamp"]
    faces = tuple(_parse_face(*face) for face in found["faces"])
    return (int(num_bytes), int(changed)), PhotoOutcome(str(found["photo"]), faces, str(found["why_not"]))


def _parse_face(crop: Any, points: Any, score: Any) -> AlignedFace:
    places = tuple((float(x), float(y)) for x, y in points)
    if len(places) != 5:
        raise ValueError("not five points")
    return AlignedFace(inner_path(str(crop)), places, None if score is None else float(score))


def write_tables(out: Path, outcomes: Iterable[PhotoOutcome]) -> None:
    """Write `faces.csv` and `not_found.csv`."""
    faces: list[Sequence[Any]] = []
    not_found: list[Sequence[Any]] = []
    for outcome in outcomes:
        if outcome.why_not:
            not_found.append((outcome.photo, outcome.why_not))
        for number, face in enumerate(outcome.faces, start=1):
            score = "" if face.score is None else face.score
            faces.append(
                (outcome.photo, number, score, *(value for point in face.points for value in point), face.crop)
            )
    _write_csv(out / FACES_NAME, ["photo", "face", "score", *_POINT_NAMES, "crop"], faces)
    _write_csv(out / NOT_FOUND_NAME, ["photo", "why"], not_found)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
