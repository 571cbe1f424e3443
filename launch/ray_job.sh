#!/usr/bin/env bash
# Submits a run to a Ray cluster that is already up, with this checkout's code as a wheel.
#
#   RAY_API_SERVER_ADDRESS=http://head:8265 bash launch/ray_job.sh RECIPE --run-folder DIR \
#     [key=value ...]
#
# The nodes need the packages of launch/environment/, not rlvid itself. RECIPE is the name of one that
# ships, or a path that the cluster can read; DIR is a folder that all nodes see.
#
# A job that was asked to make room (exit status 75), or whose node died, is submitted again and goes
# on in DIR; RLVID_ATTEMPTS of them at most (100). An error of the user's (2) and `ray job stop` end
# it, and so does a node that the doctor, who looks at all of them first, finds broken.
#
# Ray itself should ask for a token: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here, and before
# `ray start` on the nodes.
set -euo pipefail

if [ "$#" -lt 1 ] || [ -z "${RAY_API_SERVER_ADDRESS:-}" ] || [[ " $* " != *" --run-folder"* ]]; then
  echo "usage: RAY_API_SERVER_ADDRESS=http://head:8265 bash launch/ray_job.sh RECIPE" \
    "--run-folder DIR [key=value ...]" >&2
  exit 2
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
bash "$root/launch/wheel.sh" "$work"
wheel="$(echo "$work"/rlvid-*.whl)"

# Exit status of a job's driver; "lost" when it never told one, as when its node died.
driver_status() {
  python - "$1" <<'PYTHON'
import sys

from ray.job_submission import JobSubmissionClient

details = JobSubmissionClient().get_job_info(sys.argv[1])
known = {"SUCCEEDED": 0, "STOPPED": 130}
status = known.get(details.status, details.driver_exit_code)
print("lost" if status is None else status)
PYTHON
}

# A wheel has one copy of the code; a working_dir beside an installed rlvid would have two. The
# module is run by name because a wheel in py_modules puts no script on PATH.
status=1
for attempt in $(seq "${RLVID_ATTEMPTS:-100}"); do
  job="rlvid-$$-$(date +%s)-$attempt"
  ray job submit --submission-id "$job" --runtime-env-json "{\"py_modules\": [\"$wheel\"]}" -- \
    python -c 'from rlvid.launch.cli import main; main()' run "$@" --resume-if-exists \
    --restarts 3 --doctor cluster.address=auto || true
  status="$(driver_status "$job")"
  case "$status" in
    75 | lost | -*) echo "ray_job.sh: job $job ended with $status; submitting it again" >&2 ;;
    *) exit "$status" ;;
  esac
  sleep "${RLVID_PAUSE_S:-10}"
done
echo "ray_job.sh: all attempts are used up" >&2
exit 75
