#!/usr/bin/env bash
# One command on a machine with a GPU, under four minutes, without installing anything: docs/gpu.md.
#   bash scripts/gpu_check.sh [--output FOLDER]     PYTHON=... names another python than .venv's or python3
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="${PYTHON:-}"
if [ -z "$python" ]; then
    python=python3
    [ -x "$root/.venv/bin/python" ] && python="$root/.venv/bin/python"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec timeout -k 5 235 "$python" "$root/scripts/gpu_check.py" "$@"
