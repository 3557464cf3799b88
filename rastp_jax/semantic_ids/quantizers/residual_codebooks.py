"""Codebooks applied one after the other, each to the residual of those before; shared by all learned methods."""

import functools

import jax
import jax.numpy as jnp


def unit(vectors: jax.Array) -> jax.Array:
  """Scales (…, features) to unit length; a zero vector stays zero."""
  return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def distances(points: jax.Array, centres: jax.Array) -> jax.Array:
  """Squared distances up to a constant per point: (n, features), (width, features) -> (n, width)."""
  # |x - c|^2 without |x|^2, which is the same for all centres.
  return (centres**2).sum(-1)[None] - 2 * jnp.matmul(points, centres.T, precision="highest")


@functools.partial(jax.jit, static_argnames="normalize")
def encode(centres: jax.Array, vectors: jax.Array, normalize: bool) -> jax.Array:
  """Nearest codes level by level.

  Args:
    centres: (levels, width, features).
    vectors: (n, features).
    normalize: whether residuals are scaled to unit length before every level, the first included.

  Returns:
    int32 (n, levels).
  """
  return _walk(centres, vectors, normalize)[0]


@functools.partial(jax.jit, static_argnames="normalize")
def squared_errors(centres: jax.Array, vectors: jax.Array, normalize: bool) -> jax.Array:
  """Squared lengths of the residuals after each level, in the vectors' own scale: (n, levels)."""
  return _walk(centres, vectors, normalize)[1]


@functools.partial(jax.jit, static_argnames="normalize")
def last_costs(centres: jax.Array, vectors: jax.Array, normalize: bool) -> jax.Array:
  """Squared distances of what reaches the last level to its centres, up to a constant per vector: (n, width)."""
  return distances(_walk(centres, vectors, normalize)[2], centres[-1])


def _walk(centres: jax.Array, vectors: jax.Array, normalize: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Codes (n, levels), squared errors (n, levels), and the residual that reaches the last level (n, features)."""
  residual, scale, codes, errors = vectors, jnp.ones((len(vectors), 1)), [], []
  for level in centres:
    if normalize:
      scale = scale * jnp.linalg.norm(residual, axis=-1, keepdims=True)
      residual = unit(residual)
    arrived = residual
    code = distances(residual, level).argmin(-1).astype(jnp.int32)
    residual = residual - level[code]
    codes.append(code)
    errors.append(((scale * residual) ** 2).sum(-1))
  return jnp.stack(codes, 1), jnp.stack(errors, 1), arrived
