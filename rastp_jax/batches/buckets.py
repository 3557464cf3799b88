"""The few static lengths that batches come in: chosen to waste little padding, sized to about equal tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rastp_jax.config import DataConfig
from rastp_jax.data.histories import Histories
from rastp_jax.runtime.sharding import round_up


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Samples of similar length share batches of one static shape.

  Attributes:
    items: history items N such a batch has room for.
    rows: rows B of such a batch, over all hosts.
    batches: batches of this bucket in an epoch.
  """

  items: int
  rows: int
  batches: int


def bucket_lengths(config: DataConfig, histories: Histories) -> tuple[int, ...]:
  """The lengths that batches come in, in items: the config's, or those that suit the data.

  They follow from data and settings alone, so every process and every later command finds the same ones.
  """
  if config.bucket_lengths:
    return config.bucket_lengths
  counts = _length_counts(histories, config.max_items, all_starts=config.sampling == "subsequences")
  return choose_lengths(counts, config.num_buckets)


def choose_lengths(counts: np.ndarray, number: int) -> tuple[int, ...]:
  """The lengths that waste the fewest positions on padding, by dynamic programming.

  Args:
    counts: (longest + 1,) how many samples have each length from 0; each goes to the shortest chosen one it fits in.
    number: lengths to choose, at most; the last is the longest.

  Returns:
    Rising lengths, at least one.
  """
  longest = len(counts) - 1
  upto = np.cumsum(counts)
  best = [upto * np.arange(longest + 1)]  # best[k][b]: positions of all samples up to length b in k + 1 buckets
  cuts = []
  for _ in range(number - 1):
    total = best[-1][:, None] + (upto[None, :] - upto[:, None]) * np.arange(longest + 1)[None]  # [cut, b]
    total = np.where(np.arange(longest + 1)[:, None] <= np.arange(longest + 1)[None], total, np.inf)
    cuts.append(total.argmin(axis=0))
    best.append(total.min(axis=0))
  chosen = [longest]
  for cut in reversed(cuts):
    chosen.append(int(cut[chosen[-1]]))
  return tuple(sorted({length for length in chosen if length > 0}))


def size_buckets(
  lengths: Sequence[int], counts: np.ndarray, room: np.ndarray, batch_size: int, row_multiple: int, run_length: int
) -> tuple[Bucket, ...]:
  """Rows inverse to length, so that a batch has about the same tokens in every bucket and `batch_size` samples overall.

  Args:
    lengths: items of each bucket.
    counts: samples of each in an epoch.
    room: samples of each that an epoch's batches must have rows for.
    batch_size: samples per batch, on average over all buckets.
    row_multiple, run_length: see `TrainingBatches`.
  """
  mean_length = float(np.dot(lengths, counts) / counts.sum())
  buckets = []
  for length, count, capacity in zip(lengths, counts, room, strict=True):
    # As few filler rows as the multiple allows: they cost as much as real ones. A rare bucket gets a smaller batch, an
    # empty one none at all.
    wanted = max(row_multiple, round(batch_size * mean_length / length / row_multiple) * row_multiple)
    batches = -(-int(np.ceil(capacity)) // (wanted * run_length)) * run_length if count else 0
    rows = round_up(int(np.ceil(capacity / max(batches, 1))), row_multiple)
    buckets.append(Bucket(length, rows, batches))
  return tuple(buckets)


def _length_counts(histories: Histories, max_items: int, *, all_starts: bool) -> np.ndarray:
  """How many training samples have each history length from 0 to max_items, longer ones counted as max_items.

  Args:
    histories: all users.
    max_items: longest history a model reads.
    all_starts: count every contiguous sub-sequence of a user, not only the prefixes.
  """
  first, stop = histories.training_spans()
  sizes = np.maximum(stop - first, 0)
  longer = np.bincount(sizes)[::-1].cumsum()[::-1]  # users with at least that many training items
  counts = np.append(longer[1:], 0)  # of length L: one per user with at least L + 1 items
  if all_starts:
    counts = counts[::-1].cumsum()[::-1]  # ... and one for every later start
  counts[0] = 0
  counts = np.pad(counts, (0, max(0, max_items + 1 - len(counts))))
  return np.append(counts[:max_items], counts[max_items:].sum()).astype(np.float64)
