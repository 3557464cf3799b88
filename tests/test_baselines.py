"""The recommenders that a model is measured against: what they count, what they never look at, and their ranks."""

import dataclasses
import json
import re
import tracemalloc

import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import Config, CountsConfig
from rastp_jax.data import histories as histories_lib
from rastp_jax.data.histories import Histories
from rastp_jax.experiments.anchors import evaluation, ties
from rastp_jax.experiments.anchors.popularity import Popularity
from rastp_jax.experiments.anchors.sasrec import Sasrec, SasrecModel, SasrecSettings, packed_epoch
from rastp_jax.generation.counts import Counts
from rastp_jax.training import runs
from tests.helpers.commands import command
from tests.helpers.data import LENGTHS, make_data

SMALL = SasrecSettings(width=16, blocks=1, hidden=16, positions=12, rows=4, dropout=0.1, learning_rate=1e-2, epochs=8)


def make_histories(users: list[list[int]], num_items: int) -> Histories:
  offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])])
  return Histories(np.concatenate(users).astype(np.int32), offsets, num_items, [str(u) for u in range(len(users))], "f")


def cycles(num_users: int = 60, num_items: int = 30) -> Histories:
  """Every item is followed by the next one."""
  return make_histories([[(u + step) % num_items for step in range(8)] for u in range(num_users)], num_items)


def with_other_targets(histories: Histories) -> Histories:
  """The same training part, other held-out items."""
  items = histories.items.copy()
  for back in (1, 2):
    items[histories.offsets[1:] - back] = (items[histories.offsets[1:] - back] + 7) % histories.num_items
  return dataclasses.replace(histories, items=items)


@pytest.mark.parametrize("backward", [0.3, 0.0])
def test_counts_are_the_sum_of_their_definition(backward):
  histories, _ = make_data(LENGTHS[:40], num_items=20)
  settings = CountsConfig(
    window=3, distance_power=0.7, backward=backward, popularity_power=0.4, decay=0.6, last_items=4
  )
  pairs, occurrences = np.zeros((20, 20)), np.zeros(20)
  for start, stop in zip(*histories.training_spans(), strict=True):
    user = histories.items[start:stop]
    if len(user) >= 2:
      np.add.at(occurrences, user, 1)
    for a in range(len(user)):
      for b in range(a + 1, min(len(user), a + 4)):
        pairs[user[a], user[b]] += 1 / (b - a) ** 0.7
        pairs[user[b], user[a]] += backward / (b - a) ** 0.7
  np.fill_diagonal(pairs, 0)
  pairs /= np.maximum(occurrences, 1) ** 0.4
  history = np.array([[3, 5, 7, 9, 11, 13, -1, -1], [2, -1, -1, -1, -1, -1, -1, -1]], np.int32)
  expected = [sum(0.6**age * pairs[item] for age, item in enumerate([13, 11, 9, 7])), pairs[2]]
  scores = Counts.fit(histories, settings).scores(history)
  assert scores.dtype == np.float32
  np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_counting_keeps_the_pairs_of_one_distance_at_a_time():
  items = np.random.default_rng(0).integers(0, 100, 200 * 140).astype(np.int32)
  histories = Histories(items, np.arange(0, len(items) + 1, 140), 100, (), "")
  Counts.fit(histories, CountsConfig(window=1))  # what is imported and set up once
  tracemalloc.start()
  pairs = Counts.fit(histories, CountsConfig(window=20))._pairs
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 200 * len(items)  # bytes; a pair's row, column and weight for each of 20 distances took 1,600
  assert pairs.dtype == np.float32 and pairs.count_nonzero() == pairs.nnz == 100 * 99


def test_a_history_may_be_padded_on_either_side():
  histories, _ = make_data(LENGTHS[:40], num_items=20)
  counts = Counts.fit(histories, CountsConfig())
  right, left = np.array([[4, 9, 1, -1, -1]], np.int32), np.array([[-1, -1, 4, 9, 1]], np.int32)
  np.testing.assert_array_equal(counts.scores(right), counts.scores(left))


def test_held_out_items_are_not_looked_at():
  histories, _ = make_data([3, 4, *LENGTHS[:40]], num_items=20)
  other = with_other_targets(histories)
  history = np.arange(20, dtype=np.int32)[:, None]
  for make in (Popularity, lambda histories: Counts.fit(histories, CountsConfig())):
    np.testing.assert_array_equal(make(histories).scores(history), make(other).scores(history))
  settings = dataclasses.replace(SMALL, epochs=1, evaluate_every=1)
  trained = [Sasrec.fit(data, settings, seed=1).scores(history) for data in (histories, other)]
  np.testing.assert_array_equal(*trained)


