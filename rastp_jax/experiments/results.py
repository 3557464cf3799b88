"""Result files: what was measured, by which command, on which versions and machine, and from which commit."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

import rastp_jax
from rastp_jax.runtime import cli, files

CHECKOUT = pathlib.Path(__file__).parents[2]
RESULTS = CHECKOUT / "docs" / "results"


def write_result(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
  """Writes a JSON file: `origin()`, then the values."""
  files.write_json(path, {**origin(), **values})


def read(name: str) -> dict[str, Any]:
  """A file of docs/results."""
  return json.loads((RESULTS / f"{name}.json").read_text())


def origin() -> dict[str, Any]:
  """Where a result comes from.

  Returns:
    command: the one that started this process.
    versions: of Python, JAX, jaxlib, Flax and this package.
    machine: cores, and the kind and number of JAX's devices in this process.
    date: in UTC, like "2026-01-31 16:05".
    commit: of the checkout, with "+changes" if tracked files differ from it; None outside a checkout.
  """
  return {
    "command": cli.command_line(),
    "versions": {
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
      "rastp_jax": rastp_jax.__version__,
    },
    "machine": {
      "cores": os.cpu_count(),
      "device_kind": jax.devices()[0].device_kind,
      "devices": jax.device_count(),
    },
    "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
    "commit": _commit(),
  }


def _commit() -> str | None:
  if not (CHECKOUT / ".git").exists():  # Git would go on looking in the directories above
    return None
  command = ["git", "describe", "--always", "--dirty=+changes"]
  try:
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):  # no Git here, or it does not trust the directory's owner
    return None
