"""Batches: what a sample is, which samples an epoch holds, and that buckets change neither."""

import collections
import dataclasses
import itertools
import json
import math
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from rastp_jax.batches import buckets, samplers
from rastp_jax.batches.batches import ORDER, TrainingBatches, evaluation_batches, gather, training_iterator, with_codes
from rastp_jax.batches.shuffle import shuffled
from rastp_jax.config import DataConfig
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids.codes import SemanticIds
from tests.helpers.commands import ROOT
from tests.helpers.data import LENGTHS, make_data

GOLDEN = pathlib.Path(__file__).parent / "golden"
BUCKETS = DataConfig(max_items=20, bucket_lengths=(4, 8, 20))
FLAT = DataConfig(max_items=20, bucket_lengths=(20,))


def training_batches(histories, codes, config, **settings):
  lengths = buckets.bucket_lengths(config, histories)
  return TrainingBatches(histories, codes.codes, config, lengths=lengths, **settings)


def samples(source, steps):
  """(history items, target) of every real row of the given batches, decoded from what the batches hold."""
  rows = []
  for step in steps:
    batch = source[step]
    for history, target in zip(
      batch["history"][batch["weight"] > 0], batch["target"][batch["weight"] > 0], strict=True
    ):
      rows.append((tuple(map(tuple, history[history[:, 0] >= 0])), tuple(target)))
  return rows


@pytest.mark.parametrize(("config", "run_length"), [(BUCKETS, 1), (FLAT, 1), (BUCKETS, 4)])
def test_prefixes_come_once_an_epoch_each(config, run_length):
  histories, codes = make_data(LENGTHS)
  source = training_batches(histories, codes, config, batch_size=64, seed=7, run_length=run_length)
  expected = []
  for user in range(histories.num_users):
    items = histories.items[histories.offsets[user] : histories.offsets[user + 1] - 2]
    for end in range(1, len(items)):
      rows = codes.codes[items[max(0, end - 20) : end]]
      expected.append((tuple(map(tuple, rows)), tuple(codes.codes[items[end]])))
  for epoch in (0, 3):
    steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
    assert sorted(samples(source, steps)) == sorted(expected)
  assert abs(source.samples_per_step - 64) < 16
  assert source.steps_per_epoch % run_length == 0
  for start in range(0, source.steps_per_epoch, run_length):
    assert len({source[start + step]["history"].shape for step in range(run_length)}) == 1
  assert samples(source, range(2)) != samples(source, range(source.steps_per_epoch, source.steps_per_epoch + 2))


@pytest.mark.parametrize("bucket_lengths", [(3, 6, 20), (2, 4, 6, 20), (20,)])
@pytest.mark.parametrize("sampling", ["prefixes", "subsequences"])
def test_an_epoch_has_exactly_the_batches_announced_also_where_no_history_is_long(bucket_lengths, sampling):
  histories, codes = make_data([4, 5, 6, 7, 8, 8, 7, 4] * 10)  # nobody fills max_items
  config = DataConfig(max_items=20, bucket_lengths=bucket_lengths, sampling=sampling)
  for run_length in (1, 3):
    source = training_batches(histories, codes, config, batch_size=16, seed=0, row_multiple=8, run_length=run_length)
    for epoch in range(3):
      batches = [source[epoch * source.steps_per_epoch + step] for step in range(source.steps_per_epoch)]
      assert all(len(batch["weight"]) for batch in batches), "a batch of no rows"
      assert all(batch["weight"].sum() for batch in batches), "a batch of filler rows alone"
      assert sum(batch["weight"].sum() for batch in batches) == len(source.epoch_samples(epoch)[0])


def test_filler_rows_are_few():
  """Rows are rounded to a multiple of the devices; the number of batches makes up for it."""
  histories, codes = make_data(LENGTHS * 3)
  for config in (BUCKETS, FLAT):
    source = training_batches(histories, codes, config, batch_size=60, seed=7, row_multiple=8)
    real = len(source.epoch_samples(0)[0])
    rows = sum(bucket.rows * bucket.batches for bucket in source.buckets)
    assert real <= rows <= 1.06 * real
    sizes = [source[step]["weight"].mean() for step in range(source.steps_per_epoch)]
    assert min(sizes) > 0.8  # no batch of a few left-over samples, whose gradient would count as much as a whole one's


