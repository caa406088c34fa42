"""Run folders below given folders; a run folder holds `config.yaml` and `run.json`, and no profile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gkd.core.errors import DataError
from gkd.core.yaml_lines import printable

MAX_DEPTH = 6
MAX_FOLDERS = 50_000
MAX_RUNS = 500
RUN_FILES = ("config.yaml", "run.json")
PROFILE_FILE = "profile.json"  # of tools/profile.py, whose few steps are no run to compare

# What a run keeps for itself; nobody puts a run there.
_OF_A_RUN = frozenset({"checkpoints", "tensorboard", "weights", "nonfinite"})


@dataclass
class FoundRuns:
    """The run folders in the order of their names, each once, and what the search has to tell."""

    paths: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_runs(folders: Sequence[str | Path]) -> FoundRuns:
    """The run folders at or below `folders`, at most `MAX_DEPTH` levels down.

    Links are followed, and no folder is entered twice, so that links in a circle end. Hidden folders are left out.

    Raises:
        DataError: a folder is missing or is no folder, or no run is found at all.
    """
    search = _Search()
    for folder in map(Path, folders):
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "no such folder"
            raise DataError(f"{folder}: {what}; name run folders, or folders that hold some")
        search.walk(folder)
    if not search.found.paths:
        named = ", ".join(str(folder) for folder in folders)
        raise DataError(
            f"no run in {named}: a run is a folder with {' and '.join(RUN_FILES)}, at most {MAX_DEPTH} levels down"
        )
    return search.found


class _Search:
    """One walk over all the folders, which remembers where it has been."""

    def __init__(self) -> None:
        self.found = FoundRuns()
        self.seen: set[tuple[int, int]] = set()

    def walk(self, root: Path) -> None:
        """Level by level, so that a folder with several paths is met on the shortest."""
        paths: list[Path] = []
        level = [root]
        for depth in range(MAX_DEPTH + 1):
            below: list[Path] = []
            for folder in level:
                if self._is_new(folder) and not self._is_full(len(paths)):
                    is_run, inside = self._look(folder)
                    paths += [folder] * is_run
                    below += inside
            level = below if depth < MAX_DEPTH else []
        self.found.paths += sorted(paths, key=lambda path: [_natural(part) for part in path.parts])

    def _look(self, folder: Path) -> tuple[bool, list[Path]]:
        """Whether `folder` is a run, and which folders in it may be or hold some."""
        try:
            is_run = all((folder / name).is_file() for name in RUN_FILES) and not (folder / PROFILE_FILE).is_file()
            names = sorted(_folders_in(folder), key=_natural)
        except OSError as error:
            self.found.notes.append(f"{printable(str(folder), 200)}: cannot be read: {error.strerror}")
            return False, []
        return is_run, [folder / name for name in names if not (is_run and name in _OF_A_RUN)]

    def _is_new(self, folder: Path) -> bool:
        try:
            status = folder.stat()
        except OSError:
            return False  # gone since it was listed, or a link to nothing
        place = (status.st_dev, status.st_ino)
        is_new = place not in self.seen
        self.seen.add(place)
        return is_new

    def _is_full(self, num_new: int) -> bool:
        if len(self.found.paths) + num_new >= MAX_RUNS:
            limit = f"{MAX_RUNS} runs"
        elif len(self.seen) > MAX_FOLDERS:
            limit = f"{MAX_FOLDERS:,} folders"
        else:
            return False
        note = f"the search ended after {limit}; name folders further down"
        if note not in self.found.notes:
            self.found.notes.append(note)
        return True


def _folders_in(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # a link to itself
                if not entry.name.startswith(".") and entry.is_dir():
                    yield entry.name


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which `seed2` comes before `seed10`."""
    parts = re.findall(r"([0-9]{1,18})|([^0-9]+)", name)
    return [(0, int(digits), "") if digits else (1, 0, text) for digits, text in parts]
