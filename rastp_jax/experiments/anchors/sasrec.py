"""SASRec (Kang & McAuley 2018, arXiv 1808.09781) trained with cross-entropy over all items.

A causal transformer over item embeddings predicts the next item at every position; scores are inner products with the
same embeddings. Unlike the paper, every wrong item is a negative (no sampling), and layers are normalised first, as is
usual today.

Shapes: B rows, T positions, D width, I items. Training packs several users into a row; a position attends only to
earlier positions of its own user.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from rastp_jax.data.histories import Histories
from rastp_jax.experiments.anchors import evaluation
from rastp_jax.model.dropout import Dropout
from rastp_jax.runtime import products


@dataclasses.dataclass(frozen=True)
class SasrecSettings:
  """Sizes and training.

  Attributes:
    width: of embeddings and states.
    hidden: of the MLP's layer.
    blocks: attention and MLP, one after the other.
    heads: of the attention.
    positions: longest history, in items.
    dropout: on embeddings, on attention's and MLP's outputs.
    rows: packed rows of a batch; each holds `positions` items.
    learning_rate: of Adam at first; it falls along a half cosine to 0.
    epochs: the length of that cosine; training ends there at the latest.
    evaluate_every: epochs between two looks at the validation users.
    patience: looks without a better NDCG@10 before training ends.
    dtype: of matrix products.
  """

  width: int = 64
  hidden: int = 128
  blocks: int = 2
  heads: int = 2
  positions: int = 50
  dropout: float = 0.5
  rows: int = 6
  learning_rate: float = 1e-3
  epochs: int = 30
  evaluate_every: int = 3
  patience: int = 3
  dtype: str = "bfloat16"


class Block(nnx.Module):
  """Causal attention, then an MLP, each added to its normalised input."""

  def __init__(self, settings: SasrecSettings, *, rngs: nnx.Rngs):
    def dense(fan_in, fan_out):
      return nnx.Linear(fan_in, fan_out, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    self._settings = settings
    self.norm_attention, self.norm_mlp = (nnx.LayerNorm(settings.width, rngs=rngs) for _ in range(2))
    self.query_key_value = dense(settings.width, 3 * settings.width)
    self.output = dense(settings.width, settings.width)
    self.up, self.down = dense(settings.width, settings.hidden), dense(settings.hidden, settings.width)

  def __call__(self, x: Float[Array, "B T D"], allowed: Array, dropout: Dropout) -> Float[Array, "B T D"]:
    heads = (*x.shape[:2], self._settings.heads, -1)
    query, key, value = jnp.split(self.query_key_value(self.norm_attention(x)), 3, axis=-1)
    read = jax.nn.dot_product_attention(*(part.reshape(heads) for part in (query, key, value)), mask=allowed[:, None])
    x = x + dropout(self.output(read.reshape(x.shape)), self._settings.dropout)
    changed = self.down(dropout(jax.nn.gelu(self.up(self.norm_mlp(x))), self._settings.dropout))
    return x + dropout(changed, self._settings.dropout)


class SasrecModel(nnx.Module):
  """The transformer."""

  def __init__(self, num_items: int, settings: SasrecSettings, *, rngs: nnx.Rngs):
    normal = nnx.initializers.normal(0.02)
    self._settings = settings
    self.items = nnx.Param(normal(rngs.params(), (num_items, settings.width)))
    self.positions = nnx.Param(normal(rngs.params(), (settings.positions, settings.width)))
    self.blocks = nnx.List([Block(settings, rngs=rngs) for _ in range(settings.blocks)])
    self.norm = nnx.LayerNorm(settings.width, rngs=rngs)

  def states(
    self, items: Int[Array, "B T"], segment: Int[Array, "B T"], position: Int[Array, "B T"], key: Array | None
  ) -> Float[Array, "B T D"]:
    """What each position knows of its user.

    Args:
      items: item rows.
      segment: which user of the row a position belongs to; 0 where there is none.
      position: of the item in its user's history, from 0.
      key: of dropout; None: no dropout.
    """
    dropout = Dropout(key)
    same_user = segment[:, :, None] == segment[:, None, :]
    allowed = same_user & jnp.tril(jnp.ones((items.shape[1],) * 2, bool))[None]
    embedded = math.sqrt(self._settings.width) * self.items[...][items] + self.positions[...][position]
    x = dropout(embedded, self._settings.dropout)
    for block in self.blocks:
      x = block(x, allowed, dropout)
    return self.norm(x)

  def logits(self, states: Float[Array, "N D"]) -> Float[Array, "N I"]:
    return products.matmul_transposed(states.astype(self._settings.dtype), self.items[...])


@dataclasses.dataclass(frozen=True)
class PackedRows:
  """Histories, several per row, (rows, positions) int32 each; `segment` is 0 where a position is not used."""

  items: np.ndarray
  targets: np.ndarray
  segment: np.ndarray
  position: np.ndarray


class Sasrec:
  """A trained SASRec. Make one with `fit`.

  Attributes:
    epochs: of training up to the weights that were kept.
    curve: [epoch, validation NDCG@10], one per look.
    num_parameters: of the model.
  """

  def __init__(self, graph: nnx.GraphDef, params: nnx.State, settings: SasrecSettings, curve: list[list[float]]):
    self._graph, self._params, self.settings, self.curve = graph, params, settings, curve
    self.epochs = max(curve, key=lambda look: look[1])[0] if curve else 0
    self.num_parameters = sum(value.size for value in jax.tree.leaves(params))

  @property
  def history_items(self) -> int:
    return self.settings.positions

  @classmethod
  def fit(
    cls,
    histories: Histories,
    settings: SasrecSettings = SasrecSettings(),
    *,
    seed: int = 0,
    log: Callable[[str], None] = lambda text: None,
  ) -> "Sasrec":
    """Trains on the training part of the histories, until the validation users' NDCG@10 no longer rises.

    Args:
      histories: all users; their test items are not looked at.
      settings: sizes and training.
      seed: of weights, order and dropout.
      log: is told how it goes, a line per look.
    """
    graph, params = nnx.split(SasrecModel(histories.num_items, settings, rngs=nnx.Rngs(seed)))
    epoch_steps = len(list(packed_epoch(histories, settings, np.random.default_rng(seed))))
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, max(1, settings.epochs * epoch_steps)))
    opt_state = optimizer.init(params)
    key = jax.random.key(seed)

    def loss_of(params, batch, key):
      model = nnx.merge(graph, params)
      states = model.states(batch.items, batch.segment, batch.position, key)
      logits = model.logits(states.reshape(-1, settings.width))
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets.reshape(-1))
      used = batch.segment.reshape(-1) > 0
      return jnp.sum(losses * used) / jnp.maximum(jnp.sum(used), 1)

    @jax.jit
    def step(params, opt_state, batch, step):
      loss, gradient = jax.value_and_grad(loss_of)(params, batch, jax.random.fold_in(key, step))
      updates, opt_state = optimizer.update(gradient, opt_state, params)
      return optax.apply_updates(params, updates), opt_state, loss

    best, curve, steps = params, [], 0
    for epoch in range(1, settings.epochs + 1):
      losses = []
      for batch in packed_epoch(histories, settings, np.random.default_rng([seed, epoch])):
        params, opt_state, loss = step(params, opt_state, batch, steps)
        losses.append(loss)
        steps += 1
      if epoch % settings.evaluate_every and epoch < settings.epochs:
        continue
      found = evaluation.ranks(cls(graph, params, settings, []), histories, "validation")
      values = evaluation.means(found, (10,))
      if not curve or values["ndcg@10"] > max(value for _, value in curve):
        best = params
      curve.append([epoch, values["ndcg@10"]])
      log(
        f"epoch {epoch}: loss {float(np.mean(losses)):.3f}, "
        f"validation recall@10 {values['recall@10']:.4f}, NDCG@10 {values['ndcg@10']:.4f}"
      )
      if epoch - max(curve, key=lambda look: look[1])[0] >= settings.patience * settings.evaluate_every:
        break
    return cls(graph, best, settings, curve)

  def scores(self, history: np.ndarray) -> np.ndarray:
    """Scores of all items.

    Args:
      history: (B, N) item rows, oldest first, -1 padded on the right, N at most `history_items`.

    Returns:
      float32 (B, num_items), logits of the next item.
    """
    return np.array(_scores(self._graph, self._params, history))


def _scores_of(graph, params, history):
  model = nnx.merge(graph, params)
  real = history >= 0
  position = jnp.broadcast_to(jnp.arange(history.shape[1]), history.shape)
  states = model.states(jnp.maximum(history, 0), real.astype(jnp.int32), position, None)
  last = jnp.maximum(real.sum(axis=1) - 1, 0)
  return model.logits(jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0])


_scores = jax.jit(_scores_of, static_argnums=0)
jax.tree_util.register_dataclass(PackedRows)


def packed_epoch(histories: Histories, settings: SasrecSettings, rng: np.random.Generator) -> Iterator[PackedRows]:
  """Yields batches of packed rows: each user's training part once, users in random order."""
  first, stop = histories.training_spans()
  first = np.maximum(first, stop - 1 - settings.positions)  # the most recent items; one more is the last target
  order = rng.permutation(np.flatnonzero(stop - first >= 2))
  first, sizes = first[order], (stop - first)[order] - 1
  rows, columns, used, row = np.empty(len(order), np.int64), np.empty(len(order), np.int64), 0, 0
  for index, size in enumerate(sizes.tolist()):
    if used + size > settings.positions:
      row, used = row + 1, 0
    rows[index], columns[index] = row, used
    used += size
  num_rows = -(-(row + 1) // settings.rows) * settings.rows
  user = np.repeat(np.arange(len(order)), sizes)
  within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  place = rows[user] * settings.positions + columns[user] + within
  flat = np.zeros((4, num_rows * settings.positions), np.int32)
  flat[0, place] = histories.items[first[user] + within]
  flat[1, place] = histories.items[first[user] + within + 1]
  flat[2, place] = user + 1
  flat[3, place] = within
  packed = flat.reshape(4, -1, settings.rows, settings.positions)
  for index in range(packed.shape[1]):
    yield PackedRows(*packed[:, index])
