"""How long many generated interactions take to prepare, and how much memory.

python -m tests.tools.prepare_at_scale --interactions=50_000_000 --output=docs/results/prepare_50m.json

Generates interactions.csv in a temporary directory, prepares it (all but semantic IDs), loads the histories as training
does, each in a process of its own, and writes what was seen.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv

_ROWS = 1_000_000  # generated at a time

_PREPARE = """
import sys
from rastp_jax.config import DataConfig
from rastp_jax.data import raw
config = DataConfig(dataset="generated", data_dir=sys.argv[1])
print(raw.prepare_dataset(config, sys.argv[2])[0].describe())
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
  with pa.csv.CSVWriter(path, schema) as writer:
    for first in range(0, interactions, _ROWS):
      rows = min(_ROWS, interactions - first)
      user = rng.integers(users, size=rows)
      item = (items * rng.random(rows) ** 3).astype(np.int64)  # density falls as item ** -2/3
      moment = 1_400_000_000 + (first + np.arange(rows)) // 2  # two rows a second
      text = [pa.array(np.char.add(letter, ids.astype(str))) for letter, ids in (("u", user), ("i", item))]
      writer.write_batch(pa.record_batch([*text, pa.array(moment)], schema=schema))


def measure(program: str, *arguments: str) -> dict[str, float | list[str]]:
  """Runs a Python program: seconds, peak resident memory in GB, and what it printed."""
  started = time.monotonic()
  process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
  printed = process.stdout.read()
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"The program ended with status {status}.")
  return {
    "seconds": round(time.monotonic() - started, 1),
    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    "peak_gb": round(usage.ru_maxrss / 1e6, 2),  # ru_maxrss is in kB
    "printed": printed.splitlines(),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--interactions", type=int, default=50_000_000)
  parser.add_argument("--users", type=int, help="default: a tenth of the interactions")
  parser.add_argument("--items", type=int, help="default: a fiftieth of the interactions")
  parser.add_argument("--output", type=pathlib.Path, help="JSON file")
  arguments = parser.parse_args()
  users, items = arguments.users or arguments.interactions // 10, arguments.items or arguments.interactions // 50
  with tempfile.TemporaryDirectory() as directory:
    raw_dir, data_dir = pathlib.Path(directory) / "raw", pathlib.Path(directory) / "data"
    raw_dir.mkdir()
    generate(raw_dir / "interactions.csv", arguments.interactions, users, items)
    figures = {
      "command": f"python -m tests.tools.prepare_at_scale {' '.join(sys.argv[1:])}",
      "interactions": arguments.interactions,
      "users": users,
      "items": items,
      "raw_gb": round((raw_dir / "interactions.csv").stat().st_size / 1e9, 2),
      "prepare": measure(_PREPARE, str(data_dir), str(raw_dir)),
      "load": measure(_LOAD, str(data_dir)),
      "prepared_gb": round(sum(path.stat().st_size for path in data_dir.rglob("*") if path.is_file()) / 1e9, 2),
      "cores": os.cpu_count(),
      "load_average": round(os.getloadavg()[0], 1),
      "python": platform.python_version(),
    }
  print(json.dumps(figures, indent=2))
  if arguments.output:
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
  main()
