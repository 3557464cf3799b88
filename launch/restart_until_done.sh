#!/usr/bin/env bash
# Runs a training command and starts it again when it ends unfinished: ./launch/restart_until_done.sh COMMAND [ARGUMENTS]
# It ends with the command's exit code if that is 0 (done) or 2 (a person must act; the last line says on what), if
# this script itself is told to stop (Ctrl-C, SIGTERM: passed on, and the command saves), or after MAX_RESTARTS (20).
set -uo pipefail

stopped="" told="" child=""
pass_on() { stopped=1; [[ -n $child ]] && kill -TERM "$child" 2>/dev/null && told=1; }
trap pass_on INT TERM
for ((attempt = 1; ; attempt++)); do
  "$@" &
  child=$!
  [[ -n $stopped && -z $told ]] && pass_on # told to stop before there was a child to tell
  while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done # a trapped signal ends `wait` too early
  [[ $code == 0 || $code == 2 || -n $stopped || $attempt -gt ${MAX_RESTARTS:-20} ]] && exit "$code"
  echo "== Ended with exit code $code: starting again ($attempt of ${MAX_RESTARTS:-20}), from the last checkpoint"
done
