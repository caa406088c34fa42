"""Makes verification pairs of the images that a set of faces has: at random, or as a list says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from gkd.core.errors import DataError
from gkd.core.files import read_bounded
from gkd.data.identities import find_identities, open_faces
from gkd.data.image_folder import IMAGE_SUFFIXES
from gkd.data.pair_choice import Key, choose_pairs
from gkd.data.pair_folds import drop_pairs, tell_folds
from gkd.data.pair_identities import fits_line, identities_path, write_pair_identities
from gkd.data.pair_images import read_images
from gkd.data.pair_lists import ListedPair, PairList
from gkd.data.pairs import PairSet
from gkd.data.text_lists import Faults

_MAX_IMAGE_BYTES = 64 << 20

_log = logging.getLogger(__name__)


def make_pair_file(
    source: str | Path,
    out: str | Path,
    *,
    num_pairs: int = 2000,
    folds: int = 10,
    seed: int = 0,
    size: int | None = None,
) -> PairSet:
    """Write random pairs of `source`'s images, half of one person and half of two, into a .bin file,
    and who is on them beside it, see `read_pair_identities`.

    Folds are contiguous and balanced, and share nobody where there are people enough; see `choose_pairs`. The pairs are
    a function of the people's names (labels where there are none), their numbers of images and the numbers given here.

    Args:
        source: a .rec file or a folder with a sub-folder for each identity.
        out: the file to write; a name that ends in .bin.
        size: the height and width to give to images that have others, see `read_images`.

    Raises:
        ConfigError: pairs that do not split into halves of folds, a negative seed, or a size out of range.
        DataError: a source that is missing or damaged, too few images for the pairs, images that cannot be decoded or
            are of several sizes, or another name than .bin.
    """
    out = _bin_path(out)
    identities = find_identities([open_faces(source)])
    try:
        keys, is_same = choose_pairs([len(person) for person in identities], num_pairs, folds, seed)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error

    def describe(key: Key) -> str:
        return f"identity {identities[key[0]].key}, image {key[1]}"

    # Read by ascending place; a picture in several pairs is kept and written once.
    images = read_images(sorted(set(keys)), lambda key: identities[key[0]][key[1]], describe, str(source), size)
    pairs = PairSet([images[key] for key in keys], is_same, out.stem)
    pairs.save(out)
    _write_people(out, [str(identities[person].key) for person, _ in keys])
    return pairs


def make_listed_pair_file(
    source: str | Path, out: str | Path, pair_list: PairList, *, skip_missing: bool = False, size: int | None = None
) -> PairSet:
    """Write the pairs of a list into a .bin file; images come as they are in `source`, byte for byte.

    Where the list is of LFW's format, who is on the pairs is written beside it, see `read_pair_identities`.

    Args:
        source: the folder that the list's paths are relative to.
        out: the file to write; a name that ends in .bin.
        pair_list: the pairs, see `read_lfw_pairs` and `read_csv_pairs`.
        skip_missing: leave pairs out whose images are missing (see `drop_pairs`), instead of raising.
        size: the height and width to give to images that have others, see `read_images`.

    Raises:
        ConfigError: a size out of range.
        DataError: missing images (the first ten are named), images that cannot be decoded or are of several sizes, or
            another name than .bin.
    """
    out, source = _bin_path(out), Path(source)
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; pairs of a list need a folder of images")
    files, missing = _find_files(source, pair_list)
    if missing.count and not skip_missing:
        raise DataError(f"{missing}\nadd them, or leave their pairs out with --on-missing skip")
    pairs: Sequence[ListedPair] = pair_list.pairs
    if missing.count:
        _log.warning("%s", missing)
        listed = chain.from_iterable((pair.left, pair.right) for pair in pairs)
        pairs = drop_pairs(pairs, frozenset(listed) - frozenset(files))
    tell_folds(pairs)
    names = [name for pair in pairs for name in (pair.left, pair.right)]
    images = read_images(
        names, lambda name: _read(files[name]), lambda name: str(files[name]), str(pair_list.path), size
    )
    made = PairSet([images[name] for name in names], [pair.is_same for pair in pairs], out.stem)
    made.save(out)
    if not pair_list.has_suffixes:  # the format of LFW, whose folders are people
        _write_people(out, [name.rpartition("/")[0] for name in names])
    return made


def _write_people(out: Path, people: Sequence[str]) -> None:
    """Write who is on each pair beside the set, for intervals over persons."""
    number = {person: place for place, person in enumerate(dict.fromkeys(people))}
    names = [person if fits_line(person) else f"person {number[person]}" for person in people]
    write_pair_identities(identities_path(out), list(zip(names[0::2], names[1::2], strict=True)))


def _bin_path(out: str | Path) -> Path:
    out = Path(out)
    if out.suffix != ".bin":
        raise DataError(f"{out}: the name must end in .bin")
    return out


def _read(path: Path) -> bytes:
    return read_bounded(path, _MAX_IMAGE_BYTES)


def _find_files(source: Path, pair_list: PairList) -> tuple[dict[str, Path], Faults]:
    """The file of every image of the list that there is, and the missing ones."""
    files: dict[str, Path] = {}
    missing = Faults(f"{pair_list.path}: in {source}", "images are missing")
    seen: set[str] = set()
    folders: dict[str, dict[str, list[str]]] = {}
    for pair in pair_list.pairs:
        for name in (pair.left, pair.right):
            if name in seen:
                continue
            seen.add(name)
            file = source / name if pair_list.has_suffixes else _find_by_stem(source, name, folders)
            if file is not None and _is_file(file):
                files[name] = file
            else:
                missing.add(f"no image {name} (line {pair.line})")
    return files, missing


def _find_by_stem(source: Path, name: str, folders: dict[str, dict[str, list[str]]]) -> Path | None:
    folder, _, stem = name.rpartition("/")
    if folder not in folders:
        folders[folder] = _list_stems(source / folder)
    found = folders[folder].get(stem, [])
    if len(found) > 1:
        raise DataError(f"{source / folder}: {' and '.join(sorted(found))} are both image {stem}; remove one")
    return source / folder / found[0] if found else None


def _list_stems(folder: Path) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = {}
    try:
        files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    except OSError:  # no such folder, among others: its images are missing
        return {}
    for file in files:
        stems.setdefault(file.stem, []).append(file.name)
    return stems


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the file system, for one
        return False
