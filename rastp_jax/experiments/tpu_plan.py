"""What training and decoding would cost on TPUs that are not there, by the TPU compiler's judgement.

    python -m rastp_jax.experiment tpu_plan --config=configs/beauty.py --topology=v5e:4x4 --output=FILE.json

compiles the training step of every bucket, and beam search, for the topology. It needs the TPU compiler
(`pip install "rastp_jax[tpu]"`), but neither a TPU nor data, and minutes of one core per program. Nothing is run: all
numbers are the compiler's, or bounds made of them and of the chip's data sheet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.experiments.tpu import programs, topology
from rastp_jax.runtime import cli, files, sharding
from rastp_jax.runtime.text_tables import align

_CONFIG = cli.define_config_flag()
_TOPOLOGY = flags.DEFINE_string(
  "topology", "v5e:2x2", "Kind of chip and how they are arranged: v5e:1x1, v5e:16x16, v5p:2x2x1, v6e:2x2, …"
)
_ROWS = flags.DEFINE_integer(
  "rows_per_chip", 256, "Rows per chip of the longest bucket; others get as many tokens.", lower_bound=8
)
_COLLISIONS = flags.DEFINE_integer(
  "collision_codes", 17, "Codes of the level that tells equal items apart, where the config has one.", lower_bound=1
)
_CATALOGUES = flags.DEFINE_list("catalogues", ["12101", "10000000"], "Items of the catalogues that beams are held to.")
_TRAINING = flags.DEFINE_bool("training", True, "Compile the training steps.")
_LARGEST = flags.DEFINE_bool("largest", True, "Search for the largest batch that fits (compiles again).")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")


def lengths_of(config: Config) -> tuple[int, ...]:
  """The config's buckets, in items; where data would choose them, as many at equal distances."""
  count, longest = config.data.num_buckets, config.data.max_items
  return config.data.bucket_lengths or tuple(sorted({max(1, round(longest * i / count)) for i in range(1, count + 1)}))


def plan(
  config: Config,
  devices: Sequence[Any],
  *,
  rows_per_chip: int,
  catalogues: Sequence[int] = (),
  collision_codes: int = 17,
  training: bool = True,
  largest: bool = False,
) -> dict[str, Any]:
  """Compiles the config's programs for devices; see this module's flags.

  Returns:
    What `programs.judged` says, by the program's name.
  """
  ids, chips = config.semantic_ids, len(devices)
  learned = (ids.codebook_size,) * ids.levels
  widths = learned + (collision_codes,) * (ids.collisions == "extra_level")
  mesh = sharding.make_mesh(config.mesh, devices)
  lengths = lengths_of(config)
  found = {}

  def judge(name: str, lowered: jax.stages.Lowered, rows: int) -> dict[str, Any]:
    found[name] = programs.judged(lowered, devices[0], rows)
    print(_line(name, found[name]), flush=True)
    return found[name]

  for items in reversed(lengths) if training else ():
    rows = sharding.round_up(round(rows_per_chip * lengths[-1] / items), 8)
    step = judge(f"train, {items} items", programs.training_step(config, widths, mesh, items, rows * chips), rows)
    if largest and items == lengths[-1]:
      lower = lambda rows, items=items: programs.training_step(config, widths, mesh, items, rows * chips)
      step["largest"] = programs.largest_rows(lower, step)
  for catalogue in catalogues:
    rows = max(8, config.eval.batch_size // chips // 8 * 8)
    lowered = programs.decode_step(config, learned, mesh, lengths[-1], rows * chips, catalogue)
    step = judge(f"decode, {catalogue} items", lowered, rows)
    step["per_user"] = {name: step[name] / rows for name in ("flops", "bytes_accessed", "hbm_bytes")}
    step["users_per_second_per_chip"] = rows / max(step["seconds"]["arithmetic"], step["seconds"]["memory"])
  return found


def _line(name: str, step: Mapping[str, Any]) -> str:
  seconds, collectives = step["seconds"], step["collectives"]
  moved = ", ".join(f"{found['number']} {kind} of {found['bytes'] / 1e6:.1f} MB" for kind, found in collectives.items())
  return (
    f"{name}: {step['rows_per_chip']} rows per chip, compiled in {step['compile_seconds']:.0f} s; "
    f"{step['flops'] / 1e12:.3f} TFLOP, {step['hbm_bytes'] / 1e9:.2f} GB of HBM traffic "
    f"({step['bytes_accessed'] / 1e9:.2f} GB accessed in all), memory {step['memory_bytes'] / 1e9:.2f} of "
    f"{step['chip_memory_bytes'] / 1e9:.0f} GB ({step['temporary_bytes'] / 1e9:.2f} GB temporary); at least "
    f"{1e3 * max(seconds['arithmetic'], seconds['memory']):.2f} ms, bound by {step['bound_by']}; kernels "
    f"{1e3 * seconds['kernels']:.2f} ms; {moved or 'no collectives'}; {step['host_transfers']} host transfers"
  )


def main() -> None:
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  config = cli.load_config(_CONFIG.value)
  try:
    catalogues = [int(size) for size in _CATALOGUES.value]
  except ValueError as error:
    raise InputError(f"--catalogues is a list of numbers like 12101,1000000: {error}.") from error
  topology.on_cpu()
  devices = topology.devices(_TOPOLOGY.value)
  found = plan(
    config,
    devices,
    rows_per_chip=_ROWS.value,
    catalogues=catalogues,
    collision_codes=_COLLISIONS.value,
    training=_TRAINING.value,
    largest=_LARGEST.value,
  )
  for name, step in found.items():
    rows = [[name, "GB"], *([line, f"{moved / 1e9:.2f}"] for line, moved in step["movers"].items())]
    print(f"\n{align(rows)}")
    if step.get("largest"):
      print(f"largest batch that fits: {step['largest']['rows_per_chip']} rows per chip")
  if _OUTPUT.value:
    chips = {"topology": _TOPOLOGY.value, "chips": len(devices), "chip": devices[0].device_kind}
    results.write_result(_OUTPUT.value, {**chips, "programs": found, "config": config_lib.to_dict(config)})
