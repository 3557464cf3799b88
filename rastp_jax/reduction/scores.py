"""How much each token matters: one formula per function, with its paper. All are (B, L) float32, higher is kept.

Scores may be anything at padding; the selection masks it. No gradient flows through them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rastp_jax.config import May, setting
from rastp_jax.reduction.tokens import Seen
from rastp_jax.runtime.hashing import lowbias32


def rastp(seen: Seen) -> Float[Array, "B L"]:
  """importance(i) = (attention token i receives, summed over heads and queries) * ||hidden_i||_1 (arXiv 2511.16943)."""
  return attention(seen) * l1_norm(seen)


def attention(seen: Seen) -> Float[Array, "B L"]:
  """Attention received, summed over heads and voters: the column sums of H2O (arXiv 2306.14048)."""
  return jnp.sum(attention_per_head(seen, votes(seen)), axis=1)


def attention_of_others(seen: Seen) -> Float[Array, "B L"]:
  """The same without each token's vote for itself (PoWER-BERT, arXiv 2001.08950)."""
  counted = seen.known.attention_dropped if seen.settings.score_dropout else seen.known.attention
  own = jnp.diagonal(counted, axis1=2, axis2=3)
  return attention(seen) - jnp.sum(own * votes(seen)[:, None, :], axis=1)


def votes(seen: Seen) -> Float[Array, "B L"]:
  """Whose attention counts: every real query (RASTP, H2O), those of the newest item (SnapKV), or the newest token."""
  mask = seen.tokens.mask
  if seen.settings.voters == "last_item":
    mask = mask & (seen.ages == 0)
  elif seen.settings.voters == "last":
    return newest_token(seen)
  elif seen.settings.score_padded_queries:
    mask = jnp.ones(mask.shape, bool)
  return mask.astype(jnp.float32)


def newest_token(seen: Seen) -> Float[Array, "B L"]:
  """1 at each row's last real token, which stands in for a [CLS] token."""
  mask = seen.tokens.mask
  return jnp.where(mask & (jnp.cumsum(mask, axis=-1) == jnp.sum(mask, axis=-1, keepdims=True)), 1.0, 0.0)


def attention_per_head(seen: Seen, weights: Float[Array, "B L"]) -> Float[Array, "B H L"]:
  """Attention that each token receives in each head: sums over queries, each with a weight."""
  return seen.known.received(weights, dropped=seen.settings.score_dropout)


def share(seen: Seen, scores: Float[Array, "B L"]) -> Float[Array, "B L"]:
  """Scores as shares of their sum over the row's real tokens; 0 at padding."""
  real = jnp.where(seen.tokens.mask, scores, 0.0)
  return real / jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1e-9)


def l1_norm(seen: Seen) -> Float[Array, "B L"]:
  """||hidden||_1 alone: the other half of RASTP's product."""
  return jnp.sum(jnp.abs(seen.tokens.hidden.astype(jnp.float32)), axis=-1)


def l2_norm(seen: Seen) -> Float[Array, "B L"]:
  """||hidden||_2 alone: an unused alternative of the published code."""
  return jnp.linalg.norm(seen.tokens.hidden.astype(jnp.float32), axis=-1)


def recent(seen: Seen) -> Float[Array, "B L"]:
  """The place in the history: keeps the most recent tokens (the control that every score must beat)."""
  return jnp.broadcast_to(seen.tokens.positions, seen.tokens.mask.shape).astype(jnp.float32)


def recent_among_equals(seen: Seen) -> Float[Array, "B L"]:
  """`recent` as a number from 0 to below 1, to be added to whole ones."""
  place = recent(seen)
  return place / (1.0 + jnp.max(jnp.where(seen.tokens.mask, place, 0.0), axis=-1, keepdims=True))


