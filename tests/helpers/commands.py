"""The commands, as a user runs them."""

import os
import pathlib
import subprocess
import sys

from tests.helpers import compiling

ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments, cwd=ROOT) -> tuple[int, str, str]:
  """Runs `python -m` with these arguments; returns exit code, stdout, stderr."""
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  done = subprocess.run(
    [sys.executable, "-m", *map(str, arguments)],
    cwd=cwd,
    env={**environment, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiling.FLAGS},
    capture_output=True,
    text=True,
    timeout=600,
  )
  return done.returncode, done.stdout, done.stderr
