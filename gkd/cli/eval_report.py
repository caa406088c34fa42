"""What the evaluation tool shows and writes: tables, files of figures, plots, a page."""

from __future__ import annotations

import argparse
import logging
import sys

from gkd.cli.eval_files import write_csv, write_json
from gkd.cli.eval_html import write_html
from gkd.cli.eval_plots import draw
from gkd.cli.eval_statistics import Evaluation
from gkd.cli.eval_tables import markdown, terminal_text
from gkd.core.files import atomic_write

_LOG = logging.getLogger(__name__)


def write_results(evaluation: Evaluation, arguments: argparse.Namespace) -> None:
    """Print the tables and the messages, and write what was asked for."""
    sys.stdout.write(terminal_text(evaluation))
    sys.stdout.flush()
    if arguments.json is not None:
        write_json(evaluation, arguments)
    if arguments.csv is not None:
        write_csv(evaluation, arguments.csv)
    if arguments.markdown is not None:
        with atomic_write(arguments.markdown) as temporary:
            temporary.write_text(markdown(evaluation, arguments), encoding="utf-8")
    has_figures = any(figures.sets for figures in evaluation.models)
    if arguments.plots is not None and has_figures:
        draw(evaluation, arguments.plots)
    if arguments.report is not None and has_figures:
        write_html(evaluation, arguments)
        if arguments.show_faces:
            _LOG.warning("%s shows faces: it is personal data", arguments.report)
    for message in _failures(evaluation):
        sys.stderr.write(f"error: {message}\n")


def _failures(evaluation: Evaluation) -> list[str]:
    """The messages of the sets that were refused; one that all models share comes once."""
    told = [(figures.model.name, message) for figures in evaluation.models for message in figures.failed.values()]
    messages = [message for _, message in told]
    is_alone = len(evaluation.models) == 1
    return list(
        dict.fromkeys(
            message if is_alone or messages.count(message) == len(evaluation.models) else f"{name}: {message}"
            for name, message in told
        )
    )
