#!/usr/bin/env bash
# Builds the wheel, installs it into a new environment, and prepares, trains, evaluates and recommends with it in an
# empty directory: ./launch/try_wheel.sh [PYTHON], like ./launch/try_wheel.sh python3.13
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${1:-python3}"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
pip=(-m pip --disable-pip-version-check)

step() { printf '\n== %s\n' "$1"; shift; printf '   %s\n' "$*"; "$@"; }
step "Building the wheel" "$python" "${pip[@]}" wheel --quiet --no-deps --wheel-dir="$place" .
step "Making an environment with $("$python" --version)" "$python" -m venv "$place/environment"
step "Installing the wheel" "$place/environment/bin/python" "${pip[@]}" install --quiet "$place"/rastp_jax-*.whl
mkdir "$place/empty"
cd "$place/empty"
rastp="$place/environment/bin/rastp"
step "Preparing" "$rastp" prepare --config=tiny
step "Training" "$rastp" train --config=tiny --workdir=runs/tiny --config.train.length="1 epochs"
step "Evaluating" "$rastp" evaluate --workdir=runs/tiny
step "Recommending" "$rastp" recommend --workdir=runs/tiny --split=test --output=recommendations.jsonl
step "What is there now" ls
echo "== The wheel works with $("$python" --version)"
