"""Where arrays live: the device mesh, and the placement of parameters and batches on it."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
  """All devices of all hosts along "data"; the "model" axis, for sharded parameters, has size 1 so far."""
  return jax.make_mesh((jax.device_count(), 1), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def row_multiple(mesh: Mesh) -> int:
  """What a batch's rows are rounded up to, so that the "data" axis can share them evenly.

  At least 8: up to 8 devices then see the very batches that one device would.
  """
  return math.lcm(8, mesh.shape["data"])


def replicated(mesh: Mesh) -> NamedSharding:
  """Placement of parameters, optimizer state and scalars: a full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, *, row_axis: int = 0) -> dict[str, jax.Array]:
  """Splits a batch's rows over the "data" axis.

  Args:
    batch: this host's rows of the batch, arrays (rows of this host, ...).
    mesh: from `make_mesh`.
    row_axis: which axis the rows are; 1 in stacked batches.

  Returns:
    The same names with global arrays (rows of all hosts, ...).
  """
  rows = NamedSharding(mesh, PartitionSpec(*[None] * row_axis, "data"))
  return {name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()}


def local_rows(array: jax.Array) -> np.ndarray:
  """This host's rows of an array split by `place_batch`, in order."""
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
