"""Checksums of arrays, taken on the devices that hold them: the same however the arrays are split over a mesh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rastp_jax.runtime.hashing import lowbias32


def take(tree: Any) -> dict[str, int]:
  """A 32-bit checksum of every array, by its path.

  It is the sum (modulo 2^32) of a mix of each element's bits with a mix of its index: any change of one element changes
  it, any other change does except in one case of 4 billion.

  Args:
    tree: nested dict of arrays of 32-bit elements, all on one mesh.
  """
  paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
  checksum = _program(NamedSharding(leaves[0].sharding.mesh, PartitionSpec()))
  sums = jax.device_get([checksum(leaf) for leaf in leaves])
  return {name(path): int(value) for path, value in zip(paths, sums, strict=True)}


def name(path: Any) -> str:
  """A path in a tree as the text that a checkpoint calls it by, like "rest/opt_state/0/mu/bos"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def verify(tree: Any, saved: Mapping[str, int] | None) -> None:
  """Raises ValueError if restored arrays are not those whose checksums were saved; None: none were."""
  if saved is None:
    return
  for path, value in take(tree).items():
    if saved.get(path) != value:
      raise ValueError(f"the values of {path} are not those that were saved")


@functools.lru_cache
def _program(everywhere: NamedSharding) -> Callable[[jax.Array], jax.Array]:
  """The checksum of one array: compiled once a shape. A model has few of them, and one program of all would be long."""

  def checksum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    index = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    return jnp.sum(lowbias32(bits ^ lowbias32(index)), dtype=jnp.uint32)

  return jax.jit(checksum, out_shardings=everywhere)
