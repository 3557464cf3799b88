"""KV-cached beam search over semantic-ID levels, constrained to items that exist.

One compiled program: the encoder runs once per user, and what all beams of a user share is computed once. Levels are
few, so the loop is unrolled and every shape is static.

Shapes: B batch, W beams, C levels, V codes of a level.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rastp_jax.generation import trie
from rastp_jax.generation.trie import Transitions
from rastp_jax.model.interface import GenerativeModel


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
  model: GenerativeModel, memory: Any, transitions: Transitions | None, width: int, *, renormalize: bool
) -> Beams:
  """Finds the `width` most probable code sequences.

  Args:
    model: the recommender.
    memory: what its `encode` made of the histories.
    transitions: codes that exist, so that every beam is an item and no item comes twice; None allows every sequence, as
      published.
    width: beams kept after each level.
    renormalize: at each level, share all probability among the codes that may follow (as the published check does).
      False: the probability of codes that complete no item is discarded. No effect without `transitions`.
  """
  state = model.start(memory)
  log_probs: Any = None
  states = codes = new_codes = after = log_probs
  for level in range(len(model.widths)):
    logits, state = model.step(state, new_codes, level)
    batch = logits.shape[0]
    if log_probs is None:  # one beam per user, which has no codes yet
      log_probs, states = jnp.zeros((batch, 1), jnp.float32), jnp.zeros((batch, 1), jnp.int32)
      codes = jnp.zeros((batch, 1, 0), jnp.int32)
    if transitions is None:
      candidates = jnp.broadcast_to(jnp.arange(logits.shape[-1], dtype=jnp.int32), logits.shape)
      totals = log_probs[..., None] + jax.nn.log_softmax(logits, axis=-1)
    else:
      after, candidates, exists = trie.children(transitions, level, states)
      picked = jnp.take_along_axis(logits, candidates, axis=-1)
      rivals = jnp.where(exists, picked, -jnp.inf) if renormalize else logits
      level_log_probs = picked - jax.nn.logsumexp(rivals, axis=-1, keepdims=True)
      totals = jnp.where(exists, log_probs[..., None] + level_log_probs, -jnp.inf)
    branch = totals.shape[-1]
    flat = lambda x: x.reshape(x.shape[0], -1)
    log_probs, chosen = jax.lax.top_k(flat(totals), min(width, flat(totals).shape[-1]))
    parents = chosen // branch
    new_codes = jnp.take_along_axis(flat(candidates), chosen, axis=1)
    codes = jnp.concatenate([jnp.take_along_axis(codes, parents[..., None], axis=1), new_codes[..., None]], axis=-1)
    if transitions is not None:
      states = jnp.take_along_axis(flat(after), chosen, axis=1)
    if level + 1 < len(model.widths):
      state = state.follow(parents)
  codes = jnp.where(jnp.isneginf(log_probs)[..., None], -1, codes)
  missing = width - log_probs.shape[1]
  return Beams(
    codes=jnp.pad(codes, ((0, 0), (0, missing), (0, 0)), constant_values=-1),
    log_probs=jnp.pad(log_probs, ((0, 0), (0, missing)), constant_values=-jnp.inf),
  )
