"""Which tokens are kept: from scores to (B, K) rising indices. Static shapes; ties keep the lower place."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rastp_jax.config import May, setting
from rastp_jax.reduction import scores as formulas
from rastp_jax.reduction.tokens import Seen

NEIGHBOURS = 5  # that a density is measured by


def top_k(seen: Seen, scores: Float[Array, "B L"], budget: int) -> Int[Array, "B K"]:
  """The `budget` highest-scoring real tokens of each row, in their old order.

  Padding scores -inf: it fills up rows that have fewer real tokens than the budget (lowest place first) and stays
  masked. Where separators are protected they come first.

  Args:
    seen: the tokens.
    scores: no gradient flows through them.
    budget: K, 1 <= K <= L.
  """
  return jnp.sort(best_first(seen, scores)[:, :budget], axis=-1)


def best_first(seen: Seen, scores: Float[Array, "B L"]) -> Int[Array, "B L"]:
  """All tokens of each row, protected separators before the others, the highest score first, padding last."""
  masked = jnp.where(seen.tokens.mask, jax.lax.stop_gradient(scores), -jnp.inf)
  # A sort row by row splits over devices by rows; top_k does not.
  order = jnp.argsort(masked, axis=-1, descending=True, stable=True)
  if seen.settings.prune_separators:
    return order
  protected = seen.layout.separators(seen.tokens.positions) & seen.tokens.mask
  first = jnp.argsort(jnp.take_along_axis(protected, order, axis=-1), axis=-1, descending=True, stable=True)
  return jnp.take_along_axis(order, first, axis=-1)


def cosines(vectors: Float[Array, "B L D"]) -> Float[Array, "B L L"]:
  """Cosines of all pairs, float32."""
  x = vectors.astype(jnp.float32)
  x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
  return jnp.einsum("BLD,BMD->BLM", x, x)


def farthest(seen: Seen) -> Float[Array, "B L"]:
  """K to 1 for the K tokens that lie farthest apart, greedily by the largest smallest distance (DivPrune, 2503.02175).

  The first one is the token whose nearest neighbour is farthest; distance is 1 - cosine of the states.
  """
  distance = 1.0 - cosines(seen.tokens.hidden)
  real = seen.tokens.mask[:, None, :] & seen.tokens.mask[:, :, None] & ~jnp.eye(distance.shape[1], dtype=bool)[None]
  start = jnp.min(jnp.where(real, distance, jnp.inf), axis=-1)
  start = jnp.where(jnp.isinf(start), 0.0, start)  # of a token without company
  return _greedy(seen, start, lambda gain, chosen, first: jnp.where(first, chosen, jnp.minimum(gain, chosen)), distance)


def spread(seen: Seen) -> Float[Array, "B L"]:
  """K to 1 for the K tokens with the largest sum of distances to those before (ToDRE's greedy max-sum, 2505.18757)."""
  distance = 1.0 - cosines(seen.tokens.hidden)
  real = seen.tokens.mask[:, None, :].astype(jnp.float32)
  start = jnp.sum(distance * real, axis=-1)
  return _greedy(seen, start, lambda gain, chosen, first: jnp.where(first, chosen, gain + chosen), distance)


def _greedy(
  seen: Seen, start: Float[Array, "B L"], gain_of: Callable[..., Array], table: Float[Array, "B L L"]
) -> Float[Array, "B L"]:
  """K times: take the token with the largest gain, then renew all gains from its row of the table.

  The first one taken scores K, the last one 1, all others 0: where separators are protected, not all K can stay.
  """
  start, table = jax.lax.stop_gradient((start, table))
  mask = seen.tokens.mask

  def step(count, state):
    gain, taken = state
    best = jnp.argmax(jnp.where(mask & (taken == 0), gain, -jnp.inf), axis=-1)
    row = jnp.take_along_axis(table, best[:, None, None], axis=1)[:, 0]
    return gain_of(gain, row, count == 0), _take(taken, best, mask, seen.budget - count)

  return jax.lax.fori_loop(0, seen.budget, step, (start, jnp.zeros(mask.shape)))[1]


def _take(
  taken: Float[Array, "B L"], index: Int[Array, "B"], mask: Bool[Array, "B L"], score: Int[Array, ""]
) -> Float[Array, "B L"]:
  """Notes the score at each row's index, unless the row has run out of real tokens that were not taken."""
  free = (jnp.arange(mask.shape[1])[None] == index[:, None]) & mask & (taken == 0)
  return jnp.where(free, score.astype(jnp.float32), taken)


@dataclasses.dataclass(frozen=True)
class DecayOptions:
  """A determinantal point process with recency (reduction.method=dpp_recent)."""

  decay: float = setting(0.9, "relevance of a token per item of its age", above=0, at_most=1, may=May.DECODE)


def determinant_recent(seen: Seen) -> Float[Array, "B L"]:
  """K to 1 for the K tokens of a greedy determinantal point process, relevance decay^age."""
  return _determinant(seen, seen.settings.of(DecayOptions).decay ** seen.ages.astype(jnp.float32))


def determinant(seen: Seen) -> Float[Array, "B L"]:
  """K to 1 for the K tokens of a greedy determinantal point process (CDPruner, arXiv 2506.10967).

  The relevance is RASTP's score, scaled to (0, 1] per row.
  """
  mask, score = seen.tokens.mask, formulas.rastp(seen)
  low = jnp.min(jnp.where(mask, score, jnp.inf), axis=-1, keepdims=True)
  high = jnp.max(jnp.where(mask, score, -jnp.inf), axis=-1, keepdims=True)
  return _determinant(seen, (score - low + 1e-3) / jnp.maximum(high - low + 1e-3, 1e-3))


def _determinant(seen: Seen, relevance: Float[Array, "B L"]) -> Float[Array, "B L"]:
  """Greedy MAP under the kernel relevance * cosine * relevance."""
  mask = seen.tokens.mask
  relevance = jax.lax.stop_gradient(jnp.where(mask, relevance, 0.0))
  kernel = jax.lax.stop_gradient(relevance[:, :, None] * cosines(seen.tokens.hidden) * relevance[:, None, :])
  batch, length = mask.shape

  def step(count, state):
    gain, factors, taken = state
    best = jnp.argmax(jnp.where(mask & (taken == 0), gain, -jnp.inf), axis=-1)
    pick = lambda x: jnp.take_along_axis(x, best[:, None], axis=-1)
    row = jnp.take_along_axis(kernel, best[:, None, None], axis=1)[:, 0]
    own = jnp.take_along_axis(factors, best[:, None, None], axis=2)
    error = (row - jnp.sum(own * factors, axis=1)) / jnp.sqrt(jnp.maximum(pick(gain), 1e-9))
    return gain - error**2, factors.at[:, count].set(error), _take(taken, best, mask, seen.budget - count)

  start = (relevance**2, jnp.zeros((batch, seen.budget, length)), jnp.zeros(mask.shape))
  return jax.lax.fori_loop(0, seen.budget, step, start)[2]


def density_peaks(seen: Seen) -> Float[Array, "B L"]:
  """Density times distance to the nearest denser token: high at the centres of clusters (DPC-KNN, 2204.08680).

  The density is exp(-mean squared distance to the 5 nearest), distances are divided by the root of the width; the
  densest token's distance is that to the farthest one.
  """
  mask, x = seen.tokens.mask, jax.lax.stop_gradient(seen.tokens.hidden.astype(jnp.float32))
  squares = jnp.sum(x**2, axis=-1)
  apart = squares[:, :, None] + squares[:, None, :] - 2.0 * jnp.einsum("BLD,BMD->BLM", x, x)
  apart = jnp.sqrt(jnp.maximum(apart, 0.0) / x.shape[-1])
  place = jnp.arange(mask.shape[1])
  other = mask[:, None, :] & (place[:, None] != place[None, :])[None]
  near = jnp.sort(jnp.where(other, apart, jnp.inf), axis=-1)[:, :, :NEIGHBOURS]
  counted = jnp.isfinite(near)
  mean = jnp.sum(jnp.where(counted, near**2, 0.0), axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1).astype(x.dtype)
  density = jnp.exp(-mean)
  denser = density[:, None, :] > density[:, :, None]
  denser |= (density[:, None, :] == density[:, :, None]) & (place[None, None, :] < place[None, :, None])
  nearest = jnp.min(jnp.where(denser & other, apart, jnp.inf), axis=-1)
  farthest = jnp.max(jnp.where(other, apart, 0.0), axis=-1)
  return density * jnp.where(jnp.isfinite(nearest), nearest, farthest)
