"""Ranking metrics with one target per user, as sums and counts: hosts and batches of different sizes add up exactly.

Shapes: B users, W beams.
"""

from collections.abc import Iterable

import numpy as np


def target_ranks(items: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """The rank of each user's target among their beams.

  Args:
    items: (B, W) item rows of the beams, best first, -1 where a beam is not an item.
    targets: (B,) item rows, none of them -1.

  Returns:
    int64 (B,): 0 for the first beam, W where the target is not among them.
  """
  hits = items == targets[:, None]
  return np.where(hits.any(-1), hits.argmax(-1), items.shape[1])


# What a target at a rank (from 0) is worth to its user if it is among the first k.
_GAINS = {
  "recall": lambda ranks: np.ones(len(ranks)),
  "ndcg": lambda ranks: 1.0 / np.log2(ranks + 2.0),
  "mrr": lambda ranks: 1.0 / (ranks + 1.0),
}


def names(top_k: Iterable[int]) -> list[str]:
  """Every measure at every cut-off, like "recall@5"."""
  return [f"{measure}@{k}" for k in top_k for measure in _GAINS]


def user_values(ranks: np.ndarray, name: str) -> np.ndarray:
  """Each user's value of a metric; the metric is their mean.

  Args:
    ranks: (B,) from 0; at least k where the target was not found.
    name: "recall@k" (1 if the target is among the first k), "ndcg@k" (1 / log2(rank + 2) if so) or "mrr@k"
      (1 / (rank + 1) if so).

  Returns:
    float64 (B,).
  """
  measure, _, k = name.partition("@")
  return np.where(ranks < int(k), _GAINS[measure](ranks), 0.0)


def ranking_sums(ranks: np.ndarray, top_k: Iterable[int]) -> dict[str, float]:
  """`user_values` summed over users, for every measure and cut-off.

  Args:
    ranks: (B,) from 0; at least k where the target was not found.
    top_k: cut-offs.
  """
  return {name: float(np.sum(user_values(ranks, name))) for name in names(top_k)}


def beam_faults(items: np.ndarray) -> dict[str, int]:
  """Counts beams that are not an item, and beams that repeat an item of an earlier one.

  Args:
    items: (B, W) item rows, -1 where a beam is not an item; any other negative number: there is not a beam.
  """
  in_order = np.sort(items, axis=1)
  repeats = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
  return {"invalid_beams": int(np.sum(items == -1)), "repeated_beams": int(np.sum(repeats))}
