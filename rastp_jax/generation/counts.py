"""Co-occurrence counts: items that users took near the items of a history. Nothing is learned by gradient.

score(j) = sum over the history's last items i, the a-th most recent (a from 0), of
  decay^a x sum over all training pairs (i, j), d steps apart, of (1 or `backward`) / d^distance_power
  / occurrences(j)^popularity_power

`Counts` scores all items on the host. `Counts.table` keeps each item's strongest neighbours in arrays of fixed width,
from which a compiled program makes candidates whatever the size of the catalogue.

Shapes: B rows, N history items, I items of the catalogue, M neighbours kept per item, K candidates.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int

from rastp_jax.config import CountsConfig
from rastp_jax.data.histories import Histories


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Neighbours:
  """Each item's strongest neighbours.

  Attributes:
    items: (I, M) int32 item rows, strongest first; anything where the weight is 0.
    weights: (I, M) float32.
    decay: see `CountsConfig`.
    last_items: see `CountsConfig`.
  """

  items: Int[Array, "I M"]
  weights: Float[Array, "I M"]
  decay: float = dataclasses.field(metadata={"static": True})
  last_items: int = dataclasses.field(metadata={"static": True})

  def candidates(self, history: Int[Array, "B N"]) -> tuple[Int[Array, "B K"], Float[Array, "B K"]]:
    """The neighbours of a history's last items, with probabilities.

    Args:
      history: item rows, oldest first, padded on the right with -1.

    Returns:
      Item rows, in which an item may come several times, and float32 probabilities, which add up to 1 over each row, or
      to 0 where no item of the history has a neighbour. K = min(N, last_items) x M.
    """
    sizes = jnp.sum(history >= 0, axis=1)
    ages = jnp.arange(min(history.shape[1], self.last_items), dtype=jnp.int32)[None]
    places = sizes[:, None] - 1 - ages
    rows = jnp.take_along_axis(history, jnp.maximum(places, 0), axis=1)
    share = jnp.where(places >= 0, jnp.float32(self.decay) ** ages.astype(jnp.float32), 0.0)
    weights = self.weights[rows] * share[..., None]
    flat = lambda x: x.reshape(x.shape[0], -1)
    total = jnp.sum(flat(weights), axis=1, keepdims=True)
    return flat(self.items[rows]), flat(weights) / jnp.where(total > 0, total, 1.0)


class Counts:
  """Weighted pair counts of the training part of all histories. Make one with `fit`.

  Args:
    pairs: float32 (num_items, num_items), row: an item of the history, column: the item that is scored.
    settings: how a history is read.
  """

  def __init__(self, pairs: scipy.sparse.csr_matrix, settings: CountsConfig):
    self._pairs, self._num_items, self.settings = pairs, pairs.get_shape()[0], settings

  @property
  def history_items(self) -> int:
    return self.settings.last_items

  @classmethod
  def fit(cls, histories: Histories, settings: CountsConfig) -> "Counts":
    """Counts the pairs of the training part; the held-out items of `Histories.spans` are not looked at."""
    first, stop = histories.training_spans()
    sizes = np.maximum(stop - first, 0)
    user = np.repeat(np.arange(len(first)), sizes)
    items = histories.items[np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())]
    shape = (histories.num_items, histories.num_items)
    pairs = scipy.sparse.csr_matrix(shape, dtype=np.float32)
    for steps in range(1, settings.window + 1):  # one at a time: all pairs, before they are added up, take far more
      # An item taken twice says nothing about others.
      together = (user[steps:] == user[:-steps]) & (items[steps:] != items[:-steps])
      earlier, later = items[:-steps][together], items[steps:][together]
      weights = np.full(len(earlier), float(steps) ** -settings.distance_power, np.float32)
      near = scipy.sparse.csr_matrix((weights, (earlier, later)), shape=shape)
      pairs = scipy.sparse.csr_matrix(pairs + near)
    if settings.backward:
      pairs = scipy.sparse.csr_matrix(pairs + settings.backward * pairs.T.tocsr())
    occurrences = np.maximum(histories.training_counts(), 1).astype(np.float32)
    pairs.data *= occurrences[pairs.indices] ** -settings.popularity_power
    pairs.eliminate_zeros()  # of powers too small for float32
    return cls(pairs, settings)

  def scores(self, history: np.ndarray) -> np.ndarray:
    """Scores of all items.

    Args:
      history: (B, N) item rows, oldest first, -1 where there is none.

    Returns:
      float32 (B, num_items), 0 for items that were never counted with any of the history's.
    """
    real = history >= 0
    age = np.cumsum(real[:, ::-1], axis=1)[:, ::-1] - 1
    used = real & (age < self.settings.last_items)
    weight = np.power(np.float32(self.settings.decay), age[used]).astype(np.float32)
    row = np.broadcast_to(np.arange(len(history))[:, None], history.shape)[used]
    shape = (len(history), self._num_items)
    read = scipy.sparse.csr_matrix((weight, (row, history[used])), shape=shape)
    return scipy.sparse.csr_matrix(read @ self._pairs).toarray()

  def table(self) -> Neighbours:
    """The strongest `settings.neighbours` of each item (fewer where an item has fewer)."""
    pairs = self._pairs.sorted_indices()
    sizes = np.diff(pairs.indptr)
    row = np.repeat(np.arange(self._num_items), sizes)
    order = np.lexsort((pairs.indices, -pairs.data, row))
    place = np.arange(len(order)) - np.repeat(pairs.indptr[:-1], sizes)  # rows stay where they are
    width = max(1, min(self.settings.neighbours, int(sizes.max(initial=0))))
    kept = place < width
    items, weights = np.zeros((self._num_items, width), np.int32), np.zeros((self._num_items, width), np.float32)
    items[row[kept], place[kept]] = pairs.indices[order][kept]
    weights[row[kept], place[kept]] = pairs.data[order][kept]
    return Neighbours(jnp.asarray(items), jnp.asarray(weights), self.settings.decay, self.settings.last_items)
