"""Shared by methods that learn from mini-batches: the batches, and how often each code is used."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

# A code is dead when its moving share of a batch is below this part of an even share.
_DEAD = 0.05
USE_DECAY = 0.99


def batches(embeddings: np.ndarray, steps: int, rows: int, seed: int) -> Iterator[np.ndarray]:
  """Yields `steps` batches of at most `rows` rows, float32, epoch after epoch shuffled.

  Only the rows of one batch are read at a time; batch k is the same for the same seed.
  """
  rng = np.random.default_rng([seed, 1])
  size = min(rows, len(embeddings))
  left = np.empty(0, np.int64)
  for _ in range(steps):
    if len(left) < size:  # what is left of an epoch begins the next one
      left = np.concatenate([left, rng.permutation(len(embeddings))])
    chosen, left = np.sort(left[:size]), left[size:]
    yield np.asarray(embeddings[chosen], np.float32)


def usage(codes: jax.Array, width: int) -> jax.Array:
  """How many of a batch's vectors have each code: (n,) -> (width,)."""
  return jnp.zeros(width).at[codes].add(1.0)


def is_dead(moving_usage: jax.Array, batch: int) -> jax.Array:
  """Codes that (almost) no vector has had lately: bool, with the shape (…, width) of the moving averages of `usage`."""
  return moving_usage < _DEAD * batch / moving_usage.shape[-1]


def revive(centres: jax.Array, dead: jax.Array, residuals: jax.Array, key: jax.Array) -> jax.Array:
  """Moves dead centres (width, features) to residuals (n, features) drawn from the batch."""
  drawn = jax.random.randint(key, (len(centres),), 0, len(residuals))
  return jnp.where(dead[:, None], residuals[drawn], centres)
