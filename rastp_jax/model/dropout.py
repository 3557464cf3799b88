"""Dropout by hashing, in the forms that devices compute fastest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray, UInt

from rastp_jax.runtime import target
from rastp_jax.runtime.hashing import lowbias32


class Dropout:
  """Hands out one dropout mask after another from a single key; `Dropout(None)` changes nothing.

  The masks come from hashing each element's index with two words of the key (`lowbias32`), not from
  `jax.random`: the hash fuses into the surrounding arithmetic, costs the same on every backend, needs no memory and
  does not depend on how the array is sharded. On a CPU `jax.random` masks are much slower.
  """

  def __init__(self, key: Key[Array, ""] | PRNGKeyArray | None):
    self._words = None if key is None else jax.random.bits(key, (2,), jnp.uint32)
    self._calls = 0

  def __call__(self, x: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
    """Zeroes a share `rate` of the elements and scales the others by 1 / (1 - rate)."""
    words = self.words(rate)
    if words is None:
      return x
    return dropped(x, words, rate) if target.on_cpu() else _dropped_twice(x, words, rate)

  def words(self, rate: float) -> tuple[UInt[Array, ""], UInt[Array, ""]] | None:
    """What the next mask is hashed from, for one who makes it himself; None where nothing is dropped."""
    if self._words is None or rate == 0.0:
      return None
    self._calls += 1
    salt = lowbias32(self._words[0] + jnp.uint32(self._calls * 0x9E3779B9 % 2**32))
    return salt, self._words[1]

  def relu(self, x: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
    """`jax.nn.relu` of what is left of x."""
    if target.on_cpu():
      return jax.nn.relu(self(x, rate))
    words = self.words(rate)
    return _relu(x, words, rate if words is not None else 0.0)


def dropped(x: Float[Array, "..."], words: tuple[UInt[Array, ""], UInt[Array, ""]], rate: float) -> Float[Array, "..."]:
  """x without a share `rate` of its elements, chosen by `Dropout.words`; the others are scaled."""
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis, stride in enumerate(np.cumprod((1,) + x.shape[:0:-1])[::-1]):
    index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
  mixed = lowbias32(lowbias32(index ^ words[0]) + words[1])
  keep = mixed >= jnp.uint32(round(rate * 2**32))
  return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropped_twice(x, words, rate):
  """The mask is made once more for the gradient: on an accelerator arithmetic costs less than memory."""
  return dropped(x, words, rate)


_dropped_twice.defvjp(
  lambda x, words, rate: (dropped(x, words, rate), words),
  lambda rate, words, change: (dropped(change, words, rate), (None, None)),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _relu(x, words, rate):
  """Nothing but the result is kept for the gradient: what is above zero there was neither dropped nor negative."""
  return jax.nn.relu(x if words is None else dropped(x, words, rate))


def _relu_forward(x, words, rate):
  out = _relu(x, words, rate)
  return out, (out, words)


def _relu_backward(rate, kept, change):
  out, words = kept
  scaled = change * jnp.asarray(1.0 / (1.0 - rate), change.dtype)
  return jnp.where(out > 0, scaled, jnp.zeros((), change.dtype)), jax.tree.map(lambda _: None, words)


_relu.defvjp(_relu_forward, _relu_backward)
