"""Runs as one HTML page that needs nothing else: no server, no network, no library.

The page asks for nothing from outside, and its content policy forbids it to; only its own script may run. What the
runs' files hold is text to it, never markup.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from gkd.core.files import atomic_write
from gkd.core.offline_page import content_policy, safe_json
from gkd.core.yaml_lines import printable
from gkd.runs.page_data import page_data
from gkd.runs.page_tables import best_table, detail_blocks, note_list, runs_table
from gkd.runs.run import Run

# The drawing and the look are those of the evaluation report.
_SHARED = "gkd.evaluation"
_STYLES = ((_SHARED, "page.css"), ("gkd.runs", "runs.css"))
_SCRIPTS = (
    (_SHARED, "charts.js"),
    ("gkd.runs", "switches.js"),
    ("gkd.runs", "table.js"),
    ("gkd.runs", "series.js"),
    ("gkd.runs", "curves.js"),
    ("gkd.runs", "settings.js"),
    ("gkd.runs", "page.js"),
)


def write_page(
    path: Path, runs: Sequence[Run], title: str = "Training runs", notes: Sequence[str] = (), now: float | None = None
) -> None:
    """Write the page of `runs` as one HTML file, whole or not at all.

    Args:
        path: the file, replaced where it exists.
        runs: in the order of the table; the order gives the colours.
        title: the heading.
        notes: texts for the end of the page, beside those of the runs.
        now: the time that the page bears, in seconds since 1970.
    """
    page = runs_page(runs, title, notes, time.time() if now is None else now)
    with atomic_write(path) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def runs_page(runs: Sequence[Run], title: str, notes: Sequence[str], now: float) -> str:
    """The text of the page that `write_page` writes."""
    style = "".join(_template(*place) for place in _STYLES)
    script = "".join(_template(*place) for place in _SCRIPTS)
    count = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    return Template(_template("gkd.runs", "page.html")).substitute(
        title=escape(printable(title, 200)),
        counts=f"{count}, read {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC",
        policy=content_policy(style, script),
        style=style,
        script=script,
        runs=runs_table(runs),
        best=best_table(runs),
        details=detail_blocks(runs),
        notes=note_list(runs, notes),
        data=safe_json(page_data(runs)),
    )


def _template(package: str, name: str) -> str:
    return (files(package) / "html" / name).read_text(encoding="utf-8")
