"""Layers of the T5-style encoder-decoder, as the published model computes them.

Shapes: B batch, T queries, N = B x T, S keys, L encoder positions, D model width, H heads, K head width, V codes of a
level.
Parameters are float32; matrices multiply in the configured compute dtype; norms, softmax and scores are float32.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rastp_jax.config import ModelConfig
from rastp_jax.model.dropout import Dropout, dropped
from rastp_jax.reduction.tokens import Evidence
from rastp_jax.runtime import attention_kernel, products, target

# Keys per query from which `Attention.over_states` is faster on a CPU, too (docs/performance.md).
_KEYS_PER_QUERY = 8


class Linear(nnx.Linear):
  """Flax's layer, with the product and the gradients of `products`."""

  def __call__(self, x: Float[Array, "... A"]) -> Float[Array, "... B"]:
    y = products.matmul(x.astype(self.dtype), self.kernel[...])
    return y if self.bias is None else products.add_to_each(y, self.bias[...])


def linear(config: ModelConfig, fan_in: int, fan_out: int, *, std: float, bias: bool = False, rngs: nnx.Rngs):
  """A dense layer; `std` is its T5 initialisation, which `init="reference"` replaces by PyTorch's uniform one."""
  if config.init == "reference":
    bound = 1.0 / math.sqrt(fan_in)
    kernel_init = bias_init = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
  else:
    kernel_init, bias_init = nnx.initializers.normal(std), nnx.initializers.zeros
  return Linear(
    fan_in,
    fan_out,
    use_bias=bias,
    kernel_init=kernel_init,
    bias_init=bias_init,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.float32,
    rngs=rngs,
  )


