#!/usr/bin/env bash
# Makes the environment of the scorer face_and_pose: mediapipe 0.10.21, the last release that ships
# its models, needs numpy below 2 and OpenCV 4.11, which rlvid's own environment has outgrown.
#
#   bash launch/environment/mediapipe.sh [FOLDER] [--torch-from VENV]
#
# FOLDER is .cache/mediapipe at the top of the repository when left out. --torch-from takes torch
# and what else rlvid needs from the environment VENV of the same Python (its packages come after
# the folder's own); without it torch is installed, some 200 MB more. Name the interpreter in the
# recipe: rewards.scorers.N.python=FOLDER/bin/python.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
here="$root/launch/environment"
folder=""
torch_from=""
while [ $# -gt 0 ]; do
  case "$1" in
    --torch-from)
      [ $# -ge 2 ] || { echo "mediapipe.sh: --torch-from needs an environment" >&2; exit 2; }
      torch_from="$2"
      shift
      ;;
    -*) echo "mediapipe.sh: unknown option '$1'; the only one is --torch-from" >&2; exit 2 ;;
    *) folder="$1" ;;
  esac
  shift
done
folder="${folder:-$root/.cache/mediapipe}"

python=""
for name in ${torch_from:+"$torch_from/bin/python"} "${PYTHON:-}" python3.11 python3.12; do
  if [ -n "$name" ] && command -v "$name" >/dev/null &&
    "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
    python="$(command -v "$name")"
    break
  fi
done
[ -n "$python" ] || {
  echo "mediapipe.sh: needs Python 3.11 or 3.12, for which mediapipe 0.10.21 has wheels" >&2
  exit 2
}

[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install --no-deps -r "$here/requirements-mediapipe.txt"
site="$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# The names of both files sort after everything else, so that the folder's own packages win.
echo "$root" >"$site/zz_rlvid.pth"
if [ -n "$torch_from" ]; then
  "$torch_from/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$site/zz_torch.pth"
else
  "${pip[@]}" install --constraint "$here/requirements-mediapipe.txt" \
    torch pydantic PyYAML safetensors xxhash
fi
"$folder/bin/python" -c 'import mediapipe, torch, rlvid.rewards.base'
echo "mediapipe.sh: done; set rewards.scorers.N.python to $folder/bin/python"
