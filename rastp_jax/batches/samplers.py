"""Which training samples an epoch holds: a sampler draws (start, end) pairs of absolute positions (see `Histories`)."""

from typing import NamedTuple, Protocol

import numpy as np

from rastp_jax.config import DataConfig


class Draw(NamedTuple):
  """An epoch's samples.

  Attributes:
    starts: int64 (samples,); histories hold `max_items` items at most.
    ends: int64 (samples,), exclusive, the target included.
    group: int64 (samples,), rising: which group of users each was drawn from; None where there are no groups.
  """

  starts: np.ndarray
  ends: np.ndarray
  group: np.ndarray | None


class Sampler(Protocol):
  """Draws an epoch's samples.

  Attributes:
    varies: whether the number of samples differs from epoch to epoch.
  """

  varies: bool

  def draw(self, rng: np.random.Generator) -> Draw: ...


class Prefixes:
  """Each user's every prefix of at least two items, once an epoch.

  Args:
    first, stop: int64 (users,): each user's training region, at least two items long.
    max_items: longest history.
  """

  varies = False

  def __init__(self, first: np.ndarray, stop: np.ndarray, max_items: int):
    repeats = stop - first - 1
    starts = np.repeat(first, repeats)
    ends = starts + 2 + np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    self._draw = Draw(most_recent(starts, ends, max_items), ends, None)

  def draw(self, rng: np.random.Generator) -> Draw:
    del rng  # always the same samples
    return self._draw


class SubSequences:
  """Contiguous sub-sequences as the published code draws them.

  Groups of `users_per_draw` users share `samples_per_draw` draws with replacement from all their sub-sequences;
  duplicates are merged.
  """

  varies = True

  def __init__(self, first: np.ndarray, stop: np.ndarray, config: DataConfig):
    self._first, self._sizes, self._config = first, stop - first, config

  def draw(self, rng: np.random.Generator) -> Draw:
    per_draw = self._config.users_per_draw
    order = rng.permutation(len(self._sizes))
    pairs = (self._sizes * (self._sizes - 1) // 2)[order]
    starts, ends, groups = [], [], []
    for group, at in enumerate(range(0, len(order), per_draw)):
      users = order[at : at + per_draw]
      bounds = np.cumsum(pairs[at : at + per_draw])
      drawn = np.unique(rng.integers(0, bounds[-1], min(self._config.samples_per_draw, bounds[-1])))
      user = np.searchsorted(bounds, drawn, side="right")
      pair = drawn - (bounds[user] - pairs[at : at + per_draw][user])
      # pair counts (i, j), 0 <= i < j, row by row of j: j = 1: 0; j = 2: 1, 2; ...
      j = ((1 + np.sqrt(1 + 8 * pair)) // 2).astype(np.int64)
      starts.append(self._first[users][user] + pair - j * (j - 1) // 2)
      ends.append(self._first[users][user] + j + 1)
      groups.append(np.full(len(drawn), group))
    stops = np.concatenate(ends)
    return Draw(most_recent(np.concatenate(starts), stops, self._config.max_items), stops, np.concatenate(groups))


def make_sampler(first: np.ndarray, stop: np.ndarray, config: DataConfig) -> Sampler:
  if config.sampling == "prefixes":
    return Prefixes(first, stop, config.max_items)
  return SubSequences(first, stop, config)


def most_recent(starts: np.ndarray, ends: np.ndarray, max_items: int) -> np.ndarray:
  """Starts moved up so that histories hold at most `max_items` items."""
  return np.maximum(starts, ends - 1 - max_items)
