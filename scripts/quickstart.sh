#!/usr/bin/env bash
# Draw faces, train a teacher, an undistilled control and a Grouped KD student, and compare them.
#
#   ./scripts/quickstart.sh                      one seed, about ten minutes on two idle CPU cores
#   ./scripts/quickstart.sh --seeds 1024 1 2     the mean over several seeds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
exec "${GKD_VENV:-.venv}/bin/python" tools/quickstart.py "$@"
