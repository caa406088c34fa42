#!/usr/bin/env bash
# Run every check: formatting, lint, types, the direction of imports, tests. Sets up the environment first.
#
#   ./scripts/test.sh               everything
#   ./scripts/test.sh tests/data    arguments go to pytest, and only the tests are run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
export PATH="$(cd "${GKD_VENV:-.venv}" && pwd)/bin:$PATH"

if [[ $# -gt 0 ]]; then
    exec pytest "$@"
fi
ruff format --check .
ruff check .
mypy
lint-imports
pytest
