"""`prepare.py clean`: data without their label noise."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gkd.cli.prepare.tasks import Tasks
from gkd.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gkd.data.identities import Faces
    from gkd.inference.clean import Findings, NoiseRule

_log = logging.getLogger(__name__)
_MARGIN = 0.1
_ROUNDS = 3

_DESCRIPTION = """Writes the images of SOURCE that are not label noise into OUT.rec, their bytes untouched, sorted by
label. What noise is, a network says: FOLDER holds its embeddings of SOURCE, made by `prepare.py centres` or by a
training run (the folder that its teacher.centres or teacher.cache names). Labels and names stay; only with
--drop-empty, where an identity goes, the labels after it move up.

First look: --dry-run alone prints how the cosines are spread, with --min-cosine or --mislabelled also what would go;
--csv lists it and --sheet shows it. Take rows that are right out of the list, and give it back with --list. Images that
could not be read when they were embedded are noise too, except with --list."""


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
    task = tasks.add_parser(
        "clean",
        help="write a set without its label noise, as class centres show it",
        description=_DESCRIPTION,
        example="tools/prepare.py clean train.rec clean/train.rec --centres r100 --min-cosine 0.2 --mislabelled",
    )
    task.add_argument("source", type=Path, metavar="SOURCE", help="a .rec file or a folder of identities")
    task.add_argument("out", type=Path, nargs="?", metavar="OUT.rec", help="a new file; not needed with --dry-run")
    task.add_argument("--centres", type=Path, required=True, metavar="FOLDER", help="embeddings of exactly SOURCE")
    _add_rules(task)
    task.add_argument("--drop-empty", action="store_true", help="let identities go that lose all their images")
    task.add_argument("--dry-run", action="store_true", help="print what would be left out, and write no OUT.rec")
    task.add_argument("--csv", type=Path, metavar="OUT.csv", help="list what is left out; --list takes such a table")
    task.add_argument("--sheet", type=Path, metavar="OUT.png", help="draw what is left out, worst first: real faces")
    task.add_argument("--images", type=int, default=64, metavar="N", help="images in the picture (%(default)s)")
    task.set_defaults(run=_clean)


def _add_rules(task: argparse.ArgumentParser) -> None:
    task.add_argument(
        "--min-cosine",
        type=float,
        metavar="X",
        help="leave out images whose cosine to the rest of their identity is lower",
    )
    task.add_argument(
        "--mislabelled", action="store_true", help="leave out images that are nearer to another identity than their own"
    )
    task.add_argument(
        "--margin", type=float, metavar="M", help=f"nearer by more than this, with --mislabelled ({_MARGIN})"
    )
    task.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help=f"find the centres up to N times, each time without what was noise the time before ({_ROUNDS})",
    )
    task.add_argument(
        "--list", type=Path, metavar="CSV", help="leave out the images of this table instead, such as label_noise.csv"
    )


def _clean(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    from gkd.core import distributed
    from gkd.data.identities import open_faces
    from gkd.data.rec_clean import check_target, write_clean
    from gkd.inference.clean import find_noise, open_embeddings, write_left_out
    from gkd.inference.noise_list import read_image_list

    rule = _rule(arguments)
    faces = open_faces(arguments.source)
    if not arguments.dry_run:
        check_target(faces, arguments.out)
    store = open_embeddings(arguments.centres, faces)
    listed = None if arguments.list is None else read_image_list(arguments.list, faces)
    device = distributed.device()
    findings = find_noise(store, faces.num_identities, rule, device=device)
    is_left_out = findings.is_noise if listed is None else _only(listed, len(faces))
    _tell(arguments, faces, findings, is_left_out)
    if arguments.csv is not None:
        images = _worst_first(findings, is_left_out)
        write_left_out(arguments.csv, faces, store, findings, images, device=device)
        _log.info("listed %d images in %s", len(images), arguments.csv)
    if not arguments.dry_run:
        written = write_clean(faces, arguments.out, is_left_out, drop_empty=arguments.drop_empty)
        _log.info("wrote %d images of %d identities into %s", written.num_images, written.num_identities, arguments.out)


def _rule(arguments: argparse.Namespace) -> NoiseRule:
    from gkd.inference.clean import NoiseRule

    margin = _MARGIN if arguments.margin is None else arguments.margin
    return NoiseRule(
        min_cosine=arguments.min_cosine,
        margin=margin if arguments.mislabelled else None,
        rounds=_ROUNDS if arguments.rounds is None else arguments.rounds,
    )


def _only(images: npt.NDArray[np.int64], num_images: int) -> npt.NDArray[np.bool_]:
    import numpy as np

    is_listed = np.zeros(num_images, dtype=bool)
    is_listed[images] = True
    return is_listed


def _check_options(arguments: argparse.Namespace) -> None:
    is_ruled = arguments.min_cosine is not None or arguments.mislabelled
    if arguments.list is not None and is_ruled:
        raise ConfigError("clean: --list leaves out exactly its images; give it without --min-cosine and --mislabelled")
    if arguments.margin is not None and not arguments.mislabelled:
        raise ConfigError("clean: --margin has no meaning without --mislabelled")
    if arguments.rounds is not None and not is_ruled:
        raise ConfigError("clean: --rounds has no meaning without --min-cosine or --mislabelled")
    if arguments.csv is not None and arguments.csv.suffix != ".csv":
        raise ConfigError(f"clean --csv: the name must end in .csv, got {arguments.csv}")
    if arguments.dry_run:
        return
    if arguments.out is None:
        raise ConfigError("clean: name the file to write, OUT.rec, or give --dry-run")
    if arguments.list is None and not is_ruled:
        raise ConfigError(
            "clean: say what noise is: --min-cosine X, --mislabelled, or --list CSV; --dry-run shows how the cosines "
            "are spread"
        )


def _tell(arguments: argparse.Namespace, faces: Faces, findings: Findings, is_left_out: npt.NDArray[np.bool_]) -> None:
    from gkd.cli.prepare.clean_report import as_text, draw_left_out

    sys.stdout.write(as_text(faces, findings, is_left_out))
    if arguments.sheet is not None:
        draw_left_out(arguments.sheet, faces, findings, _worst_first(findings, is_left_out), arguments.images)


def _worst_first(findings: Findings, is_left_out: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The images that are left out by ascending cosine, those without one last."""
    import numpy as np

    images = np.flatnonzero(is_left_out)
    return images[np.argsort(findings.own_cosines[images], kind="stable")]
