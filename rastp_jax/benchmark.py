"""Measures speed and memory: what dropping padding gives, what pruning gives on top, what decoding costs.

    python -m rastp_jax.benchmark --config=configs/beauty.py --output=speed.json

needs the prepared dataset (`python -m rastp_jax.prepare`). It prints one table and writes it with every single timing;
after each part (training, input, decoding) the file has what there is, so that a run that is cut off has measured
something. The numbers are medians over repeats that take turns, so that ratios hold on a machine whose speed drifts.
--quick takes two minutes: small batches, two repeats, training only.
"""

from typing import Any

from absl import flags

from rastp_jax import config as config_lib
from rastp_jax.errors import InputError
from rastp_jax.runtime import cli, files

_CONFIG = cli.define_config_flag()
flags.adopt_module_key_flags(cli)  # so that --help shows them
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write. Default: print only.")
_BATCH_SIZES = flags.DEFINE_list(
  "batch_sizes",
  ["64"],
  "Samples per step, on average. Of several, the one that trains fastest is found first; give accelerators a choice, "
  "like 256,512,1024,2048,4096,8192.",
)
_REPEATS = flags.DEFINE_integer(
  "repeats",
  15,
  "Timings of each training step, and of decoding; the result is their median.",
  lower_bound=1,
)
_QUICK = flags.DEFINE_bool("quick", False, "Two repeats of training alone, on batches of 16.")
_CATALOGUES = flags.DEFINE_list(
  "catalogues", ["12101", "1000000", "10000000"], "Items of the generated catalogues that decoding is swept over."
)


def main():
  from rastp_jax.experiments import results
  from rastp_jax.experiments.speed.parts import measure
  from rastp_jax.experiments.speed.ratios import describe, make_ratios

  try:
    batch_sizes, catalogues = ([int(value) for value in flag.value] for flag in (_BATCH_SIZES, _CATALOGUES))
  except ValueError as error:
    raise InputError(f"--batch_sizes and --catalogues are lists of numbers like 64,128: {error}.") from error
  config = cli.load_config(_CONFIG.value)
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)

  def keep(result: dict[str, Any]) -> None:
    if _OUTPUT.value:
      found = {"ratios": make_ratios(result), "config": config_lib.to_dict(config), **result}
      results.write_result(_OUTPUT.value, found)

  if _QUICK.value:
    result = measure(config, [16], 2, [], keep)
  else:
    result = measure(config, batch_sizes, _REPEATS.value, catalogues, keep)
  print(describe(result))


if __name__ == "__main__":
  cli.run(main)
