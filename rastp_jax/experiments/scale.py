"""Time and memory of preparing many generated interactions, and of making training batches of them.

python -m rastp_jax.experiment scale --interactions=50000000 --output=docs/results/prepare_50m.json
python -m rastp_jax.experiment scale --interactions=500000000 --noraw --output=docs/results/batches_500m.json

Generates interactions.csv in a temporary directory, prepares it (all but semantic IDs), and makes training batches of
the prepared histories, each in a process of its own. With --noraw nothing is prepared: histories are generated as
preparing leaves them. With --beam_options the file is prepared once more, by Apache Beam, and all rows are compared.
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

from rastp_jax.batches.batches import TrainingBatches, training_iterator
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import DataConfig
from rastp_jax.data import prepared, tfds_tables
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.runtime import files

_INTERACTIONS = flags.DEFINE_integer("interactions", 50_000_000, "Rows of the file.", lower_bound=1)
_USERS = flags.DEFINE_integer("users", None, "Users. Default: a tenth of the interactions.", lower_bound=1)
_ITEMS = flags.DEFINE_integer("items", None, "Items. Default: a fiftieth of the interactions.", lower_bound=1)
_RAW = flags.DEFINE_bool("raw", True, "Write a raw file and prepare it; without, generate prepared histories.")
_BEAM_OPTIONS = flags.DEFINE_list("beam_options", [], "Prepare with Apache Beam as well, see `prepare`.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")

_ROWS = 1_000_000  # generated at a time

_PREPARE = """
import sys
from rastp_jax.config import DataConfig
from rastp_jax.data.sources import detect
config = DataConfig(dataset="generated", data_dir=sys.argv[1])
print(detect.prepare_dataset(config, sys.argv[2], beam_options=sys.argv[3:] or None)[0].describe())
"""
_BATCHES = """
import sys
from rastp_jax.experiments import scale
print(scale.time_batches(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
"""
_BATCH_SIZE = 1024
_TIMED = 200  # batches


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


def generate_histories(directory: pathlib.Path, interactions: int, users: int, items: int, seed: int = 0) -> None:
  """Writes such histories as preparing leaves them, without a raw file; lengths are spread as in `generate`."""
  rng = np.random.default_rng(seed)
  lengths = 3 + rng.multinomial(interactions - 3 * users, np.full(users, 1 / users))
  rows = np.empty(interactions, np.int32)
  for first in range(0, interactions, _ROWS):
    part = rows[first : first + _ROWS]
    part[:] = items * rng.random(len(part)) ** 3
  tfds_tables.write_arrays(directory, rows, np.concatenate([[0], np.cumsum(lengths)]))


def time_batches(arrays: str, num_items: int, started: float) -> str:
  """Makes training batches of prepared histories with random codes, in one thread.

  Args:
    arrays: file of the histories.
    num_items: in the catalogue.
    started: when the process was started, in seconds since the epoch.

  Returns:
    Seconds and counts, as JSON.
  """
  items, offsets = tfds_tables.read_arrays(pathlib.Path(arrays))
  loaded = time.time() - started
  config = DataConfig(dataset="generated")
  histories = Histories(items, offsets, num_items, (), "")
  codes = np.random.default_rng(0).integers(0, 1024, (num_items, 4), np.int32)
  lengths = bucket_lengths(config, histories)
  source = TrainingBatches(histories, codes, config, lengths=lengths, batch_size=_BATCH_SIZE, seed=0, row_multiple=8)
  next(training_iterator(source))
  first_batch, used = time.time() - started, time.process_time()
  turn = []  # the batches around the turn of an epoch
  for index in range(source.steps_per_epoch - 3, source.steps_per_epoch + 3):
    before = time.perf_counter()
    source[index]
    turn.append(time.perf_counter() - before)
  before, rows = time.process_time(), 0
  for index in range(5 * source.steps_per_epoch, 5 * source.steps_per_epoch + _TIMED):
    rows += int(source[index]["weight"].sum())
  seconds = time.process_time() - before
  return json.dumps(
    {
      "seconds_to_load": round(loaded, 1),
      "seconds_to_first_batch": round(first_batch, 1),
      "cpu_seconds_to_first_batch": round(used, 1),
      "samples_per_epoch": int(source.samples_per_step * source.steps_per_epoch + 0.5),
      "steps_per_epoch": source.steps_per_epoch,
      "bucket_lengths": lengths,
      "slowest_batch_around_an_epochs_turn_ms": round(1e3 * max(turn), 1),
      "batches_per_second_per_core": round(_TIMED / seconds, 1),
      "samples_per_second_per_core": round(rows / seconds),
    }
  )


def measure(program: str, *arguments: str) -> dict[str, Any]:
  """Runs a Python program: seconds, peak resident memory in GB, and what it printed."""
  started = time.monotonic()
  process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
  assert process.stdout is not None  # a pipe
  with process.stdout as out:
    printed = out.read()
  _, status, usage = os.wait4(process.pid, 0)  # Popen would not tell the usage
  code = process.returncode = os.waitstatus_to_exitcode(status)
  if code:
    raise InputError(f"A process ended with exit code {code}, perhaps for want of memory: see what it said above.")
  return {
    "seconds": round(time.monotonic() - started, 1),
    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),  # ru_maxrss is in KiB
    "printed": printed.splitlines(),
  }


def _same_tables(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Whether two data directories hold the same files with the same rows.

  The bytes of a row differ from process to process: protobuf writes its fields in any order.
  """
  names = [sorted(str(path.relative_to(root)) for path in root.rglob("*")) for root in (one, other)]
  tables = [prepared.open_prepared(str(root), "generated") for root in (one, other)]
  rows = [[*table.histories_of_table(), *table.histories()] for table in tables]
  return (
    names[0] == names[1]
    and all(np.array_equal(*pair) for pair in zip(*rows, strict=True))
    and list(tables[0].user_ids) == list(tables[1].user_ids)
    and tables[0].items == tables[1].items
  )


def main() -> None:
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  interactions = _INTERACTIONS.value
  users, items = _USERS.value or max(1, interactions // 10), _ITEMS.value or max(1, interactions // 50)
  result: dict[str, Any] = {"interactions": interactions, "users": users, "items": items}
  with tempfile.TemporaryDirectory() as directory:
    raw_dir, data_dir = pathlib.Path(directory) / "raw", pathlib.Path(directory) / "data"
    if _RAW.value:
      raw_dir.mkdir()
      generate(raw_dir / "interactions.csv", interactions, users, items)
      result["raw_gb"] = round((raw_dir / "interactions.csv").stat().st_size / 1e9, 2)
      result["prepare"] = measure(_PREPARE, str(data_dir), str(raw_dir))
      if _BEAM_OPTIONS.value:
        again = pathlib.Path(directory) / "beam"
        result["prepare_with_beam"] = measure(_PREPARE, str(again), str(raw_dir), *_BEAM_OPTIONS.value)
        result["rows_are_equal"] = _same_tables(again, data_dir)
    else:
      data_dir.mkdir()
      generate_histories(data_dir, interactions, users, items)
    (arrays,) = data_dir.rglob("arrays.npz")
    result["batches"] = measure(_BATCHES, str(arrays), str(items), str(time.time()))
    result["batches"] |= json.loads(result["batches"].pop("printed")[-1])
    result["prepared_gb"] = round(sum(path.stat().st_size for path in data_dir.rglob("*") if path.is_file()) / 1e9, 2)
    result["load_average"] = round(os.getloadavg()[0], 1)
  print(json.dumps(result, indent=2))
  if _OUTPUT.value:
    results.write_result(_OUTPUT.value, result)
