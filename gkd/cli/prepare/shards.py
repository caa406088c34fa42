"""`prepare.py shards`: tar shards for data that is streamed."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gkd.cli.prepare.tasks import Tasks
from gkd.core.errors import ConfigError

_log = logging.getLogger(__name__)


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
    task = tasks.add_parser(
        "shards",
        help="write a set into tar shards (WebDataset) for streaming, or index such shards",
        description="Writes shard-000000.tar … with an index into OUT_FOLDER, the images shuffled once. Sample ids, "
        "labels and the images' bytes stay as they are. An interrupted task goes on where it stopped. With --index, it "
        "writes an index for the tars of other tools (.jpg, .jpeg, .png or .webp, each with a .cls or .json).",
        example="tools/prepare.py shards train.rec shards/\n  tools/prepare.py shards --index downloaded/",
    )
    task.add_argument("source", nargs="?", type=Path, metavar="SOURCE", help="a .rec file or a folder of identities")
    task.add_argument("out", nargs="?", type=Path, metavar="OUT_FOLDER", help="new, empty, or of an interrupted task")
    task.add_argument(
        "--images-per-shard",
        type=int,
        default=10_000,
        help="each process that reads keeps some shards in memory: 10,000 faces are about 60 MB (%(default)s)",
    )
    task.add_argument("--seed", type=int, default=0, help="of the order of the images (%(default)s)")
    task.add_argument("--index", type=Path, metavar="FOLDER", help="only index the tars of this folder")
    task.set_defaults(run=_shards)


def _shards(arguments: argparse.Namespace) -> None:
    if arguments.index is not None:
        _index(arguments)
        return
    if arguments.source is None or arguments.out is None:
        raise ConfigError("shards: give SOURCE and OUT_FOLDER, or --index FOLDER")
    from gkd.data.tar_writing import write_shards

    done = write_shards(
        arguments.source, arguments.out, images_per_shard=arguments.images_per_shard, seed=arguments.seed
    )
    kept = f", {done.num_kept} of them from before" if done.num_kept else ""
    _log.info("%s: %d images in %d shards%s", arguments.out, done.num_images, done.num_shards, kept)


def _index(arguments: argparse.Namespace) -> None:
    if arguments.source is not None:
        raise ConfigError("shards: --index FOLDER takes no SOURCE and OUT_FOLDER")
    from gkd.data.tar_indexing import index_shards

    index = index_shards(arguments.index)
    _log.info(
        "%s: indexed %d images of %d identities in %d shards",
        arguments.index,
        len(index.samples),
        index.num_identities,
        len(index.shards),
    )
