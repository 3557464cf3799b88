"""Which tokens survive pruning: the picture RASTP deserves.

Shapes: U users, N history items, P positions an item (its codes, then the separator if there is one).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rastp_jax import sharding
from rastp_jax.config import Config
from rastp_jax.data.batches import evaluation_batches
from rastp_jax.data.histories import Histories
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.semantic_ids.codes import SemanticIds

NO_TOKEN, SURVIVED = -1, 0


@dataclasses.dataclass(frozen=True, eq=False)
class Survival:
  """What became of users' tokens.

  Attributes:
    users: int64 (U,) user indices.
    items: int32 (U, N) item rows, the most recent one last, -1 where the history is shorter.
    fates: int8 (U, N, P): `SURVIVED`, the stage (from 1) that dropped the token, or `NO_TOKEN`.
    depth: codes an item; fates[..., depth] is the separator, if there is one.
  """

  users: np.ndarray
  items: np.ndarray
  fates: np.ndarray
  depth: int

  @property
  def kinds(self) -> list[str]:
    """What each of an item's positions holds."""
    separator = ["separator"] * (self.fates.shape[2] > self.depth)
    return [f"level {level}" for level in range(self.depth)] + separator

  def losing(self) -> "Survival":
    """Those users from whom pruning took a token at all."""
    chosen = (self.fates > SURVIVED).any((1, 2))
    return dataclasses.replace(self, users=self.users[chosen], items=self.items[chosen], fates=self.fates[chosen])

  def by_kind(self) -> np.ndarray:
    """Share of a user's tokens of each kind that survived, averaged over users: float64 (P,)."""
    return _mean_share(self.fates, axis=1)

  def by_recency(self) -> np.ndarray:
    """How often the token of each kind at each place survived, among the users whose history reaches so far.

    Returns:
      float64 (N, P), row 0 the most recent item; NaN where nobody's history reaches.
    """
    real = (self.fates != NO_TOKEN).sum(0)
    survived = (self.fates == SURVIVED).sum(0)
    return np.where(real > 0, survived / np.maximum(real, 1), np.nan)[::-1]

  def counts(self) -> dict[str, float]:
    """users; their mean tokens and mean surviving tokens; the separators' share of either (0 without separators)."""
    real, survived = self.fates != NO_TOKEN, self.fates == SURVIVED
    separators = np.arange(self.fates.shape[2]) >= self.depth
    return {
      "users": len(self.users),
      "tokens": float(real.sum() / len(self.users)),
      "surviving": float(survived.sum() / len(self.users)),
      "separator_share": float((real & separators).sum() / real.sum()),
      "separator_share_of_surviving": float((survived & separators).sum() / survived.sum()),
    }

  def samples(self, count: int) -> list[int]:
    """Rows of `count` users for a closer look, always the same ones, from short histories to long ones."""
    lengths = (self.items >= 0).sum(1)
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    places = np.linspace(0, len(by_length) - 1, min(count, len(by_length)))
    return by_length[places.round().astype(int)].tolist()


def survey(
  model: EncoderDecoder,
  histories: Histories,
  semantic_ids: SemanticIds,
  config: Config,
  mesh: Mesh,
  split: str,
  *,
  users: int = 0,
) -> Survival:
  """Encodes users' histories and notes which tokens each pruning stage dropped.

  Args:
    model: the recommender.
    histories: all users.
    semantic_ids: codes of every item.
    config: its `data` section and `eval.batch_size` are used.
    mesh: devices that share the users.
    split: "validation" or "test".
    users: so many of them, spread over all and always the same ones; 0 for all.
  """
  graph, params = nnx.split(model)

  @jax.jit
  def fates_of(params, history):
    model = nnx.merge(graph, params)
    tokens = model.embed_history(history)
    _, stages = model.encode_tokens(tokens)
    rows = jnp.arange(history.shape[0])[:, None]
    survived = jnp.zeros(tokens.mask.shape, jnp.int8)
    for stage in stages:
      survived = survived.at[rows, stage["kept"]].add(1)
    fates = jnp.where(survived == len(stages), SURVIVED, survived + 1)
    return jnp.where(tokens.mask, fates, NO_TOKEN).astype(jnp.int8)

  size = config.data.bucket_items[-1]
  devices = mesh.shape["data"]
  batch_size = -(-config.eval.batch_size // devices) * devices
  found = []
  for batch in evaluation_batches(histories, semantic_ids, config.data, split, batch_size=batch_size, users=users):
    real = batch["user"] >= 0
    placed = sharding.place_batch({"history": batch["history"]}, mesh)["history"]
    fates = np.asarray(fates_of(params, placed))[real].reshape(real.sum(), -1, model.item_length)
    items = semantic_ids.items_of(batch["history"][real])
    found.append((batch["user"][real], _align_right(items, -1, size), _align_right(fates, NO_TOKEN, size, items >= 0)))
  return Survival(*(np.concatenate(parts) for parts in zip(*found, strict=True)), depth=semantic_ids.depth)


def _align_right(values: np.ndarray, filler: int, size: int, real: np.ndarray | None = None) -> np.ndarray:
  """Moves each row's first entries to the end of `size` places, so that the most recent item is last in every row."""
  real = values >= 0 if real is None else real
  lengths = real.sum(1)
  places = np.arange(size) - (size - lengths)[:, None]
  rows = np.arange(len(values))[:, None]
  mask = (places >= 0).reshape(places.shape + (1,) * (values.ndim - 2))
  return np.where(mask, values[rows, np.maximum(places, 0)], filler).astype(values.dtype)


def _mean_share(fates: np.ndarray, axis: int) -> np.ndarray:
  real = (fates != NO_TOKEN).sum(axis)
  return ((fates == SURVIVED).sum(axis) / np.maximum(real, 1)).mean(0)
