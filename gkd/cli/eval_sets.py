"""The pair sets that the evaluation tool is given, and who is on their pairs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gkd.core import distributed
from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.data import PairSet
from gkd.data.pair_identities import identities_path, read_pair_identities
from gkd.data.pair_values import read_pair_values, values_path

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedSet:
    """A set of pairs; `ids` (P, 2) says who is on them where `identities`, the file that names them, is there.

    quality, yaw: (P,), NaN where unknown; None where no text beside the set has them.
    """

    path: Path
    pairs: PairSet
    identities: Path | None
    ids: npt.NDArray[np.int64] | None
    quality: npt.NDArray[np.float64] | None = None
    yaw: npt.NDArray[np.float64] | None = None


def find_sets(paths: Sequence[Path]) -> dict[str, Path]:
    """The pair sets by name: a file itself, a folder's `.bin` files in order of name.

    A set bears its file's name without the ending, or its whole path where two would be called the same.

    Raises:
        DataError: paths that do not exist, all of them named, or a folder without a `.bin` file.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataError(f"no such pair set: {', '.join(missing)}; --data takes .bin files and folders of them")
    files = list(dict.fromkeys(file for path in paths for file in _set_files(path)))
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 else str(file): file for file in files}


def _set_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.bin") if file.is_file())
    if not files:
        raise DataError(f"no .bin file in the folder {path}; --data takes .bin files and folders of them")
    return files


def _values(path: Path, kind: str, num_pairs: int) -> npt.NDArray[np.float64] | None:
    file = values_path(path, kind)
    return read_pair_values(file, num_pairs) if file.is_file() else None


def find_ijb(folders: Sequence[Path], taken: Sequence[str]) -> dict[str, Path]:
    """The IJB folders by name; one whose name is `taken` or comes twice bears its whole path.

    Raises:
        DataError: folders that do not exist, all of them named.
    """
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise DataError(f"no such folder: {', '.join(missing)}; --ijb takes folders that hold meta and loose_crop")
    names = [*(folder.resolve().name for folder in folders), *taken]
    return {
        folder.resolve().name if names.count(folder.resolve().name) == 1 else str(folder): folder for folder in folders
    }


def check_identities(arguments: argparse.Namespace, sets: dict[str, Path]) -> None:
    """Refuse `--identities` where it is not clear which set it is of, or the file is not there.

    Raises:
        ConfigError: as said.
    """
    if arguments.identities is None:
        return
    if len(sets) != 1:
        raise ConfigError(
            f"--identities is of one set, but --data gives {len(sets)}: {', '.join(sets)}; lay a NAME.persons.txt "
            "beside each NAME.bin instead"
        )
    if not arguments.identities.is_file():
        raise ConfigError(f"--identities {arguments.identities}: no such file")


def agreed(function: Callable[[], T]) -> T:
    """Call `function` on every rank; where it fails on one it fails on all, since the others would wait for it."""
    failure: Exception | None = None
    value: T | None = None
    try:
        value = function()
    except (GkdError, OSError) as error:
        failure = error
    told = [text for text in distributed.gather_objects(None if failure is None else str(failure)) if text is not None]
    if failure is not None:
        raise failure
    if told:
        raise DataError(f"another rank failed: {told[0]}")
    return value  # type: ignore[return-value]


def load_set(path: Path, identities: Path | None) -> LoadedSet:
    """Load a set, and who is on its pairs where a file says so; where one rank cannot, all refuse it.

    Args:
        identities: the file that says so; None looks for one beside the set.

    Raises:
        DataError: the set, or the file that names the persons, is unfit.
    """

    def load() -> LoadedSet:
        pairs = PairSet.load(path)
        beside = identities_path(path)
        file = identities if identities is not None else (beside if beside.is_file() else None)
        ids = None if file is None else read_pair_identities(file, pairs.is_same)
        return LoadedSet(path, pairs, file, ids, _values(path, "quality", len(pairs)), _values(path, "yaw", len(pairs)))

    loaded = agreed(load)
    if loaded.ids is not None:
        _LOG.info("%s: %d persons, named by %s", path, len(np.unique(loaded.ids)), loaded.identities)
    return loaded
