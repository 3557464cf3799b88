#!/usr/bin/env bash
# Trains on this machine, CPU or GPUs, and evaluates; run it again after an interruption.
#   ./launch/local.sh --config=configs/beauty.py --workdir=runs/beauty [--raw_dir=DIR] [--dry_run] [training flags]
# The JAX build follows the machine (cuda13, cuda12 or cpu); JAX_BUILD=... chooses another one.
set -euo pipefail

absolute() { if [[ $1 == *://* ]]; then echo "$1"; else realpath -m "$1"; fi; } # gs:// stays

config="" workdir="" raw_dir="" dry="" training=()
for argument in "$@"; do
  case $argument in
    --config=*) config="${argument#*=}" ;;
    --workdir=*) workdir="${argument#*=}" ;;
    --raw_dir=*) raw_dir="$(absolute "${argument#*=}")" ;;
    --dry_run) dry=1 ;;
    --help | -h) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    *) training+=("$argument") ;;
  esac
done
[[ -n $config && -n $workdir ]] || { echo "error: give --config=FILE and --workdir=DIR (see --help)." >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/settings.sh

build="${JAX_BUILD:-}"
if [[ -z $build ]]; then
  build=cpu
  if driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)"; then
    build=cuda12
    [[ ${driver%%.*} =~ ^[0-9]+$ && ${driver%%.*} -ge 580 ]] && build=cuda13 # CUDA 13 needs a driver of 580 or newer
  fi
fi

step() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ -n $dry ]] || "$@"
}
py=.venv/bin/python
step env JAX_BUILD="$build" bash launch/setup.sh
step $py -m rastp_jax.prepare --config="$config" ${raw_dir:+--raw_dir="$raw_dir"} "${settings[@]}"
step ./launch/restart_until_done.sh $py -m rastp_jax.train --config="$config" --workdir="$workdir" "${training[@]}"
step $py -m rastp_jax.evaluate --workdir="$workdir"
