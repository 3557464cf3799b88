"""KV-cached beam search over semantic-ID levels, constrained to items that exist.

One compiled program: the encoder runs once a user, cross-attention keys and values are computed once and shared by all
beams, the short self-attention cache grows by one a level (levels are few, so the loop is unrolled and every shape is
static).

Shapes: B batch, W beams, C levels, V codes a level.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.model.pruning import Tokens
from rastp_jax.semantic_ids.trie import Transitions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
  """The best code sequences of each user, best first.

  Attributes:
    codes: (B, W, C) int32; -1 where the catalogue has fewer than W items.
    log_probs: (B, W) float32, sums of log-probabilities over levels; -inf where there is no beam.
  """

  codes: Int[Array, "B W C"]
  log_probs: Float[Array, "B W"]


def beam_search(
  model: EncoderDecoder, encoded: Tokens, transitions: Transitions | None, width: int, *, renormalize: bool
) -> Beams:
  """Finds the `width` most probable code sequences.

  Args:
    model: the recommender.
    encoded: its encoder's output.
    transitions: codes that exist, so that every beam is an item and no item comes twice; None allows every sequence, as
      published.
    width: beams kept after each level.
    renormalize: at each level, share all probability among the codes that may follow (as the published check does)
      instead of leaving what codes that lead nowhere got lost; no effect without `transitions`.
  """
  batch = encoded.hidden.shape[0]
  memories = [block.cross_attention.keys_values(encoded.hidden) for block in model.decoder_blocks]
  caches = [None] * len(memories)
  hidden = jnp.broadcast_to(model.bos[...].astype(encoded.hidden.dtype), (batch, 1, encoded.hidden.shape[-1]))
  log_probs = jnp.zeros((batch, 1), jnp.float32)
  states = jnp.zeros((batch, 1), jnp.int32)
  codes = jnp.zeros((batch, 1, 0), jnp.int32)
  for level, head in enumerate(model.heads):
    places = jnp.arange(level + 1, dtype=jnp.int32)[None]
    bias = model.decoder_bias(places[:, -1:], places)[0, :, 0]
    for index, block in enumerate(model.decoder_blocks):
      hidden, caches[index] = block.step(hidden, caches[index], bias, memories[index], encoded.mask)
    logits = head(model.decoder_norm(hidden)).astype(jnp.float32)
    if transitions is None:
      children = None
      candidates = jnp.broadcast_to(jnp.arange(logits.shape[-1], dtype=jnp.int32), logits.shape)
      totals = log_probs[..., None] + jax.nn.log_softmax(logits, axis=-1)
    else:
      children, candidates, exists = _children(transitions, level, states)
      picked = jnp.take_along_axis(logits, candidates, axis=-1)
      rivals = jnp.where(exists, picked, -jnp.inf) if renormalize else logits
      level_log_probs = picked - jax.nn.logsumexp(rivals, axis=-1, keepdims=True)
      totals = jnp.where(exists, log_probs[..., None] + level_log_probs, -jnp.inf)
    branch = totals.shape[-1]
    flat = lambda x: x.reshape(batch, -1)
    log_probs, chosen = jax.lax.top_k(flat(totals), min(width, flat(totals).shape[-1]))
    parents = chosen // branch
    along = lambda x, index: jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)
    new_codes = along(flat(candidates), chosen)
    codes = jnp.concatenate([along(codes, parents), new_codes[..., None]], axis=-1)
    if transitions is not None:
      states = along(flat(children), chosen)
    if level + 1 < len(model.heads):
      caches = jax.tree.map(lambda x: along(x, parents), caches)  # noqa: B023 - used within this iteration only
      hidden = model.embed_codes(new_codes[..., None], first_level=level)[..., 0, :]
  codes = jnp.where(jnp.isneginf(log_probs)[..., None], -1, codes)
  missing = width - log_probs.shape[1]
  return Beams(
    codes=jnp.pad(codes, ((0, 0), (0, missing), (0, 0)), constant_values=-1),
    log_probs=jnp.pad(log_probs, ((0, 0), (0, missing)), constant_values=-jnp.inf),
  )


def _children(transitions: Transitions, level: int, states: Int[Array, "B W"]):
  """Each beam's children: their states, their codes and whether they exist, all (B, W, branch)."""
  starts, codes, branch = transitions.starts[level], transitions.codes[level], transitions.branches[level]
  children = starts[states][..., None] + jnp.arange(branch, dtype=jnp.int32)[None, None]
  exists = children < starts[states + 1][..., None]
  children = jnp.where(exists, children, 0)
  return children, codes[children], exists
