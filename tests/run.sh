#!/usr/bin/env bash
# Installs what is missing, then checks style, imports and types and runs the tests.
#
#   bash tests/run.sh [arguments of pytest]
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${RLVID_VENV:-$root/.venv}"
bash "$root/launch/environment/install.sh" --dev
cd "$root"
# One torch thread a process: tests start several, and busy-waiting threads starve each other.
export PATH="$venv/bin:$PATH" OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
# The tests start hundreds of processes: where this is set, each would compile rlvid again.
unset PYTHONDONTWRITEBYTECODE

step() { echo "[tests] $*"; "$@"; }

step ruff check .
step ruff format --check .
step codespell .
step lint-imports
step mypy
# Two tests at a time, a file at a time: most of a system test is one process after another starting.
step python -m pytest -n 2 --dist loadfile --session-timeout 3600 -rs "$@"
