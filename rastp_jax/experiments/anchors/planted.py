"""The best possible predictor of a generated dataset: it knows the planted rules."""

import numpy as np

from rastp_jax.data.sources.synthetic import SyntheticSource
from rastp_jax.data.sources.synthetic_long import SyntheticLongSource


class Planted:
  """Scores items by their probability under the rules; among equal ones, always the same ones come first.

  Args:
    source: of the dataset.
    history_items: of the longest history.
  """

  def __init__(self, source: SyntheticSource | SyntheticLongSource, history_items: int):
    self._source, self.history_items = source, history_items
    self._order = 1 + 1e-6 * np.random.default_rng(0).random(source.num_items)

  def scores(self, history: np.ndarray) -> np.ndarray:
    """float64 (B, num_items) for histories (B, N)."""
    return np.stack([self._source.probabilities(row[row >= 0]) * self._order for row in history])
