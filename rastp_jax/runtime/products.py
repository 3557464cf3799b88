"""Matrix products, added up in float32, with gradients in the forms that the devices multiply fastest.

On a CPU, XLA hands a product to its fast kernels only where the contracted axis of the left operand is the last one, in
memory too. It multiplies bfloat16 operands as such, several times as fast as float32 ones on cores that can, only where
the result is asked for in float32 as well. Everything else is done in float32, and JAX's own gradients are of other
forms (measured in docs/performance.md).

On an accelerator any axis may be contracted, and what costs is memory traffic: no transposes, no barriers, and no
float32 results but the gradients of weights.

Shapes: "..." leading axes that both operands share; M, K, N the sizes of a product.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from rastp_jax.runtime import target

_LARGEST_ONE_HOT = 8192  # rows of a table; adding up gradients of larger ones by a product would cost too much


def matmul(a: Float[Array, "... M K"], b: Float[Array, "... K N"]) -> Float[Array, "... M N"]:
  """a @ b in `a`'s dtype, to which `b` is cast; `b` may be one matrix (K, N) for all leading axes of `a`."""
  return (_matmul if target.on_cpu() else _plain_matmul)(a, b)


def matmul_transposed(a: Float[Array, "... M K"], b: Float[Array, "... N K"]) -> Float[Array, "... M N"]:
  """a @ b^T in float32."""
  return (_matmul_transposed if target.on_cpu() else _plain_matmul_transposed)(a, b)


def add_to_each(x: Float[Array, "..."], shared: Float[Array, "..."]) -> Float[Array, "..."]:
  """x + shared in `x`'s dtype, where `shared` lacks leading axes of `x`, or has them in size 1."""
  return (_add_to_each if target.on_cpu() else _plain_add_to_each)(x, shared)


def look_up(table: Float[Array, "V D"], rows: Int[Array, "..."], dtype: DTypeLike) -> Float[Array, "... D"]:
  """table[rows] in `dtype`."""
  if target.on_cpu() or table.shape[0] > _LARGEST_ONE_HOT:
    return table.astype(dtype)[rows]
  return _plain_look_up(table, rows, dtype)


def look_up_few(table: Float[Array, "V H"], rows: Int[Array, "B T S"]) -> Float[Array, "B H T S"]:
  """table[rows], the last axis second, for a small table of narrow rows: on a TPU a product, too."""
  if target.on_cpu():
    return _indexed(table, rows)
  per_row = target.current().platform == "gpu" and rows.shape[0] > 1
  return (_gpu_look_up_few if per_row else _plain_look_up_few)(table, rows)


def swap_in_memory(x: Float[Array, "..."], first: int, second: int) -> Float[Array, "..."]:
  """`jnp.swapaxes`, but what comes out on a CPU lies in memory in the order of its axes.

  XLA may take a mere transpose for a view of its operand, which a product on a CPU then cannot use; dropping an axis of
  size one settles the order, and costs nothing.
  """
  if not target.on_cpu():
    return jnp.swapaxes(x, first, second)
  return jnp.squeeze(jnp.swapaxes(x[None], first % x.ndim + 1, second % x.ndim + 1), 0)


# The forms of a CPU.


@jax.custom_vjp
def _matmul(a, b):
  return _contract(a, b, axis=-2).astype(a.dtype)


@jax.custom_vjp
def _matmul_transposed(a, b):
  return _contract(a, b, axis=-1)


@jax.custom_vjp
def _add_to_each(x, shared):
  """The sum over leading axes, which is the gradient of `shared`, is a product with ones."""
  return x + jnp.broadcast_to(shared.astype(x.dtype), x.shape)


def _contract(a, b, axis: int) -> Float[Array, "..."]:
  """The last axis of `a` with `axis` of `b`, in float32."""
  shared = tuple(range(a.ndim - 2)) if b.ndim > 2 else ()
  dimensions = ((a.ndim - 1,), (b.ndim + axis,)), (shared, shared)
  return jax.lax.dot_general(a, b.astype(a.dtype), dimensions, preferred_element_type=jnp.float32)


def _transposed_matmul(a: Float[Array, "... K M"], b: Float[Array, "... K N"]) -> Float[Array, "... M N"]:
  """a^T @ b in float32."""
  if a.ndim == 2 and a.dtype == jnp.float32:  # the one form that is faster left to XLA
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())))
  # The smaller one is transposed. Without the barriers XLA would undo that, or transpose while it computes the operand.
  barrier = jax.lax.optimization_barrier
  swapped = lambda x: jnp.squeeze(jnp.swapaxes(barrier(x)[None], -1, -2), 0)
  if a.shape[-1] > b.shape[-1]:
    return jnp.swapaxes(barrier(_contract(swapped(b), a, axis=-2)), -1, -2)
  return _contract(swapped(a), b, axis=-2)


def _rows(x):
  return x.reshape(-1, x.shape[-1])


def _matmul_backward(operands, change):
  a, b = operands
  to_b = _transposed_matmul(a, change) if b.ndim > 2 else _transposed_matmul(_rows(a), _rows(change))
  return _contract(change, b, axis=-1).astype(a.dtype), to_b.astype(b.dtype)


