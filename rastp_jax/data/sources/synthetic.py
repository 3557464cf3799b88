"""A generated dataset with planted structure: it needs no files, and shows whether a model learns.

12 clusters of 4 groups of 5 items. With probability `FOLLOW` a user's next item obeys two rules, else it is any item:

- its *cluster* follows from the last item's cluster;
- its *group* follows from the group of the item `LAG` positions back.

The rules leave 5 items, so the best possible recall@10 is about `FOLLOW`. A model that sees only the last item must
guess among 4 groups, 20 items, and reaches half of that; popularity says nothing. Old items matter: half of the
histories are no longer than `LAG`, and in those it is the oldest item that the group follows from.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from rastp_jax.data.items import Item
from rastp_jax.data.sources.generated import Generated

CLUSTERS = ("Lipstick", "Perfume", "Shampoo", "Mascara", "Soap", "Lotion", "Brush", "Nail Polish", "Powder", "Serum")
CLUSTERS += ("Toner", "Sunscreen")
GROUPS = ("Velvet", "Citrus", "Marine", "Amber")
ITEMS_PER_GROUP = 5
NUM_ITEMS = len(CLUSTERS) * len(GROUPS) * ITEMS_PER_GROUP
FOLLOW = 0.85
LAG = 8
EMBEDDING_DIMS = 32
MAX_LENGTH = 29


class SyntheticSource(Generated):
  """The generated users, items and embeddings; everything follows from the seed.

  Attributes:
    where: what messages call this source.
    num_items: of the catalogue.
  """

  where = "the synthetic generator"
  num_items = NUM_ITEMS

  def __init__(self, seed: int = 0, num_users: int = 2000):
    self._seed = seed
    self._num_users = num_users
    rng = np.random.default_rng([seed, 0])
    # Circles through all clusters and through all groups, so that none is visited more than others.
    circle, ring = rng.permutation(len(CLUSTERS)), rng.permutation(len(GROUPS))
    self._next_cluster, self._next_group = np.empty_like(circle), np.empty_like(ring)
    self._next_cluster[circle], self._next_group[ring] = np.roll(circle, -1), np.roll(ring, -1)

  def items(self) -> Iterator[Item]:
    for row in range(NUM_ITEMS):
      cluster, group, number = _place(row)
      yield Item(
        item_id=str(row + 1),
        asin=f"SYN{row + 1:07d}",
        title=f"{GROUPS[group]} {CLUSTERS[cluster]} No. {number + 1}",
        brand=f"House of {GROUPS[group]}",
        categories=(f"Synthetic > {CLUSTERS[cluster]} > {GROUPS[group]}",),
      )

  def users(self) -> Iterator[tuple[str, list[int]]]:
    """Yields (user id, item rows from 0 in time order): mostly 5 to 20 items, a few up to `MAX_LENGTH`."""
    rng = np.random.default_rng([self._seed, 1])
    lengths = np.minimum(5 + rng.geometric(0.16, self._num_users) - 1, MAX_LENGTH)
    for user, length in enumerate(lengths):
      walk = [int(rng.integers(NUM_ITEMS))]
      while len(walk) < length:
        likely = self.likely_next(walk)
        walk.append(int(rng.choice(likely) if rng.random() < FOLLOW else rng.integers(NUM_ITEMS)))
      yield str(user + 1), walk

  def embeddings(self, num_items: int) -> np.ndarray:
    """float32 (num_items, EMBEDDING_DIMS): a cluster's centre, a step for the group, a smaller one for the item."""
    rng = np.random.default_rng([self._seed, 2])
    cluster, group, _ = _place(np.arange(num_items))
    centre = rng.normal(size=(len(CLUSTERS), EMBEDDING_DIMS))
    step = rng.normal(size=(len(GROUPS), EMBEDDING_DIMS))
    own = rng.normal(size=(num_items, EMBEDDING_DIMS))
    return (centre[cluster] + 0.5 * step[group] + 0.25 * own).astype(np.float32)

  def likely_next(self, history: Sequence[int]) -> np.ndarray:
    """The items the planted rules allow after a history, which is not empty; of a short one, its oldest item counts."""
    cluster, _, _ = _place(history[-1])
    _, group, _ = _place(history[max(-LAG, -len(history))])
    first = (self._next_cluster[cluster] * len(GROUPS) + self._next_group[group]) * ITEMS_PER_GROUP
    return np.arange(first, first + ITEMS_PER_GROUP)

  def probabilities(self, history: Sequence[int]) -> np.ndarray:
    """Of each item to follow a history that is not empty, for those who know the rules: float64 (num_items,)."""
    found = np.full(NUM_ITEMS, (1 - FOLLOW) / NUM_ITEMS)
    found[self.likely_next(history)] += FOLLOW / ITEMS_PER_GROUP
    return found


def _place(row):
  """Cluster, group and number within the group of item rows."""
  return row // (len(GROUPS) * ITEMS_PER_GROUP), row // ITEMS_PER_GROUP % len(GROUPS), row % ITEMS_PER_GROUP
