"""Generated long histories in which old items matter: for reductions, which are meant for long histories.

Items are products: one of 12 brands, one of 12 kinds, and a number from 1 to 5. Users obey two rules:

- the *kind* of the next item follows from the last item's kind, with probability `FOLLOW`; else it is any kind;
- the *brand* is the one that this user likes in that kind, with probability `LOYAL`; else it is any brand.

Which brand a user likes in a kind says only what they took of that kind before: a round through all kinds ago, and the
rounds before that. `probabilities` is the best possible prediction: its recall@10 is 0.60 with all items of a history,
0.58 with the last 50, 0.49 with the last 25 and 0.16 with the last one, which tells the kind and leaves the brand open.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from rastp_jax.data.items import Item
from rastp_jax.data.sources.generated import Generated

KINDS = ("Lipstick", "Perfume", "Shampoo", "Soap", "Mascara", "Nail Polish", "Lotion", "Brush", "Powder", "Serum")
KINDS += ("Toner", "Sunscreen")
BRANDS = ("Velvet", "Citrus", "Marine", "Amber", "Cedar", "Rose", "Linen", "Saffron", "Fig", "Mint", "Pearl", "Clove")
ITEMS_PER_BRAND = 5  # of one kind
FOLLOW = 0.9
LOYAL = 0.6
NUM_ITEMS = len(KINDS) * len(BRANDS) * ITEMS_PER_BRAND
EMBEDDING_DIMS = 32
SHORTEST, MEAN, LONGEST = 50, 102, 200  # items of a history; the mean is that before the longest are cut, 100 after it


class SyntheticLongSource(Generated):
  """The generated users, items and embeddings; everything follows from the seed.

  Attributes:
    where: what messages call this source.
    num_items: of the catalogue.
  """

  where = "the generator of long histories"
  num_items = NUM_ITEMS

  def __init__(self, seed: int = 0, num_users: int = 1000):
    self._seed, self._num_users = seed, num_users
    # A circle through all kinds, so that none is visited more than others.
    circle = np.random.default_rng([seed, 0]).permutation(len(KINDS))
    self._next_kind = np.empty_like(circle)
    self._next_kind[circle] = np.roll(circle, -1)

  def items(self) -> Iterator[Item]:
    for row in range(NUM_ITEMS):
      kind, brand, number = _place(row)
      yield Item(
        item_id=str(row + 1),
        asin=f"SYN{row + 1:07d}",
        title=f"{BRANDS[brand]} {KINDS[kind]} No. {number + 1}",
        brand=f"House of {BRANDS[brand]}",
        categories=(f"Synthetic > {KINDS[kind]} > {BRANDS[brand]}",),
      )

  def users(self) -> Iterator[tuple[str, list[int]]]:
    """Yields (user id, item rows from 0 in time order)."""
    rng = np.random.default_rng([self._seed, 1])
    more = rng.geometric(1 / (1 + MEAN - SHORTEST), self._num_users) - 1
    for user, length in enumerate(np.minimum(SHORTEST + more, LONGEST)):
      likes = rng.integers(len(BRANDS), size=len(KINDS))
      kind, walk = int(rng.integers(len(KINDS))), []
      while len(walk) < length:
        brand = likes[kind] if rng.random() < LOYAL else rng.integers(len(BRANDS))
        walk.append(int((kind * len(BRANDS) + brand) * ITEMS_PER_BRAND + rng.integers(ITEMS_PER_BRAND)))
        kind = int(self._next_kind[kind] if rng.random() < FOLLOW else rng.integers(len(KINDS)))
      yield str(user + 1), walk

  def embeddings(self, num_items: int) -> np.ndarray:
    """float32 (num_items, EMBEDDING_DIMS): a vector for the brand, smaller ones for kind and number, noise."""
    rng = np.random.default_rng([self._seed, 2])
    kind, brand, number = _place(np.arange(num_items))
    vectors = rng.normal(size=(len(BRANDS), EMBEDDING_DIMS))[brand]
    vectors += 0.5 * rng.normal(size=(len(KINDS), EMBEDDING_DIMS))[kind]
    vectors += 0.3 * rng.normal(size=(ITEMS_PER_BRAND, EMBEDDING_DIMS))[number]
    return (vectors + 0.05 * rng.normal(size=vectors.shape)).astype(np.float32)

  def probabilities(self, history: Sequence[int]) -> np.ndarray:
    """Of each item to follow a history that is not empty, for those who know the rules: float64 (num_items,).

    The brand that a user likes in a kind is inferred by Bayes' rule from all that they took of it.
    """
    kinds, brands, _ = _place(np.asarray(history))
    other = (1 - LOYAL) / len(BRANDS)
    votes = np.zeros((len(KINDS), len(BRANDS)))
    np.add.at(votes, (kinds, brands), 1)
    likes = ((LOYAL + other) / other) ** (votes - votes.max(1, keepdims=True))
    likes /= likes.sum(1, keepdims=True)
    kind = np.full(len(KINDS), (1 - FOLLOW) / len(KINDS))
    kind[self._next_kind[kinds[-1]]] += FOLLOW
    return np.repeat(kind[:, None] * (LOYAL * likes + other), ITEMS_PER_BRAND) / ITEMS_PER_BRAND


def _place(row):
  """Kind, brand and number within both, of item rows."""
  return row // (len(BRANDS) * ITEMS_PER_BRAND), row // ITEMS_PER_BRAND % len(BRANDS), row % ITEMS_PER_BRAND
