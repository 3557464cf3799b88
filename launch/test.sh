#!/usr/bin/env bash
# Sets up .venv, then checks style, spelling and types, and runs the tests:
#   ./launch/test.sh [--all] [pytest arguments]
# Tests that are marked slow, like those of several processes as one run, are left to --all, which CI gives.
selection=(-m "not slow") minutes="ten"
[[ ${1:-} != --all ]] || { selection=() minutes="twenty"; shift; }
DEV=1 source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
echo "== Checking style"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
echo "== Checking words (docs/words.txt)"
.venv/bin/codespell
echo "== Checking types beside the tests"
.venv/bin/pyright >.venv/types.txt 2>&1 &
types=$! failed=0
echo "== Running the tests (about $minutes minutes on 2 cores)"
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "${selection[@]}" "$@" || failed=$?
wait "$types" || failed=$?
echo "== Types: $(tail -n 30 .venv/types.txt)"
[[ -z ${selection[*]} ]] || echo "== Slow tests were left out: ./launch/test.sh --all runs them, too"
exit "$failed"
