"""Residual vector quantisation whose centres are moving averages of the vectors assigned to them."""

import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from rastp_jax.config import SemanticIdsConfig, setting
from rastp_jax.semantic_ids.quantizers import minibatches, residual_codebooks, residual_kmeans
from rastp_jax.semantic_ids.quantizers.base import sample
from rastp_jax.semantic_ids.quantizers.residual_kmeans import ResidualKMeans

# Items whose residual k-means starts the codebooks.
_START_SAMPLE = 8192
# A centre forgets: it is the mean of about its last 1 / (1 - _DECAY) batches.
_DECAY = 0.95


@dataclasses.dataclass(frozen=True)
class ResidualVQOptions:
  """Residual vector quantisation (semantic_ids.method=residual_vq)."""

  normalize_residuals: bool = setting(True, "unit length before every level, as published")
  train_steps: int = setting(2000, "mini-batches", at_least=1)
  train_batch: int = setting(1024, "items per mini-batch", at_least=1)


class ResidualVQ(ResidualKMeans):
  """Codebooks of residual VQ: applied like those of residual k-means, but all levels are learned at a time.

  Each mini-batch moves every centre towards the mean of the batch's vectors assigned to it (van den Oord et al., 2017,
  appendix A.1); codes that go unused are revived at a vector of the batch.
  """

  method = "residual_vq"
  summary = "all levels at a time, centres are moving averages of their vectors"
  options = ResidualVQOptions

  @classmethod
  def fit(cls, embeddings: np.ndarray, settings: SemanticIdsConfig) -> Self:
    own, key = settings.of(ResidualVQOptions), jax.random.key(settings.seed)
    some = jnp.asarray(sample(embeddings, _START_SAMPLE, settings.seed))
    start = jnp.asarray(residual_kmeans.fit_levels(some, settings, own.normalize_residuals))
    # As if each centre had had an even share of vectors so far, all equal to it.
    even = min(own.train_batch, len(embeddings)) / settings.codebook_size
    state = (start, jnp.full(start.shape[:2], even), even * start)
    for step, batch in enumerate(minibatches.batches(embeddings, own.train_steps, own.train_batch, settings.seed)):
      state = _step(state, batch, jax.random.fold_in(key, step), own.normalize_residuals)
    return cls(np.asarray(state[0]), own.normalize_residuals)


@functools.partial(jax.jit, static_argnames="normalize", donate_argnums=0)
def _step(state, batch: jax.Array, key: jax.Array, normalize: bool):
  """One mini-batch: centres (levels, width, features), moving counts (levels, width) and sums of assigned vectors."""
  residual, levels = batch, []
  for level, (centres, counts, sums) in enumerate(zip(*state, strict=True)):
    if normalize:
      residual = residual_codebooks.unit(residual)
    code = residual_codebooks.distances(residual, centres).argmin(-1)
    assigned = jnp.zeros_like(centres).at[code].add(residual)
    counts = _DECAY * counts + (1 - _DECAY) * minibatches.usage(code, len(centres))
    sums = _DECAY * sums + (1 - _DECAY) * assigned
    dead = minibatches.is_dead(counts, len(batch))
    # Before it has its share of vectors, a fresh centre would be thrown far off by its first few.
    fair = len(batch) / len(centres)
    following = residual - centres[code]
    centres = sums / jnp.maximum(counts, 1e-6)[:, None]
    centres = minibatches.revive(centres, dead, residual, jax.random.fold_in(key, level))
    counts = jnp.where(dead, fair, counts)
    sums = jnp.where(dead[:, None], fair * centres, sums)
    levels.append((centres, counts, sums))
    residual = following
  return tuple(jnp.stack(parts) for parts in zip(*levels, strict=True))
