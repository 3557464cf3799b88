"""What each user got, kept beside the sums: for breakdowns, coverage and paired comparisons."""

from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

NOBODY = np.iinfo(np.int32).max


def from_all_hosts(values: np.ndarray) -> np.ndarray:
  """Every host's array, bit for bit: (hosts, *values.shape).

  JAX would round 64-bit numbers to 32 bits on the way, so they travel as bytes.

  Args:
    values: of the same shape and dtype on every host, at least 1-d.
  """
  if jax.process_count() == 1:
    return values[None]
  gathered = multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.uint8))
  return np.ascontiguousarray(gathered).view(values.dtype)


class Answers:
  """The rank of every user's target, and the best place every item was recommended at.

  Attributes:
    ranks: int32 (users,): the target's place among the user's beams from 0, the beam width where it is not among them,
      -1 for users that were not asked.
    first_places: int32 (items,): the best place from 0 the item had in anybody's list, `NOBODY` if it had none.
  """

  def __init__(self, num_users: int, num_items: int):
    self.ranks = np.full(num_users, -1, np.int32)
    self.first_places = np.full(num_items, NOBODY, np.int32)

  def add(self, users: np.ndarray, ranks: np.ndarray, items: np.ndarray) -> None:
    """Takes note of a batch.

    Args:
      users: (B,) user indices.
      ranks: (B,) their targets' ranks.
      items: (B, W) what they were recommended, best first, -1 where a beam is no item.
    """
    self.ranks[users] = ranks
    places = np.broadcast_to(np.arange(items.shape[1], dtype=np.int32), items.shape)
    np.minimum.at(self.first_places, items[items >= 0], places[items >= 0])

  def merge_hosts(self) -> None:
    """Makes every host know every host's users; each user must have been asked by one host only."""
    self.ranks = from_all_hosts(self.ranks).max(0)
    self.first_places = from_all_hosts(self.first_places).min(0)

  def coverage(self, ks: Iterable[int]) -> dict[str, float]:
    """The share of the catalogue that is among the first k of at least one user, as "coverage@k"."""
    return {f"coverage@{k}": float(np.mean(self.first_places < k)) for k in ks}
