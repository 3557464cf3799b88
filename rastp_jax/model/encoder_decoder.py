"""The model: reads a history as semantic-ID tokens and predicts the next item's codes, level by level.

Shapes: B batch, N history items, C codes an item (depth), P positions an item (C, or C + 1 with separators), L = N * P
encoder positions, D model width, V codes a level.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rastp_jax.config import ModelConfig, PruningConfig
from rastp_jax.model import pruning
from rastp_jax.model.layers import DecoderBlock, Dropout, EncoderBlock, RelativeBias, linear, norm
from rastp_jax.model.pruning import Tokens


class EncoderDecoder(nnx.Module):
  """T5-style encoder-decoder over semantic IDs, with RASTP pruning between encoder blocks.

  Pruning owns no parameters: weights trained with one `PruningConfig` run with any other.

  Args:
    config: sizes, dropout rates, initialisation, compute dtype.
    pruning_config: what is dropped where; `criterion="none"` is the dense model.
    widths: codes a level, the level that tells collisions apart included.
    rngs: `nnx.Rngs` whose `params` stream initialises the weights.

  Raises:
    InputError: `pruning_config` names no criterion there is.
  """

  def __init__(self, config: ModelConfig, pruning_config: PruningConfig, widths: tuple[int, ...], *, rngs: nnx.Rngs):
    pruning.check_criterion(pruning_config)
    self.config, self.pruning = config, pruning_config
    self.widths = (max(widths),) * len(widths) if config.uniform_width else tuple(widths)
    self.depth = len(widths)
    self.item_length = self.depth + config.separator
    d = config.d_model
    # Adam moves an entry by about the learning rate a step: unit-variance embeddings would hardly turn in an epoch.
    std = 1.0 if config.init == "reference" else d**-0.5
    normal = lambda *shape: nnx.Param(std * jax.random.normal(rngs.params(), shape))
    self.code_embedding = normal(sum(self.widths), d)
    self.bos = normal(d)
    self.separator = normal(d) if config.separator else None
    self.encoder_bias = RelativeBias(config, causal=False, rngs=rngs)
    self.encoder_blocks = nnx.List([EncoderBlock(config, rngs=rngs) for _ in range(config.encoder_blocks)])
    self.encoder_norm = norm(config, rngs=rngs)
    self.decoder_bias = RelativeBias(config, causal=True, rngs=rngs)
    self.decoder_blocks = nnx.List([DecoderBlock(config, rngs=rngs) for _ in range(config.decoder_blocks)])
    self.decoder_norm = norm(config, rngs=rngs)
    self.heads = nnx.List([linear(config, d, width, std=d**-0.5, rngs=rngs) for width in self.widths])

  def embed_codes(self, codes: Int[Array, "... C"], first_level: int = 0) -> Float[Array, "... C D"]:
    """Looks codes up in the one table both stacks share; padding (-1) takes row 0, to be masked by the caller."""
    offsets = np.concatenate([[0], np.cumsum(self.widths)[:-1]])[first_level : first_level + codes.shape[-1]]
    rows = jnp.where(codes < 0, 0, codes + offsets.astype(np.int32).reshape((1,) * (codes.ndim - 1) + (-1,)))
    return self.code_embedding[...].astype(self.config.dtype)[rows]

  def embed_history(self, history: Int[Array, "B N C"]) -> Tokens:
    """Codes, each item followed by the separator, as tokens; padded items (-1) are masked, separator included."""
    batch, items, _ = history.shape
    hidden_BNCD = self.embed_codes(history)
    if self.separator is not None:
      separator = jnp.broadcast_to(
        self.separator[...].astype(hidden_BNCD.dtype), (batch, items, 1, self.config.d_model)
      )
      hidden_BNCD = jnp.concatenate([hidden_BNCD, separator], axis=2)
    length = items * self.item_length
    return Tokens(
      hidden=hidden_BNCD.reshape(batch, length, -1),
      mask=jnp.repeat(history[:, :, 0] >= 0, self.item_length, axis=1),
      positions=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length)),
    )

  def encode(self, history: Int[Array, "B N C"], *, key: PRNGKeyArray | None = None) -> Tokens:
    """Runs the encoder; pruning stages shorten what comes out.

    Args:
      history: codes, most recent item last, padded on the right with -1.
      key: dropout key; None for none.

    Returns:
      The final-normed states that survived, with their mask and their places in the un-pruned sequence.
    """
    return self.encode_tokens(self.embed_history(history), key=key)[0]

  def encode_tokens(self, tokens: Tokens, *, key: PRNGKeyArray | None = None) -> tuple[Tokens, list[dict[str, Array]]]:
    """`encode` on embedded tokens, which also tells what each pruning stage saw.

    Returns:
      The encoded tokens, and for each stage a dict of `hidden` (B, L, D), `received` (B, L) and `kept` places (B, K).
    """
    drop = Dropout(key)
    stages = pruning.budgets(self.pruning, tokens.hidden.shape[1])
    seen = []
    places = tokens.positions[:1]  # before any pruning all rows have the same places
    bias = self.encoder_bias(places, places)
    tokens = Tokens(drop(tokens.hidden, self.config.dropout), tokens.mask, tokens.positions)
    for index, block in enumerate(self.encoder_blocks):
      if index not in stages:
        tokens = Tokens(block(tokens.hidden, tokens.mask, bias, drop), tokens.mask, tokens.positions)
        continue
      hidden, received = block.scored(
        tokens.hidden,
        tokens.mask,
        bias,
        drop,
        score_dropout=self.pruning.score_dropout,
        score_padded_queries=self.pruning.score_padded_queries,
      )
      tokens = pruning.prune(
        Tokens(hidden, tokens.mask, tokens.positions), received, self.pruning, stages[index], self.item_length
      )
      seen.append({"hidden": hidden, "received": received, "kept": tokens.positions})
      bias = self.encoder_bias(tokens.positions, tokens.positions) if self.pruning.positions == "original" else None
    hidden = drop(self.encoder_norm(tokens.hidden), self.config.dropout)
    return Tokens(hidden, tokens.mask, tokens.positions), seen

  def decode(
    self, encoded: Tokens, target: Int[Array, "B C"], *, key: PRNGKeyArray | None = None
  ) -> Float[Array, "B C D"]:
    """Decoder states for BOS and the target's codes but the last: state h is what level h's head reads."""
    drop = Dropout(key)
    batch = target.shape[0]
    bos = jnp.broadcast_to(self.bos[...].astype(self.config.dtype), (batch, 1, self.config.d_model))
    hidden = drop(jnp.concatenate([bos, self.embed_codes(target[:, :-1])], axis=1), self.config.dropout)
    places = jnp.arange(self.depth, dtype=jnp.int32)[None]
    bias = self.decoder_bias(places, places)
    for block in self.decoder_blocks:
      hidden = block(hidden, bias, block.cross_attention.keys_values(encoded.hidden), encoded.mask, drop)
    return drop(self.decoder_norm(hidden), self.config.dropout)

  def logits(self, decoded: Float[Array, "B C D"]) -> list[Float[Array, "B V"]]:
    """One float32 array a level, over that level's codes only."""
    return [head(decoded[:, level]).astype(jnp.float32) for level, head in enumerate(self.heads)]

  def __call__(
    self, history: Int[Array, "B N C"], target: Int[Array, "B C"], *, key: PRNGKeyArray | None = None
  ) -> list[Float[Array, "B V"]]:
    """Teacher-forced logits, one (B, V) array a level."""
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    return self.logits(self.decode(self.encode(history, key=encoder_key), target, key=decoder_key))


def loss(
  model: EncoderDecoder,
  history: Int[Array, "B N C"],
  target: Int[Array, "B C"],
  weight: Float[Array, "B"],
  *,
  key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Sum over levels of the weighted batch mean of the cross-entropy, in nats.

  Args:
    model: the recommender.
    history: codes, -1 padded on the right.
    target: the next item's codes.
    weight: 1 for a sample, 0 for a filler row.
    key: dropout key; None for none.

  Returns:
    The loss and `{"loss_level_<h>": mean cross-entropy of that level}`.
  """
  total = jnp.maximum(jnp.sum(weight), 1e-6)
  levels = []
  for level, logits in enumerate(model(history, target, key=key)):
    picked = jnp.take_along_axis(logits, target[:, level, None], axis=-1)[:, 0]
    levels.append(jnp.sum(weight * (jax.nn.logsumexp(logits, axis=-1) - picked)) / total)
  return sum(levels), {f"loss_level_{level}": value for level, value in enumerate(levels)}