def random(seen: Seen) -> Float[Array, "B L"]:
  """Uniform from a hash of history and place: the same tokens of a history survive each time it is met."""
  tokens = seen.tokens
  rows = jnp.zeros(tokens.mask.shape[:1], jnp.uint32) if tokens.row_hash is None else tokens.row_hash
  bits = lowbias32(lowbias32(rows)[:, None] + tokens.positions.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
  return (bits >> 8).astype(jnp.float32) / 2**24


def vatp(seen: Seen) -> Float[Array, "B L"]:
  """Sum over heads of attention received times the L1 norm of the head's value (VATP, arXiv 2406.12335)."""
  sizes = jnp.sum(jnp.abs(seen.known.values.astype(jnp.float32)), axis=-1)
  return jnp.sum(attention_per_head(seen, votes(seen)) * jnp.moveaxis(sizes, 1, 2), axis=1)


def ats(seen: Seen) -> Float[Array, "B L"]:
  """Attention of the newest token times the L2 norm of the value over all heads (ATS, arXiv 2111.15667)."""
  values = seen.known.values.astype(jnp.float32)
  received = jnp.sum(attention_per_head(seen, newest_token(seen)), axis=1)
  return received * jnp.sqrt(jnp.sum(values**2, axis=(2, 3)))


def newest_attention(seen: Seen) -> Float[Array, "B L"]:
  """Attention of the newest token, summed over the blocks so far: what `watch_newest` noted (VTC-CLS, 2412.05819)."""
  note = seen.tokens.note
  return note if note is not None else watch_newest(seen)


def watch_newest(seen: Seen) -> Float[Array, "B L"]:
  """The note so far plus the attention that the newest token gives in this block."""
  received = jnp.sum(attention_per_head(seen, newest_token(seen)), axis=1)
  return received if seen.tokens.note is None else seen.tokens.note + received


def change(seen: Seen) -> Float[Array, "B L"]:
  """Token transition variation, summed over the blocks so far: TransPrune's (arXiv 2507.20630) without attention.

  It is what `watch_change` has noted, the last block's included.
  """
  note = seen.tokens.note
  return note if note is not None else watch_change(seen)


def watch_change(seen: Seen) -> Float[Array, "B L"]:
  """The note so far plus this block's variation: how far each sub-layer moves a token, in length and direction.

  Of a sub-layer with normed input u and output a: ||a||/||u|| * e^(1 - cos(u, a)), the second factor as a share of all
  real tokens' (equation 4).
  """
  known = seen.known
  noted = 0.0 if seen.tokens.note is None else seen.tokens.note
  return noted + _variation(known.normed, known.attended, seen) + _variation(known.mlp_normed, known.transformed, seen)


def _variation(normed: Float[Array, "B L D"], added: Float[Array, "B L D"], seen: Seen) -> Float[Array, "B L"]:
  u, a = normed.astype(jnp.float32), added.astype(jnp.float32)
  length_u, length_a = jnp.linalg.norm(u, axis=-1), jnp.linalg.norm(a, axis=-1)
  cosine = jnp.sum(u * a, axis=-1) / jnp.maximum(length_u * length_a, 1e-6)
  turned = jnp.where(seen.tokens.mask, jnp.exp(1.0 - cosine), 0.0)
  share = turned / jnp.maximum(jnp.sum(turned, axis=-1, keepdims=True), 1e-6)
  return length_a / jnp.maximum(length_u, 1e-6) * share


@dataclasses.dataclass(frozen=True)
class HeadVoteOptions:
  """Head voting (reduction.method=head_vote)."""

  keep_newest: bool = setting(
    True, "the newest item's tokens are always kept: the votes do not see places", may=May.DECODE
  )


def head_vote(seen: Seen) -> Float[Array, "B L"]:
  """Each head spreads one vote over the tokens, by its keys' products with the mean query (TokenSelect, 2411.02886)."""
  known, mask = seen.known, seen.tokens.mask
  queries, keys = known.queries.astype(jnp.float32), known.keys.astype(jnp.float32)
  real = (votes(seen) * mask.astype(jnp.float32))[:, :, None, None]
  mean = jnp.sum(queries * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1.0)
  logits = jnp.einsum("BHE,BLHE->BHL", mean, keys)
  ballots = jax.nn.softmax(jnp.where(mask[:, None, :], logits, jnp.finfo(jnp.float32).min), axis=-1)
  newest = jnp.where(seen.ages == 0, 1e3, 0.0) if seen.settings.of(HeadVoteOptions).keep_newest else 0.0
  return jnp.sum(ballots, axis=1) + newest


def transprune(seen: Seen) -> Float[Array, "B L"]:
  """Share of the variation so far plus share of the newest item's attention (TransPrune, arXiv 2507.20630)."""
  return share(seen, change(seen)) + share(seen, attention_of_newest(seen))


def attention_of_newest(seen: Seen) -> Float[Array, "B L"]:
  """Attention received from the newest item's tokens, summed over heads."""
  newest = jnp.where(seen.tokens.mask & (seen.ages == 0), 1.0, 0.0)
  return jnp.sum(attention_per_head(seen, newest), axis=1)


def first_attention(seen: Seen) -> Float[Array, "B L"]:
  """Watches: attention received in the first block."""
  return attention(seen) if seen.tokens.note is None else seen.tokens.note


@dataclasses.dataclass(frozen=True)
class HiPruneOptions:
  """Anchors, buffers and registers (reduction.method=hiprune)."""

  alpha: float = setting(
    0.3, "share of the budget that anchors and their four neighbours take", above=0, at_most=1, may=May.DECODE
  )


def hiprune(seen: Seen) -> Float[Array, "B L"]:
  """Anchors by the first block's attention, their neighbours in level and item, then the last block's (2508.00553)."""
  early = first_attention(seen)
  anchors = max(1, round(seen.settings.of(HiPruneOptions).alpha * seen.budget / 5))
  rank = ranks(seen, early)
  anchor = (rank < anchors) & seen.tokens.mask
  places = seen.tokens.positions
  apart = jnp.abs(places[:, :, None] - places[:, None, :])
  beside = (apart == seen.layout.item_length) | (
    (apart == 1) & (seen.items[:, :, None] == seen.items[:, None, :])
  )  # the grid's edges are not wrapped
  near = jnp.any(beside & anchor[:, None, :], axis=-1) | anchor
  return share(seen, attention(seen)) + jnp.where(near, 2.0, 0.0) + jnp.where(anchor, 2.0, 0.0)


def first_of_newest(seen: Seen) -> Float[Array, "B L"]:
  """Watches: attention received from the newest item in the first block."""
  return attention_of_newest(seen) if seen.tokens.note is None else seen.tokens.note


def hired(seen: Seen) -> Float[Array, "B L"]:
  """A quota per item by the newest item's attention in the first block, inside it the last block's (2408.10945).

  An item's quota is its part of the best half of the tokens.
  """
  mask = seen.tokens.mask
  top = mask & (2 * ranks(seen, first_of_newest(seen)) < jnp.sum(mask, axis=-1, keepdims=True))
  same = (seen.items[:, :, None] == seen.items[:, None, :]) & mask[:, None, :]
  quota = seen.budget * jnp.sum(same & top[:, None, :], axis=-1) / jnp.maximum(jnp.sum(top, axis=-1, keepdims=True), 1)
  return quota - rank_in_item(seen, attention(seen))


def rank_in_item(seen: Seen, scores: Float[Array, "B L"]) -> Float[Array, "B L"]:
  """How many of an item's tokens score higher; of equal ones the earlier one comes first."""
  same = (seen.items[:, :, None] == seen.items[:, None, :]) & seen.tokens.mask[:, None, :]
  place = jnp.arange(same.shape[1])
  better = scores[:, None, :] > scores[:, :, None]
  better |= (scores[:, None, :] == scores[:, :, None]) & (place[None, None, :] < place[None, :, None])
  return jnp.sum(same & better, axis=-1).astype(jnp.float32)


def flowcut(seen: Seen) -> Float[Array, "B L"]:
  """The running score that `watch_flow` has noted (FlowCut, arXiv 2505.19536)."""
  note = seen.tokens.note
  return note if note is not None else watch_flow(seen)


def watch_flow(seen: Seen) -> Float[Array, "B L"]:
  """Half the note so far plus half of this block's flow.

  Of the newest token, which stands in for [CLS]: (share of its attention + share of its value's likeness to the
  others') * L1 norm of the mean value over heads.
  """
  known, mask = seen.known, seen.tokens.mask
  newest = newest_token(seen)
  received = share(seen, jnp.sum(attention_per_head(seen, newest), axis=1))
  values = known.values.astype(jnp.float32)
  own = jnp.einsum("BL,BLHE->BHE", newest, values)
  logits = jnp.einsum("BHE,BLHE->BHL", own, values)
  alike = jax.nn.softmax(jnp.where(mask[:, None, :], logits, jnp.finfo(jnp.float32).min), axis=-1)
  flow = (received + share(seen, jnp.mean(alike, axis=1))) * jnp.sum(jnp.abs(jnp.mean(values, axis=2)), axis=-1)
  return flow if seen.tokens.note is None else 0.5 * seen.tokens.note + 0.5 * flow


@dataclasses.dataclass(frozen=True)
class A2sfOptions:
  """Attention with a forgetting factor (reduction.method=a2sf)."""

  alpha: float = setting(0.7, "weight of a query's vote per item of its age", above=0, at_most=1, may=May.DECODE)


def a2sf(seen: Seen) -> Float[Array, "B L"]:
  """Attention received, votes weighted by alpha^(age of the query's item) (A2SF, arXiv 2407.20485)."""
  weights = jnp.where(seen.tokens.mask, seen.settings.of(A2sfOptions).alpha ** seen.ages.astype(jnp.float32), 0.0)
  return jnp.sum(attention_per_head(seen, weights), axis=1)


@dataclasses.dataclass(frozen=True)
class RecencyOptions:
  """RASTP with a pinch of recency (reduction.method=rastp_recent)."""

  weight: float = setting(1.0, "of the place; RASTP's shares have mean 1", at_least=0, may=May.DECODE)


def rastp_recent(seen: Seen) -> Float[Array, "B L"]:
  """n * share(RASTP) + weight * place / newest place: between RASTP (weight 0) and `recent`."""
  count = jnp.maximum(jnp.sum(seen.tokens.mask, axis=-1, keepdims=True), 1).astype(jnp.float32)
  place = recent(seen) / jnp.maximum(
    jnp.max(jnp.where(seen.tokens.mask, recent(seen), 0.0), axis=-1, keepdims=True), 1.0
  )
  return count * share(seen, rastp(seen)) + seen.settings.of(RecencyOptions).weight * place


@dataclasses.dataclass(frozen=True)
class SinkOptions:
  """The oldest items and the newest tokens (reduction.method=sinks)."""

  items: int = setting(1, "items at the beginning that are always kept", at_least=0, may=May.DECODE)


def sinks(seen: Seen) -> Float[Array, "B L"]:
  """The first items, then the most recent tokens (StreamingLLM, arXiv 2309.17453)."""
  return jnp.where(seen.items < seen.settings.of(SinkOptions).items, 1e6, 0.0) + recent(seen)


def rastp_items(seen: Seen) -> Float[Array, "B L"]:
  """RASTP's score summed over what an item has left, so that items are kept whole; the budget may cut the last one."""
  same = (seen.items[:, :, None] == seen.items[:, None, :]) & seen.tokens.mask[:, None, :]
  return jnp.sum(jnp.where(same, rastp(seen)[:, None, :], 0.0), axis=-1)


def quota_by_age(seen: Seen) -> Float[Array, "B L"]:
  """A quota per item by its age: all tokens up to age 2, two up to age 7, then one; inside an item RASTP's order."""
  quota = jnp.where(seen.ages < 3, seen.layout.item_length, jnp.where(seen.ages < 8, 2, 1))
  return quota.astype(jnp.float32) - rank_in_item(seen, rastp(seen)) + recent_among_equals(seen)


def separators_first(seen: Seen) -> Float[Array, "B L"]:
  """A summary per item: its separator; then the most recent codes. Without separators the most recent codes alone."""
  return jnp.where(seen.layout.separators(seen.tokens.positions), 1e6, 0.0) + recent(seen)


def coarse_first(seen: Seen) -> Float[Array, "B L"]:
  """Coarse codes before fine ones: a prefix of residual codes is a coarser item; among equals the most recent."""
  return recent_among_equals(seen) - seen.levels.astype(jnp.float32)


def codes_first(seen: Seen) -> Float[Array, "B L"]:
  """Learned codes before collision codes and separators; among equals the most recent."""
  return jnp.where(seen.levels < seen.layout.depth - 1, 1e6, 0.0) + recent(seen)


def rastp_codes(seen: Seen) -> Float[Array, "B L"]:
  """RASTP's score, learned codes before collision codes and separators."""
  return jnp.where(seen.levels < seen.layout.depth - 1, 10.0, 0.0) + share(seen, rastp(seen))


def levels_by_age(seen: Seen) -> Float[Array, "B L"]:
  """Older items keep only their first levels: all up to age 4, two up to age 14, then one."""
  quota = jnp.where(seen.ages < 5, seen.layout.item_length, jnp.where(seen.ages < 15, 2, 1))
  return (seen.levels < quota).astype(jnp.float32)


def given(seen: Seen) -> Float[Array, "B L"]:
  """Scores that the caller put into `tokens.note`: how the laboratory runs its oracles, which see the label."""
  note = seen.tokens.note
  if note is None:
    raise ValueError("no scores were given in tokens.note")
  return note


def ranks(seen: Seen, scores: Float[Array, "B L"]) -> Int[Array, "B L"]:
  """Each token's rank in its row, 0 for the highest score; padding comes last."""
  masked = jnp.where(seen.tokens.mask, scores, -jnp.inf)
  order = jnp.argsort(masked, axis=-1, descending=True, stable=True)
  return jnp.argsort(order, axis=-1)
