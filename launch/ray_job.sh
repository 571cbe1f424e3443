#!/usr/bin/env bash
# Submits a run to a Ray cluster that is already up, with this checkout's code as a wheel.
#
#   RAY_API_SERVER_ADDRESS=http://head:8265 bash launch/ray_job.sh RECIPE [key=value ...]
#
# The nodes need the packages of launch/environment/, not rlvid itself. RECIPE is the name of one that
# ships, or a path that the cluster can read; name a run folder that all nodes see.
set -euo pipefail

if [ "$#" -lt 1 ] || [ -z "${RAY_API_SERVER_ADDRESS:-}" ]; then
  echo "usage: RAY_API_SERVER_ADDRESS=http://head:8265 bash launch/ray_job.sh RECIPE" \
    "[key=value ...] [--run-folder DIR] [--resume]" >&2
  exit 2
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" "$root"
wheel="$(echo "$work"/rlvid-*.whl)"

# A wheel has one copy of the code; a working_dir beside an installed rlvid would have two. The
# module is run by name because a wheel in py_modules puts no script on PATH.
ray job submit --runtime-env-json "{\"py_modules\": [\"$wheel\"]}" \
  -- python -c 'from rlvid.launch.cli import main; main()' run "$@" cluster.address=auto
