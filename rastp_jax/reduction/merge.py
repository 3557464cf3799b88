"""What becomes of the tokens that are not kept: dropped, or merged into those that are.

A reduction is a non-negative K x L matrix W, and the new states are W times the old ones, rows normalised. Dropping
is a gather (W one-hot), a hard merge has disjoint rows. Two are more than that: `sum_items` scales its means, and
`learned.pool_by_projection` gives each level of an item a map of its own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rastp_jax.reduction import select
from rastp_jax.reduction.tokens import Seen, Tokens
from rastp_jax.runtime import products


def drop(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """The best `budget` tokens go on, the others are gone."""
  return keep(seen.tokens, select.top_k(seen, scores, budget))


def only(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """The tokens with a positive score go on, however short the row is; there are `budget` of them at most."""
  stays = seen.tokens.mask & (scores > 0)
  into = jnp.where(stays, jnp.cumsum(stays, axis=-1) - 1, -1)
  return merge_into(seen.tokens, into, jnp.ones(stays.shape), last_places(seen, into, budget))


def fuse(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """The best `budget - 1` tokens go on, the others as one: their mean, weighted by score (EViT, arXiv 2202.07800).

  It takes the place of the heaviest of them. A row that fits comes out as it was.
  """
  order = select.best_first(seen, scores)
  rank = jnp.argsort(order, axis=-1)
  kept = jnp.sort(order[:, :budget], axis=-1)
  lightest = jnp.take_along_axis(rank, kept, axis=-1) == budget - 1  # where the fused token stands among the kept
  own = inverse(kept, rank.shape[1])
  into = jnp.where(rank < budget, own, jnp.argmax(lightest, axis=-1)[:, None])
  weight = jax.lax.stop_gradient(jnp.maximum(scores, 0.0))
  return merge_into(seen.tokens, into, weight, jnp.take_along_axis(seen.tokens.positions, kept, axis=-1))


def pool_items(seen: Seen, weight: Float[Array, "B L"], budget: int) -> Tokens:
  """One token per item, the weighted mean of what the item has left, at the place of its last token."""
  into = item_numbers(seen)
  return merge_into(seen.tokens, into, weight, last_places(seen, into, budget))


def item_numbers(seen: Seen) -> Int[Array, "#B L"]:
  """Which of the items that still have tokens each token belongs to, from 0."""
  items = seen.items
  earlier = jnp.pad(items[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return jnp.cumsum(items != earlier, axis=-1) - 1  # tokens of an item stand together


def assign(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """Every other token joins the most similar of the best `budget`: a size-weighted mean.

  Likeness is the cosine of the states. The common core of PruMerge (2403.15388) and VisionZip (2412.04467).
  """
  kept = select.top_k(seen, scores, budget)
  own = inverse(kept, seen.tokens.mask.shape[1])
  centre = jnp.take_along_axis(select.cosines(seen.tokens.hidden), kept[:, None, :], axis=2)
  real = jnp.take_along_axis(seen.tokens.mask, kept, axis=-1)
  nearest = jnp.argmax(jnp.where(real[:, None, :], centre, -jnp.inf), axis=-1)
  into = jnp.where(own >= 0, own, jax.lax.stop_gradient(nearest))
  positions = jnp.broadcast_to(seen.tokens.positions, seen.tokens.mask.shape)
  return merge_into(seen.tokens, into, jnp.ones(seen.tokens.mask.shape), jnp.take_along_axis(positions, kept, axis=-1))


def pairs(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """Tokens of even items join their most similar token of odd ones, the most similar pairs first (ToMe, 2210.09461).

  Only as many pairs as a row has tokens too many. What is left over after that, if even items were too few, is dropped
  from the oldest end. Likeness is the cosine of the mean key over heads, or of the states before block 0.
  """
  tokens, mask = seen.tokens, seen.tokens.mask
  vectors = tokens.hidden if seen.evidence is None else jnp.mean(seen.evidence.keys.astype(jnp.float32), axis=2)
  even = seen.items % 2 == 0
  allowed = (even[:, :, None] & ~even[:, None, :]) & mask[:, :, None] & mask[:, None, :]
  likeness = jax.lax.stop_gradient(jnp.where(allowed, select.cosines(vectors), -jnp.inf))
  partner, best = jnp.argmax(likeness, axis=-1), jnp.max(likeness, axis=-1)
  many = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True) - budget, 0)
  order = jnp.argsort(best, axis=-1, descending=True, stable=True)
  joins = (jnp.argsort(order, axis=-1) < many) & jnp.isfinite(best)
  stays = mask & ~joins
  # Of those that stay the most recent K; a token whose partner does not is dropped with it.
  after_it = jnp.sum(stays, axis=-1, keepdims=True) - jnp.cumsum(stays, axis=-1)
  stays = stays & (after_it < budget)
  rank = jnp.cumsum(stays, axis=-1) - 1
  target = jnp.where(joins, partner, jnp.arange(mask.shape[1])[None])
  into = jnp.where(jnp.take_along_axis(stays, target, axis=-1), jnp.take_along_axis(rank, target, axis=-1), -1)
  kept = jnp.argsort(~stays, axis=-1, stable=True)[:, :budget]
  positions = jnp.take_along_axis(jnp.broadcast_to(tokens.positions, mask.shape), kept, axis=-1)
  return merge_into(tokens, into, jnp.ones(mask.shape), positions)


def average(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """Runs of neighbouring tokens become their mean: average pooling to K, an unused alternative of the published code.

  Token r of a row's n goes to r * K // n, so that short rows are not stretched.
  """
  count = jnp.sum(seen.tokens.mask, axis=-1, keepdims=True)
  rank = jnp.cumsum(seen.tokens.mask, axis=-1) - 1
  into = jnp.where(count <= budget, rank, rank * budget // jnp.maximum(count, 1))
  into = jnp.where(seen.tokens.mask, into, -1)
  return merge_into(seen.tokens, into, jnp.ones(rank.shape), last_places(seen, into, budget))


def foveate(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """The newest items whole, each older one as one token: as many whole ones as the budget has room for."""
  mask, items = seen.tokens.mask, seen.items
  changed = jnp.pad(items[:, 1:] != items[:, :-1], ((0, 0), (1, 0)), constant_values=True) & mask
  count = jnp.sum(changed, axis=-1, keepdims=True)
  number = jnp.cumsum(changed, axis=-1) - 1
  whole = (budget - count) // max(seen.layout.item_length - 1, 1)
  pooled = (count - 1 - number >= whole) & (jnp.sum(mask, axis=-1, keepdims=True) > budget)
  into = jnp.cumsum(jnp.where(pooled, changed, mask), axis=-1) - 1
  too_many = jnp.maximum(jnp.max(jnp.where(mask, into, -1), axis=-1, keepdims=True) + 1 - budget, 0)
  into = jnp.where(mask, into - too_many, -1)  # with fewer places than items the oldest ones are dropped
  return merge_into(seen.tokens, into, jnp.ones(mask.shape), last_places(seen, into, budget))


def super_tokens(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """One token per item, each token shared softly between its own and the two neighbouring items (2211.11167)."""
  pooled = pool_items(seen, jnp.ones(seen.tokens.mask.shape), budget)
  centres = pooled.hidden.astype(jnp.float32)
  x = seen.tokens.hidden.astype(jnp.float32)
  logits = jnp.einsum("BLD,BKD->BLK", x, centres) / x.shape[-1] ** 0.5
  near = jnp.abs(item_numbers(seen)[:, :, None] - jnp.arange(budget)[None, None, :]) <= 1
  shares = jax.nn.softmax(jnp.where(near & pooled.mask[:, None, :], logits, -1e30), axis=-1)
  return mix(seen.tokens, jnp.swapaxes(shares, 1, 2), pooled)


def semantic_tokens(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """One token per item that attends to all tokens with the mean of the item's queries (STViT, arXiv 2303.08685)."""
  known = seen.known
  pooled = pool_items(seen, jnp.ones(seen.tokens.mask.shape), budget)
  own = (item_numbers(seen)[:, None, :] == jnp.arange(budget)[None, :, None]) & seen.tokens.mask[:, None, :]
  own = own.astype(jnp.float32)
  own = own / jnp.maximum(jnp.sum(own, axis=-1, keepdims=True), 1.0)
  queries = jnp.einsum("BKL,BLHE->BKHE", own, known.queries.astype(jnp.float32))
  logits = jnp.einsum("BKHE,BLHE->BHKL", queries, known.keys.astype(jnp.float32))
  weights = jax.nn.softmax(jnp.where(seen.tokens.mask[:, None, None, :], logits, -1e30), axis=-1)
  return mix(seen.tokens, jnp.mean(weights, axis=1), pooled)