def _matmul_transposed_backward(operands, change):
  a, b = operands
  change = change.astype(a.dtype)
  return _contract(change, b, axis=-2).astype(a.dtype), _transposed_matmul(change, a).astype(b.dtype)


def _add_backward(shared, change):
  flat = change.reshape(-1, shared.size)
  ones = jnp.ones((1, flat.shape[0]), change.dtype)
  return change, _contract(ones, flat, axis=-2).reshape(shared.shape).astype(shared.dtype)


_matmul.defvjp(lambda a, b: (_matmul(a, b), (a, b)), _matmul_backward)
_matmul_transposed.defvjp(lambda a, b: (_matmul_transposed(a, b), (a, b)), _matmul_transposed_backward)
_add_to_each.defvjp(lambda x, shared: (_add_to_each(x, shared), shared), _add_backward)


# The forms of an accelerator.


@jax.custom_vjp
def _plain_matmul(a, b):
  return _product(a, b, -1, -2, a.dtype)


@jax.custom_vjp
def _plain_matmul_transposed(a, b):
  return _product(a, b, -1, -1, jnp.float32)


@jax.custom_vjp
def _plain_add_to_each(x, shared):
  return x + jnp.broadcast_to(shared.astype(x.dtype), x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _plain_look_up(table, rows, dtype):
  """Its gradient is added up in float32 by a product with ones and zeros, where a scatter would go row by row."""
  return table.astype(dtype)[rows]


def _plain_look_up_few(table, rows):
  chosen = jax.nn.one_hot(rows, table.shape[0], dtype=table.dtype)
  return jnp.einsum("BTSV,VH->BHTS", chosen, table, precision=jax.lax.Precision.HIGHEST)


def _indexed(table, rows):
  return jnp.moveaxis(table[rows], -1, 1)


@jax.custom_vjp
def _gpu_look_up_few(table, rows):
  return _indexed(table, rows)


def _gpu_look_up_few_backward(kept, change):
  """A product for each B, and then a sum: V x H sums of all terms are one tile, for which one core of a GPU would work.

  The barrier keeps XLA from making one product of the two.
  """
  table, rows = kept
  chosen = jax.nn.one_hot(rows, table.shape[0], dtype=change.dtype)
  summed = jnp.einsum("BTSV,BHTS->BVH", chosen, change, precision=jax.lax.Precision.HIGHEST)
  return jnp.sum(jax.lax.optimization_barrier(summed), axis=0).astype(table.dtype), None


def _look_up_backward(dtype, kept, change):
  table, rows = kept
  chosen = jax.nn.one_hot(rows, table.shape[0], dtype=change.dtype)
  axes = tuple(range(rows.ndim))
  summed = jax.lax.dot_general(chosen, change, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)
  return summed.astype(table.dtype), None


def _product(a, b, axis_a: int, axis_b: int, dtype) -> Float[Array, "..."]:
  """One of the last two axes of each contracted; a `b` of two axes is shared by all leading ones of `a`."""
  shared = tuple(range(a.ndim - 2)) if b.ndim > 2 else ()
  dimensions = ((a.ndim + axis_a,), (b.ndim + axis_b,)), (shared, shared)
  return jax.lax.dot_general(a, b.astype(a.dtype), dimensions, preferred_element_type=dtype)


def _plain_matmul_backward(operands, change):
  a, b = operands
  if b.ndim > 2:
    to_b = _product(a, change, -2, -2, b.dtype)
  else:
    rows = tuple(range(a.ndim - 1))
    to_b = jax.lax.dot_general(a, change, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
  return _product(change, b, -1, -1, a.dtype), to_b.astype(b.dtype)


def _plain_matmul_transposed_backward(operands, change):
  a, b = operands
  change = change.astype(a.dtype)
  return _product(change, b, -1, -2, a.dtype), _product(change, a, -2, -2, a.dtype).astype(b.dtype)


def _plain_add_backward(shared, change):
  missing = change.ndim - shared.ndim
  axes = tuple(i for i in range(change.ndim) if i < missing or shared.shape[i - missing] < change.shape[i])
  return change, jnp.sum(change, axes, dtype=jnp.float32).reshape(shared.shape).astype(shared.dtype)


_plain_matmul.defvjp(lambda a, b: (_plain_matmul(a, b), (a, b)), _plain_matmul_backward)
_plain_matmul_transposed.defvjp(
  lambda a, b: (_plain_matmul_transposed(a, b), (a, b)), _plain_matmul_transposed_backward
)
_plain_add_to_each.defvjp(lambda x, shared: (_plain_add_to_each(x, shared), shared), _plain_add_backward)
_plain_look_up.defvjp(lambda table, rows, dtype: (_plain_look_up(table, rows, dtype), (table, rows)), _look_up_backward)
_gpu_look_up_few.defvjp(lambda table, rows: (_gpu_look_up_few(table, rows), (table, rows)), _gpu_look_up_few_backward)
