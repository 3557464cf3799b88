"""Attention of short sequences as TPU kernels: a row's logits and probabilities never leave the chip.

A grid step takes a few rows with all of their heads. Logits, softmax, dropout and both products are done in VMEM;
backward they are computed once more from queries and keys, so that nothing of size T x S is ever written. What comes
in and goes out are projections as they are, (B, L, heads side by side), without transposes.

Shapes: B batch, T queries, S keys, H heads, K head width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, UInt

from rastp_jax.runtime import sharding, target
from rastp_jax.runtime.hashing import lowbias32

_VMEM = 24 * 2**20  # bytes a grid step may take, of 64 or 128 MiB
_LOW = float(np.finfo(np.float32).min)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditions:
  """What attention depends on besides queries, keys and values.

  Attributes:
    mask: (B, S) True where a key is real.
    bias: (B, H, T, S) float32, added to the logits; B may be 1, or the number of devices that share the rows (see
      `shared_by_rows`); None for none.
    words: two words that dropout masks are hashed from (`Dropout`); None for no dropout.
    heads: H.
    rate: of dropout.
  """

  mask: Bool[Array, "B S"]
  bias: Float[Array, "#B H T S"] | None
  words: tuple[UInt[Array, ""], UInt[Array, ""]] | None
  heads: int = dataclasses.field(metadata={"static": True})
  rate: float = dataclasses.field(metadata={"static": True})


def fits(queries: int, keys: int, heads: int, width: int) -> bool:
  """Whether this is traced for devices that have these kernels, and sequences are short enough; `width` is H x K."""
  return target.current().platform == "tpu" and _rows_per_step(1, queries, keys, heads, width) > 0


def attend(
  queries: Float[Array, "B T HK"], keys: Float[Array, "B S HK"], values: Float[Array, "B S HK"], given: Conditions
) -> Float[Array, "B T HK"]:
  """softmax(queries keys^T + bias) values for each head, without a scale; probabilities in the operands' dtype."""
  bias = None if given.bias is None else shared_by_rows(given.bias)
  return _attend(queries, keys, values, bias, given.mask, given.words, given.heads, given.rate)


def received(
  queries: Float[Array, "B T HK"], keys: Float[Array, "B S HK"], weights: Float[Array, "B T"], given: Conditions
) -> Float[Array, "B H S"]:
  """Attention that each key receives in each head: sums over queries, each with a weight. No gradient."""
  arrays = {"queries": queries, "keys": keys, "mask": given.mask, "bias": given.bias, "weights": weights}
  shape = (keys.shape[0], given.heads, keys.shape[1])
  job = _Job(_received_kernel, 1, given.heads, given.rate, {"sums": shape})
  return _on_each_device(job, jax.lax.stop_gradient(arrays), given.words)["sums"]


