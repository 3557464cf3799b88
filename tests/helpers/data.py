"""Small histories and codes."""

import numpy as np

from rastp_jax.data.histories import Histories
from rastp_jax.semantic_ids.codes import SemanticIds

LENGTHS = np.random.default_rng(1).integers(3, 40, 300).tolist()


def make_data(lengths: list[int], num_items: int = 50) -> tuple[Histories, SemanticIds]:
  """Users with random items, of these lengths, and random codes of 4 levels."""
  rng = np.random.default_rng(0)
  items = rng.integers(0, num_items, sum(lengths)).astype(np.int32)
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  codes = SemanticIds.from_learned(rng.integers(0, 8, (num_items, 3)), 8, {})
  return Histories(items, offsets, num_items, [str(i) for i in range(len(lengths))], "f"), codes
