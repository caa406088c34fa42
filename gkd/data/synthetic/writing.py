"""Writes drawn faces as files: a training set, verification sets and a contact sheet."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2

from gkd.core.errors import ConfigError
from gkd.core.files import atomic_write
from gkd.data.pairs import PairSet
from gkd.data.recordio import RecordWriter
from gkd.data.synthetic.dataset import SyntheticFaces
from gkd.data.synthetic.faces import VERSION, contact_sheet, encode_face
from gkd.data.synthetic.verification import Key, make_pairs, pair_keys

_log = logging.getLogger(__name__)
_SETTINGS_FILE = "synthetic.json"
_SHEET_FILE = "contact_sheet.png"
_SHEET_ROWS, _SHEET_COLUMNS = 8, 10
_CHUNK = 64

EncodeMany = Callable[[list[Key]], Iterable[bytes]]


def write_synthetic(
    folder: str | Path,
    *,
    num_identities: int = 300,
    images_per_identity: int = 30,
    eval_identities: int = 200,
    eval_pairs: int = 2000,
    eval_sets: Sequence[str] = ("validation", "test"),
    folds: int = 10,
    seed: int = 0,
    size: int = 112,
    difficulty: float = 1.0,
    num_workers: int = 1,
) -> None:
    """Write train.rec with its .idx and property, one .bin for each of `eval_sets`, and contact_sheet.png.

    Nobody is in two of these sets. `synthetic.json`, written last, holds the settings; where it is there with the
    same settings, nothing is done.

    Args:
        eval_identities: people in each verification set.
        eval_pairs: pairs in each verification set, a multiple of 2 * `folds`.
        eval_sets: the names of the verification sets.
        num_workers: processes that draw. With more than one, call this below `if __name__ == "__main__":`.

    Raises:
        ConfigError: a number outside its range.
    """
    folder = Path(folder)
    settings = {key: value for key, value in locals().items() if key not in ("folder", "num_workers")}
    settings |= {"version": VERSION, "eval_sets": list(eval_sets)}
    train = SyntheticFaces(
        num_identities=num_identities,
        images_per_identity=images_per_identity,
        seed=seed,
        size=size,
        difficulty=difficulty,
    )
    if num_workers < 1:
        raise ConfigError(f"synthetic faces: num_workers must be at least 1, got {num_workers}")
    pair_keys(seed, num_identities, eval_identities, eval_pairs, folds)  # refuses bad numbers before an hour of drawing
    if _is_written(folder, settings):
        _log.info("%s: already written with these settings", folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SETTINGS_FILE).unlink(missing_ok=True)
    with _encoder(partial(_encode_one, seed, size, difficulty), num_workers) as encode:
        _write_train(folder / "train.rec", train, images_per_identity, encode)
        for place, name in enumerate(eval_sets):
            first = num_identities + place * eval_identities
            images, is_same = make_pairs(seed, first, eval_identities, eval_pairs, folds, encode=encode)
            PairSet(images, is_same, name).save(folder / f"{name}.bin")
            _log.info("wrote %s with %d pairs of %d identities", folder / f"{name}.bin", eval_pairs, eval_identities)
    _write_sheet(folder / _SHEET_FILE, seed, num_identities)
    with atomic_write(folder / _SETTINGS_FILE) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _is_written(folder: Path, settings: dict[str, Any]) -> bool:
    names = [_SHEET_FILE, "train.rec", "train.idx", *(f"{name}.bin" for name in settings["eval_sets"])]
    if not all((folder / name).is_file() for name in names):
        return False
    try:
        found = json.loads((folder / _SETTINGS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return bool(found == settings)


def _write_train(path: Path, faces: SyntheticFaces, images_per_identity: int, encode: EncodeMany) -> None:
    keys = [divmod(index, images_per_identity) for index in range(len(faces))]
    with RecordWriter(path, identity_names=faces.identity_names) as writer:
        for (label, _), encoded in zip(keys, encode(keys), strict=True):
            writer.write(label, encoded)
    _log.info("wrote %s with %d images of %d identities", path, len(faces), faces.num_identities)


def _write_sheet(path: Path, seed: int, num_identities: int) -> None:
    sheet = contact_sheet(seed, range(min(_SHEET_ROWS, num_identities)), range(_SHEET_COLUMNS))
    _, encoded = cv2.imencode(".png", sheet[..., ::-1])
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _encode_one(seed: int, size: int, difficulty: float, key: Key) -> bytes:
    return encode_face(seed, *key, size, difficulty)


@contextmanager
def _encoder(encode_one: Callable[[Key], bytes], num_workers: int) -> Iterator[EncodeMany]:
    """Something that draws a list of pictures, in its order, in this process or in several."""
    if num_workers == 1:
        yield partial(map, encode_one)
        return
    # Forked children would inherit the locks of OpenCV's and torch's threads.
    with ProcessPoolExecutor(num_workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        yield lambda keys: chain.from_iterable(pool.map(partial(_encode_chunk, encode_one), _chunks(keys)))


def _chunks(keys: list[Key]) -> list[list[Key]]:
    return [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]


def _encode_chunk(encode_one: Callable[[Key], bytes], keys: list[Key]) -> list[bytes]:
    return [encode_one(key) for key in keys]
