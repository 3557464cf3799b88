"""Ranks of held-out items among all items, from scores."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from rastp_jax.batches.batches import gather
from rastp_jax.data.histories import Histories
from rastp_jax.evaluation import metrics

_USERS = 512  # scored at a time


class Recommender(Protocol):
  """Scores all items for a history.

  Attributes:
    history_items: most recent items that it reads.
  """

  @property
  def history_items(self) -> int: ...

  def scores(self, history: np.ndarray) -> np.ndarray: ...


def ranks(recommender: Recommender, histories: Histories, split: str, *, exclude_history: bool = False) -> np.ndarray:
  """The rank of every user's held-out item among all items.

  Of equal scores the target's comes last: a recommender that cannot tell items apart gets no hit by luck.

  Args:
    recommender: what to measure. Its `scores` gets (B, history_items) item rows, oldest first, -1 padded on the right,
      and returns float32 (B, num_items).
    histories: all users.
    split: "validation" or "test".
    exclude_history: items of the user's history are not ranked; a target that is one of them is not found.

  Returns:
    int32 (users,), from 0.
  """
  starts, ends = histories.spans(split)
  found = np.empty(len(starts), np.int32)
  for at in range(0, len(starts), _USERS):
    some = slice(at, at + _USERS)
    rows = len(starts[some])
    batch = gather(histories, starts[some], ends[some], items=recommender.history_items, rows=rows)
    scores = recommender.scores(batch["history"])
    if exclude_history:
      sizes = ends[some] - 1 - starts[some]
      scores[np.repeat(np.arange(rows), sizes), _history(histories, starts[some], sizes)] = -np.inf
    target = scores[np.arange(rows), batch["target"]]
    found[some] = np.count_nonzero(scores >= target[:, None], axis=1) - 1
  return found


def means(found: np.ndarray, top_k: Iterable[int]) -> dict[str, float]:
  """Recall, NDCG and MRR over users, from their targets' ranks."""
  return {name: value / len(found) for name, value in metrics.ranking_sums(found, top_k).items()}


def _history(histories: Histories, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """The whole histories end to end."""
  within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  return histories.items[np.repeat(starts, sizes) + within]
