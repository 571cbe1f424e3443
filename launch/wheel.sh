#!/usr/bin/env bash
# Builds the wheel of the checkout that this script lies in.
#
#   bash launch/wheel.sh FOLDER
#
# FOLDER holds it whole or not at all. It is built from a copy: the build/ that an earlier one left in
# the checkout would add modules that are gone since, and two at once would write into each other's.
set -euo pipefail

if [ "$#" -ne 1 ]; then
  echo "usage: bash launch/wheel.sh FOLDER" >&2
  exit 2
fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$1"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
trap exit TERM

mkdir "$work/source"
tar -C "$root" --exclude=__pycache__ -c actors configs launch learners rewards rlvid \
  LICENSE README.md pyproject.toml setup.py | tar -C "$work/source" -x
commit="$(git -C "$root" describe --always --dirty --abbrev=12 2>/dev/null)" || commit=""
# For versions.json of the runs, which see no checkout.
[ -z "$commit" ] || echo "$commit" >"$work/source/launch/built_from.txt"
if ! python -m pip wheel --no-deps --no-build-isolation --wheel-dir "$work" "$work/source" \
  >"$work/log" 2>&1; then
  cat "$work/log" >&2
  echo "wheel.sh: expected a wheel of $root, pip built none; see above, and launch/environment/" \
    "for the packages that it needs" >&2
  exit 1
fi
wheel="$(basename "$work"/rlvid-*.whl)"
# Of the nodes' packages it asks none: they are the lock's, and Ray would have pip bring others.
python "$root/launch/bare_wheel.py" "$work/$wheel"
mkdir -p "$folder"
cp "$work/$wheel" "$folder/.$wheel"
sync "$folder/.$wheel"
mv "$folder/.$wheel" "$folder/$wheel"
echo "wheel.sh: $folder/$wheel, commit ${commit:-unknown}"
