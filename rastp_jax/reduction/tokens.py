"""What flows from block to block, and what a block leaves behind for a reduction to look at."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from rastp_jax.config import ReductionConfig
from rastp_jax.runtime import attention_kernel, products


@dataclasses.dataclass(frozen=True)
class ItemLayout:
  """How items lie in a sequence of tokens: `depth` codes each, then perhaps a separator."""

  depth: int
  separator: bool

  @property
  def item_length(self) -> int:
    """Positions per item."""
    return self.depth + self.separator

  def items(self, positions: Int[Array, "..."]) -> Int[Array, "..."]:
    """The item of each place, from 0, oldest first."""
    return positions // self.item_length

  def levels(self, positions: Int[Array, "..."]) -> Int[Array, "..."]:
    """The code level of each place, from 0; separators come after the last level."""
    return positions % self.item_length

  def separators(self, positions: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Where separators are: nowhere in a sequence without them."""
    return self.levels(positions) >= self.depth


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
  """Tokens with all that belongs to them, so that nobody downstream can use a stale mask.

  Attributes:
    hidden: (B, L, D) states.
    mask: (B, L) True where a token is real; padding comes last.
    positions: (B, L) int32, each token's place in the unreduced sequence, rising, or a soft slot's number; (1, L) where
      all rows have the same.
    slot: (B, N) or (1, N) int32, where each token of the unreduced sequence is now: its own place, or that of the token
      it was merged into; -1 if it was dropped. None before any stage: every token is at its own place.
    size: (B, L) float32, how many tokens each one stands for. None before any merge: one each.
    note: (B, L) float32, what the method's `watch` has noted so far; None without one.
    row_hash: (B,) uint32, a hash of the row's history, for choices that must depend on nothing else; None: zeros.
    items: (B, M) int32, the history's items by their rows in the catalogue, -1 for padding; None where the model does
      not ask for them.
  """

  hidden: Float[Array, "B L D"]
  mask: Bool[Array, "B L"]
  positions: Int[Array, "#B L"]
  slot: Int[Array, "#B N"] | None = None
  size: Float[Array, "B L"] | None = None
  note: Float[Array, "B L"] | None = None
  row_hash: UInt[Array, "B"] | None = None
  items: Int[Array, "B M"] | None = None

  def replace(self, **changes: Any) -> "Tokens":
    return dataclasses.replace(self, **changes)

  @property
  def slots(self) -> Int[Array, "#B N"]:
    """`slot`, or each token's own place."""
    return jnp.arange(self.mask.shape[1], dtype=jnp.int32)[None] if self.slot is None else self.slot

  @property
  def sizes(self) -> Float[Array, "B L"]:
    """`size`, or ones; 0 for padding."""
    real = self.mask.astype(jnp.float32)
    return real if self.size is None else jnp.where(self.mask, self.size, 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evidence:
  """All that an encoder block knows, without gradient. XLA drops what no method reads.

  Attributes:
    before: (B, L, D) states that came in.
    normed: (B, L, D) input of attention (`before`, normed).
    attention: (B, H, L, L) float32 probabilities, query by key, before dropout.
    attention_dropped: the same after dropout.
    queries, keys, values: (B, L, H, E) per head.
    attended: (B, L, D) what attention adds, before dropout.
    mlp_normed: (B, L, D) input of the MLP.
    transformed: (B, L, D) what the MLP adds, before dropout.
    after: (B, L, D) states that go out.
    conditions: of a block whose attention stayed inside a kernel; the matrices above are then computed once more for
      whoever reads them, and `received` needs none.
  """

  before: Float[Array, "B L D"]
  normed: Float[Array, "B L D"]
  attention: Float[Array, "B H L L"]
  attention_dropped: Float[Array, "B H L L"]
  queries: Float[Array, "B L H E"]
  keys: Float[Array, "B L H E"]
  values: Float[Array, "B L H E"]
  attended: Float[Array, "B L D"]
  mlp_normed: Float[Array, "B L D"]
  transformed: Float[Array, "B L D"]
  after: Float[Array, "B L D"]
  conditions: attention_kernel.Conditions | None = None

  def received(self, weights: Float[Array, "B L"], *, dropped: bool) -> Float[Array, "B H L"]:
    """Attention that each token receives in each head: sums over queries, each with a weight."""
    given = self.conditions
    if given is not None:
      given = given if dropped else dataclasses.replace(given, words=None, rate=0.0)
      queries, keys = (x.reshape(*x.shape[:2], -1) for x in (self.queries, self.keys))
      return attention_kernel.received(queries, keys, weights, given)
    counted = self.attention_dropped if dropped else self.attention
    # A product per head; an einsum sums over heads first, and writes that out.
    rows = jnp.broadcast_to(weights[:, None, None, :], (*counted.shape[:2], 1, counted.shape[2]))
    return products.matmul(rows, counted)[:, :, 0]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a method may look at.

  Attributes:
    tokens: as they came out of the block (or of the embedding, before block 0).
    evidence: of that block; None before block 0.
    layout: where items lie.
    settings: of the reduction.
    budget: tokens that are to be left, K.
    learned: the weights that the stage owns, for methods with `learned`; else None.
  """

  tokens: Tokens
  evidence: Evidence | None
  layout: ItemLayout
  settings: ReductionConfig
  budget: int
  learned: Any = None

  def replace(self, **changes: Any) -> "Seen":
    return dataclasses.replace(self, **changes)

  @property
  def known(self) -> Evidence:
    """The block's evidence, for methods that never stand before block 0."""
    if self.evidence is None:
      raise ValueError("this method looks at attention, which there is none of before block 0")
    return self.evidence

  @property
  def items(self) -> Int[Array, "#B L"]:
    """Each token's item, from 0, oldest first."""
    return self.layout.items(self.tokens.positions)

  @property
  def levels(self) -> Int[Array, "#B L"]:
    """Each token's level, from 0; separators come after the last level."""
    return self.layout.levels(self.tokens.positions)

  @property
  def ages(self) -> Int[Array, "B L"]:
    """How many items ago each token's item was; 0 for the newest one."""
    return self.newest_item - self.items

  @property
  def newest_item(self) -> Int[Array, "B 1"]:
    """Each row's most recent item that still has a token."""
    return jnp.max(jnp.where(self.tokens.mask, self.items, 0), axis=-1, keepdims=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a forward pass: the tokens before and after it, and what its block left behind."""

  before: Tokens
  evidence: Evidence | None
  after: Tokens