def test_a_batch_depends_on_seed_and_number_alone():
  histories, codes = make_data(LENGTHS)
  make = lambda seed, **kw: training_batches(histories, codes, BUCKETS, batch_size=64, seed=seed, **kw)
  one, again, other = make(7), make(7), make(8)
  far = 5 * one.steps_per_epoch + 3
  wanted = again[far]  # never having made an earlier one
  for step in range(3):
    one[step]
  for name, value in one[far].items():
    np.testing.assert_array_equal(value, wanted[name])
  assert one.buckets == other.buckets
  assert samples(one, [0]) != samples(other, [0])


def test_hosts_share_the_rows_of_one_batch():
  histories, codes = make_data(LENGTHS)
  make = lambda **kw: training_batches(histories, codes, BUCKETS, batch_size=64, seed=7, row_multiple=4, **kw)
  whole, parts = make(), [make(shard=(host, 4)) for host in range(4)]
  assert all(bucket.rows % 4 == 0 for bucket in whole.buckets)
  for step in range(5):
    for name, value in whole[step].items():
      np.testing.assert_array_equal(value, np.concatenate([part[step][name] for part in parts]))


def test_subsequences_are_drawn_like_the_published_ones():
  """Per group of users: 512 draws with replacement from all contiguous sub-sequences, duplicates merged."""
  lengths = [12] * 64
  histories, codes = make_data(lengths)
  config = DataConfig(max_items=20, bucket_lengths=(4, 20), sampling="subsequences")
  source = training_batches(histories, codes, config, batch_size=100, seed=0)
  counts, drawn = {}, []
  epochs = 60
  for epoch in range(epochs):
    starts, ends = source.epoch_samples(epoch)
    drawn.append(len(starts))
    assert len(set(zip(starts, ends, strict=True))) == len(starts)
    for pair in zip(starts, ends, strict=True):
      counts[pair] = counts.get(pair, 0) + 1
  pairs = 10 * 9 // 2  # of one user's 10 training items
  in_group = 32 * pairs
  chance = 1 - (1 - 1 / in_group) ** 512
  assert len(counts) == 64 * pairs  # every contiguous sub-sequence occurs sooner or later, and nothing else
  np.testing.assert_allclose(np.mean(drawn), 2 * in_group * chance, rtol=0.02)
  spread = np.std(list(counts.values()))
  np.testing.assert_allclose(np.mean(list(counts.values())), epochs * chance, rtol=0.02)
  np.testing.assert_allclose(spread, np.sqrt(epochs * chance * (1 - chance)), rtol=0.05)
  offsets = {histories.offsets[u] for u in range(64)}
  for start, end in counts:
    user = np.searchsorted(histories.offsets, start, side="right") - 1
    assert histories.offsets[user] <= start < end - 1 and end <= histories.offsets[user + 1] - 2
  assert offsets & {start for start, _ in counts}


def test_buckets_do_not_change_the_distribution_of_subsequences():
  histories, codes = make_data(LENGTHS)
  shares = []
  for bucket_lengths in ((4, 8, 20), (20,)):
    config = DataConfig(max_items=20, bucket_lengths=bucket_lengths, sampling="subsequences")
    source = training_batches(histories, codes, config, batch_size=200, seed=len(bucket_lengths))
    sizes, lengths = [], np.zeros(21)
    for step in range(30 * source.steps_per_epoch):
      batch = source[step]
      sizes.append(batch["weight"].sum())
      lengths += np.bincount((batch["history"][batch["weight"] > 0, :, 0] >= 0).sum(1), minlength=21)
    np.testing.assert_allclose(np.mean(sizes), 200, rtol=0.1)
    shares.append(lengths / lengths.sum())
  assert np.abs(shares[0] - shares[1]).max() < 0.01
  assert shares[0][20] > 0.1  # the truncated ones


