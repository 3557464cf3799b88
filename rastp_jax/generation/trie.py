"""The codes that exist, as static-shape transition tables for constrained decoding.

A *state* at level h is one of the distinct prefixes of h codes, numbered in lexicographic order; level 0 has the single
state 0, and the states after the last level are the items. The children of state s at level h are the states
`starts[h][s] .. starts[h][s + 1] - 1` of level h + 1, and `codes[h]` tells the code that leads to each. Memory is one
code and one start per prefix, so it grows with the catalogue and never with items x vocabulary (cf. STATIC,
youtube/static-constraint-decoding).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transitions:
  """Which codes may follow which prefixes.

  Attributes:
    starts: a level's (states + 1,) int32 offsets of each state's children.
    codes: a level's (next states,) int32 codes that lead to each child.
    items: (I,) int32, the item row of each state after the last level.
    branches: a level's largest number of children, the compile-time bound of its candidates.
  """

  starts: tuple[Int[Array, "S1"], ...]
  codes: tuple[Int[Array, "N"], ...]
  items: Int[Array, "I"]
  branches: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def build_transitions(codes: np.ndarray) -> Transitions:
  """Builds the tables from every item's codes, by one sort of 64-bit keys.

  Args:
    codes: (n_items >= 1, depth) integers >= 0 of fewer than 2**63 combinations (`SemanticIds` sees to it); rows need
      not be sorted, equal rows count once.
  """
  widths = [int(width) for width in codes.max(axis=0) + 1]
  prefixes = np.zeros(len(codes), np.int64)
  for level, width in enumerate(widths):
    prefixes *= width
    prefixes += codes[:, level]
  order = np.argsort(prefixes, kind="stable")
  prefixes = prefixes[order]
  distinct = np.append(True, prefixes[1:] != prefixes[:-1])
  prefixes, items = prefixes[distinct], order[distinct]
  starts, level_codes, branches = [], [], []
  for width in reversed(widths):  # from the items up: what is left of a prefix without its last code is its parent
    parents = prefixes // width
    level_codes.append(jnp.asarray(prefixes - parents * width, jnp.int32))
    first = np.concatenate([[0], np.flatnonzero(parents[1:] != parents[:-1]) + 1, [len(parents)]])
    starts.append(jnp.asarray(first, jnp.int32))
    branches.append(int(np.diff(first).max()))
    prefixes = parents[first[:-1]]
  leaves = jnp.asarray(items, jnp.int32)
  return Transitions(tuple(starts[::-1]), tuple(level_codes[::-1]), leaves, tuple(branches[::-1]))


def children(
  transitions: Transitions, level: int, states: Int[Array, "B W"]
) -> tuple[Int[Array, "B W K"], Int[Array, "B W K"], Bool[Array, "B W K"]]:
  """Each state's children: their states, their codes and whether they exist."""
  starts, codes, branch = transitions.starts[level], transitions.codes[level], transitions.branches[level]
  after = starts[states][..., None] + jnp.arange(branch, dtype=jnp.int32)[None, None]
  exists = after < starts[states + 1][..., None]
  after = jnp.where(exists, after, 0)
  return after, codes[after], exists


def find_items(transitions: Transitions, codes: Int[Array, "B W C"]) -> Int[Array, "B W"]:
  """Item rows of given codes; -1 where they are not an item's."""
  states = jnp.zeros(codes.shape[:-1], jnp.int32)
  found = jnp.ones(codes.shape[:-1], bool)
  for level in range(codes.shape[-1]):
    after, candidates, exists = children(transitions, level, states)
    fits = exists & (candidates == codes[..., level, None])
    found &= jnp.any(fits, axis=-1)
    states = jnp.max(jnp.where(fits, after, 0), axis=-1)
  return jnp.where(found, transitions.items[states], -1)
