#!/usr/bin/env bash
# Make the virtual environment that every other script uses, or do nothing if it is ready.
#
#   scripts/setup.sh            installs requirements-dev.txt into .venv, or into the folder that GKD_VENV names
#
# The folder is marked `.gkd-incomplete` until everything is installed, so a half-made one is seen and made anew.
# A folder that this script did not make is never touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${GKD_VENV:-.venv}"
python="${PYTHON:-python3}"
fail() { echo "setup: $*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "\`$python\` is not on the PATH; install Python 3.11 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "$("$python" --version) is too old; install Python 3.11 or newer, or set PYTHON to it"

wanted="$("$python" --version) $(cat requirements.txt requirements-dev.txt | sha256sum | cut -c1-16)"
is_ready() { [[ ! -e "$venv/.gkd-incomplete" && "$(cat "$venv/.gkd-ready" 2>/dev/null)" == "$wanted" ]]; }
is_ready && exit 0

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock -w 1800 9 || fail "another set-up has held $venv.lock for half an hour; end it and try again"
is_ready && exit 0 # made by another process while this one waited

if [[ -d "$venv" && ! -e "$venv/.gkd-incomplete" && ! -e "$venv/.gkd-ready" && -n "$(ls -A "$venv")" ]]; then
    fail "$venv exists and was not made by this script; remove it, or name another folder with GKD_VENV"
fi
if [[ -e "$venv/.gkd-incomplete" ]]; then
    echo "setup: $venv is half-made; making it anew"
    rm -rf "$venv"
fi
mkdir -p "$venv"
touch "$venv/.gkd-incomplete"
echo "setup: installing into $venv (about 6 GB with the CUDA build of torch; a few minutes on a fast line)"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
echo "$wanted" >"$venv/.gkd-ready"
rm "$venv/.gkd-incomplete"
echo "setup: $venv is ready"
