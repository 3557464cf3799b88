"""All that the benchmark measures, part after part."""

from collections.abc import Callable
from typing import Any

from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import Config
from rastp_jax.experiments.speed.decoding_speed import DecodingSpeed, cost_of_transitions
from rastp_jax.experiments.speed.ratios import make_ratios
from rastp_jax.experiments.speed.training_speed import TrainingSpeed, fastest_batch_size
from rastp_jax.experiments.speed.variants import make_variants
from rastp_jax.runtime import sharding
from rastp_jax.training import runs


def measure(
  config: Config,
  batch_sizes: list[int],
  repeats: int,
  catalogues: list[int],
  keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
  """Measures training; with catalogues also the input pipeline and decoding.

  Args:
    config: data, model, reduction.
    batch_sizes: samples per step; of several, the fastest.
    repeats: timings of each step.
    catalogues: sizes that decoding is swept over; [] for training alone.
    keep: is given what has been measured after each part.
  """
  histories, semantic_ids = runs.load_data(config)
  mesh = sharding.make_mesh(config.mesh)
  variants = make_variants(config, bucket_lengths(config.data, histories))
  make = lambda names: lambda size: TrainingSpeed({n: variants[n] for n in names}, histories, semantic_ids, mesh, size)
  batch_size, sweep = batch_sizes[0], []
  if len(batch_sizes) > 1:
    batch_size, sweep = fastest_batch_size(make(["bucketed_pruned"]), batch_sizes, repeats)
  result: dict[str, Any] = {"batch_size": batch_size, "batch_size_sweep": sweep}
  speed = make(list(variants))(batch_size)
  speed.run(repeats)
  result["training"] = speed.results()
  keep(result)
  if catalogues:
    result["input"] = speed.live_and_constant("bucketed_pruned", steps=4, repeats=repeats)
    keep(result)
    largest = max(catalogues)
    result["transitions"] = {str(largest): cost_of_transitions(largest, semantic_ids.widths[:-1])}
    decoding = DecodingSpeed(config, histories, semantic_ids, mesh, tuple(catalogues))
    decoding.run(repeats)
    result["decoding"] = decoding.results()
    keep(result)
  return {**result, "ratios": make_ratios(result)}
