#!/usr/bin/env bash
# The test command: makes its own environment, then lint, types and tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh" dev
"$python" -m ruff check medseg kernels configs scripts tests
"$python" -m ruff format --check -q medseg kernels configs scripts tests
"$python" -m mypy & # takes a minute of one core the first time: beside the tests, which have idle moments
types=$!
# One process per core, one thread each: the fastest way through many small tests.
# Files in their order: the longest, which hold few tests, come first (contract) or in a row (training), not at the end.
OMP_NUM_THREADS=1 "$python" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@" && failed=0 || failed=$?
wait "$types" || { echo "mypy failed: see its lines above" >&2; exit 1; }
exit "$failed"
