"""Batches of a few static lengths; batch i is a pure function of (seed, i).

Shapes: B rows, N history items of the batch's bucket, C codes an item.
"""

from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from rastp_jax.config import DataConfig
from rastp_jax.data.buckets import Bucket, round_up, size_buckets
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids.codes import SemanticIds

Batch = dict[
  str, np.ndarray
]  # history (B, N, C) int32, -1 padded on the right; target (B, C) int32; weight (B,) float32

_ENDLESS = 2**62  # a source has no last batch: training ends when the trainer says so


class TrainingBatches:
  """A random-access source of training batches, the same on every host but for its slice of rows.

  An epoch draws samples (each user's every prefix once, or contiguous sub-sequences as published), shuffles them inside
  their length bucket, cuts them into batches of about equal tokens and shuffles the batches. Bucketing therefore
  changes which samples share a batch, not which samples are seen.

  Args:
    histories: all users.
    semantic_ids: codes of every item.
    config: sampling, lengths, bucket_items filled in.
    batch_size: samples a batch on average, over all hosts.
    seed: of the sampling and shuffling.
    row_multiple: every bucket's rows are a multiple of this (devices the rows are split over).
    run_length: batches come in runs of so many of one bucket, at indices divisible by it, so that each run can be
      stacked. An epoch is a whole number of runs.
    shard: (this host, hosts): rows are cut into equal contiguous slices, one a host.

  Raises:
    InputError: no user has enough items to train on.
  """

  def __init__(
    self,
    histories: Histories,
    semantic_ids: SemanticIds,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    row_multiple: int = 1,
    run_length: int = 1,
    shard: tuple[int, int] = (0, 1),
  ):
    if not config.bucket_items:
      raise ValueError("data.bucket_items is empty: fill it in by buckets.with_bucket_items")
    self._histories, self._codes, self._config = histories, semantic_ids.codes, config
    self._seed, self._run_length, self._shard = seed, run_length, shard
    first, stop = histories.training_spans()
    usable = stop - first >= 2
    self._first, self._stop = first[usable], stop[usable]
    if not len(self._first):
      raise InputError(
        f"No user of {config.dataset} has the 4 items that training needs (two are held out): give longer histories."
      )
    # Bucket sizes must not depend on the seed (they are compiled), so they come from a draw of their own.
    starts, ends, draw_of = self._draw(np.random.default_rng(0))
    counts = np.bincount(self._bucket_of(starts, ends), minlength=len(config.bucket_items))
    if config.mix_users:
      # Random draws vary from epoch to epoch: room for three standard deviations, so that hardly a sample is left out.
      room = counts + 3 * np.sqrt(counts) * (config.sampling == "subsequences")
      self.buckets = size_buckets(config.bucket_items, counts, room, batch_size, row_multiple, run_length)
    else:
      draws = int(draw_of[-1]) + 1
      self._draws_a_batch = max(1, round(batch_size * draws / counts[0]))
      rows = round_up(self._draws_a_batch * config.samples_per_draw, row_multiple)
      batches = max(1, draws // (self._draws_a_batch * run_length)) * run_length
      self.buckets = (Bucket(config.bucket_items[0], rows, batches),)
    self.steps_per_epoch = sum(bucket.batches for bucket in self.buckets)
    self.samples_per_step = counts.sum() / self.steps_per_epoch
    self._plans: dict[int, list[tuple[Bucket, np.ndarray, np.ndarray]]] = {}

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> Batch:
    """Batch `index` of the endless run: this host's rows of history, target and weight (0 for filler rows)."""
    epoch, step = divmod(index, self.steps_per_epoch)
    bucket, starts, ends = self._plan(epoch)[step]
    share = bucket.rows // self._shard[1]
    mine = slice(self._shard[0] * share, (self._shard[0] + 1) * share)
    return gather(self._histories, self._codes, starts[mine], ends[mine], items=bucket.items, rows=share)

  def epoch_samples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """All samples (start, end) of an epoch, in the order in which their batches come."""
    plan = self._plan(epoch)
    return tuple(np.concatenate([batch[which] for batch in plan]) for which in (1, 2))

  def _plan(self, epoch: int) -> list[tuple[Bucket, np.ndarray, np.ndarray]]:
    """The epoch's batches; the last two epochs asked for are kept, since workers may be at either side of the turn."""
    if epoch not in self._plans:
      self._plans = dict(list(self._plans.items())[-1:]) | {epoch: self._make_plan(epoch)}
    return self._plans[epoch]

  def _make_plan(self, epoch: int) -> list[tuple[Bucket, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng([self._seed, epoch])
    starts, ends, draw_of = self._draw(rng)
    plan = []
    if not self._config.mix_users:
      (bucket,) = self.buckets
      for draw in range(0, bucket.batches * self._draws_a_batch, self._draws_a_batch):
        mine = np.flatnonzero((draw_of >= draw) & (draw_of < draw + self._draws_a_batch))
        plan.append((bucket, starts[mine], ends[mine]))
      return plan
    bucket_of = self._bucket_of(starts, ends)
    for index, bucket in enumerate(self.buckets):
      mine = rng.permutation(np.flatnonzero(bucket_of == index))
      if not bucket.batches:  # no training sample is so long; evaluation and serving may still meet such histories
        continue
      for rows in np.array_split(mine[: bucket.batches * bucket.rows], bucket.batches):
        plan.append((bucket, starts[rows], ends[rows]))
    runs = rng.permutation(len(plan) // self._run_length)
    return [plan[run * self._run_length + step] for run in runs for step in range(self._run_length)]

  def _bucket_of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.searchsorted(self._config.bucket_items, ends - 1 - starts)

  def _draw(self, rng: np.random.Generator):
    """An epoch's samples: starts, ends, and (for sub-sequences) the number of the draw each came from, rising."""
    sizes = self._stop - self._first
    if self._config.sampling == "prefixes":
      repeats = sizes - 1
      starts = np.repeat(self._first, repeats)
      ends = starts + 2 + np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
      return _most_recent(starts, ends, self._config.max_items), ends, None
    order = rng.permutation(len(sizes))
    pairs = (sizes * (sizes - 1) // 2)[order]
    starts, ends, draw_of = [], [], []
    for draw, at in enumerate(range(0, len(order), self._config.users_per_draw)):
      group = order[at : at + self._config.users_per_draw]
      bounds = np.cumsum(pairs[at : at + self._config.users_per_draw])
      drawn = np.unique(rng.integers(0, bounds[-1], min(self._config.samples_per_draw, bounds[-1])))
      user = np.searchsorted(bounds, drawn, side="right")
      pair = drawn - (bounds[user] - pairs[at : at + self._config.users_per_draw][user])
      # pair counts (i, j), 0 <= i < j, row by row of j: j = 1: 0; j = 2: 1, 2; ...
      j = ((1 + np.sqrt(1 + 8 * pair)) // 2).astype(np.int64)
      starts.append(self._first[group][user] + pair - j * (j - 1) // 2)
      ends.append(self._first[group][user] + j + 1)
      draw_of.append(np.full(len(drawn), draw))
    ends = np.concatenate(ends)
    return _most_recent(np.concatenate(starts), ends, self._config.max_items), ends, np.concatenate(draw_of)


def evaluation_batches(
  histories: Histories,
  semantic_ids: SemanticIds,
  config: DataConfig,
  split: str,
  *,
  batch_size: int,
  users: int = 0,
  shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
  """Each user's held-out sample once, bucketed by length; every bucket has batches of `batch_size` rows over all hosts.

  Args:
    histories: all users.
    semantic_ids: codes of every item.
    config: lengths and buckets.
    split: "validation" or "test".
    batch_size: rows of a batch over all hosts, a multiple of the number of hosts.
    users: so many users, the same ones at each call, spread over all; 0 for everybody.
    shard: (this host, hosts).

  Yields:
    Batches with `user` (B,) int64 besides; filler rows have weight 0 and user -1.
  """
  starts, ends = histories.spans(split)
  starts = _most_recent(starts, ends, config.max_items)
  chosen = np.arange(len(starts))
  if 0 < users < len(chosen):
    chosen = np.sort(np.random.default_rng(0).permutation(len(chosen))[:users])
  bucket_of = np.searchsorted(config.bucket_items, ends[chosen] - 1 - starts[chosen])
  share = batch_size // shard[1]
  for index, items in enumerate(config.bucket_items):
    mine = chosen[bucket_of == index]
    for at in range(0, len(mine), batch_size):
      rows = mine[at : at + batch_size][shard[0] * share : (shard[0] + 1) * share]
      batch = gather(histories, semantic_ids.codes, starts[rows], ends[rows], items=items, rows=share)
      batch["user"] = np.concatenate([rows, np.full(share - len(rows), -1)])
      yield batch


def gather(
  histories: Histories, codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, items: int, rows: int
) -> Batch:
  """Codes of each sample's history (the most recent `items` of it) and target, filled up to `rows` rows of weight 0."""
  real = len(starts)
  batch = {
    "history": np.full((rows, items, codes.shape[1]), -1, np.int32),
    "target": np.zeros((rows, codes.shape[1]), np.int32),
    "weight": np.zeros(rows, np.float32),
  }
  if not real:
    return batch
  places = _most_recent(starts, ends, items)[:, None] + np.arange(items)
  inside = places < (ends - 1)[:, None]
  rows_of_items = histories.items[np.where(inside, places, starts[:, None])]
  batch["history"][:real] = np.where(inside[..., None], codes[rows_of_items], -1)
  batch["target"][:real] = codes[histories.items[ends - 1]]
  batch["weight"][:real] = 1.0
  return batch


def training_iterator(
  source: TrainingBatches, *, start: int = 0, run_length: int = 1, workers: int = 0
) -> grain.DatasetIterator:
  """Runs of batches from `start` on, made ahead of the consumer; the iterator's state is the number of runs given.

  Args:
    source: the batches.
    start: first batch, a multiple of run_length.
    run_length: batches stacked into arrays (run_length, rows, ...); the source was made with the same.
    workers: processes that make batches; 0 for a thread of this process.
  """
  dataset = grain.MapDataset.source(source)[start:].batch(run_length)
  iterable = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))
  if workers:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, also in programs that have none
      flags.FLAGS.mark_as_parsed()
    iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return iter(iterable)


def _most_recent(starts: np.ndarray, ends: np.ndarray, max_items: int) -> np.ndarray:
  """Starts moved up so that histories hold at most `max_items` items."""
  return np.maximum(starts, ends - 1 - max_items)