def test_a_draw_can_stay_together():
  histories, codes = make_data([10] * 128)
  config = DataConfig(max_items=20, bucket_lengths=(20,), sampling="subsequences", mix_users=False)
  source = training_batches(histories, codes, config, batch_size=300, seed=0)
  assert source.buckets[0].rows == 512 and source.steps_per_epoch == 4
  for step in range(8):
    starts, _ = source.samples(step)
    assert len({np.searchsorted(histories.offsets, start, side="right") for start in starts}) <= 32
  assert 0 < source[0]["weight"].sum() < 512


@pytest.mark.parametrize(
  ("users", "run_length", "plan"),
  [  # (rows, batches); a batch of about 417 samples is two draws of short histories
    (20, 1, (512, 1)),
    (60, 1, (512, 2)),
    (60, 2, (512, 2)),
    (100, 1, (1024, 2)),
    (100, 2, (1024, 2)),
    (100, 4, (512, 4)),
    (200, 3, (1024, 3)),
  ],
)
def test_few_users_make_whole_runs_of_whole_draws(users, run_length, plan):
  histories, codes = make_data([8] * users)
  config = DataConfig(max_items=20, bucket_lengths=(20,), sampling="subsequences", mix_users=False)
  source = training_batches(histories, codes, config, batch_size=417, seed=0, row_multiple=8, run_length=run_length)
  (bucket,) = source.buckets
  assert (bucket.rows, bucket.batches) == plan and source.steps_per_epoch == bucket.batches
  for epoch in range(3):
    starts, ends = source.epoch_samples(epoch)
    assert len(set(zip(starts, ends, strict=True))) == len(starts)  # every draw once
    for step in range(source.steps_per_epoch):
      real = source[epoch * source.steps_per_epoch + step]["weight"].sum()
      assert real == len(source.samples(epoch * source.steps_per_epoch + step)[0]) > 0