def norm(config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
  return nnx.RMSNorm(config.d_model, epsilon=config.norm_eps, dtype=jnp.dtype(config.dtype), rngs=rngs)


def relative_bucket(distance: Int[Array, "..."], *, causal: bool, buckets: int, max_distance: int) -> Int[Array, "..."]:
  """T5's bucket of a key's distance from its query (T5, arXiv 1910.10683, section 2.1).

  Near distances get a bucket each, far ones share logarithmically wider buckets up to `max_distance`; without `causal`
  half of the buckets are for keys after the query.

  Args:
    distance: key position - query position.
  """
  if causal:
    side, distance = 0, -jnp.minimum(distance, 0)
  else:
    buckets //= 2
    side, distance = (distance > 0).astype(jnp.int32) * buckets, jnp.abs(distance)
  exact = buckets // 2
  scale = (buckets - exact) / math.log(max_distance / exact)
  far = exact + (jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) * scale).astype(jnp.int32)
  return side + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class RelativeBias(nnx.Module):
  """T5's relative position bias: one table a stack, shared by all of its blocks."""

  def __init__(self, config: ModelConfig, *, causal: bool, rngs: nnx.Rngs):
    std = 1.0 if config.init == "reference" else config.d_model**-0.5
    self.table = nnx.Param(std * jax.random.normal(rngs.params(), (config.relative_buckets, config.num_heads)))
    self.causal, self.max_distance = causal, config.relative_max_distance

  def __call__(self, queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Float[Array, "B H T S"]:
    """Bias between places; B may be 1 where all rows share the same places."""
    distance = keys[:, None, :] - queries[:, :, None]
    table = self.table[...]
    bucket = relative_bucket(distance, causal=self.causal, buckets=table.shape[0], max_distance=self.max_distance)
    return products.look_up_few(table, bucket)


class Attention(nnx.Module):
  """Multi-head attention without biases and without the 1/sqrt(K) scale (T5)."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    d, heads, head_dim = config.d_model, config.num_heads, config.head_dim
    self.q = linear(config, d, heads * head_dim, std=(d * head_dim) ** -0.5, rngs=rngs)
    self.k = linear(config, d, heads * head_dim, std=d**-0.5, rngs=rngs)
    self.v = linear(config, d, heads * head_dim, std=d**-0.5, rngs=rngs)
    self.o = linear(config, heads * head_dim, d, std=(heads * head_dim) ** -0.5, rngs=rngs)
    self.num_heads, self.dropout = heads, config.attention_dropout

  def heads(self, projected: Float[Array, "B T HK"]) -> Float[Array, "B T H K"]:
    return projected.reshape(*projected.shape[:-1], self.num_heads, -1)

  def queries(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H K"]:
    return self.heads(self.q(x))

  def keys_values(self, memory: Float[Array, "B S D"]) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
    return self.heads(self.k(memory)), self.heads(self.v(memory))

  def __call__(
    self,
    query: Float[Array, "B T D"],
    keys_values: tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]],
    mask: Bool[Array, "#B 1 #T S"],
    bias: Float[Array, "_ H T S"] | None,
    drop: Dropout,
  ) -> Float[Array, "B T D"]:
    keys, values = keys_values
    queries = self.queries(query)
    given = self.conditions(queries, keys, mask, bias, drop)
    if given is not None:
      return self.fused(queries, keys, values, given)
    return self.mix(drop(self.probabilities(queries, keys, mask, bias), self.dropout), values)

  def conditions(self, queries, keys, mask, bias, drop: Dropout) -> attention_kernel.Conditions | None:
    """What `fused` needs to know; None where devices or sequences are not such that a kernel fits."""
    own_mask = mask.shape[0] == queries.shape[0] and mask.shape[2] == 1  # a mask of keys for each row
    if not own_mask or not self._fits(queries.shape[1], keys.shape[1]):
      return None
    words = drop.words(self.dropout)
    rate = 0.0 if words is None else self.dropout
    return attention_kernel.Conditions(mask[:, 0, 0], bias, words, self.num_heads, rate)

  def spread(self, bias: Float[Array, "_ H T S"]) -> Float[Array, "_ H T S"]:
    """A bias for `fused`, where it will be used: one for each device (`attention_kernel.shared_by_rows`)."""
    return attention_kernel.shared_by_rows(bias) if self._fits(*bias.shape[2:]) else bias

  def _fits(self, queries: int, keys: int) -> bool:
    return attention_kernel.fits(queries, keys, self.num_heads, self.o.kernel.shape[0])

  def fused(self, queries, keys, values, given: attention_kernel.Conditions) -> Float[Array, "B T D"]:
    flat = lambda x: x.reshape(*x.shape[:2], -1)
    return self.o(attention_kernel.attend(flat(queries), flat(keys), flat(values), given))

  def probabilities(
    self,
    queries: Float[Array, "B T H K"],
    keys: Float[Array, "B S H K"],
    mask: Bool[Array, "#B 1 #T S"],
    bias: Float[Array, "_ H T S"] | None,
  ) -> Float[Array, "B H T S"]:
    """Attention probabilities: float32 on a CPU, else the compute dtype."""
    queries_BHTK = products.swap_in_memory(queries, 1, 2)
    logits = products.matmul_transposed(queries_BHTK, products.swap_in_memory(keys, 1, 2))
    return self._normalized(logits, mask, bias, keys.dtype)

  def _normalized(self, logits: Float[Array, "B H T S"], mask, bias, dtype) -> Float[Array, "B H T S"]:
    if bias is not None:
      bias = bias if bias.shape[0] in (1, logits.shape[0]) else bias[:1]  # a copy for each device
      logits = products.add_to_each(logits, bias)
    masked = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(masked, axis=-1) if target.on_cpu() else _softmax(masked, dtype)

  def over_states(
    self,
    query: Float[Array, "B T D"],
    states: Float[Array, "B S D"],
    mask: Bool[Array, "#B 1 #T S"],
    bias: Float[Array, "_ H T S"] | None,
    drop: Dropout,
  ) -> Float[Array, "B T D"]:
    """`__call__` on what keys and values would be made of, for few queries: these are projected, not all the states.

    q (x Wk)^T = (q Wk^T) x^T and p (x Wv) = (p x) Wv, so that no keys and values are computed, nor kept for a gradient
    (as in DeepSeek-V2's decoding, arXiv 2405.04434, section 2.1).
    """
    batch, count, width = query.shape
    of_heads = lambda kernel: jnp.transpose(kernel.reshape(width, self.num_heads, -1), (1, 2, 0))
    by_head = lambda x: products.swap_in_memory(x, 0, 1).reshape(self.num_heads, batch * count, -1)
    by_row = lambda x: products.swap_in_memory(x.reshape(self.num_heads, batch, count, -1), 0, 1)
    flat = lambda x: x.reshape(batch, self.num_heads * count, -1)
    queries_BHTK = products.swap_in_memory(self.queries(query), 1, 2)
    asked_BHTD = by_row(products.matmul(by_head(queries_BHTK), of_heads(self.k.kernel[...])))
    logits = products.matmul_transposed(flat(asked_BHTD), states).reshape(batch, self.num_heads, count, -1)
    probabilities = drop(self._normalized(logits, mask, bias, states.dtype), self.dropout)
    read_BHTD = products.matmul(flat(probabilities.astype(states.dtype)), states).reshape(asked_BHTD.shape)
    out_HNK = products.matmul(by_head(read_BHTD), jnp.swapaxes(of_heads(self.v.kernel[...]), 1, 2))
    out_BTHK = jnp.swapaxes(by_row(out_HNK), 1, 2)
    return self.o(out_BTHK.reshape(batch, count, -1))

  def mix(self, probabilities: Float[Array, "B H T S"], values: Float[Array, "B S H K"]) -> Float[Array, "B T D"]:
    out_BHTK = products.matmul(probabilities.astype(values.dtype), products.swap_in_memory(values, 1, 2))
    out_BTHK = jnp.swapaxes(out_BHTK, 1, 2)
    return self.o(out_BTHK.reshape(*out_BTHK.shape[:2], -1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(logits, dtype):
  """Softmax in float32, of which only the result is kept, in `dtype`."""
  return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _softmax_backward(dtype, probabilities, change):
  p, to_p = probabilities.astype(jnp.float32), change.astype(jnp.float32)
  return (p * (to_p - jnp.sum(p * to_p, axis=-1, keepdims=True)),)


def _softmax_forward(logits, dtype):
  probabilities = _softmax(logits, dtype)
  return probabilities, probabilities


_softmax.defvjp(_softmax_forward, _softmax_backward)


class Mlp(nnx.Module):
  """Linear -> ReLU -> (Linear -> dropout -> ReLU)* -> Linear, with biases; `mlp_hidden_layers` counts the ReLUs."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    widths = [config.d_model] + [config.d_ff] * config.mlp_hidden_layers + [config.d_model]
    layers = [
      linear(config, a, b, std=a**-0.5, bias=True, rngs=rngs) for a, b in zip(widths[:-1], widths[1:], strict=True)
    ]
    self.layers = nnx.List(layers)
    self.dropout = config.dropout

  def __call__(self, x: Float[Array, "B T D"], drop: Dropout) -> Float[Array, "B T D"]:
    for index, layer in enumerate(self.layers[:-1]):
      x = drop.relu(layer(x), self.dropout if index else 0.0)
    return self.layers[-1](x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossMemory:
  """What one decoder block reads of the encoder.

  Attributes:
    states: (B, S, D).
    keys_values: (B, S, H, K) each, shared by all beams of a user; None where so few queries read them that they are not
      worth computing (`Attention.over_states`).
    mask: (B, S).
    log_size: (B, S) added to the logits, where merged tokens count as often as what they stand for; else None.
  """

  states: Float[Array, "B S D"]
  keys_values: tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]] | None
  mask: Bool[Array, "B S"]
  log_size: Float[Array, "B S"] | None


class EncoderBlock(nnx.Module):
  """Pre-norm self-attention and MLP."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.attention_norm, self.mlp_norm = norm(config, rngs=rngs), norm(config, rngs=rngs)
    self.attention, self.mlp = Attention(config, rngs=rngs), Mlp(config, rngs=rngs)
    self.dropout, self.mlp_dropout = config.dropout, config.mlp_dropout

  def __call__(
    self, hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"], bias: Float[Array, "_ H L L"] | None, drop: Dropout
  ) -> tuple[Float[Array, "B L D"], Evidence]:
    """The new states, and all that the block knows about them."""
    before = hidden
    normed = self.attention_norm(hidden)
    keys, values = self.attention.keys_values(normed)  # first: another order changes the gradients' last bits
    queries = self.attention.queries(normed)
    keys_mask = mask[:, None, None, :]
    given = self.attention.conditions(queries, keys, keys_mask, bias, drop)
    clean = self.attention.probabilities(queries, keys, keys_mask, bias)
    if given is None:
      thinned = drop(clean, self.attention.dropout)
      attended = self.attention.mix(thinned, values)
    else:  # XLA drops the whole matrices where no method reads them
      thinned = clean if given.words is None else dropped(clean, given.words, given.rate)
      attended = self.attention.fused(queries, keys, values, given)
    hidden += drop(attended, self.dropout)
    mlp_normed = self.mlp_norm(hidden)
    transformed = self.mlp(mlp_normed, drop)
    hidden += drop(transformed, self.mlp_dropout)
    known = Evidence(
      before=before,
      normed=normed,
      attention=clean.astype(jnp.float32),
      attention_dropped=thinned.astype(jnp.float32),
      conditions=given,
      queries=queries,
      keys=keys,
      values=values,
      attended=attended,
      mlp_normed=mlp_normed,
      transformed=transformed,
      after=hidden,
    )
    return hidden, jax.lax.stop_gradient(known)


class DecoderBlock(nnx.Module):
  """Pre-norm causal self-attention, cross-attention without position bias, MLP."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.self_norm, self.cross_norm, self.mlp_norm = (norm(config, rngs=rngs) for _ in range(3))
    self.self_attention, self.cross_attention = Attention(config, rngs=rngs), Attention(config, rngs=rngs)
    self.mlp = Mlp(config, rngs=rngs)
    self.dropout, self.mlp_dropout = config.dropout, config.mlp_dropout

  def memory(
    self,
    states: Float[Array, "B S D"],
    mask: Bool[Array, "B S"],
    log_size: Float[Array, "B S"] | None,
    queries: int | None,
  ) -> CrossMemory:
    """What the block reads of the encoder for this number of queries per row, over all levels; None: many."""
    few = queries is not None and states.shape[1] >= _KEYS_PER_QUERY * queries
    return CrossMemory(states, None if few else self.cross_attention.keys_values(states), mask, log_size)

  def __call__(
    self,
    hidden: Float[Array, "B T D"],
    bias: Float[Array, "1 H T T"],
    memory: CrossMemory,
    drop: Dropout,
  ) -> Float[Array, "B T D"]:
    steps = hidden.shape[1]
    causal = jnp.tril(jnp.ones((steps, steps), bool))[None, None]
    normed = self.self_norm(hidden)
    attended = self.self_attention(normed, self.self_attention.keys_values(normed), causal, bias, drop)
    return self._finish(hidden, attended, memory, drop)

  def step(
    self,
    hidden: Float[Array, "B W D"],
    cache: tuple[Float[Array, "B W t H K"], Float[Array, "B W t H K"]] | None,
    bias: Float[Array, "1 H 1 t1"],
    memory: CrossMemory,
    drop: Dropout,
  ):
    """One new token for each of W beams: t earlier tokens come from the cache, which is returned one longer.

    Each beam is a row of its own for self-attention. In cross-attention the beams of a user are queries over the same
    memory, so that keys and values are never copied per beam.
    """
    normed = self.self_norm(hidden)
    new = jax.tree.map(lambda x: x[:, :, None], self.self_attention.keys_values(normed))
    keys, values = new if cache is None else jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), cache, new)
    rows = lambda x: x.reshape(-1, *x.shape[2:])
    everywhere = jnp.ones((1, 1, 1, keys.shape[2]), bool)
    attended = self.self_attention(rows(normed)[:, None], (rows(keys), rows(values)), everywhere, bias, drop)
    return self._finish(hidden, attended.reshape(hidden.shape), memory, drop), (keys, values)

  def _finish(self, hidden, attended, memory: CrossMemory, drop: Dropout):
    hidden += drop(attended, self.dropout)
    bias = None
    if memory.log_size is not None:
      shape = (hidden.shape[0], self.cross_attention.num_heads, hidden.shape[1], memory.log_size.shape[1])
      bias = jnp.broadcast_to(memory.log_size[:, None, None, :], shape)
    mask = memory.mask[:, None, None, :]
    normed = self.cross_norm(hidden)
    if memory.keys_values is None:
      crossed = self.cross_attention.over_states(normed, memory.states, mask, bias, drop)
    else:
      crossed = self.cross_attention(normed, memory.keys_values, mask, bias, drop)
    hidden += drop(crossed, self.dropout)
    return hidden + drop(self.mlp(self.mlp_norm(hidden), drop), self.mlp_dropout)
