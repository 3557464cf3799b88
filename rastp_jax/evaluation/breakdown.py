"""Ranking metrics of groups of users: by how much history they have, and by how often training saw their target."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rastp_jax.data.histories import Histories
from rastp_jax.evaluation import metrics

# Smallest value of each group; the last one is open.
HISTORY_ITEMS = (1, 5, 10, 20, 30)
TARGET_SEEN = (0, 1, 5, 10, 20, 50)


def breakdowns(histories: Histories, split: str, ranks: np.ndarray, top_k: Sequence[int]) -> dict[str, list[dict]]:
  """A split's metrics by group of users.

  Args:
    histories: all users.
    split: "validation" or "test".
    ranks: (users,) of each user's target, -1 for users that were not evaluated.
    top_k: cut-offs.

  Returns:
    "history_items" (items before the target, however many of them the model reads) and "target_seen" (how often the
    target occurs in what training sees; its first group is the targets never seen), each a list as from `by_group`.
  """
  starts, ends = histories.spans(split)
  seen = histories.training_counts()[histories.items[ends - 1]]
  return {
    "history_items": by_group(ranks, ends - 1 - starts, HISTORY_ITEMS, top_k),
    "target_seen": by_group(ranks, seen, TARGET_SEEN, top_k),
  }


def by_group(
  ranks: np.ndarray, values: np.ndarray, bounds: Sequence[int], top_k: Sequence[int]
) -> list[dict[str, Any]]:
  """Means over the users whose value lies between one bound and the next.

  Args:
    ranks: (users,), -1 for users to leave out.
    values: (users,) what groups them.
    bounds: the groups' smallest values, rising; users below the first are in none.
    top_k: cut-offs.

  Returns:
    A dict per group: `from` and `to` (inclusive; None where open), `users`, and, unless it is empty, the metrics.
  """
  groups = []
  for low, high in zip(bounds, [*bounds[1:], None], strict=True):
    inside = (ranks >= 0) & (values >= low) & (values < (np.inf if high is None else high))
    count = int(inside.sum())
    sums = metrics.ranking_sums(ranks[inside], top_k)
    means = {name: value / count for name, value in sums.items()} if count else {}
    groups.append({"from": low, "to": None if high is None else high - 1, "users": count, **means})
  return groups
