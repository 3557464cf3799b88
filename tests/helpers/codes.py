"""Which items codes belong to, by plain counting."""

import numpy as np

from rastp_jax.semantic_ids.codes import SemanticIds


def items_of(ids: SemanticIds, asked: np.ndarray) -> np.ndarray:
  """int32 item rows of codes (..., depth), -1 where they belong to no item."""
  table = {tuple(row): item for item, row in enumerate(ids.codes.tolist())}
  found = [table.get(tuple(row), -1) for row in asked.reshape(-1, ids.depth).tolist()]
  return np.asarray(found, np.int32).reshape(asked.shape[:-1])
