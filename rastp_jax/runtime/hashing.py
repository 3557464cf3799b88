"""The integer hash behind dropout masks and checksums."""

import jax
import jax.numpy as jnp


def lowbias32(word: jax.Array) -> jax.Array:
  """Mixes the bits of each uint32: a bijection in which every input bit flips every output bit about half of the time.

  Chris Wellons' `lowbias32` (github.com/skeeto/hash-prospector). It fuses into the arithmetic around it and is the same
  on every backend and mesh.
  """
  word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
  word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
  return word ^ (word >> 16)
