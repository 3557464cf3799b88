"""The laboratory: every registered method is a row, costs are counted, screens and comparisons are right."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.evaluation.comparison import paired_bootstrap
from rastp_jax.experiments.lab import cost, page, screen, training
from rastp_jax.experiments.lab.rows import DENSE, all_rows, choose
from rastp_jax.experiments.lab.training import Trainings, holm
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.model.factory import make_model
from rastp_jax.reduction.methods import REDUCTIONS
from rastp_jax.runtime import sharding
from rastp_jax.training.runs import SavedModel
from tests.helpers.results import make_result

ROWS = all_rows()


def test_every_method_is_a_row_and_every_row_is_sound():
  methods = {part for row in ROWS.values() for part in row.method.split("+")}
  assert methods == set(REDUCTIONS) - {"given"}
  assert len({row.directory for row in ROWS.values()}) == len(ROWS)
  for row in ROWS.values():
    changed = row.apply(Config())
    assert (
      changed.reduction.method == row.method and dataclasses.replace(changed, reduction=Config().reduction) == Config()
    )


def test_rows_are_chosen_by_name_or_method():
  names = lambda wanted: [row.name for row in choose(wanted, ROWS)]
  assert names([]) == list(ROWS)
  assert names(["recent"]) == [DENSE, "recent, 1/2", "recent, 1/4", *names(["recent"])[3:]]
  assert names(["rastp_1_2"]) == names(["rastp, 1/2"]) == [DENSE, "rastp, 1/2"]
  with pytest.raises(InputError, match="--methods=rsatp is not a method or a row of the laboratory"):
    choose(["rsatp"], ROWS)


@pytest.fixture(scope="module")
def saved():
  """A tiny dense model, untrained."""
  config = make_config(reduction__method="none", model__encoder_blocks=2)
  histories, ids = make_data()
  mesh = sharding.whole_batch_mesh(sharding.make_mesh())
  model = make_model(config, ids.widths, num_items=ids.num_items, rngs=nnx.Rngs(0))
  return SavedModel(config, histories, ids, (6,), mesh, model, 0)


def test_costs_fall_with_the_budget(saved):
  rows = choose(["recent", "item_mean", "rastp"], ROWS)
  costs = cost.encoder_flops(saved.config, saved.histories, saved.semantic_ids, rows)
  assert costs[DENSE] == 1.0
  assert costs["recent, 1/4"] < costs["recent, 1/2"] < 1.0
  assert costs["item_mean, before block 0"] < 0.4 < costs["item_mean, after block 0"] < 1.0


def test_the_screen_tells_whom_a_row_affects_and_what_it_keeps(saved):
  rows = {row.name: row for row in choose(["recent, 1/2", "random, 1/2", "item_mean, before block 0"], ROWS)}
  found = screen.screen(saved, rows)
  assert set(found) == set(rows) - {DENSE}
  recent, random = found["recent, 1/2"], found["random, 1/2"]
  assert 0 < recent.users <= saved.histories.num_users and recent.users == random.users
  assert recent.overlap_with_recent == 1.0 > random.overlap_with_recent
  assert recent.kept_by_age[0] == 1.0 and recent.kept_by_age[4] == 0.0
  merged = found["item_mean, before block 0"]
  assert merged.users == saved.histories.num_users and merged.kept_by_level == [1.0] * 5  # nothing is dropped
  assert all(np.isfinite(seen.rise) and seen.error >= 0 for seen in found.values())


def test_holm_is_step_down_and_monotone():
  assert holm([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]
  assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_collected_runs_hold_differences_to_dense(tmp_path, monkeypatch):
  """From evaluated runs to rows of the JSON file: metrics, interval, costs, commands."""
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (1, 2), str(tmp_path))
  rng = np.random.default_rng(0)
  ranks = {DENSE: rng.integers(0, 20, 200), "recent, 1/2": rng.integers(0, 20, 200)}
  monkeypatch.setattr(Trainings, "finished", lambda self, row: row.name in ranks)
  results = {
    name: [make_result(name, found, seed=seed, training_samples=1e6) for seed in (1, 2)]
    for name, found in ranks.items()
  }
  monkeypatch.setattr(Trainings, "group", lambda self, row: training.Group(row.name, tuple(results[row.name])))
  rows = choose(["recent"], ROWS)
  dense, recent = training.collect(trainings, rows, {DENSE: 1.0, "recent, 1/2": 0.7}, {})
  assert (dense["name"], recent["name"], recent["budget"], recent["stage"]) == (DENSE, "recent, 1/2", 1 / 2, "train")
  values = [results[name][0] for name in ranks]
  expected = paired_bootstrap("ndcg@10", *(training.Group("", (value,)).user_values("ndcg@10") for value in values))
  assert (recent["ndcg@10_difference"], recent["p_holm"]) == (expected.value, expected.p)
  assert recent["ndcg@10_difference_low"] < recent["ndcg@10_difference"] < recent["ndcg@10_difference_high"]
  assert recent["encoder_flops_vs_dense"] == 0.7 and recent["training_seconds_vs_dense"] is None
  assert "--config.train.seed=1" in recent["commands"][0] and "--split=validation" in recent["commands"][1]
  table = page.table([dense, recent])
  assert len(table) == 3 and all(len(row) == len(table[0]) for row in table)
  svg = page.pareto([dense, recent], {"recent": "drop"})
  html = page.render("A & B", {"plot": svg}, {"table": table}, "python x")
  assert b"<svg" in svg and "A &amp; B" in html and "recent, 1/2" in html
