"""What attention takes here: the model's own form beside JAX's two, forward and with its gradient.

    python -m rastp_jax.experiment attention --config=configs/beauty.py --config.model.dtype=bfloat16 --output=FILE.json

Whole matrices, a bias of relative positions and a mask of keys, random numbers, no dropout. `cudnn` runs on NVIDIA GPUs
only; a form that refuses a shape is a row that says so. The file is written after every row. No dataset is needed.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jaxtyping import Array

from rastp_jax.config import ModelConfig
from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.model.layers import Attention
from rastp_jax.runtime import cli, files, products, sharding, target

_CONFIG = cli.define_config_flag()
_ROWS = flags.DEFINE_list("rows", ["256", "1024"], "Batch sizes.")
_POSITIONS = flags.DEFINE_list("positions", ["145", "146", "160"], "Sequence lengths.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timings of each form; the result is their median.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")

Form = Callable[[Array, Array, Array, Array], Array]


def main() -> None:
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  config = cli.load_config(_CONFIG.value)
  try:
    shapes = [(int(rows), int(positions)) for rows in _ROWS.value for positions in _POSITIONS.value]
  except ValueError as error:
    raise InputError(f"--rows and --positions are lists of numbers like 145,160: {error}.") from error
  found = []
  with target.tracing_for(sharding.make_mesh(config.mesh, jax.devices()[:1])):
    for rows, positions in shapes:
      for row in measured(config.model, rows, positions, _REPEATS.value):
        print("  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
        found.append(row)
        if _OUTPUT.value:
          results.write_result(_OUTPUT.value, {"rows": found})


def measured(config: ModelConfig, rows: int, positions: int, repeats: int):
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
    except Exception as error:  # each backend refuses in its own way
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
