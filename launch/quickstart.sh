#!/usr/bin/env bash
# Installs rlvid and runs the main job on this machine: GRPO on a tiny text-to-video model.
#
#   bash launch/quickstart.sh [key=value ...] [--run-folder DIR] [--resume]
#
# Needs Python 3.11, 2 cores, 5 GB of disk; no GPU. What follows is passed on to
# `rlvid run`. Results go to runs/quickstart_cpu, the report is printed at the end.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${RLVID_VENV:-$root/.venv}"
bash "$root/launch/environment/install.sh"
cd "$root"
export PATH="$venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
rlvid run configs/quickstart_cpu.yaml "$@"
