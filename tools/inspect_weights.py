#!/usr/bin/env python3
"""Say what weight files hold; see `gkd.cli.inspect_weights`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/, whose profile.py is no stdlib module

from gkd.cli import leave
from gkd.cli.inspect_weights import main

if __name__ == "__main__":
    leave(main())
