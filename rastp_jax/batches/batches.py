"""Batches of a few static lengths; batch i is a pure function of (seed, i).

Batches hold *item rows*. What a model reads of an item (`what_is_read`) is looked up when a batch is done
(`with_codes`): nobody translates codes back.

Shapes: B rows, N history items of the batch's bucket, R numbers that a model reads of an item.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from rastp_jax.batches.buckets import Bucket, size_buckets
from rastp_jax.batches.samplers import Epoch, Prefixes, Samples, SubSequences, most_recent
from rastp_jax.batches.shuffle import shuffled
from rastp_jax.config import DataConfig, ModelConfig
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.runtime.sharding import round_up
from rastp_jax.semantic_ids.codes import SemanticIds

# Item rows: history (B, N) int32, -1 padded on the right; target (B,) int32; weight (B,) float32, 0 for filler rows;
# user (B,) int64 in evaluation, -1 for filler rows. With codes: history (B, N, R), target (B, R), weight.
Batch = dict[str, np.ndarray]

# Which sample comes when. A change of this order is a new number: a run that was begun in another one says so.
ORDER = 2
_ENDLESS = 2**62  # a source has no last batch: training ends when the trainer says so


class TrainingBatches:
  """A random-access source of training batches, the same on every host but for its slice of rows.

  An epoch holds samples (each user's every prefix once, or contiguous sub-sequences as published), shuffled inside
  their length bucket and cut into batches of about equal tokens, which are shuffled in turn. Bucketing therefore
  changes which samples share a batch, not which samples are seen. Both orders are computed where they are needed
  (`shuffle.py`), so that prefixes need no list of an epoch's samples, and a new epoch begins like any other batch.

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
    InputError: no user has enough items to train on, or mix_users=False leaves fewer groups of users than a run has
      batches.
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
    self._histories, self._table, self._seed = histories, table, seed
    self._run_length, self._shard = run_length, shard
    first, stop = histories.training_spans()
    sizes = stop - first
    if sizes.max() < 2:
      raise InputError(
        f"No user of {config.dataset} has the {2 + config.hold_out} items that training needs ({config.hold_out} are "
        "held out): give longer histories."
      )
    del stop  # at a billion samples, each of these takes as much as the sampler keeps
    if config.sampling == "prefixes":
      self._sampler = Prefixes(first, sizes, config.max_items, lengths)
    else:
      self._sampler = SubSequences(first, sizes, config, lengths)
    # Bucket sizes must not depend on the seed (they are compiled), so they come from a draw of their own.
    counts = self._sampler.epoch(0, 0).counts
    # Random draws vary from epoch to epoch: room for three standard deviations, so that hardly a sample is left out.
    room = counts + 3 * np.sqrt(counts) * self._sampler.varies
    self._groups_per_batch = 0  # of users who share a draw and stay together; 0: samples are mixed
    if config.mix_users:
      self.buckets = size_buckets(lengths, counts, room, batch_size, row_multiple, run_length)
    else:
      assert isinstance(self._sampler, SubSequences)  # config.data.check refuses anything else
      groups = self._sampler.groups
      if groups < run_length:
        raise InputError(
          f"config.data.mix_users=False makes at most one batch of data.users_per_draw={config.users_per_draw} users, "
          f"for {config.dataset} {groups} in all, but train.steps_per_dispatch={run_length} batches are trained on at "
          "once: lower one of these two settings."
        )
      self._groups_per_batch = max(1, min(round(batch_size * groups / counts[0]), groups // run_length))
      rows = round_up(self._groups_per_batch * config.samples_per_draw, row_multiple)
      batches = groups // (self._groups_per_batch * run_length) * run_length
      self.buckets = (Bucket(lengths[0], rows, batches),)
    self.steps_per_epoch = sum(bucket.batches for bucket in self.buckets)
    self.samples_per_step = counts.sum() / self.steps_per_epoch
    self._epochs: dict[int, Epoch] = {}

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> Batch:
    """Batch `index` of the endless run, with codes: this host's rows of it."""
    return with_codes(self.rows(index), self._table)

  def rows(self, index: int) -> Batch:
    """The same as item rows."""
    bucket, number = self._place(index)
    items, share = self.buckets[bucket].items, self.buckets[bucket].rows // self._shard[1]
    mine = slice(self._shard[0] * share, (self._shard[0] + 1) * share)
    starts, ends = self._samples(index // self.steps_per_epoch, bucket, number, mine)
    return gather(self._histories, starts, ends, items=items, rows=share)

  def samples(self, index: int) -> Samples:
    """Starts and ends of the samples of batch `index`, those of all hosts."""
    return self._samples(index // self.steps_per_epoch, *self._place(index), slice(None))

  def epoch_samples(self, epoch: int) -> Samples:
    """All samples of an epoch, in the order in which their batches come."""
    steps = range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch)
    starts, ends = zip(*map(self.samples, steps), strict=True)
    return np.concatenate(starts), np.concatenate(ends)

  def _place(self, index: int) -> tuple[int, int]:
    """The bucket of batch `index`, and which of its epoch's batches of that bucket it is."""
    epoch, step = divmod(index, self.steps_per_epoch)
    run, within = divmod(step, self._run_length)
    (run,) = shuffled(np.array([run]), self.steps_per_epoch // self._run_length, (self._seed, epoch, 0))
    number = int(run) * self._run_length + within
    for bucket, size in enumerate(self.buckets):
      if number < size.batches:
        return bucket, number
      number -= size.batches
    raise AssertionError  # buckets hold all steps of an epoch

  def _samples(self, epoch: int, bucket: int, number: int, mine: slice) -> Samples:
    """Some rows' samples of a bucket's batch `number`."""
    if self._groups_per_batch:
      assert isinstance(self._sampler, SubSequences)
      groups = range(number * self._groups_per_batch, (number + 1) * self._groups_per_batch)
      starts, ends = zip(*(self._sampler.draw(self._seed, epoch, group) for group in groups), strict=True)
      return np.concatenate(starts)[mine], np.concatenate(ends)[mine]
    drawn, size = self._epoch(epoch), self.buckets[bucket]
    count = int(drawn.counts[bucket])
    used = min(count, size.batches * size.rows)
    places = np.arange(number * used // size.batches, (number + 1) * used // size.batches)[mine]
    return drawn.take(bucket, shuffled(places, count, (self._seed, epoch, 1 + bucket)))

  def _epoch(self, epoch: int) -> Epoch:
    """The epoch's samples; the last two epochs asked for are kept, since workers may be at either side of the turn."""
    if epoch not in self._epochs:
      self._epochs = dict(list(self._epochs.items())[-1:]) | {epoch: self._sampler.epoch(self._seed, epoch)}
    return self._epochs[epoch]


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
    iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_live_as_long)
  return iter(iterable)


def _live_as_long(number: int, count: int) -> None:
  """A worker lives as long as the process that asked for it: signals are for that one, and without it nothing is."""
  del number, count
  for one in (signal.SIGINT, signal.SIGTERM):
    signal.signal(one, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def end() -> None:
    parent.join()
    os._exit(0)

  threading.Thread(target=end, daemon=True).start()
