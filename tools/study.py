#!/usr/bin/env python3
"""Compare training methods fairly; see `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gkd.cli.study import main

if __name__ == "__main__":
    sys.exit(main())
