#!/usr/bin/env bash
# Train on one machine or several, on torchrun's c10d rendezvous.
#
#   ./scripts/launch.sh CONFIG [key=value ...]                one machine, all its GPUs, or one process on the CPU
#   ./scripts/launch.sh --gpus-per-node 4 CONFIG              four of them (on the CPU: four processes)
#   ./scripts/launch.sh --nodes 2 --node-rank 0 --rendezvous HOST:29400 --max-restarts 3 CONFIG     on the machine HOST
#   ./scripts/launch.sh --nodes 2 --node-rank 1 --rendezvous HOST:29400 --max-restarts 3 CONFIG     on the other
#
#   --max-restarts M   when a process dies, start all again up to M times, from the newest checkpoint (default 0)
#
# All machines must see the run folder and the data under the same paths. SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 let the
# run save and end; the same command continues it. The exit code is torchrun's: 0 where all steps are done, else 1.
# Python is that of GKD_VENV, or of .venv, or else the first on the PATH.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
fail() { echo "launch: $*" >&2; exit 2; }
usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

nodes=1 node_rank="" rendezvous="" gpus_per_node="" max_restarts=0
while [[ "${1:-}" == --* ]]; do
    [[ "$1" != --help ]] || { usage; exit 0; }
    [[ $# -ge 2 ]] || fail "$1 needs a value"
    case "$1" in
        --nodes) nodes="$2" ;;
        --node-rank) node_rank="$2" ;;
        --rendezvous) rendezvous="$2" ;;
        --gpus-per-node) gpus_per_node="$2" ;;
        --max-restarts) max_restarts="$2" ;;
        *) fail "unknown option $1; see --help" ;;
    esac
    shift 2
done
[[ $# -ge 1 ]] || fail "name a config: ./scripts/launch.sh [options] CONFIG [key=value ...]"
is_number() { [[ "$1" =~ ^(0|[1-9][0-9]{0,5})$ ]]; }
{ is_number "$nodes" && [[ "$nodes" -ge 1 ]]; } || fail "--nodes must be a whole number of 1 or more, got $nodes"
is_number "$max_restarts" || fail "--max-restarts must be a whole number of 0 or more, got $max_restarts"

python="${GKD_VENV:-$root/.venv}/bin/python"
if [[ ! -x "$python" ]]; then
    [[ -z "${GKD_VENV:-}" ]] || fail "GKD_VENV: no $python; run ./scripts/setup.sh"
    python="$(command -v python3)" || fail "no Python: run ./scripts/setup.sh, or put one on the PATH"
fi

has_gpus=""
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    has_gpus=1
fi
if [[ -z "$gpus_per_node" ]]; then
    gpus_per_node=1
    if [[ -n "$has_gpus" ]]; then
        # torch, not nvidia-smi, knows which of them this process may use.
        gpus_per_node="$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')"
    fi
fi
{ is_number "$gpus_per_node" && [[ "$gpus_per_node" -ge 1 ]]; } \
    || fail "--gpus-per-node must be a whole number of 1 or more, got $gpus_per_node"

meeting=(--standalone)
if [[ "$nodes" -gt 1 ]]; then
    [[ "$rendezvous" =~ ^[^:/]+:[0-9]+$ ]] \
        || fail "--nodes $nodes needs --rendezvous HOST:PORT, the same on all machines, where HOST is that of --node-rank 0"
    { is_number "$node_rank" && [[ "$node_rank" -lt "$nodes" ]]; } \
        || fail "--nodes $nodes needs --node-rank, another on each machine: 0 to $((nodes - 1)), got '$node_rank'"
    # Said outright, since a machine does not always know the name that the others call it by.
    is_host=0
    [[ "$node_rank" -ne 0 ]] || is_host=1
    meeting=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$rendezvous"
        --rdzv-id "gkd-${SLURM_JOB_ID:-run}" --rdzv-conf "is_host=$is_host")
fi

if [[ -z "${OMP_NUM_THREADS:-}" ]]; then
    # The cores shared out; more than eight threads do nothing for a process whose work is on a GPU.
    threads=$(($(nproc) / gpus_per_node))
    [[ -z "$has_gpus" || "$threads" -le 8 ]] || threads=8
    [[ "$threads" -ge 1 ]] || threads=1
    export OMP_NUM_THREADS="$threads"
fi

# By itself torchrun keeps one store over all restarts: processes started again may find the addresses of dead ones there,
# and a machine that joins later is never told where the store is. So each round gets a store of its own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# torchrun would die of a SIGUSR1, and hand on each signal that reaches it beside those from here. So it ignores the one
# (a trap of '' is inherited), has a process group of its own (set -m), and gets a single SIGTERM, which it hands on.
torchrun=""
is_stopping=""
hand_on() {
    trap '' TERM INT USR1
    is_stopping=1
    echo "launch: asked to stop; waiting for the run to save" >&2
    [[ -z "$torchrun" ]] || kill -TERM "$torchrun" 2>/dev/null || true
}
trap hand_on TERM INT
trap '' USR1
set -m
"$python" -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$gpus_per_node" --max-restarts "$max_restarts" \
    "$root/tools/train.py" "$@" &
torchrun=$!
set +m
trap hand_on USR1
[[ -z "$is_stopping" ]] || kill -TERM "$torchrun" 2>/dev/null || true

code=0
wait "$torchrun" || code=$?
# A trapped signal ends the first wait early; only the second gives torchrun's own code then.
if [[ -n "$is_stopping" ]]; then
    code=0
    wait "$torchrun" || code=$?
fi
exit "$code"
