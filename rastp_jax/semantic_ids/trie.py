"""The codes that exist, as static-shape transition tables for constrained decoding.

A *state* at level h is one of the distinct prefixes of h codes, numbered in lexicographic order; level 0 has the single
state 0, and the states after the last level are the items. The children of state s at level h are the states
`starts[h][s] .. starts[h][s + 1] - 1` of level h + 1, and `codes[h]` tells the code that leads to each. Memory is one
code and one start a prefix, so it grows with the catalogue and never with items x vocabulary (cf. STATIC,
youtube/static-constraint-decoding).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transitions:
  """Which codes may follow which prefixes.

  Attributes:
    starts: a level's (states + 1,) int32 offsets of each state's children.
    codes: a level's (next states,) int32 codes that lead to each child.
    branches: a level's largest number of children, the compile-time bound of its candidates.
  """

  starts: tuple[Int[Array, "S1"], ...]
  codes: tuple[Int[Array, "N"], ...]
  branches: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def build_transitions(codes: np.ndarray) -> Transitions:
  """Builds the tables from every item's codes.

  Args:
    codes: (n_items, depth) integers >= 0; rows need not be sorted, equal rows count once.
  """
  order = np.lexsort(codes.T[::-1])
  rows = np.asarray(codes)[order]
  new_prefix = np.zeros(len(rows), bool)
  new_prefix[:1] = True
  starts, level_codes, branches = [], [], []
  parents = np.zeros(len(rows), np.int64)  # each row's state at this level
  num_states = 1
  for level in range(rows.shape[1]):
    column = rows[:, level]
    new_prefix[1:] |= column[1:] != column[:-1]
    first_rows = np.flatnonzero(new_prefix)
    children = np.bincount(parents[first_rows], minlength=num_states)
    starts.append(jnp.asarray(np.concatenate([[0], np.cumsum(children)]), jnp.int32))
    level_codes.append(jnp.asarray(column[first_rows], jnp.int32))
    branches.append(int(children.max(initial=0)))
    parents = np.cumsum(new_prefix) - 1
    num_states = len(first_rows)
  return Transitions(tuple(starts), tuple(level_codes), tuple(branches))
