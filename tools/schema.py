#!/usr/bin/env python3
"""Write the JSON Schema of the config files; see `--help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/, whose profile.py is no stdlib module

from gkd.cli.schema import main

if __name__ == "__main__":
    sys.exit(main())
