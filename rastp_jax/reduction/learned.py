"""Weights that a stage owns: methods that learn how to pool."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rastp_jax.config import ModelConfig, setting
from rastp_jax.reduction import merge, select
from rastp_jax.reduction.tokens import ItemLayout, Seen, Tokens


class ItemQuery(nnx.Module):
  """A vector that each token is held against: how much it counts in its item's mean."""

  def __init__(self, config: ModelConfig, layout: ItemLayout, *, rngs: nnx.Rngs):
    del layout
    self.vector = nnx.Param(config.d_model**-0.5 * jax.random.normal(rngs.params(), (config.d_model,)))


def pool_by_query(seen: Seen, weight: Float[Array, "B L"], budget: int) -> Tokens:
  """One token per item, its tokens weighted by a learned query (ACERec, arXiv 2602.13573, in its simplest form)."""
  del weight
  logits = jnp.tanh(seen.tokens.hidden.astype(jnp.float32)) @ seen.learned.vector[...]
  return merge.pool_items(seen, jnp.exp(jnp.clip(logits, -20.0, 20.0)), budget)


class ItemProjection(nnx.Module):
  """A matrix from an item's tokens end to end to one."""

  def __init__(self, config: ModelConfig, layout: ItemLayout, *, rngs: nnx.Rngs):
    wide = layout.item_length * config.d_model
    self.kernel = nnx.Param(
      wide**-0.5 * jax.random.normal(rngs.params(), (layout.item_length, config.d_model, config.d_model))
    )


def pool_by_projection(seen: Seen, weight: Float[Array, "B L"], budget: int) -> Tokens:
  """One token per item: a linear map of its tokens end to end (LONGER's token merge, arXiv 2505.04421)."""
  kernel = seen.learned.kernel[...].astype(seen.tokens.hidden.dtype)
  pooled = merge.pool_items(seen, weight, budget)
  own = (merge.item_numbers(seen)[:, None, :] == jnp.arange(budget)[None, :, None]) & seen.tokens.mask[:, None, :]
  level = seen.levels[:, None, :] == jnp.arange(kernel.shape[0])[None, :, None]
  where = (own[:, None] & level[:, :, None]).astype(kernel.dtype)  # (B, P, K, L), one-hot over L
  parts = jnp.einsum("BPKL,BLD->BPKD", where, seen.tokens.hidden)
  return pooled.replace(hidden=jnp.einsum("BPKD,PDE->BKE", parts, kernel))


@dataclasses.dataclass(frozen=True)
class SlotOptions:
  """Of methods whose weights belong to slots."""

  most: int = setting(128, "slots there are weights for; the first K of them are used", at_least=1)


@dataclasses.dataclass(frozen=True)
class LatentOptions(SlotOptions):
  """Latent queries (reduction.method=latent_queries)."""


@dataclasses.dataclass(frozen=True)
class SlimmingOptions(SlotOptions):
  """Slots that a small network fills (reduction.method=slimming)."""


class LatentQueries(nnx.Module):
  """A query per slot."""

  def __init__(self, config: ModelConfig, layout: ItemLayout, *, rngs: nnx.Rngs, most: int = SlotOptions().most):
    del layout
    self.queries = nnx.Param(config.d_model**-0.5 * jax.random.normal(rngs.params(), (most, config.d_model)))


def pool_by_latents(seen: Seen, weight: Float[Array, "B L"], budget: int) -> Tokens:
  """K slots, each a softmax over all tokens of a learned query (Perceiver; PatchMerger, arXiv 2202.12015)."""
  queries = seen.learned.queries[...][:budget]
  logits = jnp.einsum("KD,BLD->BKL", queries, seen.tokens.hidden.astype(jnp.float32))
  weights = jax.nn.softmax(jnp.where(seen.tokens.mask[:, None, :], logits, -1e30), axis=-1)
  return slots(seen, weights, budget)


class Slimming(nnx.Module):
  """A small MLP that says for each token how much each slot needs it."""

  def __init__(self, config: ModelConfig, layout: ItemLayout, *, rngs: nnx.Rngs, most: int = SlotOptions().most):
    del layout
    d = config.d_model
    self.norm = nnx.RMSNorm(d, rngs=rngs)
    self.inner = nnx.Linear(d, d // 2, rngs=rngs)
    self.outer = nnx.Linear(d // 2, most, rngs=rngs)
    self.scale = nnx.Param(jnp.ones(()))


def pool_by_slimming(seen: Seen, weight: Float[Array, "B L"], budget: int) -> Tokens:
  """K slots, each a softmax over all tokens of an MLP's scores (SiT, arXiv 2111.12624)."""
  net = seen.learned
  needed = net.outer(jax.nn.gelu(net.inner(net.norm(seen.tokens.hidden.astype(jnp.float32)))))[..., :budget]
  logits = jnp.swapaxes(needed, 1, 2) * net.scale[...]
  weights = jax.nn.softmax(jnp.where(seen.tokens.mask[:, None, :], logits, -1e30), axis=-1)
  return slots(seen, weights, budget)


def slots(seen: Seen, weights: Float[Array, "B K L"], budget: int) -> Tokens:
  """Soft slots have no place of their own; the home of a token is the slot that weighs it most."""
  tokens, mask = seen.tokens, seen.tokens.mask
  home = jnp.argmax(jnp.where(mask[:, None, :], weights, -1.0), axis=1)
  some = jnp.broadcast_to(jnp.any(mask, axis=-1, keepdims=True), (mask.shape[0], budget))
  places = jnp.broadcast_to(jnp.arange(budget, dtype=jnp.int32)[None], some.shape)
  like = tokens.replace(
    hidden=tokens.hidden[:, :budget], mask=some, positions=places, note=None, slot=merge.moved(tokens, home)
  )
  return merge.mix(tokens, weights, like)


class LearnedScore(nnx.Module):
  """A small network that says whether a token is kept, from its state and the row's mean."""

  def __init__(self, config: ModelConfig, layout: ItemLayout, *, rngs: nnx.Rngs):
    del layout
    d = config.d_model
    self.norm = nnx.RMSNorm(d, rngs=rngs)
    self.inner = nnx.Linear(d, d, rngs=rngs)
    self.outer = nnx.Linear(d, 1, rngs=rngs)


def keep_logit(seen: Seen) -> Float[Array, "B L"]:
  """Half of a token's features beside the row's mean of the other half, then one number (DynamicViT, 2106.02034)."""
  net, mask = seen.learned, seen.tokens.mask[..., None]
  features = net.inner(net.norm(jax.lax.stop_gradient(seen.tokens.hidden).astype(jnp.float32)))
  own, shared = jnp.split(features, [features.shape[-1] // 2], axis=-1)
  count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1).astype(shared.dtype)
  mean = jnp.sum(jnp.where(mask, shared, 0.0), axis=1, keepdims=True) / count
  both = jnp.concatenate([own, jnp.broadcast_to(mean, shared.shape)], axis=-1)
  return net.outer(jax.nn.gelu(both))[..., 0]


def drop_through_gate(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """The best `budget` tokens go on as they are; in the gradient they are scaled by their score's sigmoid.

  That is how the score learns without masks: what helps when it is larger gets a higher score.
  """
  kept = select.top_k(seen, scores, budget)
  gate = jnp.take_along_axis(jax.nn.sigmoid(scores), kept, axis=-1)
  tokens = merge.keep(seen.tokens, kept)
  scale = 1.0 + (gate - jax.lax.stop_gradient(gate))[..., None]
  return tokens.replace(hidden=tokens.hidden * scale.astype(tokens.hidden.dtype))
