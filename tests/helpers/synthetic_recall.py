"""What recommenders that are not trained reach on the synthetic dataset: bounds for those that are."""

from collections.abc import Sequence

import numpy as np

from rastp_jax.data.sources.synthetic import NUM_ITEMS, SyntheticSource


def oracle_recall(source: SyntheticSource, users: Sequence[Sequence[int]], k: int = 10) -> float:
  """Recall@k of the predictor that knows the planted rules, each user's last item being the target."""
  # Beyond the items the rules allow, all are equally likely: any others fill the list up.
  return float(np.mean([user[-1] in _filled(source.likely_next(user[:-1]), k) for user in users]))


def popularity_recall(users: Sequence[Sequence[int]], k: int = 10) -> float:
  """Recall@k of the k items most frequent in all but the last two items of each user, the last being the target."""
  counts = np.bincount(np.concatenate([np.asarray(user[:-2], np.int64) for user in users]), minlength=NUM_ITEMS)
  top = np.argsort(-counts, kind="stable")[:k]
  return float(np.isin([user[-1] for user in users], top).mean())


def _filled(items: np.ndarray, k: int) -> set[int]:
  chosen = list(items[:k])
  return set(chosen + [row for row in range(NUM_ITEMS) if row not in chosen][: k - len(chosen)])
