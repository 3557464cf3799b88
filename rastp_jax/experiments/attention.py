"""What attention takes here: the model's own form beside JAX's two, forward and with its gradient.

    python -m rastp_jax.experiment attention --config=configs/beauty.py --config.model.dtype=bfloat16 --output=FILE.json

Whole matrices, a bias of relative positions and a mask of keys, random numbers, no dropout. `cudnn` runs on NVIDIA GPUs
only; a form that refuses a shape is a row that says so. The file is written after every row. No dataset is needed.
"""

import itertools
from collections.abc import Sequence

import jax
from absl import flags

from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.experiments.speed.attention_speed import measured
from rastp_jax.runtime import cli, files, sharding, target

_CONFIG = cli.define_config_flag()
_ROWS = flags.DEFINE_list("rows", ["256", "1024"], "Batch sizes.")
_POSITIONS = flags.DEFINE_list("positions", ["145", "146", "160"], "Sequence lengths.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timings of each form; the result is their median.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")


def main() -> None:
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  config = cli.load_config(_CONFIG.value)
  shapes = list(itertools.product(_numbers(_ROWS.value, "rows"), _numbers(_POSITIONS.value, "positions")))
  found = []
  with target.tracing_for(sharding.make_mesh(config.mesh, jax.devices()[:1])):
    for rows, positions in shapes:
      for row in measured(config.model, rows, positions, _REPEATS.value):
        print("  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
        found.append(row)
        if _OUTPUT.value:
          results.write_result(_OUTPUT.value, {"rows": found})


def _numbers(given: Sequence[str], flag: str) -> list[int]:
  """A list of sizes; raises InputError unless there are some, all from 1 on."""
  if not given or not all(value.isdecimal() and int(value) for value in given):
    raise InputError(f"--{flag}={','.join(given)} cannot be used: give numbers from 1 on, like 145,160.")
  return [int(value) for value in given]
