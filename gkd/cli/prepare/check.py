"""`prepare.py inspect` and `verify`: looking at data, and checking it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gkd.cli.prepare.tasks import Tasks
from gkd.core.errors import ConfigError

if TYPE_CHECKING:
    from gkd.data.check import CheckedRecords, Faults

_log = logging.getLogger(__name__)
_EXIT_FAULTS = 1


def add(tasks: Tasks) -> None:
    """Add the tasks to the command line."""
    _add_inspect(tasks)
    _add_verify(tasks)


def _add_inspect(tasks: Tasks) -> None:
    task = tasks.add_parser(
        "inspect",
        help="tell what a .rec, a .bin or a folder of images holds, and draw some of it",
        example="tools/prepare.py inspect faces/train.rec --sheet faces.png --images 64",
    )
    task.add_argument("source", type=Path, nargs="?", metavar="FILE.rec|FILE.bin|FOLDER", help="what to look at")
    task.add_argument("--sheet", type=Path, metavar="OUT.png", help="draw random images into this picture")
    task.add_argument("--images", type=int, default=64, metavar="N", help="images in the picture (%(default)s)")
    task.add_argument("--seed", type=int, default=0, help="which images are random by it (%(default)s)")
    task.add_argument(
        "--sample", type=int, default=2000, metavar="N", help="images whose headers are read (%(default)s)"
    )
    task.add_argument("--all", action="store_true", help="read the headers of all images")
    task.add_argument("--json", type=Path, metavar="OUT.json", help="write the report here too")
    task.add_argument(
        "--augment", type=Path, metavar="CONFIG", help="draw this training config's augmentations into --sheet instead"
    )
    task.set_defaults(run=_inspect)


def _add_verify(tasks: Tasks) -> None:
    task = tasks.add_parser(
        "verify",
        help="check every byte and image of a .rec, a .bin or a folder, and repair a .rec",
        description="Walks through a .rec from its first byte without trusting the .idx, decodes every image, and "
        "checks keys, labels, counts and duplicates. Exit code 0: no faults; 1: faults; 2: it cannot be checked. "
        "Of a JPEG's pixels only damage that the decoder trips over can be seen: the formats have no checksums.",
        example="tools/prepare.py verify faces/train.rec --repair faces/clean.rec --csv faults.csv",
    )
    task.add_argument("source", type=Path, metavar="FILE.rec|FILE.bin|FOLDER", help="what to check")
    task.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: what it is worth)")
    task.add_argument("--repair", type=Path, metavar="OUT.rec", help="write all usable images into this file")
    task.add_argument(
        "--renumber", action="store_true", help="with --repair: sort by label, and number labels 0, 1, 2 … without gaps"
    )
    task.add_argument("--csv", type=Path, metavar="FAULTS.csv", help="write all faults as a table")
    task.set_defaults(run=_verify)


def _inspect(arguments: argparse.Namespace) -> None:
    if arguments.augment is not None:
        _draw_augmentations(arguments)
        return
    if arguments.source is None:
        raise ConfigError("inspect: name a .rec, a .bin or a folder, or give --augment CONFIG")
    from gkd.data.contact_sheet import save_sheet
    from gkd.data.inspection import as_text, inspect, sheet_of

    sampled = None if arguments.all else arguments.sample
    report = inspect(arguments.source, num_sampled=sampled, seed=arguments.seed)
    sys.stdout.write(as_text(report))
    if arguments.json is not None:
        _write_json(arguments.json, report)
    if arguments.sheet is not None:
        save_sheet(sheet_of(arguments.source, arguments.images, arguments.seed), arguments.sheet)
        _log.info("drew %s", arguments.sheet)


def _draw_augmentations(arguments: argparse.Namespace) -> None:
    if arguments.sheet is None:
        raise ConfigError("inspect --augment: name the picture to draw with --sheet OUT.png")
    from gkd.cli.prepare.augment_sheet import draw

    draw(arguments.augment, arguments.source, arguments.sheet, arguments.images)
    _log.info("drew %s", arguments.sheet)


def _write_json(path: Path, report: dict[str, object]) -> None:
    from gkd.core.files import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _verify(arguments: argparse.Namespace) -> int:
    is_record = arguments.source.suffix == ".rec"
    if arguments.repair is not None and not is_record:
        raise ConfigError(f"{arguments.source}: only a .rec can be repaired")
    if arguments.renumber and arguments.repair is None:
        raise ConfigError("verify --renumber: has no meaning without --repair OUT.rec")
    faults, checked = _check(arguments.source, arguments.workers)
    for line in faults.lines():
        sys.stdout.write(line + "\n")
    if arguments.csv is not None:
        faults.write_csv(arguments.csv)
    if checked is not None:
        sys.stdout.write(f"{arguments.source}: {checked.describe()}\n")
    sys.stdout.write(f"{arguments.source}: {faults.summary()}\n")
    if arguments.repair is not None:
        assert checked is not None
        _repair(checked, arguments.repair, arguments.renumber)
    return 0 if faults.is_clean else _EXIT_FAULTS


def _check(source: Path, workers: int | None) -> tuple[Faults, CheckedRecords | None]:
    from gkd.data.check import check_folder, check_pairs, check_records

    if source.suffix == ".rec":
        checked = check_records(source, workers)
        return checked.faults, checked
    check = check_pairs if source.suffix == ".bin" else check_folder
    return check(source, workers)[1], None


def _repair(checked: CheckedRecords, out: Path, renumber: bool) -> None:
    from gkd.data.check import repair

    lost = repair(checked, out, renumber=renumber)
    _log.info("wrote %d images into %s; what was lost is in %s (%d)", len(checked.keys), out, lost, len(checked.lost))
