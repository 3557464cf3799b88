"""What each user was recommended, kept beside the sums: for breakdowns, coverage, paired comparisons and reports."""

from collections.abc import Iterable

import numpy as np

from rastp_jax.runtime import processes

NEVER = np.iinfo(np.int32).max
ANSWERS = 5  # items of each user's list that are kept


class UserRanks:
  """The rank of every user's target, the first items of every user's list, and every item's best rank in any list.

  Attributes:
    ranks: int32 (users,): the target's rank among the user's beams from 0, the beam width where it is not among them,
      -1 for users that were not evaluated.
    answers: int32 (users, ANSWERS): the first item rows of the user's list, -1 where a beam is not an item and where
      there are no more.
    best_ranks: int32 (items,): the best rank from 0 of the item in any user's list, `NEVER` if it is in none.
  """

  def __init__(self, num_users: int, num_items: int):
    self.ranks = np.full(num_users, -1, np.int32)
    self.answers = np.full((num_users, ANSWERS), -1, np.int32)
    self.best_ranks = np.full(num_items, NEVER, np.int32)

  def add(self, users: np.ndarray, ranks: np.ndarray, items: np.ndarray) -> None:
    """Records a batch.

    Args:
      users: (B,) user indices.
      ranks: (B,) their targets' ranks.
      items: (B, W) item rows they were recommended, best first, -1 where a beam is not an item.
    """
    self.ranks[users] = ranks
    first = items[:, :ANSWERS]
    self.answers[users, : first.shape[1]] = first
    beam_ranks = np.broadcast_to(np.arange(items.shape[1], dtype=np.int32), items.shape)
    np.minimum.at(self.best_ranks, items[items >= 0], beam_ranks[items >= 0])

  def merge_hosts(self) -> None:
    """Gives every host all hosts' users; each user must have been evaluated by one host only."""
    self.ranks = processes.allgather(self.ranks).max(0)
    # By columns: all hosts' answers at once would be several times the memory of all hosts' ranks.
    self.answers = np.stack([processes.allgather(column).max(0) for column in self.answers.T], axis=1)
    self.best_ranks = processes.allgather(self.best_ranks).min(0)

  def coverage(self, top_k: Iterable[int]) -> dict[str, float]:
    """The share of the catalogue that is among the first k of at least one user, as "coverage@k"."""
    return {f"coverage@{k}": float(np.mean(self.best_ranks < k)) for k in top_k}
