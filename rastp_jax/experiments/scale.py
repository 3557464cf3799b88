"""Time and memory of preparing many generated interactions.

python -m rastp_jax.experiment scale --interactions=50000000 --output=docs/results/prepare_50m.json

Generates interactions.csv in a temporary directory, prepares it (all but semantic IDs) and loads the histories as
training does, each in a process of its own.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
from absl import flags
from pyarrow import csv

from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.runtime import files

_INTERACTIONS = flags.DEFINE_integer("interactions", 50_000_000, "Rows of the file.", lower_bound=1)
_USERS = flags.DEFINE_integer("users", None, "Users. Default: a tenth of the interactions.", lower_bound=1)
_ITEMS = flags.DEFINE_integer("items", None, "Items. Default: a fiftieth of the interactions.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")

_ROWS = 1_000_000  # generated at a time

_PREPARE = """
import sys
from rastp_jax.config import DataConfig
from rastp_jax.data.sources import detect
config = DataConfig(dataset="generated", data_dir=sys.argv[1])
print(detect.prepare_dataset(config, sys.argv[2])[0].describe())
"""
_LOAD = """
import sys
from rastp_jax.data import histories
data = histories.load(sys.argv[1], "generated")
print(f"{data.num_users} users, {data.num_items} items, {len(data.items)} interactions")
"""


def generate(path: pathlib.Path, interactions: int, users: int, items: int, seed: int = 0) -> None:
  """Writes a log as a shop has it: rows in time order, users interleaved, few items popular and most rarely chosen."""
  rng = np.random.default_rng(seed)
  schema = pa.schema([("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64())])
  with csv.CSVWriter(path, schema) as writer:
    for first in range(0, interactions, _ROWS):
      rows = min(_ROWS, interactions - first)
      user = rng.integers(users, size=rows)
      item = (items * rng.random(rows) ** 3).astype(np.int64)  # density falls as item ** -2/3
      moment = 1_400_000_000 + (first + np.arange(rows)) // 2  # two rows per second
      text = [pa.array(np.char.add(letter, ids.astype(str))) for letter, ids in (("u", user), ("i", item))]
      writer.write_batch(pa.record_batch([*text, pa.array(moment)], schema=schema))


def measure(program: str, *arguments: str) -> dict[str, Any]:
  """Runs a Python program: seconds, peak resident memory in GB, and what it printed."""
  started = time.monotonic()
  process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
  assert process.stdout is not None  # a pipe
  printed = process.stdout.read()
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    code = os.waitstatus_to_exitcode(status)
    raise InputError(f"A process ended with exit code {code}, perhaps for want of memory: see what it said above.")
  return {
    "seconds": round(time.monotonic() - started, 1),
    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    "peak_gb": round(usage.ru_maxrss / 1e6, 2),  # ru_maxrss is in kB
    "printed": printed.splitlines(),
  }


def main() -> None:
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  interactions = _INTERACTIONS.value
  users, items = _USERS.value or max(1, interactions // 10), _ITEMS.value or max(1, interactions // 50)
  with tempfile.TemporaryDirectory() as directory:
    raw_dir, data_dir = pathlib.Path(directory) / "raw", pathlib.Path(directory) / "data"
    raw_dir.mkdir()
    generate(raw_dir / "interactions.csv", interactions, users, items)
    result = {
      "interactions": interactions,
      "users": users,
      "items": items,
      "raw_gb": round((raw_dir / "interactions.csv").stat().st_size / 1e9, 2),
      "prepare": measure(_PREPARE, str(data_dir), str(raw_dir)),
      "load": measure(_LOAD, str(data_dir)),
      "prepared_gb": round(sum(path.stat().st_size for path in data_dir.rglob("*") if path.is_file()) / 1e9, 2),
      "load_average": round(os.getloadavg()[0], 1),
    }
  print(json.dumps(result, indent=2))
  if _OUTPUT.value:
    results.write_result(_OUTPUT.value, result)