def test_ranks_are_among_all_items_and_ties_count_against_the_recommender():
  histories = make_histories([[0, 1, 2, 3], [4, 4, 0, 4]], num_items=5)

  class Fixed:
    history_items = 2

    def scores(self, history):
      assert history.tolist() == [[1, 2], [4, 0]]  # the most recent ones
      return np.array([[9, 8, 7, 5, 5], [1, 2, 3, 4, 5]], np.float32)

  every = evaluation.ranks(Fixed(), histories, "test")
  excluded = evaluation.ranks(Fixed(), histories, "test", exclude_history=True)
  assert every.tolist() == [4, 0]  # after the equal one
  assert excluded.tolist() == [1, 4]  # items 0, 1, 2 do not compete; a target in the history is not found
  assert evaluation.means(every, (5,)) == {"recall@5": 1.0, "ndcg@5": (1 / np.log2(6) + 1) / 2, "mrr@5": 0.6}


def test_those_that_read_the_order_find_a_planted_one():
  histories = cycles()
  found = evaluation.ranks(Counts.fit(histories, CountsConfig(window=1, backward=0.0)), histories, "test")
  assert (found == 0).all()
  assert (evaluation.ranks(Popularity(histories), histories, "test") > 0).mean() > 0.9
  sasrec = Sasrec.fit(histories, SMALL, seed=0)
  assert (evaluation.ranks(sasrec, histories, "test") == 0).mean() > 0.9
  assert sasrec.curve[-1][0] <= SMALL.epochs and sasrec.epochs in [epoch for epoch, _ in sasrec.curve]


def test_users_packed_into_one_row_do_not_see_each_other():
  histories = make_histories([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], num_items=12)
  (batch,) = packed_epoch(histories, SMALL, np.random.default_rng(0))
  assert sorted(np.unique(batch.segment[0]).tolist()) == [0, 1, 2]
  model = SasrecModel(12, SMALL, rngs=nnx.Rngs(0))
  together = model.states(batch.items, batch.segment, batch.position, None)
  first = batch.segment == 1
  other = np.where(first, batch.items, 11)
  np.testing.assert_array_equal(together[first], model.states(other, batch.segment, batch.position, None)[first])
  # Trained are the two steps within each user's first three items.
  pairs = zip(batch.items[batch.segment > 0].tolist(), batch.targets[batch.segment > 0].tolist(), strict=True)
  assert sorted(pairs) == [(1, 2), (2, 3), (6, 7), (7, 8)]


def test_ties_are_those_that_rise_and_only_they_are_shuffled():
  numbers = [f"B{item:04d}" for item in range(100)]
  histories = make_histories([[3, 9, 40, 2, 1], [7, 50, 60, 70, 80]], num_items=100)
  rising = ties.rising_steps(histories, numbers)
  assert rising.tolist() == [True, True, False, False, False, True, True, True, True, False]
  draws = [ties.shuffled(histories, numbers, 1.0, np.random.default_rng(seed)).items for seed in range(20)]
  for items in draws:
    assert (
      sorted(items[:3]) == [3, 9, 40] and items[3:5].tolist() == [2, 1] and sorted(items[5:]) == [7, 50, 60, 70, 80]
    )
  assert len({tuple(items) for items in draws}) > 10
  none = ties.shuffled(histories, numbers, 0.0, np.random.default_rng(0))
  np.testing.assert_array_equal(none.items, histories.items)
  assert ties.tied_share(0.7) == pytest.approx(0.4) and ties.tied_share(0.4) == 0.0


@pytest.mark.slow
def test_the_experiment_writes_every_recommender(tmp_path):
  data = f"--config.data.data_dir={tmp_path / 'data'}"
  code, _, said = command("rastp_jax.prepare", "--config=configs/tiny.py", data)
  assert code == 0, said
  flags = (data, f"--output={tmp_path / 'b.json'}", f"--runs_dir={tmp_path}", "--epochs=1", "--shuffles=1")
  code, printed, said = command("rastp_jax.experiment", "baselines", "--config=configs/tiny.py", *flags)
  assert code == 0, said
  written = json.loads((tmp_path / "b.json").read_text())
  (line,) = [line for line in printed.splitlines() if "--override=" in line]
  overridden = runs.override(Config(), re.findall(r"--override=(counts\.\S+)", line))
  assert dataclasses.asdict(overridden.counts) == written["models"]["counts"]["settings"]
  assert set(written["models"]) == {"popularity", "counts", "best possible", "sasrec"}
  assert written["dataset_fingerprint"] == histories_lib.load(str(tmp_path / "data"), "synthetic").fingerprint
  ranks = np.load(tmp_path / "synthetic.npz")
  for name, model in written["models"].items():
    for split in ("validation", "test", "test, history excluded"):
      found = ranks[f"{name}, {split}"]
      assert model[split]["recall@10"] == np.mean(found < 10)
  reached = [written["models"][name]["test"]["recall@10"] for name in ("popularity", "counts", "best possible")]
  assert reached == sorted(reached) and reached[2] > 0.8
  assert written["data"]["product_numbers_rise"]["at_any_step"] == pytest.approx(0.57, abs=0.05)
