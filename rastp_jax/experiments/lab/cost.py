"""What each row costs: arithmetic of the encoder on real samples, and measured seconds of training in turns."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rastp_jax.batches.batches import what_is_read
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.experiments.lab.rows import DENSE, Row
from rastp_jax.experiments.speed.training_speed import TrainingSpeed
from rastp_jax.model.factory import abstract_model
from rastp_jax.runtime import sharding
from rastp_jax.runtime.xla import written_flops
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.setup import make_setup


def encoder_flops(
  config: Config, histories: Histories, semantic_ids: SemanticIds, rows: Sequence[Row]
) -> dict[str, float]:
  """Encoder FLOPs of a training sample in its bucket, forward, over those of dense; by row.

  By XLA's count of the program before its own work on it, weighted by how many rows an epoch has in each bucket. Empty
  on devices whose backend does not tell.
  """
  setup = make_setup(config, histories, semantic_ids)
  counts = {bucket.items: bucket.rows * bucket.batches for bucket in setup.batches.buckets if bucket.batches}
  totals = {}
  for row in rows:
    graph, params = abstract_model(row.apply(config), semantic_ids.widths, semantic_ids.num_items)

    def encode(params, history, graph=graph):
      return nnx.merge(graph, params).encode(history).hidden

    totals[row.name] = 0.0
    for items, count in counts.items():
      history = jax.ShapeDtypeStruct((8, items, what_is_read(semantic_ids, config.model).shape[1]), jnp.int32)
      flops = written_flops(jax.jit(encode).lower(params, history))
      if flops is None:
        return {}
      totals[row.name] += count * flops / 8
  return {name: total / totals[DENSE] for name, total in totals.items()}


def training_seconds(
  config: Config, histories: Histories, semantic_ids: SemanticIds, rows: Sequence[Row], repeats: int
) -> dict[str, dict[str, float]]:
  """Steps of all rows timed in random turns in one process.

  Returns:
    By row: vs_dense, seconds per sample over dense's (the median over turns of the same turn's ratio), with the ends
    `low` and `high` of its bootstrap interval over turns; samples_per_second; peak_bytes of a step.
  """
  mesh = sharding.make_mesh(config.mesh)
  variants = {row.name: row.apply(config) for row in rows}
  speed = TrainingSpeed(variants, histories, semantic_ids, mesh, config.train.batch_size)
  speed.run(repeats)
  results = speed.results()
  seconds = {name: _epoch_seconds(found) for name, found in results.items()}
  drawn = np.random.default_rng(0).integers(0, repeats, (1000, repeats))
  measured = {}
  for name, found in results.items():
    ratios = seconds[name] / seconds[DENSE]
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    measured[name] = {
      "vs_dense": float(np.median(ratios)),
      "low": float(low),
      "high": float(high),
      "samples_per_second": found["samples_per_second"],
      "peak_bytes": found["peak_bytes"],
    }
  return measured


def _epoch_seconds(found: Mapping[str, Any]) -> np.ndarray:
  """Seconds of an epoch by the timings of each turn: (turns,)."""
  return np.sum([shape["batches_an_epoch"] * np.asarray(shape["seconds"]) for shape in found["shapes"]], axis=0)
