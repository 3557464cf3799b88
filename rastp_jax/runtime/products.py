"""Matrix products, added up in float32, whose gradients have the forms that multiply fastest on a CPU too.

On a CPU, XLA hands a product to its fast kernels only where the contracted axis of the left operand is the last one, in
memory too. It multiplies bfloat16 operands as such, several times as fast as float32 ones on cores that can, only where
the result is asked for in float32 as well. Everything else is done in float32, and JAX's own gradients are of other
forms (measured in docs/performance.md). Accelerators have no such rules; what this costs there is not measured yet.

Shapes: "..." leading axes that both operands share; M, K, N the sizes of a product.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(a: Float[Array, "... M K"], b: Float[Array, "... K N"]) -> Float[Array, "... M N"]:
  """a @ b in `a`'s dtype, to which `b` is cast; `b` may be one matrix (K, N) for all leading axes of `a`."""
  return _contract(a, b, axis=-2).astype(a.dtype)


@jax.custom_vjp
def matmul_transposed(a: Float[Array, "... M K"], b: Float[Array, "... N K"]) -> Float[Array, "... M N"]:
  """a @ b^T in float32."""
  return _contract(a, b, axis=-1)


@jax.custom_vjp
def add_to_each(x: Float[Array, "..."], shared: Float[Array, "..."]) -> Float[Array, "..."]:
  """x + shared in `x`'s dtype, where `shared` lacks leading axes of `x`, or has them in size 1.

  The sum over these axes, which is the gradient of `shared`, is a product with ones.
  """
  return x + jnp.broadcast_to(shared.astype(x.dtype), x.shape)


def swap_in_memory(x: Float[Array, "..."], first: int, second: int) -> Float[Array, "..."]:
  """`jnp.swapaxes`, but what comes out lies in memory in the order of its axes.

  XLA may take a mere transpose for a view of its operand, which a product on a CPU then cannot use; dropping an axis of
  size one settles the order, and costs nothing.
  """
  return jnp.squeeze(jnp.swapaxes(x[None], first % x.ndim + 1, second % x.ndim + 1), 0)


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
  if a.shape[-1] > b.shape[-1]:
    return jnp.swapaxes(barrier(_contract(swap_in_memory(barrier(b), -1, -2), a, axis=-2)), -1, -2)
  return _contract(swap_in_memory(barrier(a), -1, -2), b, axis=-2)


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


matmul.defvjp(lambda a, b: (matmul(a, b), (a, b)), _matmul_backward)
matmul_transposed.defvjp(lambda a, b: (matmul_transposed(a, b), (a, b)), _matmul_transposed_backward)
add_to_each.defvjp(lambda x, shared: (add_to_each(x, shared), shared), _add_backward)