def last_places(seen: Seen, into: Int[Array, "#B L"], budget: int) -> Int[Array, "#B K"]:
  """The place of the last of the tokens that join each new one; of new ones without any, the last place of all."""
  members = into[:, None, :] == jnp.arange(budget)[None, :, None]
  positions = jnp.max(jnp.where(members, seen.tokens.positions[:, None, :], -1), axis=-1)
  filler = jnp.max(seen.tokens.positions, axis=-1, keepdims=True)
  return jnp.where(positions < 0, filler, positions)


def sum_items(seen: Seen, weight: Float[Array, "B L"], budget: int) -> Tokens:
  """One token per item: the sum of its n tokens over the square root of n, which keeps the size of the states."""
  pooled = pool_items(seen, weight, budget)
  scale = jnp.sqrt(jnp.maximum(pooled.sizes, 1.0))[..., None]
  return pooled.replace(hidden=pooled.hidden * scale.astype(pooled.hidden.dtype))


def keep(tokens: Tokens, kept: Int[Array, "B K"]) -> Tokens:
  """Tokens at these positions, in this order: a gather of everything that travels with them."""

  def gather(row, places):
    return row.at[places].get(indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds")

  per_token = {
    name: jax.vmap(gather)(jnp.broadcast_to(value, (kept.shape[0], *value.shape[1:])), kept)
    for name in ("hidden", "mask", "positions", "size", "note")
    if (value := getattr(tokens, name)) is not None
  }
  return tokens.replace(**per_token, slot=moved(tokens, inverse(kept, tokens.mask.shape[1])))


def merge_into(
  tokens: Tokens, into: Int[Array, "#B L"], weight: Float[Array, "B L"], positions: Int[Array, "#B K"]
) -> Tokens:
  """A hard merge: each real token joins one of K new ones.

  Args:
    tokens: L of them.
    into: which new token each joins.
    weight: its share in that one's mean, times its size; where all shares are 0, members count alike.
    positions: places of the new tokens.
  """
  budget = positions.shape[1]
  joins = ((into[:, None, :] == jnp.arange(budget)[None, :, None]) & tokens.mask[:, None, :]).astype(jnp.float32)
  members = joins * tokens.sizes[:, None, :]
  size = jnp.sum(members, axis=-1)
  weights = members * weight[:, None, :].astype(jnp.float32)
  weights = jnp.where(jnp.sum(weights, axis=-1, keepdims=True) > 0, weights, members)
  weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
  alone = jnp.sum(joins, axis=-1, keepdims=True) <= 1  # x / x is not always 1: such a token stays as it is, bit for bit
  weights = jnp.where(alone, joins, weights)
  hidden = products.matmul(weights.astype(tokens.hidden.dtype), tokens.hidden)
  note = None if tokens.note is None else jnp.einsum("BKL,BL->BK", weights, tokens.note)
  return tokens.replace(
    hidden=hidden, mask=size > 0, positions=positions, size=size, note=note, slot=moved(tokens, into)
  )


def mix(tokens: Tokens, weights: Float[Array, "B K L"], like: Tokens) -> Tokens:
  """A soft pooling: each new token is a weighted mean of all.

  Args:
    tokens: L of them.
    weights: not negative; padding is left out, rows are normalised.
    like: K tokens whose places and masks the new ones take, and whose `slot` says where each old one mainly is.
  """
  weights = weights * tokens.sizes[:, None, :]
  size = jnp.where(like.mask, jnp.sum(weights, axis=-1), 0.0)
  weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-9)
  hidden = products.matmul(weights.astype(tokens.hidden.dtype), tokens.hidden)
  return like.replace(hidden=hidden, size=size)


def inverse(kept: Int[Array, "B K"], length: int) -> Int[Array, "B L"]:
  """Where each of `length` tokens stands among the kept ones; -1 if it does not."""
  numbers = jnp.arange(kept.shape[1], dtype=jnp.int32)
  return jax.vmap(lambda places: jnp.full(length, -1, jnp.int32).at[places].set(numbers))(kept)


def moved(tokens: Tokens, into: Int[Array, "#B L"]) -> Int[Array, "#B N"]:
  """`slot` after a stage that puts token j of the L at `into[j]`."""
  into = into.astype(jnp.int32)
  if tokens.slot is None:
    return into
  batch = max(into.shape[0], tokens.slot.shape[0])
  into, slot = (jnp.broadcast_to(x, (batch, x.shape[1])) for x in (into, tokens.slot))
  return jnp.where(slot < 0, -1, jnp.take_along_axis(into, jnp.maximum(slot, 0), axis=-1))
