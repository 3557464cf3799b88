"""The most popular items, the same for every user."""

import numpy as np

from rastp_jax.data.histories import Histories


class Popularity:
  """Scores an item by how often it occurs in the training part of the histories."""

  history_items = 1  # none is used, but a batch has at least one column

  def __init__(self, histories: Histories):
    self._counts = histories.training_counts().astype(np.float32)

  def scores(self, history: np.ndarray) -> np.ndarray:
    """float32 (B, num_items) for histories (B, N)."""
    return np.tile(self._counts, (len(history), 1))
