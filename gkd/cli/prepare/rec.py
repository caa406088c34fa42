"""`prepare.py pack`, `unpack`, `merge`, `split`, `shuffle` and `subset`: making and changing .rec files."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from gkd.cli.prepare.tasks import Tasks

_log = logging.getLogger(__name__)
_MAX_WORKERS = 8
_SOURCE_HELP = "a .rec file or a folder of identities"


def add(tasks: Tasks) -> None:
    """Add the tasks to the command line."""
    _add_pack(tasks)
    _add_unpack(tasks)
    _add_merge(tasks)
    _add_split(tasks)
    _add_shuffle(tasks)
    _add_subset(tasks)


def _add_pack(tasks: Tasks) -> None:
    task = tasks.add_parser(
        "pack",
        help="write a folder with a sub-folder for each identity into a .rec",
        description="Writes OUT.rec with its .idx, .lst, property and names. The images' bytes stay as they are, "
        "except where --size changes them.",
        example="tools/prepare.py pack faces/ train.rec --decode-check --on-bad skip",
    )
    task.add_argument("folder", type=Path, metavar="FOLDER", help="aligned images, FOLDER/<identity>/<image>")
    task.add_argument("out", type=Path, metavar="OUT.rec", help="the file to write")
    task.add_argument(
        "--size", type=_size, metavar="H[xW]", help="stretch images of another size to it and encode them as JPEG"
    )
    task.add_argument("--quality", type=int, default=95, help="of that JPEG (%(default)s)")
    task.add_argument("--decode-check", action="store_true", help="also decode every image, not just read its header")
    task.add_argument(
        "--on-bad",
        choices=("raise", "skip"),
        default="raise",
        help="stop at a bad image, or leave it out and list it in OUT.skipped.csv (%(default)s)",
    )
    task.add_argument("--workers", type=int, default=_num_workers(), help="processes that read (%(default)s)")
    task.set_defaults(run=_pack)


def _add_unpack(tasks: Tasks) -> None:
    task = tasks.add_parser(
        "unpack",
        help="write the images of a .rec into a folder with a sub-folder for each identity",
        description="Writes OUT/<identity or label>/<key>.<format>, or, with the .lst beside the .rec, the files that "
        "it was packed from under their own names. An interrupted task goes on where it stopped.",
        example="tools/prepare.py unpack train.rec faces/",
    )
    task.add_argument("rec", type=Path, metavar="IN.rec", help="the file to read")
    task.add_argument("out", type=Path, metavar="OUT", help="the folder to write: new, empty, or of an earlier unpack")
    task.add_argument("--no-list", action="store_true", help="do not use the .lst: name the images by their keys")
    task.set_defaults(run=_unpack)


def _add_merge(tasks: Tasks) -> None:
    task = tasks.add_parser(
        "merge",
        help="write several sets into one .rec",
        description="The people of each set follow those of the sets before it; their labels are shifted.",
        example="tools/prepare.py merge a.rec b.rec faces/ all.rec --by-name",
    )
    task.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help=_SOURCE_HELP)
    task.add_argument("out", type=Path, metavar="OUT.rec", help="the file to write")
    task.add_argument("--by-name", action="store_true", help="the same name in two sets is one person")
    task.set_defaults(run=_merge)


def _add_split(tasks: Tasks) -> None:
    task = tasks.add_parser(
        "split",
        help="set some people apart: OUT/train.rec and OUT/held_out.rec",
        example="tools/prepare.py split faces/ more.rec parts/ --held-out 100",
    )
    task.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="folders of identities or .rec files; the same name in two of them is one identity",
    )
    task.add_argument("out", type=Path, metavar="OUT", help="the folder to write into")
    task.add_argument("--held-out", type=int, required=True, metavar="N", help="identities to hold out")
    task.add_argument("--seed", type=int, default=0, help="who is held out is a function of it (%(default)s)")
    task.set_defaults(run=_split)


def _add_shuffle(tasks: Tasks) -> None:
    task = tasks.add_parser(
        "shuffle",
        help="write the images of a set in random order",
        description="Writes a .rec without a header whose records stand in random order, so that reading it from the "
        "first byte to the last, as suits disks and networks that are slow at jumping, meets people at random.",
        example="tools/prepare.py shuffle train.rec shuffled.rec --seed 1",
    )
    task.add_argument("source", type=Path, metavar="IN", help=_SOURCE_HELP)
    task.add_argument("out", type=Path, metavar="OUT.rec", help="the file to write")
    task.add_argument("--seed", type=int, default=0, help="the order is a function of it (%(default)s)")
    task.set_defaults(run=_shuffle)


def _add_subset(tasks: Tasks) -> None:
    task = tasks.add_parser(
        "subset",
        help="write some people of a set, or some images of each",
        description="Draws people and images by the seed; a larger subset of the same seed holds the smaller one.",
        example="tools/prepare.py subset train.rec small.rec --identities 1000 --min-images 10 --max-images 50",
    )
    task.add_argument("source", type=Path, metavar="IN", help=_SOURCE_HELP)
    task.add_argument("out", type=Path, metavar="OUT.rec", help="the file to write")
    task.add_argument("--identities", type=int, metavar="N", help="people to draw (all)")
    task.add_argument(
        "--min-images", type=int, default=1, metavar="K", help="leave out people with fewer (%(default)s)"
    )
    task.add_argument("--max-images", type=int, metavar="K", help="images of each to draw (all)")
    task.add_argument("--seed", type=int, default=0, help="what is drawn is a function of it (%(default)s)")
    task.set_defaults(run=_subset)


def _num_workers() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MAX_WORKERS)


def _size(text: str) -> tuple[int, int]:
    height, separator, width = text.partition("x")
    try:
        return int(height), int(width if separator else height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 112, or 112x96 (height x width)") from None


def _pack(arguments: argparse.Namespace) -> None:
    from gkd.data.rec_pack import pack

    packed = pack(
        arguments.folder,
        arguments.out,
        size=arguments.size,
        quality=arguments.quality,
        decode_check=arguments.decode_check,
        num_workers=arguments.workers,
        on_bad=arguments.on_bad,
    )
    _log.info("packed %d images of %d identities into %s", packed.num_images, packed.num_identities, arguments.out)


def _unpack(arguments: argparse.Namespace) -> None:
    from gkd.data.rec_unpack import unpack

    num_images = unpack(arguments.rec, arguments.out, use_list=not arguments.no_list)
    _log.info("unpacked %d images into %s", num_images, arguments.out)


def _merge(arguments: argparse.Namespace) -> None:
    from gkd.data.rec_edit import merge

    written = merge(arguments.sources, arguments.out, by_name=arguments.by_name)
    _log.info("merged %d images of %d identities into %s", written.num_images, written.num_identities, arguments.out)


def _split(arguments: argparse.Namespace) -> None:
    from gkd.data.rec_split import split_faces

    report = split_faces(arguments.sources, arguments.out, held_out=arguments.held_out, seed=arguments.seed)
    sys.stdout.write(json.dumps(report["counts"]) + "\n")


def _shuffle(arguments: argparse.Namespace) -> None:
    from gkd.data.rec_edit import shuffle

    written = shuffle(arguments.source, arguments.out, seed=arguments.seed)
    _log.info("wrote %d images in random order into %s", written.num_images, arguments.out)


def _subset(arguments: argparse.Namespace) -> None:
    from gkd.data.rec_edit import subset

    written = subset(
        arguments.source,
        arguments.out,
        num_identities=arguments.identities,
        min_images=arguments.min_images,
        max_images=arguments.max_images,
        seed=arguments.seed,
    )
    _log.info("wrote %d images of %d identities into %s", written.num_images, written.num_identities, arguments.out)
