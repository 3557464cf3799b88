"""Co-occurrence counts: items that users took near the items of a history. Nothing is learned by gradient.

score(j) = sum over the history's last items i, the a-th most recent (a from 0), of
  decay^a x sum over all training pairs (i, j), d steps apart, of (1 or `backward`) / d^distance_power
  / occurrences(j)^popularity_power
"""

import dataclasses

import numpy as np
import scipy.sparse

from rastp_jax.data.histories import Histories
from rastp_jax.evaluation.breakdown import training_counts


@dataclasses.dataclass(frozen=True)
class CountsSettings:
  """What is counted, and how a history is read.

  Attributes:
    window: two items of a user count as a pair if they are at most this many steps apart.
    distance_power: a pair d steps apart weighs 1 / d^distance_power.
    backward: weight of the pairs in which the scored item came before the history's item; the others weigh 1.
    popularity_power: scores are divided by the scored item's occurrences to this power.
    decay: each older item of a history weighs this much less.
    last_items: items of a history that are read, the most recent ones.
  """

  window: int = 5
  distance_power: float = 1.0
  backward: float = 1.0
  popularity_power: float = 0.5
  decay: float = 0.7
  last_items: int = 10


class Counts:
  """Weighted pair counts of the training part of all histories. Make one with `fit`.

  Args:
    pairs: float32 (num_items, num_items), row: an item of the history, column: the item that is scored.
    settings: how a history is read.
  """

  def __init__(self, pairs: scipy.sparse.csr_matrix, settings: CountsSettings):
    self._pairs, self._num_items, self.settings = pairs, pairs.get_shape()[0], settings

  @property
  def history_items(self) -> int:
    return self.settings.last_items

  @classmethod
  def fit(cls, histories: Histories, settings: CountsSettings = CountsSettings()) -> "Counts":
    """Counts the pairs of the training part; the held-out items of `Histories.spans` are not looked at."""
    _, stop = histories.training_spans()
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    inside = np.arange(len(histories.items)) < stop[user]
    items, user = histories.items[inside], user[inside]
    rows, columns, weights = [], [], []
    for steps in range(1, settings.window + 1):
      # An item taken twice says nothing about others.
      together = (user[steps:] == user[:-steps]) & (items[steps:] != items[:-steps])
      earlier, later = items[:-steps][together], items[steps:][together]
      rows += [earlier, later]
      columns += [later, earlier]
      weight = float(steps) ** -settings.distance_power
      weights += [np.full(len(earlier), weight), np.full(len(earlier), weight * settings.backward)]
    shape = (histories.num_items, histories.num_items)
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    pairs = scipy.sparse.csr_matrix(entries, shape=shape, dtype=np.float32)
    occurrences = np.maximum(training_counts(histories), 1).astype(np.float32)
    pairs.data *= occurrences[pairs.indices] ** -settings.popularity_power
    pairs.eliminate_zeros()  # of backward=0
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
