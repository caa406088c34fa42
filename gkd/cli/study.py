"""`tools/study.py STUDY.yaml [key=value ...] [--dry-run]`: compare training methods fairly.

The control is tuned on held-out pairs, each method inherits its settings and gets trials of its own on the same pairs,
all are trained with several seeds, and each final run is scored on the test sets once. What is done is not done again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from gkd.cli import EXIT_REFUSED, run_tool
from gkd.core.files import locked_folder
from gkd.core.log import set_up_logging
from gkd.study.checks import require_ready
from gkd.study.jobs import Launch, ProcessLauncher
from gkd.study.listing import format_plan, read_sets
from gkd.study.plan import StudyPlan
from gkd.study.report import write_report
from gkd.study.results import StudyOutcome
from gkd.study.steps import Study
from gkd.train.stop import StopOnSignal

logger = logging.getLogger(__name__)

EXAMPLE = """example:
  python tools/study.py configs/study/celeba.yaml --dry-run
  python tools/study.py configs/study/celeba.yaml study.jobs=2
"""


def main(argv: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """Run the tool; returns the exit code. `launch` runs commands; tests give their own."""
    parser = argparse.ArgumentParser(
        prog="tools/study.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="a YAML file; see docs/studies.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--dry-run", action="store_true", help="print every run of the study and start none")
    arguments = parser.parse_intermixed_args(argv)
    set_up_logging()
    return run_tool(lambda: _main(arguments, launch or ProcessLauncher()))


def _main(arguments: argparse.Namespace, launch: Launch) -> int:
    plan = StudyPlan(arguments.study, arguments.overrides)
    sets = read_sets(plan)
    if arguments.dry_run:
        sys.stdout.write(format_plan(plan, sets))
    require_ready(plan, sets)
    if arguments.dry_run:
        return 0
    with locked_folder(plan.folder, "study.folder", "another study is running"), StopOnSignal() as stop:
        study = Study(plan, sets, launch, stop)
        study.run()
        if stop.signal_number:
            logger.warning("stopped; the same command goes on from here")
            return 128 + stop.signal_number
        outcome = StudyOutcome(plan, sets, study.choices, study.failures)
        sys.stdout.write(write_report(outcome))
        return EXIT_REFUSED if study.failures else 0
