"""Items that share all their learned codes: one more level tells them apart, or some move to other codes."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment

from rastp_jax.errors import InputError

# Rows whose distances to all codes are held at a time by `reassign`.
_BATCH = 16_384


def group_rows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Groups equal rows of an integer matrix.

  Returns:
    each row's group (n,); group sizes (groups,); rows sorted by group, stable (n,); each group's start there (groups,).
  """
  order = np.lexsort(codes.T[::-1])
  new = np.ones(len(codes), bool)
  new[1:] = (codes[order[1:]] != codes[order[:-1]]).any(1)
  first = np.flatnonzero(new)
  group = np.empty(len(codes), np.int64)
  group[order] = np.cumsum(new) - 1
  return group, np.diff(first, append=len(codes)), order, first


def disambiguate(learned: np.ndarray) -> np.ndarray:
  """Appends the code that tells items with equal learned codes apart.

  It is 0 where the learned codes are unique, else 1, 2, … in item order (the published rule, after TIGER).

  Args:
    learned: (n_items, levels) integer codes.

  Returns:
    int32 (n_items, levels + 1).
  """
  group, sizes, order, first = group_rows(learned)
  last = np.zeros(len(learned), np.int32)
  # The sort is stable, so the rank inside a group follows item order.
  rank = np.arange(len(learned)) - np.repeat(first, sizes)
  last[order] = rank + 1
  last[sizes[group] == 1] = 0
  return np.concatenate([learned.astype(np.int32), last[:, None]], axis=1)


def is_disambiguated(codes: np.ndarray) -> bool:
  """Whether the last level only counts, from 0 or from 1 and in any order, items whose earlier codes are equal.

  Items without such a twin must all have 0, or all 1. A learned level looks like this only if it says nothing.
  """
  if codes.shape[1] < 2:
    return False
  group, sizes, _, first = group_rows(codes[:, :-1])
  order = np.lexsort([codes[:, -1], group])
  rank = np.arange(len(codes)) - np.repeat(first, sizes)
  excess = codes[order, -1].astype(np.int64) - rank  # what counting starts from
  twins = np.repeat(sizes > 1, sizes)
  starts = [np.unique(part) for part in (excess[twins], excess[~twins]) if len(part)]
  return all(len(start) == 1 and start[0] in (0, 1) for start in starts)


def reassign(learned: np.ndarray, width: int, costs: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Makes codes unique by moving items to other codes of the last level.

  Where items share all codes, all items with the same codes before the last one are given different last codes, such
  that the sum of their distances is the smallest there is (arXiv 2605.25330). Elsewhere nothing moves.

  Args:
    learned: (n_items, levels) integer codes.
    width: codes of the last level.
    costs: distances of items to all codes of the last level: int rows (n,) -> floats (n, width).

  Returns:
    int32 (n_items, levels), all rows different.

  Raises:
    InputError: more than `width` items share the codes before the last level, so that no assignment exists.
  """
  codes = learned.astype(np.int32)
  _, sizes, _, first = group_rows(codes[:, :-1]) if codes.shape[1] > 1 else (None, np.array([len(codes)]), None, [0])
  order = np.lexsort(codes.T[::-1])  # equal prefixes come together, and in them equal last codes
  if sizes.max() > width:
    prefix = codes[order[first[sizes.argmax()]], :-1].tolist()
    raise InputError(
      f"{sizes.max()} items share the codes {prefix}, more than the {width} codes of the last level can tell apart: "
      "use semantic_ids.collisions='extra_level', or more levels or a larger semantic_ids.codebook_size."
    )
  same = np.zeros(len(codes), bool)
  same[1:] = (codes[order[1:]] == codes[order[:-1]]).all(1)
  crowded = np.logical_or.reduceat(same, first)  # prefixes under which any code is shared
  for groups in _chunks(np.flatnonzero(crowded), sizes, _BATCH):
    members = [order[first[group] : first[group] + sizes[group]] for group in groups]
    distances = costs(np.concatenate(members))
    start = 0
    for rows in members:
      codes[rows, -1] = linear_sum_assignment(distances[start : start + len(rows)])[1]
      start += len(rows)
  return codes


def _chunks(groups: np.ndarray, sizes: np.ndarray, rows: int) -> list[np.ndarray]:
  """Cuts groups into runs of about `rows` rows."""
  if not len(groups):
    return []
  edges = np.flatnonzero(np.diff(np.cumsum(sizes[groups]) // rows)) + 1
  return np.split(groups, edges)
