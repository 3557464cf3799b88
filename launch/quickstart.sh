#!/usr/bin/env bash
# From nothing to a comparison of three trainings: dense, RASTP, and one token per item:
#   ./launch/quickstart.sh                                       generated data, a few minutes on 2 cores
#   ./launch/quickstart.sh --dataset=beauty --raw_dir=DIR        Amazon Beauty (or sports, toys) from the files in DIR;
#                                                                without --raw_dir they are downloaded
# Further options: --workdir=DIR (default runs/DATASET); anything else goes to all training runs, settings also to
#   what is prepared, like --config.train.length="2 epochs"
set -euo pipefail

absolute() { if [[ $1 == *://* ]]; then echo "$1"; else realpath -m "$1"; fi; } # gs:// stays

dataset=synthetic raw_dir="" workdir="" training=()
for argument in "$@"; do
  case $argument in
    --dataset=*) dataset="${argument#*=}" ;;
    --raw_dir=*) raw_dir="$(absolute "${argument#*=}")" ;;
    --workdir=*) workdir="$(absolute "${argument#*=}")" ;;
    --help | -h) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    *) training+=("$argument") ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
config=configs/$dataset.py:cpu variant=,
[[ $dataset == synthetic ]] && config=configs/tiny.py variant=:
[[ -f ${config%:*} ]] || { echo "error: there is no dataset '$dataset': choose synthetic, beauty, sports or toys." >&2; exit 2; }
workdir="${workdir:-runs/$dataset}"
source launch/settings.sh
source launch/setup.sh

step() { printf '\n== %s\n' "$1"; shift; printf '   %s\n' "$*"; "$@"; }
py=.venv/bin/python cache=--compilation_cache="$workdir/compiled"
step "1 of 7: preparing the data and its semantic IDs" \
  $py -m rastp_jax.prepare --config="$config" ${raw_dir:+--raw_dir="$raw_dir"} "${settings[@]}"
step "2 of 7: what recommenders reach that are not trained" \
  $py -m rastp_jax.experiment baselines --config="$config" "${settings[@]}" --epochs=0 --shuffles=0 \
  --output="$workdir/baselines.json" --runs_dir="$workdir/baselines"
step "3 of 7: training without a reduction" \
  $py -m rastp_jax.train --config="$config${variant}dense" --workdir="$workdir/dense" "$cache" "${training[@]}"
step "4 of 7: training with RASTP" \
  $py -m rastp_jax.train --config="$config${variant}rastp" --workdir="$workdir/rastp" "$cache" "${training[@]}"
step "5 of 7: training with one token per item" \
  $py -m rastp_jax.train --config="$config${variant}items" --workdir="$workdir/items" "$cache" "${training[@]}"
runs=(--workdir="$workdir/dense" --workdir="$workdir/rastp" --workdir="$workdir/items")
step "6 of 7: evaluating all three" \
  $py -m rastp_jax.evaluate "${runs[@]}" "$cache"
step "7 of 7: making the report" \
  $py -m rastp_jax.report "${runs[@]}" --baselines="$workdir/baselines.json" --output="$workdir/report" "$cache"
