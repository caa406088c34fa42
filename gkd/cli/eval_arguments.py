"""The arguments of the evaluation tool, and what can be refused before anything is computed."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

from gkd.core.errors import ConfigError
from gkd.data.degrade import find_degradations
from gkd.evaluation import FUSIONS

_DESCRIPTION = "Verification figures of networks on pair sets (.bin) and on IJB-B/C, with intervals and comparisons."
_EXAMPLE = """examples:
  tools/eval.py --weights runs/student --data data/lfw.bin
  tools/eval.py --weights before=runs/a after=runs/b --data data/ --report report.html
  tools/eval.py --weights runs/student --ijb IJBC --json ijbc.json
"""
OUTPUT_FILES = ("json", "csv", "markdown", "report")
OUTPUT_FOLDERS = ("plots", "keep")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = argparse.ArgumentParser(
        prog="tools/eval.py",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--weights",
        required=True,
        nargs="+",
        metavar="[NAME=]PATH",
        help="run folders, .onnx files, or weight files of any known project; several are compared",
    )
    _add_data(made.add_argument_group("sets"))
    _add_network(made.add_argument_group("networks"))
    _add_statistics(made.add_argument_group("certainty"))
    _add_outputs(made.add_argument_group("results"))
    return made


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data", type=Path, nargs="+", default=[], metavar="FILE.bin|DIR", help="pair sets, or folders of them")
    add(
        "--identities",
        type=Path,
        metavar="FILE",
        help="the persons on the pairs of the one set: two names split by a tab a line, or LFW's pairs.txt; without it "
        "NAME.persons.txt beside NAME.bin is taken where it is there",
    )
    add("--ijb", type=Path, nargs="+", default=[], metavar="FOLDER", help="IJB-B or IJB-C: holds meta and loose_crop")
    add("--ijb-no-detector-score", action="store_true", help="IJB faces count the same, whatever their detection score")
    add("--ijb-unit-features", action="store_true", help="IJB faces count the same, whatever their embedding's length")


def _add_network(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--fusion",
        choices=tuple(FUSIONS),
        default="sum",
        help="how the embeddings of an image and its mirror image become one (default %(default)s)",
    )
    how.add_argument(
        "--no-flip", dest="fusion", action="store_const", const="none", help="the same as --fusion none: half the work"
    )
    add("--color", choices=("rgb", "bgr"), help="channel order of a network's input, where its weights do not say it")
    add("--mean", type=float, nargs="+", help="one or three means in 0..255 units, where the weights do not say them")
    add("--std", type=float, nargs="+", help="one or three deviations in 0..255 units, as --mean")
    add(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="image size in pixels, where an .onnx file leaves it open"
    )
    add("--no-input-check", action="store_true", help="trust --color, --mean and --std, and what a file's kind implies")
    add("--batch-size", type=int, metavar="N", help="images a forward pass (default 64; 16 on the CPU, see docs)")
    add("--device", help="cpu, cuda, cuda:1 …; the default is a GPU where there is one")
    add("--keep", type=Path, metavar="DIR", help="keep embeddings here, and take them from here the next time")


def _add_statistics(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--resamples", type=int, default=2000, help="bootstrap resamples of each interval, 0 for none (%(default)s)")
    add("--baseline", metavar="NAME", help="the model that the others are compared with (the first)")
    add(
        "--robustness",
        nargs="*",
        metavar="NAME",
        help="also measure under growing degradation of the images: the named kinds, or all",
    )
    add("--robustness-pairs", type=int, default=1000, help="pairs of a set to degrade (default %(default)s)")


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--json", type=Path, metavar="OUT.json", help="every figure")
    add("--csv", type=Path, metavar="OUT.csv", help="one line a figure")
    add("--markdown", type=Path, metavar="OUT.md", help="the tables for a README")
    add("--plots", type=Path, metavar="DIR", help="curves and scores of each set, cost, robustness; PNG, PDF")
    add("--report", type=Path, metavar="OUT.html", help="one page with tables, curves and a threshold to move")
    add("--show-faces", action="store_true", help="put the hardest pairs into the report, which then shows faces")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be done, before anything is read.

    Raises:
        ConfigError: a number out of range, or options that do not go together.
    """
    if not arguments.data and not arguments.ijb:
        raise ConfigError("nothing to evaluate on; give --data, --ijb or both")
    for option, low in (("batch_size", 1), ("resamples", 0), ("robustness_pairs", 20)):
        value = getattr(arguments, option)
        if value is not None and value < low:
            raise ConfigError(f"--{option.replace('_', '-')} must be at least {low}, got {value}")
    if arguments.robustness:
        find_degradations(tuple(arguments.robustness))
    if arguments.show_faces and arguments.report is None:
        raise ConfigError("--show-faces puts faces into the report; give --report OUT.html too")
    if arguments.ijb and arguments.fusion not in ("sum", "none"):
        raise ConfigError(f"--fusion {arguments.fusion} is not known to IJB's protocol; it takes sum or none")
    if not arguments.ijb and (arguments.ijb_no_detector_score or arguments.ijb_unit_features):
        raise ConfigError("--ijb-no-detector-score and --ijb-unit-features belong to --ijb FOLDER, which is not given")
    if not arguments.data:
        unfit = [name for name in ("identities", "keep", "plots", "report") if getattr(arguments, name) is not None]
        if unfit or arguments.robustness is not None:
            raise ConfigError(f"--{[*unfit, 'robustness'][0]} belongs to pair sets; give --data")
    if arguments.resamples == 0 and arguments.baseline is not None:
        raise ConfigError("--baseline compares models by resampling; leave --resamples 0 out")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse results that could not be written; nothing is made yet.

    Raises:
        ConfigError: a place that cannot be written, one place for two results, or a library that is missing.
    """
    given = {
        name: getattr(arguments, name)
        for name in (*OUTPUT_FILES, *OUTPUT_FOLDERS)
        if getattr(arguments, name) is not None
    }
    if len({path.resolve() for path in given.values()}) < len(given):
        raise ConfigError(f"two results would be written to one place: {', '.join(map(str, given.values()))}")
    for name, path in given.items():
        is_folder = name in OUTPUT_FOLDERS
        if path.exists() and path.is_dir() != is_folder:
            raise ConfigError(f"--{name} {path}: is {'a file' if is_folder else 'a folder'}; give another name")
        _require_writable(name, path if is_folder else path.parent)
    if arguments.plots is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plots needs matplotlib, which is not installed; run `pip install matplotlib`")


def _require_writable(name: str, folder: Path) -> None:
    """The folder, or the nearest one above it that is there, can be written."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"--{name}: cannot write in {folder}: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"--{name}: cannot write in {folder}: {place} may not be written; choose another place")
