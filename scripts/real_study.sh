#!/usr/bin/env bash
# The real-face study of docs/results.md; what is done already is not done again.
#
#   GKD_REAL_DATA=FOLDER ./scripts/real_study.sh [key=value ...] [--dry-run]
#
# FOLDER holds celeba/<identity>/*.jpg, lfw/lfw.bin and models/mobilefacenet128.onnx.
set -euo pipefail
fail() { echo "real_study: $*" >&2; exit 2; }
[[ -n "${GKD_REAL_DATA:-}" ]] || fail "name the folder of real faces: GKD_REAL_DATA=FOLDER ./scripts/real_study.sh"
[[ -d "$GKD_REAL_DATA" ]] || fail "GKD_REAL_DATA: no such folder: $GKD_REAL_DATA"
real_data="$(cd "$GKD_REAL_DATA" && pwd)"
for name in celeba lfw/lfw.bin models/mobilefacenet128.onnx; do
    [[ -e "$real_data/$name" ]] || fail "$real_data/$name is missing; see the head of scripts/real_study.sh"
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
python="${GKD_VENV:-.venv}/bin/python"
mkdir -p data/celeba
ln -sfn "$real_data/lfw/lfw.bin" data/celeba/lfw.bin
ln -sfn "$real_data/models/mobilefacenet128.onnx" data/celeba/mobilefacenet128.onnx
"$python" tools/prepare.py split "$real_data/celeba" data/celeba --held-out 30
[[ -e data/celeba/held_out.bin ]] || "$python" tools/prepare.py pairs data/celeba/held_out.rec data/celeba/held_out.bin
exec "$python" tools/study.py configs/study/celeba.yaml "$@"
