"""Answers from several sources: each gives items with probabilities, and shares of these are added up.

Shapes: B rows, K candidates of a source, W answers.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NO_BEAM = -2  # in place of an item


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answers:
  """The best items of each user, best first.

  Attributes:
    items: (B, W) int32 item rows; -1 where there are fewer than W, or (without constraint) where a beam is not an item.
    log_probs: (B, W) float32 natural logarithms; -inf where there is nothing.
    beams: (B, V) int32 item rows of the model's beams, before anything is mixed in; -1 where one is not an item,
      `NO_BEAM` where the catalogue has fewer than W. V is 0 without beams.
  """

  items: Int[Array, "B W"]
  log_probs: Float[Array, "B W"]
  beams: Int[Array, "B V"]


@dataclasses.dataclass(frozen=True)
class Source:
  """Some recommender's candidates.

  Attributes:
    items: (B, K) int32 item rows, -1 for none; an item may come several times.
    probabilities: (B, K) float32.
    share: of this source in the mixture.
  """

  items: Int[Array, "B K"]
  probabilities: Float[Array, "B K"]
  share: float


def mix(sources: Sequence[Source], width: int) -> Answers:
  """The `width` items with the largest probability in the mixture sum over sources of share x probability; no beams.

  An item that is not among a source's candidates has probability 0 there. Time and memory depend on the number of
  candidates, not on the catalogue: equal items are brought together by sorting.
  """
  items = jnp.concatenate([source.items for source in sources], axis=1)
  shares = jnp.concatenate([source.share * source.probabilities for source in sources], axis=1)
  order = jnp.argsort(items, axis=1, stable=True)
  items, shares = (jnp.take_along_axis(x, order, axis=1) for x in (items, shares))
  last = jnp.concatenate([items[:, 1:] != items[:, :-1], jnp.ones_like(items[:, :1], bool)], axis=1)
  # The sum over a run of equal items, at its last place.
  starts = jnp.concatenate([jnp.ones_like(last[:, :1]), last[:, :-1]], axis=1)
  totals = _sums_since(shares, starts)
  totals = jnp.where(last & (items >= 0) & (totals > 0), totals, 0.0)
  best, places = jax.lax.top_k(totals, min(width, totals.shape[1]))
  found = jnp.where(best > 0, jnp.take_along_axis(items, places, axis=1), -1)
  missing = ((0, 0), (0, width - best.shape[1]))
  log_probs = jnp.pad(jnp.log(best), missing, constant_values=-jnp.inf)
  return Answers(jnp.pad(found, missing, constant_values=-1), log_probs, beams=items[:, :0])


def _sums_since(values: Float[Array, "B K"], starts: Array) -> Float[Array, "B K"]:
  """Running sums that begin again at each start, added up without taking differences of large sums."""

  def join(left, right):
    (left_sum, left_start), (right_sum, right_start) = left, right
    return jnp.where(right_start, right_sum, left_sum + right_sum), left_start | right_start

  return jax.lax.associative_scan(join, (values, starts), axis=1)[0]
