#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice: creates or reuses it, copies this checkout's last commit, installs, prepares the
# data, starts all workers, follows the first one's log, and begins again after a preemption.
#   ./launch/tpu_vm.sh --name=NAME --zone=ZONE --bucket=gs://BUCKET/DIRECTORY --config=configs/beauty.py --run=beauty
#     [--type=v5litepod-16] [--version=v2-alpha-tpuv5-lite] [--project=PROJECT] [--spot] [--raw_dir=DIR]
#     [--delete] [--dry_run] [training flags]
# --bucket takes data and runs, which outlive the machines; their service account must be able to write there.
# --nfs=IP:/SHARE in its place is a share that all workers mount (like Filestore). --raw_dir is in the bucket or on the
# share. --delete takes the machines down once training is done. gcloud must be logged in.
set -euo pipefail

name="" zone="" nfs="" bucket="" config="" run="" type=v5litepod-16 version=v2-alpha-tpuv5-lite
raw_dir="" spot="" delete="" dry="" where=() training=()
for argument in "$@"; do
  value="${argument#*=}"
  case $argument in
    --name=*) name="$value" ;;
    --zone=*) zone="$value" ;;
    --nfs=*) nfs="$value" ;;
    --bucket=*) bucket="${value%/}" ;;
    --config=*) config="$value" ;;
    --run=*) run="$value" ;;
    --type=*) type="$value" ;;
    --version=*) version="$value" ;;
    --project=*) where+=("--project=$value") ;;
    --raw_dir=*) raw_dir="$value" ;;
    --spot) spot=--spot ;;
    --delete) delete=1 ;;
    --dry_run) dry=1 ;;
    --help | -h) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    *) training+=("$argument") ;;
  esac
done
for needed in name zone config run; do
  [[ -n ${!needed} ]] || { echo "error: --$needed=... is missing (see --help)." >&2; exit 2; }
done
[[ -n $nfs$bucket && ( -z $nfs || -z $bucket ) && ${bucket:-gs://} == gs://* ]] || {
  echo "error: give either --bucket=gs://BUCKET/DIRECTORY or --nfs=IP:/SHARE (see --help)." >&2
  exit 2
}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/settings.sh
where+=("--zone=$zone")
[[ -z $(git status --porcelain) ]] || echo "warning: changes that are not committed are not copied to the TPU (git status)." >&2
archive="${TMPDIR:-/tmp}/rastp_jax.tar.gz"
place="${bucket:-/mnt/share}"
data=--config.data.data_dir=$place/data

# Prints a command, and runs it unless this is a dry run.
step() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ -n $dry ]] || "$@"
}
quoted() { [[ $# == 0 ]] || printf ' %q' "$@"; } # for the shell there
tpu() { step gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
on() { tpu ssh "$name" --worker="$1" --command="$2"; } # worker number or "all"
state() { [[ -n $dry ]] || gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' 2>/dev/null; }

start() {
  local now
  now="$(state)" || now=""
  if [[ $now == READY ]]; then
    echo "== Using the TPU $name"
  else # not there yet, or preempted
    [[ -z $now ]] || tpu delete "$name" --quiet || return
    tpu create "$name" --accelerator-type="$type" --version="$version" $spot || return
  fi
  step git archive --format=tar.gz --output="$archive" HEAD || return
  tpu scp "$archive" "$name:rastp_jax.tar.gz" --worker=all || return
  on all "mkdir -p rastp_jax && tar -xzf rastp_jax.tar.gz -C rastp_jax" || return
  [[ -z $nfs ]] || on all "mountpoint -q /mnt/share || { sudo apt-get -qq install -y nfs-common && sudo mkdir -p /mnt/share && sudo mount -t nfs -o hard $nfs /mnt/share; }" || return
  on all "cd rastp_jax && JAX_BUILD=tpu bash launch/setup.sh${bucket:+ && .venv/bin/python -m pip install --quiet 'gcsfs>=2025.3'}" || return
  # JAX on one worker alone would wait for the others: what does not need the TPU runs on the CPU.
  on 0 "cd rastp_jax && JAX_PLATFORMS=cpu .venv/bin/python -m rastp_jax.prepare --config=$config $data${raw_dir:+ --raw_dir=$raw_dir}$(quoted "${settings[@]}")"
}

# Trains on all workers, and returns training's exit code: gcloud's says only that something failed.
train() {
  local code file="rastp_jax/exit_code"
  on all "rm -f $file; (cd rastp_jax && .venv/bin/python -m rastp_jax.train --config=$config $data --workdir=$place/runs/$run$(quoted "${training[@]}")); code=\$?; echo \$code > $file; exit \$code" && return
  code="$(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0 --command="cat $file")" || code=1
  return "$code"
}

for ((attempt = 1; ; attempt++)); do
  code=0
  start || code=$?
  [[ $code == 0 ]] && { train || code=$?; }
  [[ $code == 0 || $code == 2 || $attempt -gt ${MAX_RESTARTS:-20} ]] && break
  echo "== Ended with exit code $code: starting again ($attempt of ${MAX_RESTARTS:-20}), from the last checkpoint"
  sleep 30
done
[[ $code == 0 && -n $delete ]] && tpu delete "$name" --quiet
[[ $code == 0 ]] || echo "error: training ended with exit code $code; $place/runs/$run holds its last checkpoint." >&2
exit "$code"
