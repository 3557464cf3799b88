#!/usr/bin/env bash
# Makes .venv beside this folder and installs requirements.txt into it; does nothing where that is done already.
# Sourced by the other scripts. Choose the JAX build with JAX_BUILD=cpu (default), cuda13, cuda12 or tpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build="${JAX_BUILD:-cpu}"
stamp=".venv/.installed-$build-$(sha256sum requirements.txt | cut -c1-16)"
if [[ ! -e $stamp ]]; then
  python="${PYTHON:-python3}"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3." >&2
    exit 2
  }
  echo "== Installing into .venv (JAX for $build; once, about a minute)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.txt
  [[ $build == cpu ]] || .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check "jax[$build]"
  touch "$stamp"
fi
if [[ $build == cpu && -e /dev/nvidia0 ]]; then
  echo "note: this machine has an NVIDIA GPU that the CPU build of JAX does not use: run again with JAX_BUILD=cuda13."
fi