def shared_by_rows(bias: Float[Array, "1 H T S"]) -> Float[Array, "N H T S"]:
  """The same bias for every device that has rows of its own.

  Its gradient is then added up on each device over all blocks before it is added up over devices.
  """
  mesh = target.current().mesh
  if mesh is None or bias.shape[0] != 1:
    return bias
  count = _row_shards(mesh)
  spread = jnp.broadcast_to(bias, (count, *bias.shape[1:]))
  return jax.lax.with_sharding_constraint(spread, jax.NamedSharding(mesh, PartitionSpec(sharding.ROWS)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attend(queries, keys, values, bias, mask, words, heads, rate):
  arrays = {"queries": queries, "keys": keys, "values": values, "mask": mask, "bias": bias}
  job = _Job(_forward_kernel, 2, heads, rate, {"out": queries.shape})
  return _on_each_device(job, arrays, words)["out"]


def _attend_forward(queries, keys, values, bias, mask, words, heads, rate):
  out = _attend(queries, keys, values, bias, mask, words, heads, rate)
  return out, (queries, keys, values, bias, mask, words)


def _attend_backward(heads, rate, kept, change):
  queries, keys, values, bias, mask, words = kept
  arrays = {"queries": queries, "keys": keys, "values": values, "mask": mask, "bias": bias, "change": change}
  results = {"to_queries": queries.shape, "to_keys": keys.shape, "to_values": keys.shape}
  if bias is not None:
    results["to_bias"] = bias.shape
  found = _on_each_device(_Job(_backward_kernel, 5, heads, rate, results), arrays, words)
  return (
    found["to_queries"],
    found["to_keys"],
    found["to_values"],
    found.get("to_bias"),
    None,
    jax.tree.map(lambda _: None, words),
  )


_attend.defvjp(_attend_forward, _attend_backward)


# Kernels. Blocks are references to a step's part of each array, (rows, ...), inputs and results by name.


def _forward_kernel(step: "_Step") -> None:
  blocks = step.blocks

  def one(row, head, lanes):
    values = blocks["values"][row, :, lanes]
    dropped = step.dropped(step.probabilities(row, head, lanes), row, head)
    blocks["out"][row, :, lanes] = _dot(dropped.astype(values.dtype), values, 1, 0).astype(values.dtype)

  step.for_each(one)


def _backward_kernel(step: "_Step") -> None:
  from jax.experimental import pallas as pl

  blocks = step.blocks
  biased = "to_bias" in blocks
  shared = biased and blocks["to_bias"].shape[0] == 1  # one for all rows: added up from step to step
  if shared:

    @pl.when(step.number == 0)
    def _():
      blocks["to_bias"][...] = jnp.zeros(blocks["to_bias"].shape, blocks["to_bias"].dtype)

  def one(row, head, lanes):
    queries, keys, values, change = (blocks[name][row, :, lanes] for name in ("queries", "keys", "values", "change"))
    probabilities = step.probabilities(row, head, lanes)
    dropped = step.dropped(probabilities, row, head)
    to_probabilities = step.dropped(_dot(change, values, 1, 1), row, head)
    mean = jnp.sum(to_probabilities * probabilities, axis=-1, keepdims=True)
    to_logits = jnp.where(blocks["mask"][row] > 0, probabilities * (to_probabilities - mean), 0.0)
    if shared:
      blocks["to_bias"][0, head] += to_logits
    elif biased:
      blocks["to_bias"][row, head] = to_logits
    to_logits, dtype = to_logits.astype(queries.dtype), queries.dtype
    blocks["to_queries"][row, :, lanes] = _dot(to_logits, keys, 1, 0).astype(dtype)
    blocks["to_keys"][row, :, lanes] = _dot(to_logits, queries, 0, 0).astype(dtype)
    blocks["to_values"][row, :, lanes] = _dot(dropped.astype(dtype), change, 0, 0).astype(dtype)

  step.for_each(one)


def _received_kernel(step: "_Step") -> None:
  def one(row, head, lanes):
    probabilities = step.dropped(step.probabilities(row, head, lanes), row, head)
    weighed = probabilities * step.blocks["weights"][row]
    step.blocks["sums"][row, head : head + 1, :] = jnp.sum(weighed, axis=0, keepdims=True)

  step.for_each(one)


def _dot(a: Float[Array, "..."], b: Float[Array, "..."], axis_a: int, axis_b: int) -> Float[Array, "..."]:
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dimensions = (((axis_a,), (axis_b,)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Job:
  """A kernel, the products in it, and the shapes of its results by name."""

  kernel: Callable[["_Step"], None]
  products: int
  heads: int
  rate: float
  results: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class _Step:
  """One grid step inside a kernel.

  Attributes:
    job: on this device.
    blocks: references by name.
    words: reference to (5,) uint32: two of the dropout, the device's first row and first head, heads of all devices.
    number: of the step.
    rows: in a step.
  """

  job: _Job
  blocks: Mapping[str, Any]
  words: Any
  number: Any
  rows: int

  def for_each(self, one: Callable[[Any, int, slice], None]) -> None:
    """Calls `one` with every row, head, and where the head lies in a projection."""
    size = self.blocks["queries"].shape[-1] // self.job.heads

    def of_row(row, _):
      for head in range(self.job.heads):
        one(row, head, slice(head * size, (head + 1) * size))
      return 0

    jax.lax.fori_loop(0, self.rows, of_row, 0)

  def probabilities(self, row: Any, head: int, lanes: slice) -> Float[Array, "T S"]:
    """Of one row and head, float32."""
    blocks, bias = self.blocks, self.blocks.get("bias")
    logits = _dot(blocks["queries"][row, :, lanes], blocks["keys"][row, :, lanes], 1, 1)
    if bias is not None:
      logits += bias[0 if bias.shape[0] == 1 else row, head]
    logits = jnp.where(blocks["mask"][row] > 0, logits, _LOW)
    powers = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return powers / jnp.sum(powers, axis=-1, keepdims=True)

  def dropped(self, x: Float[Array, "T S"], row: Any, head: int) -> Float[Array, "T S"]:
    """Drops the elements that `Dropout` would drop of all probabilities, (B, H, T, S)."""
    if self.job.rate == 0.0:
      return x
    salt, second, first_row, first_head, heads = (self.words[i] for i in range(5))
    number = first_row + (self.number * self.rows + row).astype(jnp.uint32)
    start = (number * heads + first_head + jnp.uint32(head)) * jnp.uint32(x.size)
    query, key = (jax.lax.broadcasted_iota(jnp.int32, x.shape, axis).astype(jnp.uint32) for axis in (0, 1))
    mixed = lowbias32(lowbias32((start + query * jnp.uint32(x.shape[1]) + key) ^ salt) + second)
    keep = mixed >= jnp.uint32(round(self.job.rate * 2**32))
    return jnp.where(keep, x * (1.0 / (1.0 - self.job.rate)), 0.0)


def _run(job: _Job, arrays: Mapping[str, Any], words: UInt[Array, "5"]) -> dict[str, Array]:
  """Runs a kernel on one device: a few rows per step, everything else whole."""
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import tpu as pltpu

  arrays = dict(arrays, mask=arrays["mask"].astype(jnp.int32)[:, None, :])
  if "weights" in arrays:
    arrays["weights"] = arrays["weights"][:, :, None]
  batch, queries, width = arrays["queries"].shape
  keys = arrays["keys"].shape[1]
  rows = _rows_per_step(batch, queries, keys, job.heads, width)

  def block(shape):
    by_rows = shape[0] == batch
    place = lambda step: (step if by_rows else 0, *[0] * (len(shape) - 1))
    return pl.BlockSpec((rows if by_rows else shape[0], *shape[1:]), place)

  def kernel(words, *references):
    blocks = dict(zip([*arrays, *job.results], references, strict=True))
    job.kernel(_Step(job, blocks, words, pl.program_id(0), rows))

  dtype = arrays["queries"].dtype
  results = [
    jax.ShapeDtypeStruct(shape, jnp.float32 if name in ("to_bias", "sums") else dtype)
    for name, shape in job.results.items()
  ]
  found = pl.pallas_call(
    kernel,
    grid=(batch // rows,),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *(block(value.shape) for value in arrays.values())],
    out_specs=[block(shape) for shape in job.results.values()],
    out_shape=results,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=2 * _VMEM),
    cost_estimate=pl.CostEstimate(
      flops=job.products * 2 * batch * queries * keys * width,
      transcendentals=batch * job.heads * queries * keys,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in [*arrays.values(), *results]),
    ),
    interpret=target.current().platform != "tpu",
    name=job.kernel.__name__.strip("_"),
  )(words, *arrays.values())
  return dict(zip(job.results, found, strict=True))


def _rows_per_step(batch: int, queries: int, keys: int, heads: int, width: int) -> int:
  """How many rows a grid step takes: what VMEM has room for, and a divisor of the batch; 0 where none fits.

  It is the same number for all kernels: that of the backward one, which holds most, in float32.
  """
  up = lambda size, multiple: -(-size // multiple) * multiple
  logits = 4 * up(queries, 8) * up(keys, 128)
  row = 4 * up(width, 128) * (3 * up(queries, 8) + 4 * up(keys, 8))
  fixed = (8 + 4 * heads) * logits  # what is in flight; a bias and its gradient, of which the pipeline holds two each
  room = max(0, _VMEM - fixed) // (2 * row)
  return next((rows for rows in range(min(room, 8, batch), 0, -1) if batch % rows == 0), 0)


def _on_each_device(job: _Job, arrays: Mapping[str, Any], words: Any) -> dict[str, Array]:
  """Runs a job on each device's rows and heads: XLA cannot split a kernel itself."""
  arrays = {name: value for name, value in arrays.items() if value is not None}
  words = jnp.stack(words) if words else jnp.zeros(2, jnp.uint32)
  mesh, heads, batch = target.current().mesh, job.heads, arrays["queries"].shape[0]
  beside = lambda words, *numbers: jnp.concatenate([words, jnp.stack([*numbers, jnp.uint32(heads)])])
  if mesh is None or mesh.size == 1:
    return _run(job, arrays, beside(words, jnp.uint32(0), jnp.uint32(0)))
  tensor = "tensor" if mesh.shape["tensor"] > 1 and heads % mesh.shape["tensor"] == 0 else None
  parts = mesh.shape["tensor"] if tensor else 1
  rows_each, heads_each = batch // _row_shards(mesh), heads // parts

  def spec(name: str, shape: tuple[int, ...]) -> PartitionSpec:
    rows = sharding.ROWS if shape[0] > 1 else None
    if name in ("mask", "weights"):
      return PartitionSpec(rows)
    return PartitionSpec(rows, tensor) if name in ("bias", "to_bias", "sums") else PartitionSpec(rows, None, tensor)

  def local(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return jax.NamedSharding(mesh, spec(name, shape)).shard_shape(shape)

  def run(words, *values):
    row = jax.lax.axis_index(sharding.ROWS).astype(jnp.uint32) * jnp.uint32(rows_each)
    head = jax.lax.axis_index(tensor).astype(jnp.uint32) * jnp.uint32(heads_each) if tensor else jnp.uint32(0)
    own = {name: local(name, shape) for name, shape in job.results.items()}
    own_job = dataclasses.replace(job, heads=heads_each, results=own)
    return _run(own_job, dict(zip(arrays, values, strict=True)), beside(words, row, head))

  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(PartitionSpec(), *(spec(name, value.shape) for name, value in arrays.items())),
    out_specs={name: spec(name, shape) for name, shape in job.results.items()},
    check_vma=False,
  )(words, *arrays.values())


def _row_shards(mesh: Mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in sharding.ROWS)
