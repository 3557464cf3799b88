"""What a generative model offers; training, decoding and serving know nothing else of it.

Shapes: B batch, N history items, C codes per item, W beams, V codes of a level.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rastp_jax.reduction.tokens import ItemLayout, Stage, Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodingState:
  """Where decoding stands: what it reads, which all beams of a user share, and what each beam has of its own.

  Attributes:
    shared: pytree of arrays (B, ...).
    beams: pytree of arrays (B, W, ...); None before the first level.
  """

  shared: Any
  beams: Any

  def follow(self, parents: Int[Array, "B W"]) -> "DecodingState":
    """The state of new beams, each of which continues beam `parents`."""

    def chosen(x):
      return jnp.take_along_axis(x, parents.reshape(parents.shape + (1,) * (x.ndim - 2)), axis=1)

    return dataclasses.replace(self, beams=jax.tree.map(chosen, self.beams))


class GenerativeModel(Protocol):
  """Reads histories as codes and predicts the next item's codes, level by level.

  Attributes:
    widths: codes of each level.
    layout: how items lie in the encoder's sequence.
  """

  widths: tuple[int, ...]
  layout: ItemLayout

  def encode(self, history: Int[Array, "B N C"], *, key: PRNGKeyArray | None = None) -> Tokens:
    """What decoding reads of histories: codes, most recent item last, padded on the right with -1."""
    ...

  def encode_stages(self, history: Int[Array, "B N C"]) -> tuple[Tokens, list[Stage]]:
    """`encode` without dropout, and what each stage of the token reduction saw and left."""
    ...

  def start(self, memory: Tokens) -> DecodingState:
    """The state before the first level: one beam per user."""
    ...

  def step(
    self, state: DecodingState, codes: Int[Array, "B W"] | None, level: int
  ) -> tuple[Float[Array, "B W V"], DecodingState]:
    """Float32 logits of a level's codes for each beam.

    Args:
      state: after the levels before.
      codes: each beam's code of the level before; None at level 0.
      level: from 0.
    """
    ...

  def item_log_probs(self, memory: Tokens, codes: Int[Array, "I C"]) -> Float[Array, "B I"] | None:
    """Float32 log-probabilities of all items at once, without beams; None where the model has none.

    Args:
      memory: what `encode` made of the histories.
      codes: of every item of the catalogue.
    """
    ...

  def loss(
    self, batch: Mapping[str, Array], *, key: PRNGKeyArray | None = None
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The training loss of a batch, and its parts by name.

    Args:
      batch: `history` (B, N, C) and `target` (B, C) codes, `weight` (B,): 1 for a sample, 0 for a filler row; with a
        teacher (`train.teacher`) also `soft_targets`, each level's probabilities (B, V) to be learned instead.
      key: dropout key; None for none.
    """
    ...
