#!/usr/bin/env bash
# Makes .venv beside this folder and installs requirements.txt into it, and requirements-dev.txt where DEV=1 says so (as
# test.sh does); does nothing where that is done already. Sourced by the other scripts. Choose the JAX build with
# JAX_BUILD=cpu (default), cuda13, cuda12 or tpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# As many images set it; each command would then compile all that it imports again, three seconds and more.
unset PYTHONDONTWRITEBYTECODE
build="${JAX_BUILD:-cpu}"

# Installs what a file lists, and further packages, unless that has been done.
install() {
  local file="$1" stamp
  shift
  stamp=".venv/.installed-$build-$(sha256sum "$file" | cut -c1-16)"
  [[ ! -e $stamp ]] || return 0
  echo "== Installing $file into .venv (JAX for $build; once, about a minute)"
  .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r "$file" "$@"
  touch "$stamp"
}

if [[ ! -x .venv/bin/python ]]; then
  python="${PYTHON:-python3}"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3." >&2
    exit 2
  }
  "$python" -m venv .venv
fi
jax=()
[[ $build == cpu ]] || jax=("jax[$build]")
install requirements.txt "${jax[@]}"
[[ -z ${DEV:-} ]] || install requirements-dev.txt
if [[ $build == cpu && -e /dev/nvidia0 ]]; then
  echo "note: this machine has an NVIDIA GPU that the CPU build of JAX does not use: run again with JAX_BUILD=cuda13."
fi
