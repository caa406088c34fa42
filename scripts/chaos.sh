#!/usr/bin/env bash
# Kill a small two-rank run at random moments until it has been killed often enough, and see that nothing was lost.
#
#   ./scripts/chaos.sh                            100 kills, some six minutes on two CPU cores; a new seed each time
#   ./scripts/chaos.sh --kills 500 --seed 7       the kills of one seed (their moments still depend on the machine)
#   ./scripts/chaos.sh --kills 20 --launcher torchrun     under torchrun itself, some ten seconds a kill
#
# Exit code 0: every run that finished was equal in every bit to an undisturbed one. See docs/reliability.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -n "${GKD_VENV:-}" && -x "$GKD_VENV/bin/python" ]] || ./scripts/setup.sh
export OMP_NUM_THREADS=1
exec "${GKD_VENV:-.venv}/bin/python" -m tests.train.chaos "$@"
