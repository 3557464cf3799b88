"""RASTP: between two encoder blocks, keep the tokens that matter and drop the rest (arXiv 2511.16943).

    importance(i) = (attention token i receives, summed over heads and queries) * ||hidden_i||_1
    keep the `budget` most important tokens, in their old order

One function a criterion, one registry, one gather shared by all. Every shape is static; the scores carry no gradient.

Shapes: B batch, L positions before pruning, K kept positions (the budget), D model width.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rastp_jax.config import PruningConfig
from rastp_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
  """What flows from block to block; mask and places travel with the states, so nobody can use stale ones.

  Attributes:
    hidden: (B, L, D) states.
    mask: (B, L) True where a position is real.
    positions: (B, L) int32, each token's place in the un-pruned sequence, rising.
  """

  hidden: Float[Array, "B L D"]
  mask: Bool[Array, "B L"]
  positions: Int[Array, "B L"]


def rastp(received: Float[Array, "B L"], tokens: Tokens) -> Float[Array, "B L"]:
  """attention received * L1 norm of the state (RASTP, the paper's importance score)."""
  return received * jnp.sum(jnp.abs(tokens.hidden.astype(jnp.float32)), axis=-1)


def attention(received: Float[Array, "B L"], tokens: Tokens) -> Float[Array, "B L"]:
  """attention received alone (the column sums of H2O, arXiv 2306.14048)."""
  del tokens
  return received


def l1_norm(received: Float[Array, "B L"], tokens: Tokens) -> Float[Array, "B L"]:
  """L1 norm of the state alone (the other half of RASTP's product)."""
  return rastp(jnp.ones_like(received), tokens)


def recent(received: Float[Array, "B L"], tokens: Tokens) -> Float[Array, "B L"]:
  """The place in the history: keeps the most recent tokens (the control every criterion has to beat)."""
  return tokens.positions.astype(received.dtype)


CRITERIA: dict[str, Callable[[Float[Array, "B L"], Tokens], Float[Array, "B L"]]] = {
  "rastp": rastp,
  "attention": attention,
  "l1_norm": l1_norm,
  "recent": recent,
}


def check_criterion(config: PruningConfig) -> None:
  """Raises InputError unless the criterion is in the registry, or "none"."""
  if config.criterion not in CRITERIA and config.criterion != "none":
    raise InputError(
      f"config.pruning.criterion={config.criterion!r} is no way to prune: expected {', '.join(CRITERIA)}, or none for "
      "a dense model."
    )


def budgets(config: PruningConfig, length: int) -> dict[int, int]:
  """Static number of positions kept after each encoder block that prunes a sequence of `length` positions.

  A share is taken of `length`, as published (`int(150 / 3)`), and a stage that would keep everything is left out, so
  that such a block is an ordinary one.
  """
  if config.criterion == "none":
    return {}
  counts = config.keep_tokens or [int(length * ratio + 1e-6) for ratio in config.keep_ratio]
  stages, current = {}, length
  for block, count in zip(config.after_block, counts, strict=True):
    if max(1, count) < current:
      stages[block] = current = max(1, count)
  return stages


def keep_top(tokens: Tokens, scores: Float[Array, "B L"], budget: int) -> Tokens:
  """Keeps the `budget` highest-scoring real tokens of each row, in their old order.

  Padding scores -inf: it fills up rows that have fewer real tokens than the budget (lowest place first) and stays
  masked. Equal scores keep the lower place.

  Args:
    tokens: L positions.
    scores: (B, L) float; no gradient flows through them.
    budget: kept positions K, 1 <= K <= L.
  """
  masked = jnp.where(tokens.mask, jax.lax.stop_gradient(scores), -jnp.inf)
  # A sort and a gather row by row split over devices by rows; top_k and gathers by (row, place) pairs do not.
  best_first = jnp.argsort(masked, axis=-1, descending=True, stable=True)
  kept = jnp.sort(best_first[:, :budget], axis=-1)

  def gather(row, places):
    return row.at[places].get(indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds")

  return jax.tree.map(lambda x: jax.vmap(gather)(x, kept), tokens)


def prune(
  tokens: Tokens, received: Float[Array, "B L"], config: PruningConfig, budget: int, item_length: int
) -> Tokens:
  """One pruning stage.

  Args:
    tokens: the states a block put out (before the stack's final norm).
    received: (B, L) float32 attention each position got in that block, summed over heads and queries.
    config: names the criterion and says whether separators compete.
    budget: positions kept.
    item_length: positions an item takes; the last of them is the separator where separators must survive.
  """
  scores = CRITERIA[config.criterion](received, tokens)
  if not config.prune_separators:
    scores = jnp.where(tokens.positions % item_length == item_length - 1, jnp.inf, scores)
  return keep_top(tokens, scores, budget)
