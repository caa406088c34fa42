"""Make, check and change data; see `--help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/, whose profile.py is no stdlib module

from gkd.cli import leave
from gkd.cli.prepare import main

if __name__ == "__main__":
    leave(main())
