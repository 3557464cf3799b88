"""The screen: one dense model, every method that needs no training, and what the target's likelihood loses.

Shapes: B users, L encoder positions, C codes per item.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rastp_jax.batches.batches import gather, what_is_read, with_codes
from rastp_jax.batches.samplers import most_recent
from rastp_jax.experiments.lab.oracles import ORACLES, likelihood
from rastp_jax.experiments.lab.rows import BUDGETS, DENSE, Row, make_row, share
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.model.factory import abstract_model
from rastp_jax.reduction.survival import dropped_at
from rastp_jax.reduction.tokens import Tokens
from rastp_jax.runtime import sharding
from rastp_jax.training.runs import SavedModel

AGES = 10


@dataclasses.dataclass(frozen=True)
class Effect:
  """What one row did to the users it affects.

  Attributes:
    users: how many users the row takes a token from (or merges one of).
    rise: mean rise of the target's negative log-likelihood over dense on these users, in nats.
    error: its standard error.
    tokens: share of their tokens that are left, merged ones counted once.
    kept_by_level: share of their tokens that survive, by code level (and separator, if there is one).
    kept_by_age: the same by age of the item, newest first, up to `AGES`.
    overlap_with_recent: share of the surviving tokens that are among the most recent as many; None if none is dropped.
  """

  users: int
  rise: float
  error: float
  tokens: float
  kept_by_level: list[float]
  kept_by_age: list[float]
  overlap_with_recent: float | None


def oracle_rows() -> dict[str, Row]:
  """The oracles at each budget; they see the target, so that only the screen has them."""
  rows = {}
  for name in ORACLES:
    for budget in BUDGETS:
      settings = {"method": "given", "after_block": (0,), "keep_ratio": (budget,)}
      rows[f"{name}, {share(budget)}"] = make_row(f"{name}, {share(budget)}", settings)
  return rows


def screened(rows: Sequence[Row]) -> list[Row]:
  """Those that need no training."""
  return [row for row in rows if row.name != DENSE and row.untrained]


class Screen:
  """A dense model and the users it is asked about: validation users of the longest bucket, where most can be taken.

  Args:
    saved: the dense model.
    users: how many of them, the same ones for all rows; 0: all.
  """

  def __init__(self, saved: SavedModel, users: int):
    self._saved = saved
    self._batches, self.users = _batches(saved, users)
    graph, self._params = nnx.split(saved.model)
    # Apart from encoding, so that it is compiled once for all rows that leave as many tokens.
    self._likelihood = jax.jit(lambda params, *args: likelihood(_merged(graph, params), *args))
    self._dense = np.concatenate([values for values, *_ in self._run(Row(DENSE, "none", None, (("method", "none"),)))])

  def see(self, row: Row) -> Effect:
    """What a row does; compiles its encoder once."""
    found = list(self._run(row))
    rise = np.concatenate([values for values, *_ in found]) - self._dense
    return _summary(rise, [looks for _, *looks in found], self._saved)

  def _run(self, row: Row) -> Iterator[tuple[np.ndarray, ...]]:
    """Of every batch each user's NLL of the target, mask, the stage that dropped each token, and how many are left."""
    config = row.apply(self._saved.config)
    ids = self._saved.semantic_ids
    graph, _ = abstract_model(config, ids.widths, ids.num_items)
    oracle = ORACLES.get(row.name.rpartition(", ")[0])

    @jax.jit
    def encode(params: Any, batch: Mapping[str, jax.Array]):
      model = _merged(graph, params)
      tokens = model.embed_history(batch["history"])
      mask = tokens.mask
      if oracle is not None:
        tokens = tokens.replace(note=oracle(_merged(graph, params), batch))
      encoded, stages = model.encode_tokens(tokens)
      # What the decoder reads, and nothing else: its program depends on the number of tokens alone.
      size = encoded.size if config.reduction.proportional else None
      memory = Tokens(encoded.hidden, encoded.mask, jnp.zeros((1, encoded.mask.shape[1]), jnp.int32), size=size)
      return memory, mask, dropped_at(mask, stages)

    for batch, real in self._batches:
      memory, *looks = encode(self._params, batch)
      left = jnp.sum(memory.mask, axis=-1)
      values = self._likelihood(self._params, memory, batch["target"])
      yield tuple(np.asarray(part)[:real] for part in (values, *looks, left))


def _merged(graph: nnx.GraphDef, params: Any) -> EncoderDecoder:
  """The screen looks into a model; it knows one kind."""
  model = nnx.merge(graph, params)
  assert isinstance(model, EncoderDecoder)
  return model


def _batches(saved: SavedModel, users: int) -> tuple[list[tuple[Any, int]], int]:
  """Batches with codes on the devices and their numbers of real rows; and the number of users in all of them."""
  histories, length = saved.histories, saved.lengths[-1]  # one length: each is a compilation per row
  starts, ends = histories.spans("validation")
  starts = most_recent(starts, ends, saved.config.data.max_items)
  chosen = np.flatnonzero(ends - 1 - starts > (0, *saved.lengths)[-2])
  if 0 < users < len(chosen):
    chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:users])
  rows = sharding.round_up(saved.config.eval.batch_size, saved.mesh.size)
  found, table = [], what_is_read(saved.semantic_ids, saved.config.model)
  for at in range(0, len(chosen), rows):
    some = chosen[at : at + rows]
    batch = with_codes(gather(histories, starts[some], ends[some], items=length, rows=rows), table)
    found.append((sharding.place_batch(batch, saved.mesh), len(some)))
  return found, len(chosen)


def _summary(rise: np.ndarray, looks: Sequence[Sequence[np.ndarray]], saved: SavedModel) -> Effect:
  layout = saved.model.layout
  levels, ages = np.zeros((layout.item_length, 2)), np.zeros((AGES, 2))  # tokens, and those that survive
  overlaps, left = [], []
  affected = np.concatenate([remaining < mask.sum(1) for mask, _, remaining in looks])
  for mask, dropped, remaining in looks:
    for row in np.flatnonzero(remaining < mask.sum(1)):
      real = np.flatnonzero(mask[row])
      kept = dropped[row, real] == 0
      counted = np.stack([np.ones(len(real)), kept], axis=1)
      level, age = real % layout.item_length, real[-1] // layout.item_length - real // layout.item_length
      np.add.at(levels, level, counted)
      np.add.at(ages, age[age < AGES], counted[age < AGES])
      left.append(remaining[row] / len(real))
      if not kept.all():
        overlaps.append(kept[-int(kept.sum()) :].mean() if kept.any() else 0.0)
  shares = lambda counts: (counts[:, 1] / np.maximum(counts[:, 0], 1)).round(4).tolist()
  touched = rise[affected]
  return Effect(
    users=int(affected.sum()),
    rise=float(touched.mean()) if len(touched) else 0.0,
    error=float(touched.std(ddof=1) / len(touched) ** 0.5) if len(touched) > 1 else 0.0,
    tokens=float(np.mean(left)) if left else 1.0,
    kept_by_level=shares(levels),
    kept_by_age=shares(ages),
    overlap_with_recent=float(np.mean(overlaps)) if overlaps else None,
  )
