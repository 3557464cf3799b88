"""Which training samples an epoch holds: (start, end) pairs of absolute positions (see `Histories`), by length bucket.

A sampler knows an epoch's samples by number, so that a batch can ask for its own and nobody needs a list of all.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rastp_jax.batches.shuffle import shuffled
from rastp_jax.config import DataConfig

_USERS = 2**32 - 1  # in the key of the order of users; batches use small numbers there
# Starts and ends, int64 (samples,) each. Ends are exclusive and include the target; histories hold `max_items` at most.
Samples = tuple[np.ndarray, np.ndarray]


class Epoch(Protocol):
  """The samples of one epoch.

  Attributes:
    counts: int64 (buckets,), samples of each bucket.
  """

  counts: np.ndarray

  def take(self, bucket: int, numbers: np.ndarray) -> Samples:
    """The samples of a bucket with these numbers, from 0 and below its count."""
    ...


class Prefixes:
  """Each user's every prefix of at least two items, once an epoch: a sampler, and its own epoch.

  What it holds grows with the users, not with the samples: with the largest users first, those that have a history of n
  items are the first ones of all.

  Args:
    first: int64 (users,): where each user's training region begins.
    sizes: int64 (users,): its items; regions of less than two have no sample.
    max_items: longest history.
    lengths: the buckets' lengths, in items.
  """

  varies = False

  def __init__(self, first: np.ndarray, sizes: np.ndarray, max_items: int, lengths: Sequence[int]):
    self._first, self._max_items = first[_largest_first(sizes)], max_items
    with_history = np.bincount(sizes)[::-1].cumsum()[::-1][1:]  # [n]: users with a history of n items, one each
    with_history[0] = 0  # nothing to read
    self._up_to = np.cumsum(with_history)  # [n]: samples with histories of n items at most
    longest = len(self._up_to) - 1
    bounds = self._up_to[np.minimum([0, *lengths[:-1], longest], longest)]  # longer ones are cut to max_items
    self._before, self.counts = bounds[:-1], np.diff(bounds)

  def epoch(self, seed: int, epoch: int) -> Epoch:
    del seed, epoch  # always the same samples
    return self

  def take(self, bucket: int, numbers: np.ndarray) -> Samples:
    numbers = numbers + self._before[bucket]
    items = np.searchsorted(self._up_to, numbers, side="right")
    ends = self._first[numbers - self._up_to[items - 1]] + items + 1
    return ends - 1 - np.minimum(items, self._max_items), ends


class SubSequences:
  """Contiguous sub-sequences as the published code draws them.

  Groups of `users_per_draw` users share `samples_per_draw` draws with replacement from all their sub-sequences;
  duplicates are merged.

  Args:
    first, sizes, lengths: see `Prefixes`.
    config: how draws are made.

  Attributes:
    groups: of users, in an epoch.
  """

  varies = True

  def __init__(self, first: np.ndarray, sizes: np.ndarray, config: DataConfig, lengths: Sequence[int]):
    usable = sizes >= 2
    self._first, self._sizes, self._config, self._lengths = first[usable], sizes[usable], config, lengths
    self.groups = -(-len(self._first) // config.users_per_draw)

  def epoch(self, seed: int, epoch: int) -> Epoch:
    """All groups' draws: a list, since which draws are equal shows only when all are made."""
    starts, ends = zip(*(self.draw(seed, epoch, group) for group in range(self.groups)), strict=True)
    return _Listed(np.concatenate(starts), np.concatenate(ends), self._lengths)

  def draw(self, seed: int, epoch: int, group: int) -> Samples:
    """What one group of users draws."""
    per_draw = self._config.users_per_draw
    members = np.arange(group * per_draw, min((group + 1) * per_draw, len(self._sizes)))
    users = shuffled(members, len(self._sizes), (seed, epoch, _USERS))
    sizes = self._sizes[users]
    pairs = sizes * (sizes - 1) // 2
    bounds = np.cumsum(pairs)
    rng = np.random.default_rng([seed, epoch, group])
    drawn = np.unique(rng.integers(0, bounds[-1], min(self._config.samples_per_draw, bounds[-1])))
    user = np.searchsorted(bounds, drawn, side="right")
    pair = drawn - (bounds[user] - pairs[user])
    # pair counts (i, j), 0 <= i < j, row by row of j: j = 1: 0; j = 2: 1, 2; ...
    j = ((1 + np.sqrt(1 + 8 * pair)) // 2).astype(np.int64)
    first = self._first[users][user]
    ends = first + j + 1
    return most_recent(first + pair - j * (j - 1) // 2, ends, self._config.max_items), ends


class _Listed:
  """An `Epoch` in memory, bucket after bucket."""

  def __init__(self, starts: np.ndarray, ends: np.ndarray, lengths: Sequence[int]):
    bucket = np.searchsorted(lengths, ends - 1 - starts)
    order = np.argsort(bucket, kind="stable")
    self._starts, self._ends = starts[order], ends[order]
    self.counts = np.bincount(bucket, minlength=len(lengths))
    self._before = np.cumsum(self.counts) - self.counts

  def take(self, bucket: int, numbers: np.ndarray) -> Samples:
    numbers = numbers + self._before[bucket]
    return self._starts[numbers], self._ends[numbers]


def most_recent(starts: np.ndarray, ends: np.ndarray, max_items: int) -> np.ndarray:
  """Starts moved up so that histories hold at most `max_items` items."""
  return np.maximum(starts, ends - 1 - max_items)


def _largest_first(sizes: np.ndarray) -> np.ndarray:
  """The order of users by falling size, equals in their order: int64 (users,).

  NumPy sorts 16-bit numbers by their digits, several times faster than wider ones.
  """
  order = np.argsort(~sizes.astype(np.uint16), kind="stable")
  if sizes.max() < 1 << 16:
    return order
  return order[np.argsort(-(sizes[order] >> 16), kind="stable")]
