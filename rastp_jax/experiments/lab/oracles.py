"""Scores that see the target: how much a better score could gain at all. References, not methods.

Shapes: B users, L encoder positions, C codes per item, H heads.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rastp_jax.config import ReductionConfig
from rastp_jax.model.dropout import Dropout
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.reduction.tokens import Tokens

DENSE = ReductionConfig(method="none")


def likelihood(model: EncoderDecoder, encoded: Tokens, target: Array) -> Float[Array, "B"]:
  """Negative log-likelihood of each row's target, summed over its levels, in nats."""
  target, total = target[:, : model.layout.depth], jnp.zeros(len(target))
  for level, logits in enumerate(model.logits(model.decode(encoded, target))):
    picked = jnp.take_along_axis(logits, target[:, level, None], axis=-1)[:, 0]
    total += jax.nn.logsumexp(logits, axis=-1) - picked
  return total


def _dense(model: EncoderDecoder) -> EncoderDecoder:
  """The same model without its reduction; the given one stays as it is."""
  dense = nnx.merge(*nnx.split(model))
  dense.reduction = DENSE
  return dense


def gradient(model: EncoderDecoder, batch: Mapping[str, Array]) -> Float[Array, "B L"]:
  """||d NLL / d state|| * ||state||, states after block 0: to first order, the most that a token's state can matter.

  What the target loses without the token is, to first order, minus their inner product, which is never larger.
  """
  graph, rest, _ = nnx.split(model, nnx.Param, ...)

  def blocks(start: int, stop: int | None, reduction: ReductionConfig) -> EncoderDecoder:
    part = nnx.merge(graph, rest)
    part.encoder_blocks, part.reduction = nnx.List(list(part.encoder_blocks)[start:stop]), reduction
    return part

  # A stage after block 0 shows its states, whatever it does with them.
  _, (stage,) = blocks(0, 1, ReductionConfig(method="recent", after_block=(0,), keep_tokens=(1,))).encode_stages(
    batch["history"]
  )
  remaining = blocks(1, None, DENSE)

  def loss(hidden: Float[Array, "B L D"]) -> Float[Array, ""]:
    encoded, _ = remaining.encode_tokens(stage.before.replace(hidden=hidden))
    return jnp.sum(likelihood(remaining, encoded, batch["target"]))

  hidden = stage.before.hidden.astype(jnp.float32)
  return jnp.linalg.norm(jax.grad(loss)(hidden), axis=-1) * jnp.linalg.norm(hidden, axis=-1)


def cross_attention(model: EncoderDecoder, batch: Mapping[str, Array]) -> Float[Array, "B L"]:
  """Attention that each position receives from the dense model's decoder on the true target: blocks, heads, levels."""
  encoded, target = _dense(model).encode(batch["history"]), batch["target"][:, : model.layout.depth]
  drop = Dropout(None)
  hidden = jnp.concatenate([model._bos(len(target)), model.embed_codes(target[:, :-1])], axis=1)
  places = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None]
  bias, causal = model.decoder_bias(places, places), jnp.tril(jnp.ones((hidden.shape[1],) * 2, bool))[None, None]
  received = jnp.zeros(encoded.mask.shape)
  for block, memory in zip(model.decoder_blocks, model._memories(encoded, queries=model.layout.depth), strict=True):
    normed = block.self_norm(hidden)
    attended = block.self_attention(normed, block.self_attention.keys_values(normed), causal, bias, drop)
    queries = block.cross_attention.queries(block.cross_norm(hidden + attended))
    keys, _ = block.cross_attention.keys_values(encoded.hidden)
    mass = block.cross_attention.probabilities(queries, keys, encoded.mask[:, None, None, :], None)
    received += jnp.sum(mass, axis=(1, 2))
    hidden = block(hidden, bias, memory, drop)
  return received


ORACLES: Mapping[str, Callable[[EncoderDecoder, Mapping[str, Array]], Float[Array, "B L"]]] = {
  "oracle, gradient": gradient,
  "oracle, cross-attention": cross_attention,
}
