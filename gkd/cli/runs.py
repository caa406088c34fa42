"""`tools/runs.py list|compare|page`: list and compare runs, and write one HTML page of them.

Reads only the files of the run folders, also of runs that are under way or of other versions; writes nothing there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gkd.cli import run_tool
from gkd.core.errors import ConfigError, DataError
from gkd.core.files import atomic_write
from gkd.core.log import set_up_logging
from gkd.runs.comparison import compare, format_comparison, format_comparison_markdown
from gkd.runs.find import FoundRuns, find_runs
from gkd.runs.listing import format_list, run_record, sort_runs
from gkd.runs.page import write_page
from gkd.runs.plot import plot_runs
from gkd.runs.run import Run, read_runs

MAX_COMPARED = 32

EXAMPLE = """examples:
  python tools/runs.py list runs --sort accuracy
  python tools/runs.py compare runs/gkd runs/control --png curves.png
  python tools/runs.py page runs --out runs.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    arguments = _parser().parse_args(argv)
    set_up_logging()
    tasks = {"list": _list, "compare": _compare, "page": _page}
    return run_tool(lambda: tasks[arguments.task](arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/runs.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="list|compare|page")
    listing = tasks.add_parser("list", help="one line a run")
    _add_folders(listing)
    _add_sort(listing)
    listing.add_argument("--json", action="store_true", help="print JSON instead of a table")
    comparing = tasks.add_parser("compare", help="differences of the configs and the figures")
    comparing.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder; the first is the reference")
    comparing.add_argument("--metric", action="append", default=[], metavar="NAME", help="a metric to compare by")
    comparing.add_argument("--png", type=Path, metavar="OUT.png", help="draw the curves into this file")
    comparing.add_argument("--markdown", type=Path, metavar="OUT.md", help="write the tables into this file too")
    page = tasks.add_parser("page", help="one HTML file, which needs no network")
    _add_folders(page)
    _add_sort(page)
    page.add_argument("--out", type=Path, required=True, metavar="OUT.html", help="the file to write")
    page.add_argument("--title", default="Training runs", help="the heading of the page")
    return parser


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run folder, or one that holds some")


def _add_sort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sort", metavar="KEY", help="name, state, started, steps, accuracy, loss, images/s or any metric"
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round")


def _list(arguments: argparse.Namespace) -> None:
    found = find_runs(arguments.folders)
    runs = _sorted(arguments, found)
    if arguments.json:
        records = [run_record(run) for run in runs]
        sys.stdout.write(json.dumps({"runs": records, "notes": found.notes}, indent=2, allow_nan=False) + "\n")
        return
    sys.stdout.write(format_list(runs) + "".join(f"{note}\n" for note in found.notes))


def _compare(arguments: argparse.Namespace) -> None:
    found = FoundRuns()
    for folder in arguments.runs:
        found.paths += [path for path in find_runs([folder]).paths if path not in found.paths]
    if not 2 <= len(found.paths) <= MAX_COMPARED:
        raise ConfigError(f"compare: needs 2 to {MAX_COMPARED} runs, got {len(found.paths)}; name other folders")
    runs = read_runs(found.paths)
    comparison = compare(runs, arguments.metric)
    if arguments.png is not None:
        _require_suffix(arguments.png, ".png", "--png")
        plot_runs(runs, arguments.png, arguments.metric)
    if arguments.markdown is not None:
        picture = None if arguments.png is None else _seen_from(arguments.png, arguments.markdown.parent)
        with atomic_write(arguments.markdown) as temporary:
            temporary.write_text(format_comparison_markdown(comparison, picture), encoding="utf-8")
    sys.stdout.write(format_comparison(comparison))


def _page(arguments: argparse.Namespace) -> None:
    _require_suffix(arguments.out, ".html", "--out")
    found = find_runs(arguments.folders)
    runs = _sorted(arguments, found)
    write_page(arguments.out, runs, title=arguments.title, notes=found.notes)
    sys.stdout.write(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {arguments.out}\n")


def _sorted(arguments: argparse.Namespace, found: FoundRuns) -> list[Run]:
    runs = read_runs(found.paths)
    if arguments.sort is not None:
        return sort_runs(runs, arguments.sort, is_reversed=arguments.reverse)
    return runs[::-1] if arguments.reverse else runs


def _require_suffix(path: Path, suffix: str, option: str) -> None:
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} {path}: the file is to end in {suffix}")
    if path.is_dir():
        raise DataError(f"{option} {path}: is a folder, but a file is needed")


def _seen_from(path: Path, folder: Path) -> str:
    """`path` as a link in a file in `folder`."""
    return os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/")
