"""Batches of a few static lengths; batch i is a pure function of (seed, i).

Batches hold *item rows*. What a model reads of an item (`what_is_read`) is looked up when a batch is done
(`with_codes`): nobody translates codes back.

Shapes: B rows, N history items of the batch's bucket, R numbers that a model reads of an item.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from rastp_jax.batches.buckets import Bucket, size_buckets
from rastp_jax.batches.samplers import make_sampler, most_recent
from rastp_jax.config import DataConfig, ModelConfig
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.runtime.sharding import round_up
from rastp_jax.semantic_ids.codes import SemanticIds

# Item rows: history (B, N) int32, -1 padded on the right; target (B,) int32; weight (B,) float32, 0 for filler rows;
# user (B,) int64 in evaluation, -1 for filler rows. With codes: history (B, N, R), target (B, R), weight.
Batch = dict[str, np.ndarray]

_ENDLESS = 2**62  # a source has no last batch: training ends when the trainer says so


class TrainingBatches:
  """A random-access source of training batches, the same on every host but for its slice of rows.

  An epoch draws samples (each user's every prefix once, or contiguous sub-sequences as published), shuffles them inside
  their length bucket, cuts them into batches of about equal tokens and shuffles the batches. Bucketing therefore
  changes which samples share a batch, not which samples are seen.

  Args:
    histories: all users.
    table: what the model reads of every item (`what_is_read`).
    config: sampling.
    lengths: the buckets' lengths, in items (`buckets.bucket_lengths`).
    batch_size: samples per batch on average, over all hosts.
    seed: of the sampling and shuffling.
    row_multiple: every bucket's rows are a multiple of this (devices the rows are split over).
    run_length: batches of one bucket come in runs of this many, at indices divisible by it, so that each run can be
      stacked. An epoch is a whole number of runs.
    shard: (this host, hosts): rows are cut into equal contiguous slices, one per host.

  Raises:
    InputError: no user has enough items to train on.
  """

  def __init__(
    self,
    histories: Histories,
    table: np.ndarray,
    config: DataConfig,
    *,
    lengths: Sequence[int],
    batch_size: int,
    seed: int,
    row_multiple: int = 1,
    run_length: int = 1,
    shard: tuple[int, int] = (0, 1),
  ):
    self._histories, self._table, self._config, self._lengths = histories, table, config, tuple(lengths)
    self._seed, self._run_length, self._shard = seed, run_length, shard
    first, stop = histories.training_spans()
    usable = stop - first >= 2
    if not usable.any():
      raise InputError(
        f"No user of {config.dataset} has the {2 + config.hold_out} items that training needs ({config.hold_out} are "
        "held out): give longer histories."
      )
    self._sampler = make_sampler(first[usable], stop[usable], config)
    # Bucket sizes must not depend on the seed (they are compiled), so they come from a draw of their own.
    starts, ends, groups = self._sampler.draw(np.random.default_rng(0))
    counts = np.bincount(self._bucket_of(starts, ends), minlength=len(self._lengths))
    if config.mix_users:
      # Random draws vary from epoch to epoch: room for three standard deviations, so that hardly a sample is left out.
      room = counts + 3 * np.sqrt(counts) * self._sampler.varies
      self.buckets = size_buckets(self._lengths, counts, room, batch_size, row_multiple, run_length)
    else:
      assert groups is not None  # mix_users=False needs sub-sequences, which are drawn by groups
      draws = int(groups[-1]) + 1
      self._draws_per_batch = max(1, round(batch_size * draws / counts[0]))
      rows = round_up(self._draws_per_batch * config.samples_per_draw, row_multiple)
      batches = max(1, draws // (self._draws_per_batch * run_length)) * run_length
      self.buckets = (Bucket(self._lengths[0], rows, batches),)
    self.steps_per_epoch = sum(bucket.batches for bucket in self.buckets)
    self.samples_per_step = counts.sum() / self.steps_per_epoch
    self._plans: dict[int, list[tuple[Bucket, np.ndarray, np.ndarray]]] = {}

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> Batch:
    """Batch `index` of the endless run, with codes: this host's rows of it."""
    return with_codes(self.rows(index), self._table)

  def rows(self, index: int) -> Batch:
    """The same as item rows."""
    epoch, step = divmod(index, self.steps_per_epoch)
    bucket, starts, ends = self._plan(epoch)[step]
    share = bucket.rows // self._shard[1]
    mine = slice(self._shard[0] * share, (self._shard[0] + 1) * share)
    return gather(self._histories, starts[mine], ends[mine], items=bucket.items, rows=share)

  def epoch_samples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """All samples (start, end) of an epoch, in the order in which their batches come."""
    _, starts, ends = zip(*self._plan(epoch), strict=True)
    return np.concatenate(starts), np.concatenate(ends)

  def _plan(self, epoch: int) -> list[tuple[Bucket, np.ndarray, np.ndarray]]:
    """The epoch's batches; the last two epochs asked for are kept, since workers may be at either side of the turn."""
    if epoch not in self._plans:
      self._plans = dict(list(self._plans.items())[-1:]) | {epoch: self._make_plan(epoch)}
    return self._plans[epoch]

  def _make_plan(self, epoch: int) -> list[tuple[Bucket, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng([self._seed, epoch])
    starts, ends, groups = self._sampler.draw(rng)
    plan = []
    if not self._config.mix_users:
      assert groups is not None
      (bucket,) = self.buckets
      for draw in range(0, bucket.batches * self._draws_per_batch, self._draws_per_batch):
        mine = np.flatnonzero((groups >= draw) & (groups < draw + self._draws_per_batch))
        plan.append((bucket, starts[mine], ends[mine]))
      return plan
    bucket_of = self._bucket_of(starts, ends)
    for index, bucket in enumerate(self.buckets):
      mine = rng.permutation(np.flatnonzero(bucket_of == index))
      if not bucket.batches:  # training samples are shorter; evaluation and serving may still meet such histories
        continue
      for rows in np.array_split(mine[: bucket.batches * bucket.rows], bucket.batches):
        plan.append((bucket, starts[rows], ends[rows]))
    runs = rng.permutation(len(plan) // self._run_length)
    return [plan[run * self._run_length + step] for run in runs for step in range(self._run_length)]

  def _bucket_of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.searchsorted(self._lengths, ends - 1 - starts)


def evaluation_batches(
  histories: Histories,
  config: DataConfig,
  split: str,
  *,
  lengths: Sequence[int],
  batch_size: int,
  users: int = 0,
  shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
  """Each user's held-out sample once, bucketed by length; every bucket has batches of `batch_size` rows over all hosts.

  Args:
    histories: all users.
    config: longest history.
    split: "validation" or "test".
    lengths: the buckets' lengths, in items.
    batch_size: rows of a batch over all hosts, a multiple of the number of hosts.
    users: how many users, the same ones at each call, spread over all; 0 for everybody.
    shard: (this host, hosts).

  Yields:
    Item rows, with `user`.
  """
  starts, ends = histories.spans(split)
  starts = most_recent(starts, ends, config.max_items)
  chosen = np.arange(len(starts))
  if 0 < users < len(chosen):
    chosen = np.sort(np.random.default_rng(0).permutation(len(chosen))[:users])
  bucket_of = np.searchsorted(lengths, ends[chosen] - 1 - starts[chosen])
  share = batch_size // shard[1]
  for index, items in enumerate(lengths):
    mine = chosen[bucket_of == index]
    for at in range(0, len(mine), batch_size):
      rows = mine[at : at + batch_size][shard[0] * share : (shard[0] + 1) * share]
      batch = gather(histories, starts[rows], ends[rows], items=items, rows=share)
      batch["user"] = np.concatenate([rows, np.full(share - len(rows), -1)])
      yield batch


def gather(histories: Histories, starts: np.ndarray, ends: np.ndarray, *, items: int, rows: int) -> Batch:
  """Item rows of each sample's history (the most recent `items` of it) and target, filled up to `rows` rows."""
  real = len(starts)
  batch = {
    "history": np.full((rows, items), -1, np.int32),
    "target": np.zeros(rows, np.int32),
    "weight": np.zeros(rows, np.float32),
  }
  if not real:
    return batch
  places = most_recent(starts, ends, items)[:, None] + np.arange(items)
  inside = places < (ends - 1)[:, None]
  batch["history"][:real] = np.where(inside, histories.items[np.where(inside, places, starts[:, None])], -1)
  batch["target"][:real] = histories.items[ends - 1]
  batch["weight"][:real] = 1.0
  return batch


def what_is_read(semantic_ids: SemanticIds, model: ModelConfig) -> np.ndarray:
  """What a model reads of every item: int32 (items, R), its codes and, where it has vectors of items, its row."""
  if model.item_scores != "vectors":
    return semantic_ids.codes
  rows = np.arange(semantic_ids.num_items, dtype=np.int32)
  return np.concatenate([semantic_ids.codes, rows[:, None]], axis=1)


def with_codes(batch: Batch, table: np.ndarray) -> Batch:
  """What a model reads, in place of item rows; -1 for padding. The targets of filler rows are all zeros.

  Args:
    batch: of item rows.
    table: `what_is_read` of every item.
  """
  target = np.where(batch["weight"][:, None] > 0, table[batch["target"]], 0).astype(np.int32)
  history = np.where(batch["history"][..., None] >= 0, table[batch["history"]], np.int32(-1))
  return {"history": history, "target": target, "weight": batch["weight"]}


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
