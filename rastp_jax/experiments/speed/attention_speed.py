"""Times forms of attention beside each other."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from rastp_jax.config import ModelConfig
from rastp_jax.model.layers import Attention
from rastp_jax.runtime import products

Form = Callable[[Array, Array, Array, Array], Array]


def measured(config: ModelConfig, rows: int, positions: int, repeats: int) -> Iterator[dict[str, Any]]:
  """Yields a row per form: seconds forward and with the gradient, and how far its result is from the first form's.

  Args:
    config: heads, their width and the compute dtype.
    rows: sequences of a batch.
    positions: of each sequence, of which a random number from 20 on is real.
    repeats: timings of each.
  """
  keys = jax.random.split(jax.random.key(0), 5)
  heads = (rows, positions, config.num_heads, config.head_dim)
  *vectors, bias = (
    *(0.3 * jax.random.normal(key, heads, jnp.dtype(config.dtype)) for key in keys[:3]),
    jax.random.normal(keys[3], (1, config.num_heads, positions, positions)),
  )
  lengths = jax.random.randint(keys[4], (rows, 1), min(20, positions), positions + 1)
  mask = (jnp.arange(positions)[None] < lengths)[:, None, None, :]
  first = None
  for name, form in forms(config, mask).items():
    row: dict[str, Any] = {"form": name, "rows": rows, "positions": positions}
    squares = lambda *operands, form=form: jnp.sum(jnp.square(form(*operands).astype(jnp.float32)))
    try:
      forward, both = jax.jit(form), jax.jit(jax.grad(squares, argnums=(0, 1, 2, 3)))
      out = np.asarray(forward(*vectors, bias), np.float32)
      first = out if first is None else first
      row["difference"] = float(np.linalg.norm(out - first) / np.linalg.norm(first))
      row["forward_seconds"] = _median_seconds(forward, (*vectors, bias), repeats)
      row["forward_backward_seconds"] = _median_seconds(both, (*vectors, bias), repeats)
    except Exception as error:  # JAX's forms refuse in their own ways; ours takes every shape
      if first is None:
        raise
      row["refused"] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    yield row


def forms(config: ModelConfig, mask: Array) -> Mapping[str, Form]:
  """Ways to attend, by name: (queries, keys, values, bias) to what comes out, all (B, L, H, K) but the bias."""
  attention = Attention(config, rngs=nnx.Rngs(0))

  def ours(queries: Array, keys: Array, values: Array, bias: Array) -> Array:
    probabilities = attention.probabilities(queries, keys, mask, bias).astype(values.dtype)
    return jnp.swapaxes(products.matmul(probabilities, products.swap_in_memory(values, 1, 2)), 1, 2)

  def jax_own(implementation: Any) -> Form:
    def attend(queries: Array, keys: Array, values: Array, bias: Array) -> Array:
      bias = bias.astype(queries.dtype)
      return jax.nn.dot_product_attention(
        queries, keys, values, bias=bias, mask=mask, scale=1.0, implementation=implementation
      )

    return attend

  return {"ours": ours, "xla": jax_own("xla"), "cudnn": jax_own("cudnn")}


def _median_seconds(function: Callable[..., Any], operands: tuple[Array, ...], repeats: int) -> float:
  jax.block_until_ready(function(*operands))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(10):
      out = function(*operands)
    jax.block_until_ready(out)
    seconds.append((time.perf_counter() - start) / 10)
  return statistics.median(seconds)
