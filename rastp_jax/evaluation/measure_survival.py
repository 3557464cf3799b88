"""Which tokens survive the reduction: encodes users' histories and notes what became of every token.

Shapes: B users of a batch, U users, N history items, P positions per item (its codes, then the separator if there is
one).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rastp_jax.batches.batches import evaluation_batches, what_is_read, with_codes
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.model.interface import GenerativeModel
from rastp_jax.reduction.survival import NO_TOKEN, Survival, dropped_at
from rastp_jax.runtime import sharding
from rastp_jax.semantic_ids.codes import SemanticIds


def measure_survival(
  model: GenerativeModel,
  histories: Histories,
  semantic_ids: SemanticIds,
  config: Config,
  mesh: Mesh,
  split: str,
  *,
  users: int = 0,
) -> Survival:
  """Finds the stage that dropped each token of users' histories; a merged token survives.

  Args:
    model: the recommender.
    histories: all users.
    semantic_ids: codes of every item.
    config: its `data` section and `eval.batch_size` are used.
    mesh: devices that share the users.
    split: "validation" or "test".
    users: how many users, spread over all, the same ones at each call; 0 for all.
  """
  graph, params = nnx.split(model)
  item_length, table = model.layout.item_length, what_is_read(semantic_ids, config.model)

  @jax.jit
  def dropped_at_of(params, history):
    encoded, stages = nnx.merge(graph, params).encode_stages(history)
    mask = jnp.repeat(history[:, :, 0] >= 0, item_length, axis=1)
    return dropped_at(mask, stages), jnp.sum(encoded.mask, axis=1)

  lengths = bucket_lengths(config.data, histories)
  batch_size = sharding.round_up(config.eval.batch_size, mesh.shape["data"])
  found = []
  for batch in evaluation_batches(histories, config.data, split, lengths=lengths, batch_size=batch_size, users=users):
    real = batch["user"] >= 0
    codes = sharding.place_rows(with_codes(batch, table)["history"], mesh)
    items = batch["history"][real]
    stages, left = (np.asarray(found)[real] for found in dropped_at_of(params, codes))
    stages = stages.reshape(*items.shape, item_length)
    found.append(
      (
        batch["user"][real],
        _align_right(items, items >= 0, -1, lengths[-1]),
        _align_right(stages, items >= 0, NO_TOKEN, lengths[-1]),
        left,
      )
    )
  encoded, items, stages, left = (np.concatenate(parts) for parts in zip(*found, strict=True))
  return Survival(encoded, items, stages, semantic_ids.depth, left)


def _align_right(values: np.ndarray, real: np.ndarray, filler: int, size: int) -> np.ndarray:
  """Moves the real first entries of each row to its end, so that the most recent item is last in every row.

  Args:
    values: (B, N, ...).
    real: (B, N), True for the first entries of a row.
    filler: the value before them.
    size: length of the rows that come out, at least N.
  """
  sources = np.arange(size) - (size - real.sum(1))[:, None]
  rows = np.arange(len(values))[:, None]
  mask = (sources >= 0).reshape(sources.shape + (1,) * (values.ndim - 2))
  return np.where(mask, values[rows, np.maximum(sources, 0)], filler).astype(values.dtype)
