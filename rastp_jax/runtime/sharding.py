"""Where arrays live: the device mesh, and the one table that places every weight and batch on it.

The mesh has three axes, outermost first:

    data     devices share each batch's rows; each holds whatever the other axes leave of the weights
    fsdp     devices share each batch's rows *and* keep a part of every weight, its gradient and its optimizer state;
             a step gathers the weights for its own duration
    tensor   devices share the matrix products of each row: heads, hidden units and codes are split

Axes to the right talk more, so they get the nearer devices; several slices are joined along the leftmost axis they
divide.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rastp_jax.config import MeshConfig
from rastp_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that share a batch's rows
_DEFAULT = MeshConfig()

# The first pattern found at the end of a weight's path decides. Optimizer moments end with their weight's path, so they
# are placed like it. An axis that does not divide its dimension is left out: that dimension stays whole.
TABLE = (
  (r"code_embedding", PartitionSpec("tensor", "fsdp")),  # (codes, D)
  (r"item_embedding", PartitionSpec("tensor", "fsdp")),  # (items, D)
  (r"heads/\d+/kernel", PartitionSpec("fsdp", "tensor")),  # (D, codes of a level)
  (r"(q|k|v)/kernel", PartitionSpec("fsdp", "tensor")),  # (D, heads * K)
  (r"o/kernel", PartitionSpec("tensor", "fsdp")),  # (heads * K, D)
  (r"layers/0/kernel", PartitionSpec("fsdp", "tensor")),  # (D, F)
  (r"layers/\d+/kernel", PartitionSpec("tensor", "fsdp")),  # (F, F) and (F, D)
  (r"reducers/.*", PartitionSpec()),  # what a learned reduction owns: small
  (
    r"scale|bias|bos|separator|level_queries|age_embedding|repeat_score|table|key",
    PartitionSpec(),
  ),  # norms, vectors, relative positions: too small to split
)


def make_mesh(config: MeshConfig = _DEFAULT, devices: Sequence[Any] | None = None) -> Mesh:
  """Arranges devices along the three axes; by default all of them share the batch.

  Args:
    config: sizes of the axes.
    devices: default: all devices of all hosts.

  Raises:
    InputError: the sizes do not fit the number of devices, slices or hosts.
  """
  grid = device_grid(jax.devices() if devices is None else devices, config)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(devices: Sequence[Any], config: MeshConfig) -> np.ndarray:
  """The devices as an array (data, fsdp, tensor), near ones next to each other; see `make_mesh`."""
  shape = _sizes(config, len(devices))
  local = sum(device.process_index == devices[0].process_index for device in devices)
  if local % shape[2]:
    raise InputError(
      f"config.mesh.tensor={shape[2]} would split a row over several hosts of {local} devices each: give a size that "
      f"divides {local}."
    )
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  axis = next((axis for axis, size in enumerate(shape[:2]) if size % slices == 0), None)
  if axis is None:
    raise InputError(
      f"The devices come in {slices} slices, which divide neither mesh.data={shape[0]} nor mesh.fsdp={shape[1]}: "
      f"give one of them a multiple of {slices}."
    )
  between = tuple(slices if index == axis else 1 for index in range(3))
  inside = tuple(size // across for size, across in zip(shape, between, strict=True))
  return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)


def _sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
  sizes = (config.data, config.fsdp, config.tensor)
  given = math.prod(size for size in sizes if size > 0)
  if devices % given or (-1 not in sizes and devices != given):
    raise InputError(
      f"config.mesh asks for {' x '.join(f'{name}={size}' for name, size in zip(AXES, sizes, strict=True))}, but there "
      f"are {devices} devices: give sizes whose product is {devices}, or -1 for the rest in one of them."
    )
  data, fsdp, tensor = (devices // given if size == -1 else size for size in sizes)
  return data, fsdp, tensor


def whole_batch_mesh(mesh: Mesh) -> Mesh:
  """The same devices, all along "data": where decoding runs, with all parameters on every device."""
  return Mesh(mesh.devices.reshape(-1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def row_multiple(mesh: Mesh) -> int:
  """What a batch's rows are rounded up to, so that the devices can share them evenly.

  At least 8: up to 8 devices then see the very batches that one device would.
  """
  return math.lcm(8, math.prod(mesh.shape[axis] for axis in ROWS))


def placement(path: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
  """Where an array of the training state goes.

  Args:
    path: its keys joined by "/", like "encoder_blocks/0/mlp/layers/0/kernel".
    shape: its dimensions; scalars go everywhere.
    mesh: from `make_mesh`.

  Raises:
    KeyError: the table does not know the path; a new kind of weight needs a line there.
  """
  if len(shape) == 0:
    return replicated(mesh)
  spec = next((spec for pattern, spec in TABLE if re.search(rf"(^|/)({pattern})$", path)), None)
  if spec is None:
    raise KeyError(f"rastp_jax/runtime/sharding.py's table has no line for {path!r}")
  sizes = mesh.shape
  fits = (
    axis if sizes[axis] > 1 and size % sizes[axis] == 0 else None for axis, size in zip(spec, shape, strict=False)
  )
  return NamedSharding(mesh, PartitionSpec(*fits))


def placements(tree: Any, mesh: Mesh) -> Any:
  """`placement` of every array of a tree of parameters, optimizer state or both."""

  def place(path, leaf):
    return placement(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh)

  return jax.tree_util.tree_map_with_path(place, tree)


def gather(params: Any, mesh: Mesh) -> Any:
  """Inside a compiled step: the parameters, whole along "fsdp", still split along "tensor".

  Said here, XLA gathers weights; left to itself it may prefer to gather activations, which are larger.
  """

  def whole(place: NamedSharding) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*(None if axis == "fsdp" else axis for axis in place.spec)))

  return jax.lax.with_sharding_constraint(params, jax.tree.map(whole, placements(params, mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
  """Placement of scalars and of what evaluation reads: a full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, *, row_axis: int = 0) -> dict[str, jax.Array]:
  """Splits a batch's rows over the devices along `ROWS`.

  Args:
    batch: this host's rows of the batch, arrays (rows of this host, ...).
    mesh: from `make_mesh`.
    row_axis: which axis the rows are; 1 in stacked batches.

  Returns:
    The same names with global arrays (rows of all hosts, ...).
  """
  rows = NamedSharding(mesh, PartitionSpec(*[None] * row_axis, ROWS))
  return {name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()}


def place_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
  """`place_batch` of a single array."""
  return place_batch({"rows": rows}, mesh)["rows"]


def round_up(number: int, multiple: int) -> int:
  """The smallest multiple that is not below a number."""
  return -(-number // multiple) * multiple


def local_rows(array: jax.Array) -> np.ndarray:
  """This host's rows of an array split by `place_batch`, in order."""
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
