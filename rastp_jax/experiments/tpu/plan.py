"""All programs of a config, compiled for a topology and judged."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rastp_jax.config import Config
from rastp_jax.experiments.tpu import programs
from rastp_jax.runtime import sharding


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
  vmem: bool = True,
) -> dict[str, Any]:
  """Compiles the config's programs for devices.

  Args:
    config: model, reduction, buckets, mesh.
    devices: of a topology; they need not be there.
    rows_per_chip: of the longest bucket; others get as many tokens.
    catalogues: numbers of items that beams are held to, a decoding program each.
    collision_codes: codes of the level that tells equal items apart, where the config has one.
    training: whether training steps are compiled.
    largest: whether the largest batch that fits is searched for; only with `vmem`.
    vmem: whether arrays may lie in a chip's fast memory between kernels.

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
    found[name] = programs.judged(lowered, devices[0], rows, vmem=vmem)
    print(_line(name, found[name]), flush=True)
    return found[name]

  for items in reversed(lengths) if training else ():
    rows = sharding.round_up(round(rows_per_chip * lengths[-1] / items), 8)
    step = judge(f"train, {items} items", programs.training_step(config, widths, mesh, items, rows * chips), rows)
    if largest and vmem and items == lengths[-1]:
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