def test_fewer_draws_than_a_run_has_batches_are_refused():
  histories, codes = make_data([8] * 100)
  config = DataConfig(max_items=20, bucket_lengths=(20,), sampling="subsequences", mix_users=False)
  sentence = "one batch of data.users_per_draw=32 users, for beauty 4 in all, but train.steps_per_dispatch=5 batches"
  with pytest.raises(InputError, match=sentence):
    training_batches(histories, codes, config, batch_size=417, seed=0, run_length=5)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_a_shuffle_has_every_number_once(size):
  places = np.arange(size)
  orders = {tuple(shuffled(places, size, (seed, 3))) for seed in range(3)}
  assert all(sorted(order) == places.tolist() for order in orders)
  assert len(orders) == 3 or size < 7
  halves = np.split(places, [size // 2])
  assert orders == {tuple(np.concatenate([shuffled(half, size, (seed, 3)) for half in halves])) for seed in range(3)}


@pytest.mark.parametrize("size", [2**31 + 1, 10**12, 2**62])
def test_a_shuffle_of_more_than_fits_in_memory(size):
  places = np.concatenate([np.arange(2000), size - 1 - np.arange(2000)])
  found = shuffled(places, size, (0,))
  assert len(np.unique(found)) == len(places) and found.min() >= 0 and found.max() < size
  spread = np.histogram(found, 20, (0, size))[0]
  assert np.abs(spread - 200).max() < 5 * np.sqrt(200)
  assert abs(np.corrcoef(found[:1999], found[1:2000])[0, 1]) < 5 / np.sqrt(2000)


def test_all_orders_of_a_few_numbers_are_as_likely():
  """Pearson's chi-squared stays within five standard deviations, also for places, values and neighbours of more."""
  for size, draws in ((3, 300), (4, 1200)):
    orders = collections.Counter(tuple(shuffled(np.arange(size), size, (seed,))) for seed in range(draws))
    kinds = math.factorial(size)
    expected = draws / kinds
    statistic = sum((orders[order] - expected) ** 2 / expected for order in itertools.permutations(range(size)))
    assert statistic < kinds - 1 + 5 * np.sqrt(2 * (kinds - 1))
  size, draws = 20, 600
  places, following = np.zeros((2, size, size))
  for seed in range(draws):
    order = shuffled(np.arange(size), size, (seed, 1))
    places[np.arange(size), order] += 1
    following[order[:-1], order[1:]] += 1
  for table, cells, expected in (
    (places, np.ones((size, size), bool), draws / size),
    (following, ~np.eye(size, dtype=bool), draws / size),
  ):
    statistic = ((table[cells] - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom) + 2 * size


def test_the_order_is_written_down():
  """A change of these numbers is a new `batches.ORDER`: runs that were begun before cannot go on."""
  assert ORDER == 2
  assert shuffled(np.arange(6), 1000, (7, 0, 1)).tolist() == [661, 346, 950, 112, 797, 717]
  histories, codes = make_data(LENGTHS)
  subsequences = dataclasses.replace(BUCKETS, sampling="subsequences")
  for config, targets in ((BUCKETS, [47, 13, 12, 31, 19, 34]), (subsequences, [8, 48, 33, 16, 8, 49])):
    source = training_batches(histories, codes, config, batch_size=64, seed=7)
    assert source.rows(11)["target"][:6].tolist() == targets


def test_users_are_ordered_by_size():
  for largest in (5, 70_000, 2**31):
    sizes = np.random.default_rng(largest).integers(0, largest, 500)
    np.testing.assert_array_equal(samplers._largest_first(sizes), np.argsort(-sizes, kind="stable"))


def test_a_worker_is_sent_no_list_of_samples():
  """What a source holds grows with the users: 9 times the interactions need no more than 4 bytes for each more."""
  sizes = []
  for length in (10, 90):
    histories, codes = make_data([length] * 400)
    source = training_batches(histories, codes, BUCKETS, batch_size=64, seed=7)
    assert source[0] and source[source.steps_per_epoch]  # of two epochs
    sizes.append(len(pickle.dumps(source)))
  assert sizes[1] - sizes[0] < 4 * 80 * 400 + 2000


def test_truncation_and_padding_are_the_published_ones():
  units = np.load(GOLDEN / "units.npz")
  codes = np.load(GOLDEN / "beauty_sids_part.npy").astype(np.int32)
  for case in ("collate_long", "collate_short"):
    items, counts = units[f"{case}/items"].astype(np.int32), units[f"{case}/n_items"]
    histories = Histories(items, np.asarray([0, len(items)]), len(codes), ["0"], "f")
    ids = SemanticIds(codes, tuple(int(width) for width in codes.max(0) + 1))
    batch = with_codes(gather(histories, np.zeros(len(counts), int), counts, items=29, rows=len(counts)), ids.codes)
    published = units[f"{case}/input_ids"]
    np.testing.assert_array_equal(batch["history"].reshape(len(counts), -1), published[:, : 29 * 4])
    assert (published[:, 29 * 4 :] == -1).all()  # the target's place
    np.testing.assert_array_equal(batch["target"], units[f"{case}/labels"])


@pytest.mark.parametrize("number", [1, 2, 3, 4, 9])
def test_chosen_lengths_waste_least(number):
  counts = np.random.default_rng(number).integers(0, 9, 8).astype(float)
  counts[[0, 3]] = 0  # no sample has an empty history
  waste = lambda lengths: sum(counts[n] * min(b for b in lengths if b >= n) for n in range(8))
  others = [(*rest, 7) for size in range(number) for rest in itertools.combinations(range(1, 7), size)]
  chosen = buckets.choose_lengths(counts, number)
  assert chosen[-1] == 7 and len(chosen) <= number and list(chosen) == sorted(set(chosen))
  assert waste(chosen) == min(waste(other) for other in others)


@pytest.mark.parametrize("sampling", ["prefixes", "subsequences"])
def test_lengths_are_chosen_for_the_samples_there_are(sampling):
  histories, codes = make_data(LENGTHS)
  config = DataConfig(max_items=20, sampling=sampling, num_buckets=3, samples_per_draw=100_000)
  chosen = buckets.bucket_lengths(config, histories)
  source = TrainingBatches(histories, codes.codes, config, lengths=chosen, batch_size=64, seed=0)
  if sampling == "subsequences":  # all of them, the distribution behind the draws
    user = [(stop - first) for first, stop in zip(*histories.training_spans(), strict=True)]
    lengths = [min(j - i, 20) for n in user for j in range(1, n) for i in range(j)]
  else:
    starts, ends = source.epoch_samples(0)
    lengths = ends - 1 - starts
  assert chosen == buckets.choose_lengths(np.bincount(lengths, minlength=21), 3)
  given = dataclasses.replace(config, bucket_lengths=(7, 20))
  assert buckets.bucket_lengths(given, histories) == (7, 20)


def test_evaluation_covers_every_user_once():
  histories, codes = make_data(LENGTHS)
  for split, held_back in (("test", 1), ("validation", 2)):
    seen = []
    for host in range(2):
      for batch in evaluation_batches(
        histories, BUCKETS, split, lengths=BUCKETS.bucket_lengths, batch_size=16, shard=(host, 2)
      ):
        real = batch["user"] >= 0
        assert len(batch["user"]) == 8 and (batch["weight"] == real).all()
        for user, target in zip(batch["user"][real], batch["target"][real], strict=True):
          seen.append(user)
          assert target == histories.items[histories.offsets[user + 1] - held_back]
    assert sorted(seen) == list(range(300))
  held_out = lambda config: evaluation_batches(
    histories, config, "test", lengths=config.bucket_lengths, batch_size=16, users=40
  )
  some = [[b["user"][b["user"] >= 0] for b in held_out(config)] for config in (BUCKETS, FLAT)]
  assert len(np.concatenate(some[0])) == 40
  np.testing.assert_array_equal(np.sort(np.concatenate(some[0])), np.sort(np.concatenate(some[1])))


@pytest.mark.parametrize("workers, run_length", [(0, 1), (0, 3), (1, 3)])
def test_the_iterator_starts_anywhere_and_its_state_is_a_position(workers, run_length):
  histories, codes = make_data(LENGTHS)
  source = training_batches(histories, codes, BUCKETS, batch_size=32, seed=7, run_length=run_length)
  make = lambda: training_iterator(source, start=6 * run_length, run_length=run_length, workers=workers)
  run = lambda number: np.stack([source[number * run_length + step]["history"] for step in range(run_length)])
  iterator = make()
  for number in (6, 7, 8):
    np.testing.assert_array_equal(next(iterator)["history"], run(number))
  state = json.loads(json.dumps(iterator.get_state()))
  other = make()
  other.set_state(state)
  np.testing.assert_array_equal(next(other)["history"], run(9))


WORKERS = """
import multiprocessing, os, signal
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.training.setup import make_setup
if __name__ == "__main__":
  signal.signal(signal.SIGINT, lambda *_: None)
  upcoming = make_setup(make_config(data__workers=1), *make_data()).stacked_batches(0)
  next(upcoming)
  (worker,) = multiprocessing.active_children()
  os.killpg(0, signal.SIGINT)  # Ctrl-C in a terminal
  for _ in range(100):  # more than are made ahead
    next(upcoming)
  print(worker.pid, flush=True)
  os._exit(75)
"""


def test_workers_take_no_signals_and_end_with_their_process(tmp_path):
  (tmp_path / "main.py").write_text(WORKERS)
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, tmp_path / "main.py"],
    env=environment,
    capture_output=True,
    text=True,
    start_new_session=True,
    timeout=300,
  )
  assert done.returncode == 75, done.stderr
  worker, end = pathlib.Path(f"/proc/{done.stdout.split()[-1]}"), time.monotonic() + 60
  while worker.exists() and "Z" not in (worker / "stat").read_text().rpartition(")")[2][:3]:
    assert time.monotonic() < end
    time.sleep(0.1)


def test_users_too_short_to_train_on_are_refused():
  histories, codes = make_data([3, 3, 3])
  with pytest.raises(InputError, match="No user of beauty has the 4 items"):
    training_batches(histories, codes, FLAT, batch_size=4, seed=0)
