"""Ranking metrics with one target a user, as sums and counts, so that hosts and ragged batches cannot bend a mean.

Shapes: B users, W beams, C codes an item.
"""

from collections.abc import Iterable

import numpy as np


def target_ranks(beams: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """The place of each user's target among their beams.

  Args:
    beams: (B, W, C) codes, best first.
    targets: (B, C) codes.

  Returns:
    int64 (B,): 0 for the first beam, W where the target is not among them.
  """
  hits = (beams == targets[:, None]).all(-1)
  return np.where(hits.any(-1), hits.argmax(-1), beams.shape[1])


def ranking_sums(ranks: np.ndarray, ks: Iterable[int]) -> dict[str, float]:
  """Sums over users of recall@k (1 if the target is among the first k) and ndcg@k (1 / log2(rank + 2) if so).

  Args:
    ranks: (B,) from 0; at least k where the target was not found.
    ks: cut-offs.
  """
  gains = 1.0 / np.log2(ranks + 2.0)
  sums = {}
  for k in ks:
    sums[f"recall@{k}"] = float(np.sum(ranks < k))
    sums[f"ndcg@{k}"] = float(np.sum(gains[ranks < k]))
  return sums


def beam_faults(items: np.ndarray) -> dict[str, int]:
  """Counts beams that are no item, and beams that repeat an item of an earlier one.

  Args:
    items: (B, W) item rows, -1 where a beam's codes are no item's.
  """
  in_order = np.sort(items, axis=1)
  repeats = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
  return {"invalid_beams": int(np.sum(items < 0)), "repeated_beams": int(np.sum(repeats))}
