#!/usr/bin/env bash
# Sets up .venv and runs the tests: ./launch/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
echo "== Checking style"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
echo "== Running the tests (about seven minutes on 2 cores)"
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
