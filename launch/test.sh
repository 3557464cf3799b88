#!/usr/bin/env bash
# Sets up .venv, then checks style, spelling and types, and runs the tests: ./launch/test.sh [pytest arguments]
DEV=1 source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
echo "== Checking style"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
echo "== Checking words (docs/words.txt)"
.venv/bin/codespell
echo "== Checking types beside the tests"
.venv/bin/pyright >.venv/types.txt 2>&1 &
types=$! failed=0
echo "== Running the tests (ten to twenty minutes on 2 cores)"
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@" || failed=$?
wait "$types" || failed=$?
echo "== Types: $(tail -n 30 .venv/types.txt)"
exit "$failed"
