"""Sets people apart: a .rec to train on and one of people who are held out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import atomic_write, read_bounded
from gkd.core.progress import progress
from gkd.data.identities import Faces, Identity, find_identities, open_faces
from gkd.data.recordio import RecordWriter

_log = logging.getLogger(__name__)
_REPORT_FILE = "split.json"
_MAX_REPORT_BYTES = 1 << 20
# In this order: both write `property` into the folder, and the training set's is to stay.
_RECORDS = ("held_out.rec", "train.rec")


def split_faces(sources: Sequence[str | Path], out: str | Path, *, held_out: int, seed: int = 0) -> dict[str, Any]:
    """Write `out`/train.rec and `out`/held_out.rec, with their indices and names; the images' bytes stay as they are.

    Held out are the identities whose SHA-256 of (seed, name) is smallest, so the choice depends neither on the order
    of files nor on how they are packed; where names are unknown, labels stand for them. In both files labels are
    0, 1, 2 … by ascending name (or old label). `out`/split.json, finished last, holds the settings and the counts;
    where it is finished with the same settings, nothing is done.

    Args:
        sources: .rec files or folders with a sub-folder for each identity; the same name in two is one identity.
        held_out: identities to hold out.

    Returns:
        What split.json holds.

    Raises:
        ConfigError: nobody held out, or fewer than two identities left to train on.
        DataError: a source that is missing or damaged, or `out` holds another split.
    """
    out = Path(out)
    faces = [open_faces(path) for path in sources]
    settings = {"sources": [_describe_source(item) for item in faces], "held_out": held_out, "seed": seed}
    report = _read_report(out)
    if report is not None and report["settings"] == settings and report["counts"] is not None and _is_whole(out):
        _log.info("%s: already split with these settings", out)
        return report
    _require_free(out, settings, report)
    identities = find_identities(faces)
    _check_held_out(held_out, len(identities))
    chosen = choose_held_out(identities, held_out, seed)
    _write_report(out, {"settings": settings, "counts": None})
    counts = {}
    for name in _RECORDS:
        people = [person for person in identities if (person.key in chosen) == (name == "held_out.rec")]
        counts[Path(name).stem] = {"identities": len(people), "images": _write_people(out / name, people)}
    report = {"settings": settings, "counts": counts}
    _write_report(out, report)
    return report


def choose_held_out(identities: Sequence[Identity], held_out: int, seed: int) -> set[str | int]:
    """The keys of those with the smallest hashes of (seed, key)."""

    def rank(key: str | int) -> bytes:
        return hashlib.sha256(f"{seed} {key}".encode()).digest()

    return set(sorted((person.key for person in identities), key=rank)[:held_out])


def _check_held_out(held_out: int, num_identities: int) -> None:
    if num_identities < 3:
        raise ConfigError(f"splitting needs at least 3 identities, the sources have {num_identities}")
    if not 1 <= held_out <= num_identities - 2:
        raise ConfigError(
            f"cannot hold out {held_out} of {num_identities} identities: hold out at least 1 and leave 2 to train on, "
            f"so --held-out goes from 1 to {num_identities - 2}"
        )


def _write_people(path: Path, people: Sequence[Identity]) -> int:
    names = [person.key for person in people if isinstance(person.key, str)]
    num_images = sum(len(person) for person in people)
    places = ((label, index) for label, person in enumerate(people) for index in range(len(person)))
    with RecordWriter(path, identity_names=names or None) as writer:
        for label, index in progress(places, f"writing {path.name}", total=num_images):
            writer.write(label, people[label][index])
    _log.info("wrote %s with %d images of %d identities", path, num_images, len(people))
    return num_images


def _describe_source(faces: Faces) -> dict[str, Any]:
    names = faces.identity_names
    digest = None if names is None else hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {"fingerprint": faces.fingerprint, "names": digest}


def _is_whole(out: Path) -> bool:
    return all((out / name).is_file() and (out / name).with_suffix(".idx").is_file() for name in _RECORDS)


def _require_free(out: Path, settings: dict[str, Any], report: dict[str, Any] | None) -> None:
    """Let a split be finished that was interrupted, but none be replaced by another."""
    if report is not None and report["settings"] == settings:
        return
    there = [name for name in _RECORDS if (out / name).exists()]
    if not there:
        return
    found = {} if report is None else report["settings"]
    how = f" (--held-out {found.get('held_out')} --seed {found.get('seed')}, or other sources)" if found else ""
    raise DataError(
        f"{out}: holds another {' and '.join(there)}{how}; name another folder, or delete this one to split anew"
    )


def _read_report(out: Path) -> dict[str, Any] | None:
    path = out / _REPORT_FILE
    if not path.is_file():
        return None
    try:
        report = json.loads(read_bounded(path, _MAX_REPORT_BYTES))
    except (ValueError, RecursionError):
        return None
    is_known = isinstance(report, dict) and isinstance(report.get("settings"), dict) and "counts" in report
    return report if is_known else None


def _write_report(out: Path, report: dict[str, Any]) -> None:
    with atomic_write(out / _REPORT_FILE) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
