"""RQ-VAE: an autoencoder whose latent vector is replaced by a sum of codebook vectors (Lee et al., 2022; TIGER)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rastp_jax.config import SemanticIdsConfig
from rastp_jax.semantic_ids import minibatches, residual_codebooks, residual_kmeans
from rastp_jax.semantic_ids.quantizer import Quantizer, in_batches, sample

# Items whose latent vectors start the codebooks.
_START_SAMPLE = 32_768
# Share of the steps that train the autoencoder alone: codebooks that start on the latents of an untrained encoder
# would have to be learned twice.
_WARM_UP = 0.1


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

  @classmethod
  def fit(cls, embeddings: np.ndarray, settings: SemanticIdsConfig) -> Self:
    """Trains by Adam on reconstruction, codebook and commitment losses with straight-through gradients.

    A tenth of the steps trains the autoencoder alone; then residual k-means of its latents starts the codebooks. Codes
    that go unused are revived at a residual of the batch.
    """
    some = sample(embeddings, _START_SAMPLE, settings.seed)
    mean = some.mean(0)
    scale = float(np.sqrt(((some - mean) ** 2).mean())) or 1.0
    shape = (embeddings.shape[1], settings.rqvae_hidden, settings.rqvae_latent, settings.levels, settings.width)
    graph, params = nnx.split(Autoencoder(*shape, rngs=nnx.Rngs(settings.seed)))
    state = (params, _optimizer(settings).init(params), jnp.zeros((settings.levels, settings.width)))
    key = jax.random.key(settings.seed)
    alone = round(_WARM_UP * settings.train_steps)
    same = dataclasses.replace(settings, seed=0)  # the seed is no reason to compile again
    for number, batch in enumerate(minibatches.batches(embeddings, settings)):
      if number == alone:
        state = _start_codebooks(graph, state, (some - mean) / scale, settings)
      fresh = jax.random.fold_in(key, number)
      state = _step(*state, (batch - mean) / scale, fresh, graph=graph, settings=same, quantize=number >= alone)
    return cls(nnx.merge(graph, state[0]), mean, scale, tuple(settings.rqvae_hidden))

  def encode(self, embeddings: np.ndarray) -> np.ndarray:
    return self._apply(_encode, embeddings)

  def last_costs(self, embeddings: np.ndarray) -> np.ndarray:
    return self._apply(_last_costs, embeddings)

  def squared_errors(self, embeddings: np.ndarray) -> np.ndarray:
    return self.scale**2 * self._apply(_squared_errors, embeddings)

  def arrays(self) -> dict[str, np.ndarray]:
    state = nnx.to_pure_dict(nnx.state(self.model, nnx.Param))
    weights = {"/".join(map(str, path)): np.asarray(value) for path, value in _flatten(state)}
    return {"mean": self.mean, "scale": np.array(self.scale), "hidden": np.array(self.hidden, np.int64), **weights}

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
    levels, width, latent = arrays["codebooks"].shape
    hidden = tuple(int(size) for size in arrays["hidden"])
    mean = np.asarray(arrays["mean"])
    model = Autoencoder(len(mean), hidden, latent, levels, width, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    pure = nnx.to_pure_dict(state)
    for path, _ in _flatten(pure):
      inner = functools.reduce(lambda node, name: node[name], path[:-1], pure)
      inner[path[-1]] = jnp.asarray(arrays["/".join(map(str, path))])
    nnx.replace_by_pure_dict(state, pure)
    return cls(nnx.merge(graph, state), mean, float(arrays["scale"]), hidden)

  def _apply(self, function, embeddings: np.ndarray) -> np.ndarray:
    graph, params = nnx.split(self.model)
    return in_batches(lambda batch: function(graph, params, (batch - self.mean) / self.scale), embeddings)


def _flatten(tree, path=()):
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, (*path, name))
    else:
      yield (*path, name), value


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
  """What the decoder makes of the first 1, 2, … codes, against the vectors: (n, levels) squared distances."""
  model = nnx.merge(graph, params)
  codes = residual_codebooks.encode(model.codebooks[...], model.encoder(vectors), False)
  chosen = jnp.stack([book[codes[:, level]] for level, book in enumerate(model.codebooks[...])])
  return jnp.stack([((model.decoder(part) - vectors) ** 2).sum(-1) for part in jnp.cumsum(chosen, 0)], 1)


def _optimizer(settings: SemanticIdsConfig) -> optax.GradientTransformation:
  return optax.adam(optax.cosine_decay_schedule(settings.rqvae_learning_rate, settings.train_steps))


def _start_codebooks(graph, state, vectors: np.ndarray, settings: SemanticIdsConfig):
  """The state with codebooks from residual k-means of the latents, and all codes taken to be in use."""
  params, moments, moving = state
  latents = jnp.asarray(in_batches(lambda batch: _latents(graph, params, batch), vectors))
  plain = dataclasses.replace(settings, normalize_residuals=False)
  params.codebooks[...] = jnp.asarray(residual_kmeans.fit_levels(latents, plain))
  return params, moments, jnp.full_like(moving, settings.train_batch / settings.width)


@functools.partial(jax.jit, static_argnames=("graph", "settings", "quantize"), donate_argnums=(0, 1, 2))
def _step(params, moments, moving, batch, key, *, graph, settings: SemanticIdsConfig, quantize: bool):
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
      penalty += settings.rqvae_commitment * ((residual - stop(chosen)) ** 2).sum(-1).mean() / spread
      total, residual = total + chosen, residual - stop(chosen)
    straight_through = latent + stop(total - latent)
    used = jnp.stack([minibatches.usage(codes[:, level], len(book)) for level, book in enumerate(books)])
    use = minibatches.USE_DECAY * moving + (1 - minibatches.USE_DECAY) * used
    return ((model.decoder(straight_through) - batch) ** 2).mean() + penalty, (use, arriving)

  gradients, (moving, arriving) = jax.grad(loss, has_aux=True)(params)
  updates, moments = _optimizer(settings).update(gradients, moments, params)
  params = optax.apply_updates(params, updates)
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
