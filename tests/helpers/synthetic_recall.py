"""What recommenders that are not trained reach on the synthetic dataset: bounds for those that are."""

from collections.abc import Sequence

import numpy as np

from rastp_jax.data.sources.synthetic import SyntheticSource
from rastp_jax.data.sources.synthetic_long import SyntheticLongSource


def best_recall(
  source: SyntheticSource | SyntheticLongSource, users: Sequence[Sequence[int]], last: int | None = None, k: int = 10
) -> float:
  """Recall@k of the predictor that knows the planted rules and reads a history's `last` items (None: all of them)."""
  hits = []
  for user in users:
    history = user[:-1] if last is None else user[:-1][-last:]
    hits.append(user[-1] in np.argsort(-source.probabilities(history), kind="stable")[:k])
  return float(np.mean(hits))


def popularity_recall(users: Sequence[Sequence[int]], k: int = 10) -> float:
  """Recall@k of the k items most frequent in all but the last two items of each user, the last being the target."""
  counts = np.bincount(np.concatenate([np.asarray(user[:-2], np.int64) for user in users]))
  top = np.argsort(-counts, kind="stable")[:k]
  return float(np.isin([user[-1] for user in users], top).mean())
