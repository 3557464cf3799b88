"""The model: reads a history as semantic-ID tokens and predicts the next item's codes, level by level.

Shapes: B batch, N history items, C codes per item (depth), P positions per item (C, or C + 1 with separators),
L = N * P encoder positions, D model width, W beams, V codes of a level.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from rastp_jax.config import ModelConfig, ReductionConfig
from rastp_jax.model.dropout import Dropout
from rastp_jax.model.interface import DecodingState
from rastp_jax.model.layers import CrossMemory, DecoderBlock, EncoderBlock, RelativeBias, linear, norm
from rastp_jax.reduction import schedule
from rastp_jax.reduction.tokens import Evidence, ItemLayout, Seen, Stage, Tokens
from rastp_jax.runtime import products
from rastp_jax.runtime.hashing import lowbias32


class EncoderDecoder(nnx.Module):
  """T5-style encoder-decoder over semantic IDs, with token reduction between encoder blocks.

  Offers `interface.GenerativeModel`. A reduction owns no weights unless its method is `learned`: weights trained with
  one `ReductionConfig` run with any other.

  Args:
    config: sizes, dropout rates, initialisation, compute dtype.
    reduction: how tokens become fewer, and where; `method="none"` is the dense model.
    widths: codes of each level, the one that tells collisions apart included.
    num_items: of the catalogue; only `config.item_scores="vectors"` must know it.
    rngs: `nnx.Rngs` whose `params` stream initialises the weights.
  """

  def __init__(
    self,
    config: ModelConfig,
    reduction: ReductionConfig,
    widths: tuple[int, ...],
    *,
    num_items: int = 0,
    rngs: nnx.Rngs,
  ):
    self.config, self.reduction = config, reduction
    self.widths = (max(widths),) * len(widths) if config.uniform_width else tuple(widths)
    self.layout = ItemLayout(len(widths), config.separator)
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
    # Last, so that the other weights are the same with and without them. By the stage's number, as text.
    methods = [] if reduction.method == "none" else schedule.methods_of(reduction)
    self.reducers = nnx.Dict(
      {
        str(number): method.weights(config, self.layout, reduction, rngs=rngs)
        for number, method in enumerate(methods)
        if method.learned is not None
      }
    )
    if config.item_scores == "vectors":
      if not num_items:
        raise ValueError("a model with vectors of items needs num_items")
      self.item_embedding = normal(num_items, d)
    if config.item_repeats:
      self.repeat_score = nnx.Param(jnp.zeros(()))
    if config.item_scores == "set":
      self.level_queries = normal(len(widths), d)
    if config.item_ages:
      self.age_embedding = normal(config.item_ages, d)

  def embed_codes(self, codes: Int[Array, "... C"], first_level: int = 0) -> Float[Array, "... C D"]:
    """Looks codes up in the one table both stacks share; padding (-1) takes row 0, to be masked by the caller."""
    offsets = np.concatenate([[0], np.cumsum(self.widths)[:-1]])[first_level : first_level + codes.shape[-1]]
    rows = jnp.where(codes < 0, 0, codes + offsets.astype(np.int32).reshape((1,) * (codes.ndim - 1) + (-1,)))
    return products.look_up(self.code_embedding[...], rows, self.config.dtype)

  def embed_history(self, history: Int[Array, "B N R"]) -> Tokens:
    """Codes, each item followed by the separator, as tokens; padded items (-1) are masked, separator included.

    A vector of the item is added to its first token.
    """
    batch, items, _ = history.shape
    hidden_BNCD = self.embed_codes(history[..., : self.layout.depth])
    if self.config.item_scores == "vectors":
      vectors = self.item_embedding[...][jnp.maximum(history[..., -1], 0)].astype(hidden_BNCD.dtype)
      hidden_BNCD = hidden_BNCD.at[:, :, 0].add(vectors)
    if self.separator is not None:
      separator = jnp.broadcast_to(
        self.separator[...].astype(hidden_BNCD.dtype), (batch, items, 1, self.config.d_model)
      )
      hidden_BNCD = jnp.concatenate([hidden_BNCD, separator], axis=2)
    if self.config.item_ages:
      hidden_BNCD += self._embed_ages(history[:, :, 0] >= 0)[:, :, None]
    length = items * self.layout.item_length
    return Tokens(
      hidden=hidden_BNCD.reshape(batch, length, -1),
      mask=jnp.repeat(history[:, :, 0] >= 0, self.layout.item_length, axis=1),
      positions=jnp.arange(length, dtype=jnp.int32)[None],  # before any stage all rows have the same places
      row_hash=_row_hash(history),
      items=history[..., -1] if self.config.item_repeats else None,
    )

  def _embed_ages(self, items: Bool[Array, "B N"]) -> Float[Array, "B N D"]:
    """T5's relative positions tell the encoder an item's neighbours; this tells everyone which item is the newest."""
    places = jnp.arange(items.shape[1], dtype=jnp.int32)[None]
    older = jnp.sum(items, axis=1, dtype=jnp.int32, keepdims=True) - 1 - places
    table = self.age_embedding[...]
    return products.look_up(table, jnp.clip(older, 0, table.shape[0] - 1), self.config.dtype)

  def encode(self, history: Int[Array, "B N R"], *, key: PRNGKeyArray | None = None) -> Tokens:
    """Runs the encoder; reduction stages shorten what comes out.

    Args:
      history: codes (and the item's row, with vectors of items), most recent item last, padded on the right with -1.
      key: dropout key; None for none.

    Returns:
      The final-normed states, with their mask and their positions in the unreduced sequence.
    """
    return self.encode_tokens(self.embed_history(history), key=key)[0]

  def encode_stages(self, history: Int[Array, "B N R"]) -> tuple[Tokens, list[Stage]]:
    """`encode` without dropout, and what each stage of the reduction saw and left."""
    return self.encode_tokens(self.embed_history(history))

  def encode_tokens(self, tokens: Tokens, *, key: PRNGKeyArray | None = None) -> tuple[Tokens, list[Stage]]:
    """`encode` on embedded tokens, and what each stage of the reduction saw and left."""
    drop = Dropout(key)
    planned = schedule.stages(self.reduction, tokens.hidden.shape[1], self.layout)
    stages: list[Stage] = []

    def seen_by(stage: schedule.PlannedStage, tokens: Tokens, known: Evidence | None) -> Seen:
      weights = self.reducers[str(stage.number)] if stage.method.learned is not None else None
      return Seen(tokens, known, self.layout, self.reduction, stage.budget, weights)

    def reduced(stage: schedule.PlannedStage, tokens: Tokens, known: Evidence | None) -> Tokens:
      after = stage.method.reduce(seen_by(stage, tokens, known))
      stages.append(Stage(tokens, known, after))
      return after

    tokens = tokens.replace(hidden=drop(tokens.hidden, self.config.dropout))
    if schedule.BEFORE_BLOCKS in planned:
      tokens = reduced(planned[schedule.BEFORE_BLOCKS], tokens, None)
    bias, watch = self._bias(tokens, bool(stages)), None
    for index, block in enumerate(self.encoder_blocks):
      hidden, known = block(tokens.hidden, tokens.mask, bias, drop)
      tokens = tokens.replace(hidden=hidden)
      coming = next((stage for place, stage in planned.items() if place >= index), None)
      if coming is not None and coming.method.watch is not None:
        own = tokens if coming.method.watch is watch else tokens.replace(note=None)  # another one's note says nothing
        watch = coming.method.watch
        tokens = tokens.replace(note=watch(seen_by(coming, own, known)))
      if index in planned:
        tokens = reduced(planned[index], tokens, known)
        bias = self._bias(tokens, True)
    return tokens.replace(hidden=drop(self.encoder_norm(tokens.hidden), self.config.dropout)), stages

  def _bias(self, tokens: Tokens, reduced: bool) -> Float[Array, "_ H L L"] | None:
    """What is added to the next block's attention logits: relative positions, and sizes of merged tokens."""
    kind = self.reduction.positions if reduced else "original"
    places = self.layout.items(tokens.positions) if kind == "item" else tokens.positions
    bias = None if kind == "none" else self.encoder_bias(places, places)
    log_size = self._log_size(tokens)
    if log_size is None:
      return None if bias is None else self.encoder_blocks[0].attention.spread(bias)
    batch, length = log_size.shape
    counted = jnp.broadcast_to(log_size[:, None, None, :], (batch, self.config.num_heads, length, length))
    return counted if bias is None else bias + counted

  def _log_size(self, tokens: Tokens) -> Float[Array, "B L"] | None:
    """Proportional attention: a merged token counts as often as it stands for tokens."""
    if tokens.size is None or not self.reduction.proportional:
      return None
    return jnp.log(jnp.maximum(tokens.size, 1.0))

  def _memories(self, encoded: Tokens, *, queries: int | None) -> list[CrossMemory]:
    """What each decoder block reads of the encoder; see `DecoderBlock.memory`."""
    log_size = self._log_size(encoded)
    return [block.memory(encoded.hidden, encoded.mask, log_size, queries) for block in self.decoder_blocks]

  def decode(
    self, encoded: Tokens, target: Int[Array, "B C"], *, key: PRNGKeyArray | None = None
  ) -> Float[Array, "B C D"]:
    """Decoder states for BOS and the target's codes but the last: state h is what level h's head reads."""
    drop = Dropout(key)
    hidden = jnp.concatenate([self._bos(target.shape[0]), self.embed_codes(target[:, :-1])], axis=1)
    hidden = drop(hidden, self.config.dropout)
    places = jnp.arange(self.layout.depth, dtype=jnp.int32)[None]
    bias, memories = self.decoder_bias(places, places), self._memories(encoded, queries=self.layout.depth)
    for block, memory in zip(self.decoder_blocks, memories, strict=True):
      hidden = block(hidden, bias, memory, drop)
    return drop(self.decoder_norm(hidden), self.config.dropout)

  def _bos(self, batch: Any) -> Float[Array, "B 1 D"]:
    return jnp.broadcast_to(self.bos[...].astype(self.config.dtype), (batch, 1, self.config.d_model))

  def logits(self, decoded: Float[Array, "B C D"]) -> list[Float[Array, "B V"]]:
    """One float32 array per level, over that level's codes only."""
    return [head(decoded[:, level]).astype(jnp.float32) for level, head in enumerate(self.heads)]

  def __call__(
    self, history: Int[Array, "B N R"], target: Int[Array, "B C"], *, key: PRNGKeyArray | None = None
  ) -> list[Float[Array, "B V"]]:
    """Teacher-forced logits, one (B, V) array per level."""
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    return self.logits(self.decode(self.encode(history, key=encoder_key), target, key=decoder_key))

  def _item_logits(self, encoded: Tokens) -> Float[Array, "B I"]:
    """All items' scores by what the encoder makes of the newest item's first token, float32.

    As in SASRec (arXiv 1808.09781), what is compared with the items' vectors began as one of them (`embed_history`): an
    item that was hardly ever a target is found by its neighbours in histories. The decoder's first state, which has no
    such path, leaves these items out (docs/results.md). With `config.item_repeats` items of the history get a learned
    number more, so that what is compared need not say both what is alike and what comes again (repeat consumption, as
    in RepeatNet, arXiv 1812.02646, with one number in place of a decoder).
    """
    places = jnp.broadcast_to(encoded.positions, encoded.mask.shape)
    first = self.layout.item_length * (self.layout.items(places) + 1) - self.layout.levels(places)
    newest = jnp.argmax(jnp.where(encoded.mask, first, -1), axis=1)
    state = jnp.take_along_axis(encoded.hidden, newest[:, None, None], axis=1)[:, 0]
    logits = products.matmul_transposed(state, self.item_embedding[...].astype(state.dtype))
    if encoded.items is None:
      return logits
    # Adam moves a product of D numbers far more in a step than one number: so this one counts more than once.
    return logits + self.config.d_model**0.5 * self.repeat_score[...] * _taken(encoded.items, logits.shape[1])

  def _set_logits(self, encoded: Tokens, drop: Dropout) -> list[Float[Array, "B V"]]:
    """One float32 array per level, from the level's own query; no level knows of another (SETRec, arXiv 2502.10833)."""
    return self.logits(self._decode_alone(encoded, self.level_queries[...], drop))

  def _decode_alone(self, encoded: Tokens, queries: Float[Array, "Q D"], drop: Dropout) -> Float[Array, "B Q D"]:
    """Decoder states of queries that all stand at the first place and do not see each other."""
    hidden = queries.astype(self.config.dtype)[None]
    hidden = drop(jnp.broadcast_to(hidden, (encoded.hidden.shape[0], *queries.shape)), self.config.dropout)
    first = jnp.zeros((1, 1), jnp.int32)
    bias, memories = self.decoder_bias(first, first), self._memories(encoded, queries=queries.shape[0])
    for block, memory in zip(self.decoder_blocks, memories, strict=True):
      hidden, _ = block.step(hidden, None, bias, memory, drop)
    return drop(self.decoder_norm(hidden), self.config.dropout)

  def item_log_probs(self, memory: Tokens, codes: Int[Array, "I C"]) -> Float[Array, "B I"] | None:
    """See `interface.GenerativeModel.item_log_probs`."""
    if self.config.item_scores == "none":
      return None
    if self.config.item_scores == "vectors":
      return jax.nn.log_softmax(self._item_logits(memory), axis=-1)
    levels = [jax.nn.log_softmax(logits, axis=-1) for logits in self._set_logits(memory, Dropout(None))]
    scores = sum(jnp.take(level, codes[:, number], axis=1) for number, level in enumerate(levels))
    return jax.nn.log_softmax(scores, axis=-1)

  def loss(
    self, batch: Mapping[str, Array], *, key: PRNGKeyArray | None = None
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum over levels of the weighted batch mean of the cross-entropy, in nats, and the same of the item scores.

    Args:
      batch: `history` (B, N, R) and `target` (B, R), codes and with vectors of items the item's row; `weight` (B,): 1
        for a sample, 0 for a filler row; perhaps `soft_targets`, each level's probabilities (B, V) to be learned in
        place of the target's code.
      key: dropout key; None for none.

    Returns:
      The loss and its parts: `loss_level_<h>`, the mean cross-entropy of that level, and `loss_items`: of all items
      by their vectors, or of the levels by their own queries, summed.
    """
    depth = self.layout.depth
    target, weight = batch["target"], batch["weight"]
    total = jnp.maximum(jnp.sum(weight), 1e-6)

    def mean_loss(
      logits: Float[Array, "B V"], wanted: Int[Array, "B"], soft: Float[Array, "B V"] | None = None
    ) -> Float[Array, ""]:
      if soft is None:
        picked = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
      else:
        picked = jnp.sum(soft * logits, axis=-1)
      return jnp.sum(weight * (jax.nn.logsumexp(logits, axis=-1) - picked)) / total

    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    encoded = self.encode(batch["history"], key=encoder_key)
    decoded = self.decode(encoded, target[:, :depth], key=decoder_key)
    soft = batch.get("soft_targets", [None] * depth)
    levels = [mean_loss(logits, target[:, level], soft[level]) for level, logits in enumerate(self.logits(decoded))]
    parts = {f"loss_level_{level}": value for level, value in enumerate(levels)}
    if self.config.item_scores == "vectors":
      parts["loss_items"] = mean_loss(self._item_logits(encoded), target[:, depth])
    if self.config.item_scores == "set":
      set_logits = self._set_logits(
        encoded, Dropout(None if decoder_key is None else jax.random.fold_in(decoder_key, 1))
      )
      each = [mean_loss(logits, target[:, level]) for level, logits in enumerate(set_logits)]
      parts["loss_items"] = sum(each[1:], each[0])
    values = list(parts.values())
    return sum(values[1:], values[0]), parts

  def start(self, memory: Tokens) -> DecodingState:
    """Cross-attention keys and values, computed once per user; no beam has a cache yet."""
    return DecodingState(shared=self._memories(memory, queries=None), beams=None)

  def step(
    self, state: DecodingState, codes: Int[Array, "B W"] | None, level: int
  ) -> tuple[Float[Array, "B W V"], DecodingState]:
    """See `interface.GenerativeModel.step`; the self-attention cache grows by one per level."""
    if codes is None:
      hidden = self._bos(state.shared[0].mask.shape[0])
    else:
      hidden = self.embed_codes(codes[..., None], first_level=level - 1)[..., 0, :]
    places = jnp.arange(level + 1, dtype=jnp.int32)[None]
    bias = self.decoder_bias(places[:, -1:], places)
    caches = []
    for index, block in enumerate(self.decoder_blocks):
      cache = None if state.beams is None else state.beams[index]
      hidden, cache = block.step(hidden, cache, bias, state.shared[index], Dropout(None))
      caches.append(cache)
    logits = self.heads[level](self.decoder_norm(hidden)).astype(jnp.float32)
    return logits, DecodingState(state.shared, caches)


def _taken(items: Int[Array, "B N"], num_items: int) -> Bool[Array, "B I"]:
  """Which items of the catalogue each row of a history holds; padding is -1."""
  nothing = jnp.zeros(num_items, bool)
  return jax.vmap(lambda row: nothing.at[jnp.where(row < 0, num_items, row)].set(True, mode="drop"))(items)


def _row_hash(history: Int[Array, "B N C"]) -> UInt[Array, "B"]:
  """A hash of each row's codes and their order; padding plays no part in it."""
  _, items, depth = history.shape
  places = jnp.arange(items * depth, dtype=jnp.uint32).reshape(1, items, depth)
  mixed = lowbias32(lowbias32(history.astype(jnp.uint32)) + places)
  return jnp.sum(jnp.where(history >= 0, mixed, 0), axis=(1, 2), dtype=jnp.uint32)
