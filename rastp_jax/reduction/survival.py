"""What became of every token: which stage dropped it, told from `Tokens.slot`.

Shapes: U users, N history items, P positions per item (its codes, then the separator if there is one).
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from rastp_jax.reduction.tokens import Stage

NO_TOKEN, SURVIVED = -1, 0


def dropped_at(mask: Bool[Array, "B N"], stages: Sequence[Stage]) -> Int[Array, "B N"]:
  """For each token of the unreduced sequence the stage, from 1, that dropped it.

  Args:
    mask: of the unreduced sequence.
    stages: of a forward pass.

  Returns:
    int8: the stage, `SURVIVED` (also for tokens that were merged into others), or `NO_TOKEN` for padding.
  """
  survived = jnp.zeros(mask.shape, jnp.int8)
  for stage in stages:
    survived += (stage.after.slots >= 0).astype(jnp.int8)
  dropped = jnp.where(survived == len(stages), SURVIVED, survived + 1)
  return jnp.where(mask, dropped, NO_TOKEN).astype(jnp.int8)


@dataclasses.dataclass(frozen=True, eq=False)
class Survival:
  """What became of users' tokens.

  Attributes:
    users: int64 (U,) user indices.
    items: int32 (U, N) item rows, the most recent one last, -1 where the history is shorter.
    dropped_at: int8 (U, N, P): `SURVIVED`, the stage (from 1) that dropped the token, or `NO_TOKEN`.
    depth: codes per item; dropped_at[..., depth] is the separator, if there is one.
    left: int64 (U,) tokens at the end of the encoder, where merged ones are one; None if they were not counted.
  """

  users: np.ndarray
  items: np.ndarray
  dropped_at: np.ndarray
  depth: int
  left: np.ndarray | None = None

  @property
  def kinds(self) -> list[str]:
    """What each of an item's positions holds."""
    separator = ["separator"] * (self.dropped_at.shape[2] > self.depth)
    return [f"level {level}" for level in range(self.depth)] + separator

  def losing(self) -> "Survival":
    """Those users from whom the reduction took a token at all."""
    chosen = (self.dropped_at > SURVIVED).any((1, 2))
    return dataclasses.replace(
      self,
      users=self.users[chosen],
      items=self.items[chosen],
      dropped_at=self.dropped_at[chosen],
      left=None if self.left is None else self.left[chosen],
    )

  def by_kind(self) -> np.ndarray:
    """Share of a user's tokens of each kind that survived, averaged over users: float64 (P,)."""
    return _mean_share(self.dropped_at, axis=1)

  def by_recency(self) -> np.ndarray:
    """How often the token of each kind at each place survived, among the users whose history reaches so far.

    Returns:
      float64 (N, P), row 0 the most recent item; NaN where nobody's history reaches.
    """
    real = (self.dropped_at != NO_TOKEN).sum(0)
    survived = (self.dropped_at == SURVIVED).sum(0)
    return np.where(real > 0, survived / np.maximum(real, 1), np.nan)[::-1]

  def counts(self) -> dict[str, float]:
    """users; their mean tokens and mean surviving tokens; the separators' share of either (0 without separators)."""
    real, survived = self.dropped_at != NO_TOKEN, self.dropped_at == SURVIVED
    separators = np.arange(self.dropped_at.shape[2]) >= self.depth
    return {
      "users": len(self.users),
      "tokens": float(real.sum() / len(self.users)),
      "surviving": float(survived.sum() / len(self.users)),
      "separator_share": float((real & separators).sum() / real.sum()),
      "separator_share_of_surviving": float((survived & separators).sum() / survived.sum()),
    }

  def samples(self, count: int) -> list[int]:
    """Rows of `count` users for a closer look, always the same ones, from short histories to long ones."""
    lengths = (self.items >= 0).sum(1)
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    places = np.linspace(0, len(by_length) - 1, min(count, len(by_length)))
    return by_length[places.round().astype(int)].tolist()


def _mean_share(dropped_at: np.ndarray, axis: int) -> np.ndarray:
  real = (dropped_at != NO_TOKEN).sum(axis)
  return ((dropped_at == SURVIVED).sum(axis) / np.maximum(real, 1)).mean(0)
