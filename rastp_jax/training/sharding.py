"""Where arrays live: the device mesh, and the placement of parameters and batches on it."""

from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rastp_jax.errors import InputError


def make_mesh() -> Mesh:
  """All devices of all hosts along "data"; the "model" axis, for sharded parameters, has size 1 so far."""
  return jax.make_mesh((jax.device_count(), 1), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
  """Placement of parameters, optimizer state and scalars: a full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Splits a batch's rows over the "data" axis.

  Args:
    batch: this host's rows of the batch, arrays (rows of this host, ...).
    mesh: from `make_mesh`.

  Returns:
    The same names with global arrays (rows of all hosts, ...).
  """
  rows = NamedSharding(mesh, PartitionSpec("data"))
  return {name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()}


def check_rows(rows: Iterable[int], mesh: Mesh) -> None:
  """Refuses batches that the devices cannot share evenly.

  Args:
    rows: rows of the global batch, one value a bucket.
    mesh: from `make_mesh`.

  Raises:
    InputError: a count is no multiple of the "data" axis.
  """
  devices = mesh.shape["data"]
  for count in rows:
    if count % devices:
      raise InputError(
        f"A batch of {count} rows cannot be shared evenly by {devices} devices: choose config.train.batch_size and "
        f"config.data.bucket_items so that every bucket's rows are a multiple of {devices}."
      )
