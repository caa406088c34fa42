"""Makes data: synthetic faces, a .rec from a folder of images, a split by people, verification pairs."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from gkd.cli import run_tool
from gkd.core.log import set_up_logging

_log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    arguments = _parser().parse_args(argv)
    set_up_logging()
    return run_tool(lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/prepare.py", description=__doc__)
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    _add_synthetic(tasks)
    _add_pack(tasks)
    _add_split(tasks)
    _add_pairs(tasks)
    _add_centres(tasks)
    return parser


def _add_synthetic(tasks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    task = tasks.add_parser("synthetic", help="draw faces into train.rec, validation.bin and test.bin")
    task.add_argument("out", type=Path, metavar="OUT", help="the folder to write into")
    task.add_argument("--num-identities", type=int, default=300, help="identities to train on (%(default)s)")
    task.add_argument("--images-per-identity", type=int, default=30, help="images of each (%(default)s)")
    task.add_argument("--eval-identities", type=int, default=200, help="others, for each set of pairs (%(default)s)")
    task.add_argument("--eval-pairs", type=int, default=2000, help="pairs in each of the two sets (%(default)s)")
    task.add_argument("--seed", type=int, default=0, help="every face is a function of it (%(default)s)")
    task.add_argument("--size", type=int, default=112, help="height and width in pixels (%(default)s)")
    task.add_argument("--workers", type=int, default=1, help="processes that draw (%(default)s)")
    task.set_defaults(run=_write_synthetic)


def _add_pack(tasks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    task = tasks.add_parser("pack", help="write a folder with a sub-folder for each identity into a .rec")
    task.add_argument("folder", type=Path, metavar="FOLDER", help="aligned images, FOLDER/<identity>/<image>")
    task.add_argument("out", type=Path, metavar="OUT.rec", help="the file to write")
    task.set_defaults(run=_pack)


def _add_split(tasks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    task = tasks.add_parser("split", help="set some people apart: OUT/train.rec and OUT/held_out.rec")
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


def _add_pairs(tasks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    task = tasks.add_parser("pairs", help="write random verification pairs of a set's images into a .bin")
    task.add_argument("source", type=Path, metavar="SOURCE", help="a folder of identities or a .rec file")
    task.add_argument("out", type=Path, metavar="OUT.bin", help="the file to write")
    task.add_argument("--num-pairs", type=int, default=2000, help="pairs, half of them of one person (%(default)s)")
    task.add_argument("--folds", type=int, default=10, help="contiguous parts, each balanced (%(default)s)")
    task.add_argument("--seed", type=int, default=0, help="the pairs are a function of it (%(default)s)")
    task.set_defaults(run=_pair)


def _add_centres(tasks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    task = tasks.add_parser(
        "centres",
        help="embed a teacher's training images: its class centres and a report of label noise",
        description="Embeds the training images of CONFIG with its teacher (shared over the ranks under torchrun), and "
        "makes the class centres that its teacher.centres names, without training.",
    )
    task.add_argument("config", type=Path, metavar="CONFIG", help="a training config whose teacher has `centres`")
    task.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    task.set_defaults(run=_make_centres)


def _write_synthetic(arguments: argparse.Namespace) -> None:
    from gkd.data.synthetic import write_synthetic

    write_synthetic(
        arguments.out,
        num_identities=arguments.num_identities,
        images_per_identity=arguments.images_per_identity,
        eval_identities=arguments.eval_identities,
        eval_pairs=arguments.eval_pairs,
        seed=arguments.seed,
        size=arguments.size,
        num_workers=arguments.workers,
    )
    _log.info("synthetic faces are in %s", arguments.out)


def _pack(arguments: argparse.Namespace) -> None:
    from gkd.data import pack_folder

    num_images = pack_folder(arguments.folder, arguments.out)
    _log.info("packed %d images into %s", num_images, arguments.out)


def _split(arguments: argparse.Namespace) -> None:
    from gkd.data.rec_split import split_faces

    report = split_faces(arguments.sources, arguments.out, held_out=arguments.held_out, seed=arguments.seed)
    sys.stdout.write(json.dumps(report["counts"]) + "\n")


def _pair(arguments: argparse.Namespace) -> None:
    from gkd.data.pair_making import make_pair_file

    pairs = make_pair_file(
        arguments.source, arguments.out, num_pairs=arguments.num_pairs, folds=arguments.folds, seed=arguments.seed
    )
    _log.info("wrote %s with %d pairs, %d of them of one person", arguments.out, len(pairs), int(pairs.is_same.sum()))


def _make_centres(arguments: argparse.Namespace) -> None:
    from gkd.cli.centres import make_centres

    make_centres(arguments.config, arguments.overrides)
