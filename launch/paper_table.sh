#!/usr/bin/env bash
# The paper's table from raw data: Beauty, Sports and Toys, dense and pruned, three seeds each, into docs/results/.
#   ./launch/paper_table.sh --raw_dir=DIR            DIR holds beauty/, sports/ and toys/; needs an accelerator
#   ./launch/paper_table.sh --raw_dir=DIR --cpu      the small models beside anchors, as python -m rastp_jax.experiment quality
#   ./launch/paper_table.sh --raw_dir=DIR --dry_run  prints every command and runs none
# Run it again after an interruption: finished runs are skipped, an interrupted one is resumed.
# Further options: --output=DIR, --runs_dir=DIR, --data_dir=DIR, --length="20 epochs" (python -m rastp_jax.paper_table --help)
set -euo pipefail

absolute() { if [[ $1 == *://* ]]; then echo "$1"; else realpath -m "$1"; fi; } # gs:// stays

arguments=() module=(rastp_jax.paper_table)
for argument in "$@"; do
  case $argument in
    --raw_dir=* | --output=* | --runs_dir=* | --data_dir=*)
      arguments+=("${argument%%=*}=$(absolute "${argument#*=}")") ;;
    --cpu) module=(rastp_jax.experiment quality) ;;
    --help | -h) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    *) arguments+=("$argument") ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
exec .venv/bin/python -m "${module[@]}" "${arguments[@]}"
