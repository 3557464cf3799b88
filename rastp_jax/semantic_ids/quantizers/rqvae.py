"""RQ-VAE: an autoencoder whose latent vector is replaced by a sum of codebook vectors (Lee et al., 2022; TIGER)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rastp_jax.config import SemanticIdsConfig, setting
from rastp_jax.semantic_ids.quantizers import minibatches, residual_codebooks, residual_kmeans
from rastp_jax.semantic_ids.quantizers.base import Quantizer, check_features, in_batches, sample

# Items whose latent vectors start the codebooks.
_START_SAMPLE = 32_768
# Share of the steps that train the autoencoder alone: codebooks that start on the latents of an untrained encoder
# would have to be learned twice.
_WARM_UP = 0.1


@dataclasses.dataclass(frozen=True)
class RqVaeOptions:
  """RQ-VAE (semantic_ids.method=rqvae)."""

  train_steps: int = setting(2000, "mini-batches", at_least=1)
  train_batch: int = setting(1024, "items per mini-batch", at_least=1)
  hidden: tuple[int, ...] = setting(
    (256,), "widths of the encoder's hidden layers; the decoder mirrors them", at_least=1
  )
  latent: int = setting(64, "dimensions that the codebooks quantise", at_least=1)
  learning_rate: float = setting(1e-3, "of Adam", at_least=0)
  commitment: float = setting(0.25, "weight of the latent's pull towards its codes", at_least=0)


class Mlp(nnx.Module):
  """Linear layers with ReLU between them: (n, sizes[0]) -> (n, sizes[-1])."""

  def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
    self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in zip(sizes, sizes[1:], strict=False)])

  def __call__(self, vectors: jax.Array) -> jax.Array:
    for layer in self.layers[:-1]:
      vectors = jax.nn.relu(layer(vectors))
    return self.layers[-1](vectors)


class Autoencoder(nnx.Module):
  """Encoder, decoder, and the codebooks between them, (levels, width, latent)."""

  def __init__(self, features: int, hidden: Sequence[int], latent: int, levels: int, width: int, *, rngs: nnx.Rngs):
    self.encoder = Mlp((features, *hidden, latent), rngs=rngs)
    self.decoder = Mlp((latent, *reversed(hidden), features), rngs=rngs)
    self.codebooks = nnx.Param(jnp.zeros((levels, width, latent)))


@dataclasses.dataclass(frozen=True, eq=False)
class RqVae(Quantizer):
  """A trained RQ-VAE.

  Attributes:
    model: the autoencoder; it sees vectors less `mean`, over `scale`.
    mean: float32 (features,).
    scale: root mean square of the centred features.
    hidden: widths of the encoder's hidden layers.
  """

  model: Autoencoder
  mean: np.ndarray
  scale: float
  hidden: tuple[int, ...]
  method = "rqvae"
  summary = "an autoencoder whose latent vector is a sum of codebook vectors (TIGER)"
  options = RqVaeOptions

  @classmethod
  def fit(cls, embeddings: np.ndarray, settings: SemanticIdsConfig) -> Self:
    """Trains by Adam on reconstruction, codebook and commitment losses with straight-through gradients.

    A tenth of the steps trains the autoencoder alone; then residual k-means of its latents starts the codebooks. Codes
    that go unused are revived at a residual of the batch.
    """
    own = settings.of(RqVaeOptions)
    some = sample(embeddings, _START_SAMPLE, settings.seed)
    mean = some.mean(0)
    scale = float(np.sqrt(((some - mean) ** 2).mean())) or 1.0
    shape = (embeddings.shape[1], own.hidden, own.latent, settings.levels, settings.codebook_size)
    graph, params = nnx.split(Autoencoder(*shape, rngs=nnx.Rngs(settings.seed)))
    state = (params, _optimizer(own).init(params), jnp.zeros((settings.levels, settings.codebook_size)))
    key = jax.random.key(settings.seed)
    alone = round(_WARM_UP * own.train_steps)
    for number, batch in enumerate(minibatches.batches(embeddings, own.train_steps, own.train_batch, settings.seed)):
      if number == alone:
        state = _start_codebooks(graph, state, (some - mean) / scale, settings)
      fresh = jax.random.fold_in(key, number)
      state = _step(*state, (batch - mean) / scale, fresh, graph=graph, own=own, quantize=number >= alone)
    return cls(nnx.merge(graph, state[0]), mean, scale, own.hidden)

  @property
  def widths(self) -> tuple[int, ...]:
    levels, width, _ = self.model.codebooks.shape
    return (width,) * levels

  def encode(self, embeddings: np.ndarray) -> np.ndarray:
    return self._apply(_encode, embeddings)

  def last_costs(self, embeddings: np.ndarray) -> np.ndarray:
    return self._apply(_last_costs, embeddings)

  def squared_errors(self, embeddings: np.ndarray) -> np.ndarray:
    return self.scale**2 * self._apply(_squared_errors, embeddings)

  def arrays(self) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(self.model, nnx.Param))
    weights = {"/".join(map(str, path)): np.asarray(value[...]) for path, value in flat}
    return {"mean": self.mean, "scale": np.array(self.scale), "hidden": np.array(self.hidden, np.int64), **weights}

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
    levels, width, latent = arrays["codebooks"].shape
    hidden = tuple(int(size) for size in arrays["hidden"])
    mean = np.asarray(arrays["mean"])
    model = Autoencoder(len(mean), hidden, latent, levels, width, rngs=nnx.Rngs(0))
    for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param)):
      value[...] = jnp.asarray(arrays["/".join(map(str, path))])
    return cls(model, mean, float(arrays["scale"]), hidden)

  def _apply(self, function, embeddings: np.ndarray) -> np.ndarray:
    check_features(embeddings, len(self.mean))
    graph, params = nnx.split(self.model)
    return in_batches(lambda batch: function(graph, params, (batch - self.mean[None]) / self.scale), embeddings)


@jax.jit
def _latents(graph, params, vectors):
  return nnx.merge(graph, params).encoder(vectors)


@jax.jit
def _encode(graph, params, vectors):
  return residual_codebooks.encode(params.codebooks[...], _latents(graph, params, vectors), False)


@jax.jit
def _last_costs(graph, params, vectors):
  return residual_codebooks.last_costs(params.codebooks[...], _latents(graph, params, vectors), False)


@jax.jit
def _squared_errors(graph, params, vectors):
  """Squared distances of the vectors to what the decoder makes of the first 1, 2, … codes: (n, levels)."""
  model = nnx.merge(graph, params)
  codes = residual_codebooks.encode(model.codebooks[...], model.encoder(vectors), False)
  chosen = jnp.stack([book[codes[:, level]] for level, book in enumerate(model.codebooks[...])])
  return jnp.stack([((model.decoder(part) - vectors) ** 2).sum(-1) for part in jnp.cumsum(chosen, 0)], 1)


def _optimizer(own: RqVaeOptions) -> optax.GradientTransformation:
  return optax.adam(optax.cosine_decay_schedule(own.learning_rate, own.train_steps))


def _start_codebooks(graph, state, vectors: np.ndarray, settings: SemanticIdsConfig):
  """The state with codebooks from residual k-means of the latents, and all codes taken to be in use."""
  params, moments, moving = state
  latents = jnp.asarray(in_batches(lambda batch: _latents(graph, params, batch), vectors))
  params.codebooks[...] = jnp.asarray(residual_kmeans.fit_levels(latents, settings, normalize=False))
  even = settings.of(RqVaeOptions).train_batch / settings.codebook_size
  return params, moments, jnp.full_like(moving, even)


@functools.partial(jax.jit, static_argnames=("graph", "own", "quantize"), donate_argnums=(0, 1, 2))
def _step(params: Any, moments, moving, batch, key, *, graph, own: RqVaeOptions, quantize: bool):
  """One mini-batch; `moving` are moving averages of each code's use, (levels, width)."""
  stop = jax.lax.stop_gradient

  def loss(params):
    model = nnx.merge(graph, params)
    latent = model.encoder(batch)
    if not quantize:
      return ((model.decoder(latent) - batch) ** 2).mean(), (moving, [])
    books = model.codebooks[...]
    codes = residual_codebooks.encode(stop(books), stop(latent), False)
    residual, total, penalty, arriving = latent, 0.0, 0.0, []
    # Relative to the latents' own spread: else the encoder would shrink them to make the penalty small.
    spread = stop(latent.var(0).sum())
    for level, book in enumerate(books):
      arriving.append(stop(residual))
      chosen = book[codes[:, level]]
      penalty += ((stop(residual) - chosen) ** 2).sum(-1).mean() / spread
      penalty += own.commitment * ((residual - stop(chosen)) ** 2).sum(-1).mean() / spread
      total, residual = total + chosen, residual - stop(chosen)
    straight_through = latent + stop(total - latent)
    used = jnp.stack([minibatches.usage(codes[:, level], len(book)) for level, book in enumerate(books)])
    use = minibatches.USE_DECAY * moving + (1 - minibatches.USE_DECAY) * used
    return ((model.decoder(straight_through) - batch) ** 2).mean() + penalty, (use, arriving)

  gradients, (moving, arriving) = jax.grad(loss, has_aux=True)(params)
  updates, moments = _optimizer(own).update(gradients, moments, params)
  params = cast(Any, optax.apply_updates(params, updates))
  if quantize:
    dead = minibatches.is_dead(moving, len(batch))
    params.codebooks[...] = jnp.stack(
      [
        minibatches.revive(book, dead[level], arriving[level], jax.random.fold_in(key, level))
        for level, book in enumerate(params.codebooks[...])
      ]
    )
    moving = jnp.where(dead, len(batch) / moving.shape[-1], moving)
  return params, moments, moving
