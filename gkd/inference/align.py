"""Aligns the faces of a folder of photos, in several processes; what is finished is not made again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import GIB, locked_folder, read_bounded
from gkd.core.progress import progress
from gkd.data.alignment import template
from gkd.data.landmarks import read_landmarks
from gkd.data.text_lists import Faults
from gkd.inference.align_photo import CropSettings, LandmarkSource, PhotoAligner, PhotoOutcome, crop_path
from gkd.inference.align_photos import MakeAligner, list_photos, photo_outcomes
from gkd.inference.align_record import NOT_FOUND_NAME, Journal, Stamp, check_folder, claim_folder, write_tables
from gkd.inference.face_choice import FACE_CHOICES
from gkd.inference.face_detector import DEFAULT_MIN_SCORE, YuNet

FORMATS = ("jpg", "png")
_MAX_WORKERS = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlignReport:
    """Counts of an alignment, over all photos of the folder."""

    num_photos: int
    num_faces: int
    num_not_found: int


def align_folder(
    photos: str | Path,
    out: str | Path,
    *,
    landmarks: str | Path | None = None,
    detector: str | Path | None = None,
    min_score: float | None = None,
    faces: str = "largest",
    size: int = 112,
    format: str = "jpg",
    quality: int = 95,
    num_workers: int = 1,
) -> AlignReport:
    """Write a crop of the faces of every photo below `photos` to the same place below `out`.

    `out` also gets `faces.csv` (photo, face, score, ten coordinates, crop) and `not_found.csv` (photo, why). Photos
    that are finished, by the journal in `out`, are not aligned again. EXIF orientation is applied: crops are upright,
    and landmarks are in pixels of the upright photo.

    Args:
        photos: the folder; hidden files and folders are left out.
        out: a new folder, or one that an alignment with the same settings made.
        landmarks: a CSV file of landmarks, see `read_landmarks`. Either this or `detector`.
        detector: the ONNX file of YuNet.
        min_score: the detector's least score, 0 to 1; 0.6 where not given.
        faces: which faces of a photo; a name of `FACE_CHOICES`.
        size: the height and width of crops, in pixels.
        format: "jpg", or "png", which loses nothing.
        quality: of JPEG, 1 to 100.
        num_workers: processes that align.

    Raises:
        ConfigError: a setting out of range, or settings that exclude each other.
        DataError: no photos, an `out` that holds other things or was made with other settings, landmarks or a
            detector that cannot be read, or not one photo that could be aligned.
    """
    photos, out = Path(photos), Path(out)
    settings = CropSettings(faces, size, format, quality)
    _check_settings(settings, num_workers)
    _check_apart(photos, out)
    source, of_source = _open_source(landmarks, detector, min_score)
    recorded = {"photos": str(photos.resolve()), **asdict(settings), **of_source}
    check_folder(out, recorded)
    stamps = list_photos(photos)
    _check_names(photos, list(stamps), settings)
    with locked_folder(out, "OUT", "another alignment is running"):
        claim_folder(out, recorded)
        outcomes = _align_rest(partial(PhotoAligner, photos, out, source, settings), out, stamps, num_workers)
        ordered = [outcomes[photo] for photo in stamps]
        write_tables(out, ordered + _unused(source, stamps))
    return _report(out, ordered)


def _check_settings(settings: CropSettings, num_workers: int) -> None:
    template(settings.size)
    if settings.faces not in FACE_CHOICES:
        raise ConfigError(f"--faces: must be one of {', '.join(FACE_CHOICES)}, got {settings.faces!r}")
    if settings.format not in FORMATS:
        raise ConfigError(f"--format: must be one of {', '.join(FORMATS)}, got {settings.format!r}")
    if not 1 <= settings.quality <= 100:
        raise ConfigError(f"--quality: must be 1 to 100, got {settings.quality}")
    if not 1 <= num_workers <= _MAX_WORKERS:
        raise ConfigError(f"--workers: must be 1 to {_MAX_WORKERS}, got {num_workers}")


def _check_apart(photos: Path, out: Path) -> None:
    if not photos.is_dir():
        raise DataError(f"{photos}: no such folder")
    source, target = photos.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise DataError(f"{out}: lies in {photos}, or the other way round; crops would be taken for photos")


def _open_source(
    landmarks: str | Path | None, detector: str | Path | None, min_score: float | None
) -> tuple[LandmarkSource, dict[str, Any]]:
    """Where landmarks come from, and what of it is recorded."""
    if (landmarks is None) == (detector is None):
        raise ConfigError("landmarks are needed: give either --landmarks or --detector")
    if landmarks is not None:
        if min_score is not None:
            raise ConfigError("--min-score: belongs to --detector; leave it out")
        return LandmarkSource(read_landmarks(landmarks), None, 0.0), {"landmarks_sha256": _sha256(landmarks)}
    assert detector is not None
    least = DEFAULT_MIN_SCORE if min_score is None else min_score
    YuNet(detector, least)  # says here, and once, what is wrong with it
    return LandmarkSource(None, Path(detector), least), {"detector_sha256": _sha256(detector), "min_score": least}


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(read_bounded(path, GIB)).hexdigest()


def _check_names(photos: Path, names: Sequence[str], settings: CropSettings) -> None:
    """Refuse two photos whose crops would have one name, such as a.jpg and a.png."""
    taken: dict[str, str] = {}
    faults = Faults(photos, "photos would share a crop with another")
    for name in names:
        other = taken.setdefault(crop_path(name, 1, settings), name)
        if other != name:
            faults.add(f"{other} and {name} would be one crop; rename one")
    faults.raise_any()


def _align_rest(
    make_aligner: MakeAligner, out: Path, stamps: Mapping[str, Stamp], num_workers: int
) -> dict[str, PhotoOutcome]:
    """The outcome of every photo, aligning those that are not finished."""
    journal = Journal(out)
    known = journal.read()
    rest = [photo for photo, stamp in stamps.items() if not journal.is_finished(known.get(photo), stamp)]
    if len(rest) < len(stamps):
        _log.info("%d of %d photos are finished already", len(stamps) - len(rest), len(stamps))
    gone = len(known.keys() - stamps.keys())
    if gone:
        _log.warning("%d photos of an earlier run are gone; their crops stay in %s", gone, out)
    outcomes = {photo: outcome for photo, (_, outcome) in known.items()}
    with journal, photo_outcomes(make_aligner, rest, num_workers) as results:
        for outcome in progress(results, "aligning", total=len(rest), unit="photos"):
            _remove_stale(out, outcomes.get(outcome.photo), outcome)
            journal.append(outcome, stamps[outcome.photo])
            outcomes[outcome.photo] = outcome
    return outcomes


def _remove_stale(out: Path, before: PhotoOutcome | None, now: PhotoOutcome) -> None:
    """Remove crops that a photo had before it was changed and has no more."""
    kept = {face.crop for face in now.faces}
    for face in before.faces if before is not None else ():
        if face.crop not in kept:
            (out / face.crop).unlink(missing_ok=True)


def _unused(source: LandmarkSource, stamps: Mapping[str, Stamp]) -> list[PhotoOutcome]:
    """Landmarks without a photo."""
    unused = [photo for photo in source.landmarks or {} if photo not in stamps]
    if unused:
        _log.warning("%d photos of the landmarks are missing, such as %s", len(unused), unused[0])
    return [PhotoOutcome(photo, why_not="landmarks, but no such photo") for photo in unused]


def _report(out: Path, outcomes: Sequence[PhotoOutcome]) -> AlignReport:
    failed = [outcome for outcome in outcomes if outcome.why_not]
    if len(failed) == len(outcomes):
        raise DataError(
            f"{out / NOT_FOUND_NAME}: none of {len(outcomes):,} photos could be aligned; the first, "
            f"{failed[0].photo}: {failed[0].why_not}"
        )
    return AlignReport(len(outcomes), sum(len(outcome.faces) for outcome in outcomes), len(failed))
