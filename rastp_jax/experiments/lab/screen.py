"""The screen: one dense model, every method that needs no training, and what the target's likelihood loses.

Shapes: B users, L encoder positions, C codes per item.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rastp_jax.batches.batches import evaluation_batches, what_is_read, with_codes
from rastp_jax.experiments.lab.rows import DENSE, Row
from rastp_jax.model.factory import make_model
from rastp_jax.reduction.methods import REDUCTIONS
from rastp_jax.reduction.survival import dropped_at
from rastp_jax.runtime import sharding
from rastp_jax.training.runs import SavedModel


@dataclasses.dataclass(frozen=True)
class Seen:
  """What one row did to the users it affects.

  Attributes:
    users: how many users the row takes a token from (or merges one of).
    rise: mean rise of the target's negative log-likelihood over dense on these users, in nats.
    error: its standard error.
    kept_by_level: share of their tokens that survive, by code level (and separator, if there is one).
    kept_by_age: the same by age of the item, newest first, up to 10.
    overlap_with_recent: share of the surviving tokens that are among the most recent as many.
  """

  users: int
  rise: float
  error: float
  kept_by_level: list[float]
  kept_by_age: list[float]
  overlap_with_recent: float


def screen(saved: SavedModel, rows: Mapping[str, Row], *, users: int = 0) -> dict[str, Seen]:
  """Runs every row without weights of its own on validation users.

  Args:
    saved: a dense model.
    rows: by name.
    users: how many validation users; 0: all.
  """
  dense, _ = _likelihoods(saved, rows[DENSE], users)
  found = {}
  for name, row in rows.items():
    methods = [REDUCTIONS[part] for part in row.method.split("+")]
    if name == DENSE or any(method.learned is not None for method in methods):
      continue
    values, looks = _likelihoods(saved, row, users)
    found[name] = _summary(values - dense, looks, saved)
  return found


def _likelihoods(saved: SavedModel, row: Row, users: int) -> tuple[np.ndarray, list[Any]]:
  """Each user's negative log-likelihood of the target; and of every batch the mask, the stage that dropped each token,
  and which rows lost any."""
  config = row.apply(saved.config)
  model = make_model(config, saved.semantic_ids.widths, num_items=saved.semantic_ids.num_items, rngs=nnx.Rngs(0))
  graph, _ = nnx.split(model)
  params = nnx.split(saved.model)[1]

  @jax.jit
  def look(params: Any, batch: Mapping[str, jax.Array]):
    model = nnx.merge(graph, params)
    encoded, stages = model.encode_stages(batch["history"])
    logits = model.logits(model.decode(encoded, batch["target"]))
    likelihood = jnp.zeros(len(batch["weight"]))
    for level, values in enumerate(logits):
      picked = jnp.take_along_axis(values, batch["target"][:, level, None], axis=-1)[:, 0]
      likelihood += jax.nn.logsumexp(values, axis=-1) - picked
    mask = model.embed_history(batch["history"]).mask
    merged = jnp.zeros(mask.shape[:1], bool) if not stages else _changed(stages, mask)
    return likelihood, mask, dropped_at(mask, stages), merged

  values, looks = [], []
  for batch in _batches(saved, users):
    real = batch["user"] >= 0
    codes = with_codes(batch, what_is_read(saved.semantic_ids, config.model))
    placed = sharding.place_batch(codes, saved.mesh)
    likelihood, mask, dropped, merged = (np.asarray(part)[real] for part in look(params, placed))
    values.append(likelihood)
    looks.append((mask, dropped, merged))
  return np.concatenate(values), looks


def _changed(stages: list[Any], mask: jax.Array) -> jax.Array:
  """Rows of which any stage dropped or merged a token: fewer real tokens come out than went in."""
  return jnp.sum(stages[-1].after.mask, axis=-1) < jnp.sum(mask, axis=-1)


def _batches(saved: SavedModel, users: int) -> Iterator[dict[str, np.ndarray]]:
  rows = sharding.round_up(saved.config.eval.batch_size, saved.mesh.size)
  return evaluation_batches(
    saved.histories, saved.config.data, "validation", lengths=saved.lengths, batch_size=rows, users=users
  )


def _summary(rise: np.ndarray, looks: list[Any], saved: SavedModel) -> Seen:
  layout = saved.model.layout
  affected = np.concatenate([merged for _, _, merged in looks])
  levels = np.zeros((layout.item_length, 2))  # tokens, and those that survive
  ages = np.zeros((10, 2))
  overlaps = []
  for mask, dropped, merged in looks:
    for row in np.flatnonzero(merged):
      real = np.flatnonzero(mask[row])
      kept = dropped[row, real] == 0
      counted = np.stack([np.ones(len(real)), kept], axis=1)
      level, age = real % layout.item_length, real[-1] // layout.item_length - real // layout.item_length
      np.add.at(levels, level, counted)
      np.add.at(ages, age[age < 10], counted[age < 10])
      overlaps.append(kept[-int(kept.sum()) :].mean() if kept.any() else 0.0)
  shares = lambda counts: (counts[:, 1] / np.maximum(counts[:, 0], 1)).round(4).tolist()
  touched = rise[affected]
  return Seen(
    users=int(affected.sum()),
    rise=float(touched.mean()) if len(touched) else 0.0,
    error=float(touched.std(ddof=1) / len(touched) ** 0.5) if len(touched) > 1 else 0.0,
    kept_by_level=shares(levels),
    kept_by_age=shares(ages),
    overlap_with_recent=float(np.mean(overlaps)) if overlaps else 0.0,
  )
