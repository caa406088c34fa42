"""The JSON Schema of the config files, for editors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gkd.cli import run_tool
from gkd.core.config import json_schema
from gkd.core.errors import GkdError
from gkd.schema import TrainRun


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the schema to a file or to standard output; returns the exit code."""
    return run_tool(lambda: _write(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/schema.py", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.json", help="standard output where left out")
    return parser.parse_args(arguments)


def _write(options: argparse.Namespace) -> None:
    text = json.dumps(json_schema(TrainRun), indent=2) + "\n"
    if options.out is None:
        sys.stdout.write(text)
        return
    try:
        options.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GkdError(f"cannot write {options.out}: {error.strerror}") from None
