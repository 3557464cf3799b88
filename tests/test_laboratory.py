"""The laboratory: every registered method is a row, costs are counted, screens and comparisons are right."""

import dataclasses
import re
import shutil
import xml.etree.ElementTree

import jax
import numpy as np
import pytest
from flax import nnx

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.evaluation import results
from rastp_jax.evaluation.comparison import Difference, Group, paired_bootstrap, paired_seeds
from rastp_jax.experiments.lab import collecting, cost, oracles, page, scatter
from rastp_jax.experiments.lab.collecting import holm
from rastp_jax.experiments.lab.oracles import likelihood
from rastp_jax.experiments.lab.rows import DENSE, all_rows, choose, possible
from rastp_jax.experiments.lab.scatter import Point
from rastp_jax.experiments.lab.screen import Screen, oracle_rows, screened
from rastp_jax.experiments.lab.training import Trainings
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.model.factory import make_model
from rastp_jax.model.layers import EncoderBlock
from rastp_jax.reduction import schedule
from rastp_jax.reduction.methods import REDUCTIONS
from rastp_jax.reduction.tokens import ItemLayout
from rastp_jax.runtime import files
from rastp_jax.training.runs import SavedModel
from tests.helpers.results import make_result
from tests.helpers.training import one_device

ROWS = all_rows(Config())


def test_every_method_is_a_row_and_every_row_is_sound():
  methods = {part for row in ROWS.values() for part in row.method.split("+")}
  assert methods == set(REDUCTIONS) - {"given"}
  assert len({row.directory for row in ROWS.values()}) == len(ROWS)
  for row in ROWS.values():
    changed = row.apply(Config())
    assert (
      changed.reduction.method == row.method and dataclasses.replace(changed, reduction=Config().reduction) == Config()
    )


def test_a_row_tells_places_as_its_method_needs_them_whatever_the_config_says():
  makes_items = ("item_sum", "item_mean", "super_tokens", "item_sum+recent")
  keeps_tokens = ("rastp", "recent", "random", "no_collision_code", "coarse_first", "average")
  for positions in ("item", "original"):
    config = make_config(model__encoder_blocks=2, reduction__positions=positions)
    for methods, wanted in ((makes_items, "item"), (keeps_tokens, "original")):
      rows = [row for row in ROWS.values() if row.method in methods]
      assert {row.apply(config).reduction.positions for row in rows} == {wanted}
    assert {row.apply(config).reduction.positions for row in oracle_rows().values()} == {"original"}
  assert "positions" not in dict(ROWS[DENSE].settings)  # whichever a dense run has, it is one


def test_a_share_of_the_items_is_one_whatever_an_item_is_made_of():
  """A budget counts tokens of the whole history, of which an item has three to five here."""
  for ids, separator in (({"collisions": "reassign"}, False), ({}, False), ({}, True)):
    config = make_config(
      model__encoder_blocks=2, model__separator=separator, **{f"semantic_ids__{k}": v for k, v in ids.items()}
    )
    layout = ItemLayout(config.semantic_ids.levels + (not ids), separator)
    assert config.item_length == layout.item_length
    rows = all_rows(config)
    for name, share in (("rastp 3/4", 3 / 4), ("rastp 1/2", 1 / 2), ("recent 1/2", 1 / 2)):
      settings = rows[f"item_sum, then {name}"].apply(config).reduction
      found = schedule.budgets(settings, 20 * layout.item_length, layout)
      assert list(found.values()) == [20, 20 * share]


def test_rows_that_a_config_refuses_are_told():
  config = make_config(model__encoder_blocks=2, semantic_ids__collisions="reassign")
  allowed, refused = possible(ROWS, config)
  assert {name.partition(",")[0] for name in refused} == {"no_collision_code", "codes_first", "rastp_codes"}
  assert allowed == {name: row for name, row in ROWS.items() if name not in refused}
  assert all("semantic_ids.collisions" in reason for reason in refused.values())


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
  mesh = one_device()
  model = make_model(config, ids.widths, num_items=ids.num_items, rngs=nnx.Rngs(0))
  return SavedModel(config, histories, ids, (6,), mesh, model, 0)


@pytest.mark.slow
def test_costs_fall_with_the_budget(saved):
  rows = choose(["recent", "item_mean", "rastp"], ROWS)
  costs = cost.encoder_flops(saved.config, saved.histories, saved.semantic_ids, rows)
  assert costs[DENSE] == 1.0
  assert costs["recent, 1/4"] < costs["recent, 1/2"] < 1.0
  assert costs["item_mean, before block 0"] < 0.4 < costs["item_mean, after block 0"] < 1.0


def test_where_a_device_does_not_tell_its_arithmetic_costs_stay_open(saved, monkeypatch):
  monkeypatch.setattr(cost, "written_flops", lambda lowered: None)
  assert cost.encoder_flops(saved.config, saved.histories, saved.semantic_ids, [ROWS[DENSE]]) == {}


def test_the_screen_tells_whom_a_row_affects_and_what_it_keeps(saved):
  screen = Screen(saved, users=0)
  seen = {
    row.name: screen.see(row) for row in choose(["recent, 1/2", "random, 1/2", "item_mean, before block 0"], ROWS)
  }
  recent, random = seen["recent, 1/2"], seen["random, 1/2"]
  assert 0 < recent.users <= screen.users <= saved.histories.num_users and recent.users == random.users
  assert recent.overlap_with_recent == 1.0 and random.overlap_with_recent not in (None, 1.0)
  assert recent.kept_by_age[0] == 1.0 and recent.kept_by_age[4] == 0.0
  assert recent.tokens == random.tokens == pytest.approx(np.mean(recent.kept_by_level), abs=0.05)
  merged = seen["item_mean, before block 0"]
  assert merged.users == screen.users and merged.kept_by_level == [1.0] * 5  # nothing is dropped
  assert merged.overlap_with_recent is None and merged.tokens == pytest.approx(1 / 5)
  assert all(np.isfinite(one.rise) and one.error >= 0 for one in seen.values())
  assert seen[DENSE].users == 0 and seen[DENSE].rise == 0.0


@pytest.mark.parametrize(("name", "proportional"), [("recent, 1/2", False), ("foveated, 1/2", True)])
def test_the_screen_measures_how_much_less_likely_targets_become(saved, name, proportional):
  """Over affected users, by likelihoods of the whole model; with the sizes of merged tokens where they count."""
  reduction = dataclasses.replace(saved.config.reduction, proportional=proportional)
  config = dataclasses.replace(saved.config, reduction=reduction)
  saved = dataclasses.replace(
    saved, config=config, model=make_model(config, saved.semantic_ids.widths, rngs=nnx.Rngs(0))
  )
  params, rises = nnx.state(saved.model, nnx.Param), []
  screen, row = Screen(saved, users=0), ROWS[name]
  for batch, real in screen._batches:
    nll = []
    for each in (ROWS[DENSE], row):
      model = make_model(each.apply(saved.config), saved.semantic_ids.widths, rngs=nnx.Rngs(1))
      nnx.update(model, params)
      nll.append(jax.jit(lambda rows, codes, model=model: likelihood(model, model.encode(rows), codes)))
    dense, reduced = (np.asarray(one(batch["history"], batch["target"]))[:real] for one in nll)
    tokens = 5 * (np.asarray(batch["history"])[:real, :, 0] >= 0).sum(1)
    rises.extend((reduced - dense)[tokens > 15])
  found = screen.see(row)
  assert found.users == len(rises) and abs(found.rise) > 1e-3
  np.testing.assert_allclose(found.rise, np.mean(rises), rtol=1e-3)
  np.testing.assert_allclose(found.error, np.std(rises, ddof=1) / np.sqrt(len(rises)), rtol=1e-3)


def test_the_screen_asks_the_same_users_at_each_call(saved):
  few = [Screen(saved, users=10) for _ in range(2)]
  assert few[0].users == 10
  histories = [[np.asarray(batch["history"]) for batch, _ in screen._batches] for screen in few]
  assert all(np.array_equal(a, b) for a, b in zip(*histories, strict=True))


def test_what_needs_training_is_not_screened():
  names = {row.name for row in screened(list(ROWS.values()))}
  assert {"rastp, 1/2", "item_sum, before block 0"} <= names
  assert not names & {DENSE, "item_query, before block 0", "rastp, taught by dense, 1/2", "rastp, random budgets, 1/2"}


def test_oracles_are_what_they_say(saved, monkeypatch):
  """Cross-attention sums to one per query and head; the gradient is that of adding something to block 0's states."""
  screen = Screen(saved, users=10)
  (batch, real), *_ = screen._batches
  graph, params = nnx.split(saved.model)

  def seen(function):
    return jax.tree.map(np.asarray, jax.jit(lambda params: function(nnx.merge(graph, params), batch))(params))

  mass, mask = seen(oracles.cross_attention), seen(lambda model, batch: model.encode(batch["history"]).mask)
  config = saved.config.model
  np.testing.assert_allclose(
    mass[:real].sum(1), config.decoder_blocks * config.num_heads * len(saved.model.widths), rtol=1e-5
  )
  assert (mass[:real][~mask[:real]] == 0).all()
  score, block = seen(oracles.gradient), EncoderBlock.__call__

  def nll(added, model):
    states = []

    def with_added(self, *arguments):
      hidden, known = block(self, *arguments)
      states.append(hidden)
      return hidden + added * (len(states) == 1), known

    monkeypatch.setattr(EncoderBlock, "__call__", with_added)
    return oracles.likelihood(model, model.encode(batch["history"]), batch["target"]).sum(), states[0]

  added = np.zeros((*mask.shape, config.d_model), np.float32)
  gradient, states = seen(lambda model, batch: jax.grad(nll, has_aux=True)(added, model))
  monkeypatch.undo()
  by_hand = np.linalg.norm(gradient, axis=-1) * np.linalg.norm(states, axis=-1)
  np.testing.assert_allclose(score, by_hand, rtol=1e-4, atol=1e-7)
  assert (by_hand[:real][mask[:real]] > 0).all()
  rows = oracle_rows()
  kept = screen.see(rows["oracle, gradient, 1/2"])
  assert kept.users == screen.see(choose(["recent, 1/2"], ROWS)[1]).users and kept.tokens < 0.8


def test_holm_is_step_down_and_monotone():
  assert holm([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]
  assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_collected_runs_hold_differences_to_dense(tmp_path, monkeypatch):
  """From evaluated runs to rows of the JSON file: metrics, interval, costs, commands."""
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (1, 2), str(tmp_path))
  rng = np.random.default_rng(0)
  seeds = {DENSE: (1, 2, 3), "recent, 1/2": (1, 2, 3), "recent, 1/4": (4,), "rastp, 1/2": (2, 3, 4)}
  monkeypatch.setattr(Trainings, "finished", lambda self, row: set(seeds.get(row.name, ())))
  evaluated = {
    name: {
      seed: make_result(
        name,
        rng.integers(0, 20, 200),
        seed=seed,
        training_samples=1e6,
        device_kind=f"GPU {seed % 2}",
      )
      for seed in its
    }
    for name, its in seeds.items()
  }
  group = lambda self, row: Group(row.name, tuple(evaluated[row.name][seed] for seed in self.seeds))
  monkeypatch.setattr(Trainings, "group", group)
  rows = choose(["recent", "rastp"], ROWS)
  costs = {DENSE: 1.0, "recent, 1/2": 0.7, "rastp, 1/2": 0.7}
  runs = {run["name"]: run for run in collecting.merge([], collecting.collect(trainings, rows, costs, {}))}
  assert {name: run["seeds"] for name, run in runs.items()} == {
    DENSE: [1, 2, 3],
    "recent, 1/2": [1, 2, 3],
    "rastp, 1/2": [2, 3],  # dense was not trained with the fourth
  }
  dense, recent, rastp = (runs[name] for name in (DENSE, "recent, 1/2", "rastp, 1/2"))
  assert (dense["name"], recent["name"], recent["budget"], recent["stage"]) == (DENSE, "recent, 1/2", 1 / 2, "train")
  values = lambda name, *its: Group("", tuple(evaluated[name][seed] for seed in its)).user_values("ndcg@10")
  expected = paired_bootstrap("ndcg@10", values(DENSE, 1, 2, 3), values("recent, 1/2", 1, 2, 3))
  assert (recent["ndcg@10_difference"], recent["p"]) == (expected.value, expected.p)
  assert recent["ndcg@10_difference_low"] < recent["ndcg@10_difference"] < recent["ndcg@10_difference_high"]
  assert rastp["dense_ndcg@10"] == np.mean(values(DENSE, 2, 3))
  beside = paired_bootstrap("ndcg@10", values("recent, 1/2", 2, 3), values("rastp, 1/2", 2, 3))
  assert (rastp["control"], rastp["control_difference"]) == ("recent, 1/2", beside.value)
  assert "control" not in recent and dense["p_holm"] is None
  assert [recent["p_holm"], rastp["p_holm"]] == holm([recent["p"], rastp["p"]])
  assert recent["encoder_flops_vs_dense"] == 0.7 and recent["training_seconds_vs_dense"] is None
  assert rastp["devices"] == ["GPU 0", "GPU 1"]
  assert recent["config"] == "configs/tiny.py" and recent["length"] == "1 epochs"
  assert rastp["ndcg@10_of_seeds"] == [np.mean(values("rastp, 1/2", seed)) for seed in (2, 3)]
  (table,) = page.make({"runs": list(runs.values())}).tables.values()
  of_seeds = {row[0]: row[table[0].index("of each seed")] for row in table}
  of_seed = lambda seed: np.mean(values("rastp, 1/2", seed)) / np.mean(values(DENSE, seed)) - 1
  assert of_seeds[DENSE] == "" and of_seeds["rastp, 1/2"] == f"{of_seed(2):+.1%}, {of_seed(3):+.1%}"
  assert {run["interval_over"] for run in runs.values()} == {"users"} and not any(
    "(seeds)" in cell for cell in table[-1]
  )
  assert "--config.train.seed=1" in recent["commands"][0] and "--split=validation" in recent["commands"][1]


def test_runs_of_the_file_are_never_lost():
  """A run that is found again replaces the stored one; the others stay, and Holm's correction is made again."""
  run = lambda name, p, stage="train": {
    "name": name, "p": p, "dataset": "beauty", "config": "c", "stage": stage, "length": "1 epochs", "ndcg@10": p
  }  # fmt: skip
  stored = [run("a", 0.02), run("b", 0.04), run("a", 0.5, "confirm")]
  merged = collecting.merge(stored, [run("b", 0.03), run(DENSE, 1.0)])
  found = {(one["stage"], one["name"]): one["p_holm"] for one in merged}
  assert found == {("train", "a"): 0.04, ("train", "b"): 0.04, ("train", DENSE): None, ("confirm", "a"): 0.5}
  assert stored[0].keys() == run("a", 0.0).keys(), "what was given is not changed"


def test_seeds_are_collected_where_they_are_finished(tmp_path):
  """Also those that this call does not ask for; without an evaluation a seed is not finished."""
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (1,), str(tmp_path))
  row = ROWS["recent, 1/2"]
  for seed, evaluated in ((1, True), (2, False), (3, True)):
    workdir = trainings.workdir(row, seed)
    workdir.path.mkdir(parents=True)
    files.write_json(workdir.summary, {"steps": 1})
    if evaluated:
      workdir.evaluation("validation").write_text("{}")
  assert trainings.finished(row) == {1, 3} and trainings.finished(ROWS[DENSE]) == set()
  moved = trainings.workdir(row, 1).path
  moved.rename(moved.with_name("seed_1_old"))
  assert trainings.finished(row) == {3}


def save_run(trainings, row, seed, ranks, samples=1e6):
  """A finished run of a row as its commands leave it: the summary, and an evaluation, whose path is returned."""
  workdir = trainings.workdir(row, seed)
  workdir.path.mkdir(parents=True)
  made = make_result("x", ranks, seed=seed, steps=7, training_samples=samples, device_kind="cpu")
  made.metrics["config"].update(config_lib.to_dict(row.apply(Config())))
  files.write_json(workdir.summary, {"steps": 7, "samples": samples, "seconds": 1.0})
  path = workdir.evaluation(trainings.split)
  results.save(path, made)
  return path


def test_where_ranks_were_not_kept_the_interval_is_over_seeds(tmp_path):
  """One file without ranks is enough. A single seed has no such interval: no control then, and dense needs ranks."""
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (1, 2, 3), str(tmp_path))
  recent, rastp, dense = (ROWS[name] for name in ("recent, 1/2", "rastp, 1/2", DENSE))
  paths = {
    (row, seed): save_run(trainings, row, seed, np.arange(200) % (20 - seed))
    for row, seeds in ((dense, (1, 2, 3)), (recent, (1, 2, 3)), (rastp, (3,)))
    for seed in seeds
  }
  results.ranks_path(paths[recent, 3]).unlink()
  files.write_json(paths[recent, 3], files.read_json(paths[recent, 3], "") | {"ndcg@10": 0.3})
  collect = lambda: collecting.collect(trainings, [dense, recent, rastp], {"recent, 1/2": 0.7, "rastp, 1/2": 0.7}, {})
  found = {run["name"]: run for run in collect()}
  assert {name: run["interval_over"] for name, run in found.items()} == {
    DENSE: "users",
    "recent, 1/2": "seeds",
    "rastp, 1/2": "users",
  }
  assert "control" not in found["rastp, 1/2"]
  mine = found["recent, 1/2"]
  ours, theirs = (np.asarray(mine[name]) for name in ("ndcg@10_of_seeds", "dense_ndcg@10_of_seeds"))
  assert ours[2] == 0.3
  margin = 4.302653 * np.std(ours - theirs, ddof=1) / np.sqrt(3)  # Student's t of two degrees of freedom
  ends = [mine[f"ndcg@10_difference{end}"] for end in ("_low", "", "_high")]
  np.testing.assert_allclose(ends, np.mean(ours - theirs) + np.array([-margin, 0, margin]), rtol=1e-6)
  (table,) = page.make({"runs": collecting.merge([], list(found.values()))}).tables.values()
  assert {line[0] for line in table if any(cell.endswith("(seeds)") for cell in line)} == {"recent, 1/2"}
  results.ranks_path(paths[dense, 3]).unlink()
  with pytest.raises(
    InputError, match="rastp, 1/2 has one seed in common with dense, 3, .*missing .*dense/1_epochs/seed_3/eval"
  ):
    collect()


def test_seeds_that_were_trained_elsewhere_count(tmp_path, capsys):
  """The file has two seeds of a row and three of dense, whose runs are gone; another of the row is trained then."""
  rng, recent, dense = np.random.default_rng(0), ROWS["recent, 1/2"], ROWS[DENSE]
  first, then = (
    Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (2,), str(tmp_path / place))
    for place in ("gone", "here")
  )
  for row, seeds in ((dense, (1, 2, 3)), (recent, (1, 3))):
    for seed in seeds:
      save_run(first, row, seed, rng.integers(0, 20, 200))
  stored = collecting.merge([], collecting.collect(first, [dense, recent], {}, {}))
  before = {run["name"]: run for run in stored}
  of_seeds = before["recent, 1/2"]["ndcg@10_of_seeds"]
  before["recent, 1/2"]["equal_time"] = {"seeds": [1, 3], "ndcg@10_of_seeds": of_seeds}
  for seed in (2, 4):  # of the fourth there is no dense run
    save_run(then, recent, seed, rng.integers(0, 20, 200))
  merged = collecting.merge(stored, collecting.collect(then, [dense, recent], {}, {}, stored))
  after = {run["name"]: run for run in merged}
  assert after == {DENSE: before[DENSE], "recent, 1/2": after["recent, 1/2"]}
  run, own = after["recent, 1/2"], then.group(recent)
  assert run["seeds"] == [1, 2, 3] and run["interval_over"] == "seeds" and run["equal_time"]["seeds"] == [1, 3]
  for metric in collecting.METRICS:
    (of_seed,) = own.values(metric)
    np.testing.assert_allclose(run[metric], (2 * before["recent, 1/2"][metric] + of_seed) / 3)
  one, three = before["recent, 1/2"]["ndcg@10_of_seeds"]
  expected = paired_seeds("ndcg@10", before[DENSE]["ndcg@10_of_seeds"], [one, *own.values("ndcg@10"), three])
  ends = ("", "_low", "_high")
  assert [run[f"ndcg@10_difference{end}"] for end in ends] == [expected.value, expected.low, expected.high]
  places = [re.search("/(gone|here)/", command).group(1) for command in run["commands"]]
  assert places == ["gone", "gone", "here", "here", "gone", "gone"]
  again = collecting.merge(merged, collecting.collect(then, [dense, recent], {}, {}, merged))
  assert again == merged
  flags = dataclasses.replace(then, config_flags=("--config=configs/tiny.py", "--config.train.log_every=7 steps"))
  assert collecting.merge(merged, collecting.collect(flags, [dense, recent], {}, {}, merged)) == merged
  # A file of before, which does not hold the metrics of each seed
  old = [{name: value for name, value in run.items() if name != "of_seeds"} for run in stored]
  for seed in (1, 3):
    save_run(then, dense, seed, rng.integers(0, 20, 200))
  assert collecting.merge(old, collecting.collect(then, [dense, recent], {}, {}, old)) == old
  said = capsys.readouterr().out.splitlines()
  assert (
    "recent, 1/2 stays as the file has it. It would lose seeds (1, 3), whose own metrics the file does not hold."
    in said
  )


def test_the_control_is_the_nearest_of_the_file_over_all_seeds_of_the_row(tmp_path):
  """Also where some of the row's seeds were trained elsewhere, or the control itself."""
  rng, names = np.random.default_rng(0), (DENSE, "recent, 1/2", "recent, 1/4", "rastp, 1/2")
  dense, half, quarter, rastp = rows = [ROWS[name] for name in names]
  costs = {DENSE: 1.0, half.name: 0.7, quarter.name: 0.6, rastp.name: 0.71}
  first, then = (
    Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (2,), str(tmp_path / place))
    for place in ("gone", "here")
  )
  for row, seeds in ((dense, (1, 2, 3)), (half, (1, 2)), (quarter, (1, 2, 3)), (rastp, (1, 3))):
    for seed in seeds:  # one step of one of them was skipped
      save_run(first, row, seed, rng.integers(0, 20, 200), samples=1e6 - 1024 * (seed == 3))
  stored = collecting.merge([], collecting.collect(first, rows, costs, {}))
  found = {run["name"]: run for run in stored}
  assert [found[row.name]["p_holm"] for row in rows[1:]] == holm([found[row.name]["p"] for row in rows[1:]])
  assert (found[rastp.name]["control"], found[rastp.name]["control_interval_over"]) == (quarter.name, "users")
  save_run(then, rastp, 2, rng.integers(0, 20, 200))
  stored = collecting.merge(stored, collecting.collect(then, rows, costs, {}, stored))
  found = {run["name"]: run for run in stored}

  def check(control):
    ours, theirs = (found[name]["ndcg@10_of_seeds"] for name in (rastp.name, control))
    expected = paired_seeds("ndcg@10", theirs, ours)
    assert found[rastp.name]["seeds"] == [1, 2, 3] and found[rastp.name]["control"] == control
    assert found[rastp.name]["control_difference"] == expected.value
    assert found[rastp.name]["control_difference_high"] == expected.high
    assert found[rastp.name]["control_interval_over"] == "seeds"

  check(quarter.name)  # the nearer one has not all seeds
  save_run(then, half, 3, rng.integers(0, 20, 200))
  stored = collecting.merge(stored, collecting.collect(then, rows, costs, {}, stored))
  found = {run["name"]: run for run in stored}
  check(half.name)
  assert collecting.merge(stored, []) == stored
  for seed in (1, 2, 3):  # the control is trained again, and nothing else looked at
    shutil.rmtree(then.workdir(half, seed).path, ignore_errors=True)
    save_run(then, half, seed, rng.integers(0, 20, 200))
  stored = collecting.merge(stored, collecting.collect(then, [dense, half], costs, {}, stored))
  found = {run["name"]: run for run in stored}
  check(half.name)


def test_a_metric_that_was_not_asked_for_stays_open(tmp_path):
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (1, 2), str(tmp_path))
  for seed in (1, 2):
    path = save_run(trainings, ROWS[DENSE], seed, np.arange(200) % 20)
    values = files.read_json(path, "")
    values["config"]["eval"]["top_k"] = [10]
    files.write_json(path, {name: value for name, value in values.items() if not name.endswith("@5")})
  (run,) = collecting.collect(trainings, [ROWS[DENSE]], {}, {})
  assert run["recall@5"] is None and run["deviation"]["recall@5"] is None and run["recall@10"] > 0


def test_seeds_of_equal_groups_do_not_differ():
  assert paired_seeds("ndcg@10", [0.1, 0.2], [0.1, 0.2]) == Difference("ndcg@10", 0.0, 0.0, 0.0, 1.0)


def test_runs_that_are_not_what_a_row_says_are_refused(tmp_path):
  """Settings of an earlier version, or weights from before the end of training."""
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (1,), str(tmp_path))
  row = ROWS["recent, 1/2"]
  path = save_run(trainings, row, 1, np.arange(200) % 20)
  assert trainings.group(row).results[0].metrics["step"] == 7

  def check(changes=(), data=None):
    trainings.check(list(ROWS.values()), config_lib.with_values(Config(), changes), data or {})

  check()
  for name, value in (("model.dropout", 0.3), ("train.learning_rate", 0.5), ("eval.beam_width", 20)):
    with pytest.raises(InputError, match=f"seed_1 was trained with {name}=.*, where configs/tiny.py as .* has {value}"):
      check([(name, value)])
  with pytest.raises(InputError, match="trained with reduction.voters=all, where .* as given has last: give another"):
    check([("reduction.voters", "last")])
  check([("train.seed", 5), ("train.log_every", "7 steps"), ("model.dtype", "float32")])
  check(data={"dataset_fingerprint": "f", "semantic_ids_fingerprint": "any"})  # of the codes this run does not tell
  with pytest.raises(InputError, match=r"trained on other data \(dataset_fingerprint f, elsewhere g\): give another"):
    check(data={"dataset_fingerprint": "g"})
  other = save_run(trainings, ROWS[DENSE], 1, np.arange(200) % 20)
  files.write_json(other, files.read_json(other, "") | {"dataset_fingerprint": "g"})
  with pytest.raises(InputError, match="trained on other data"):
    check()
  other.unlink()
  values = files.read_json(path, "")
  files.write_json(path, {name: value for name, value in values.items() if name != "steps"})
  with pytest.raises(InputError, match="seed_1 was evaluated before its end: remove .*eval_validation.json"):
    trainings.group(row)
  files.write_json(path, values | {"step": 6})
  with pytest.raises(InputError, match="seed_1 was evaluated at step 6 of 7, where the last weights"):
    trainings.group(row)
  values["config"]["reduction"]["positions"] = "item"
  files.write_json(path, values)
  with pytest.raises(
    InputError, match="seed_1 was trained with reduction.positions=item, where the row 'recent, 1/2' has original"
  ):
    check()  # before anything is trained


def test_at_equal_time_dense_has_seen_fewer_samples(tmp_path):
  """A row is compared with dense of the length that its measured seconds allow, and of no other."""
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "confirm", "16 epochs", (1,), str(tmp_path))
  rng, row, dense = np.random.default_rng(0), ROWS["item_sum, before block 0"], ROWS[DENSE]
  ranks = {}
  for one, length, samples in ((dense, 16, 160), (row, 16, 160), (dense, 5, 50), (dense, 8, 80)):
    ranks[one.name, length] = rng.integers(0, 20, 200)
    long = dataclasses.replace(trainings, length=f"{length} epochs")
    save_run(long, one, 1, ranks[one.name, length], samples)

  def found(low, high):
    timed = {row.name: {"vs_dense": 0.3, "low": low, "high": high}}
    return collecting.merge([], collecting.collect(trainings, [dense, row], {}, timed))

  def ndcg(name, length):
    return Group("", (make_result("", ranks[name, length]),)).user_values("ndcg@10")

  by_name = {run["name"]: run for run in found(0.3, 0.32)}
  equal = by_name[row.name]["equal_time"]
  expected = paired_bootstrap("ndcg@10", ndcg(DENSE, 5), ndcg(row.name, 16))
  assert (equal["dense_length"], equal["seeds"], equal["difference"]) == ("5 epochs", [1], expected.value)
  (shown,) = page.equal_time_table(list(by_name.values()))[1:]
  assert shown[:4] == ["synthetic", row.name, "16 epochs", "5 epochs"]
  assert "equal_time" not in by_name[DENSE]
  assert all("equal_time" not in run for run in found(0.35, 0.4))
  stored = list(by_name.values())
  again = {run["name"]: run for run in collecting.collect(trainings, [dense, row], {}, {}, stored)}
  assert again[row.name]["equal_time"] == equal  # a comparison of the file is kept where none can be made
  equal["ndcg@10_of_seeds"] = [0.5]  # of a run that is gone
  assert all("equal_time" not in run for run in collecting.collect(trainings, [dense, row], {}, {}, stored))
  shorter = dataclasses.replace(trainings, length="5 epochs")
  results.ranks_path(shorter.workdir(dense, 1).evaluation("test")).unlink()
  assert all("equal_time" not in run for run in found(0.3, 0.32))  # a single seed needs ranks of users


def test_runs_look_at_their_last_weights_alone(tmp_path):
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "train", "2 epochs", (1,), str(tmp_path))
  assert "'--config.train.eval_every=2 epochs'" in trainings.commands(ROWS["recent, 1/2"])[0].text


def test_rows_that_are_taught_name_the_dense_run(tmp_path):
  trainings = Trainings(("--config=configs/tiny.py",), "synthetic", "train", "1 epochs", (1,), str(tmp_path))
  taught, plain = (trainings.commands(ROWS[name])[0].text for name in ("rastp, taught by dense, 1/2", "rastp, 1/2"))
  assert f"--config.train.teacher={tmp_path}/synthetic/dense/1_epochs/seed_1" in taught and "teacher" not in plain


def make_stored():
  """What a result file may hold."""
  run = lambda name, method, cost, value, p: {
    "name": name, "method": method, "dataset": "beauty", "config": "c", "stage": "train", "length": "4 epochs",
    "split": "validation", "samples": 5.0, "seeds": [1], "encoder_flops_vs_dense": cost, "recall@10": 2 * value,
    "ndcg@10": value, "dense_ndcg@10": 0.03, "ndcg@10_difference": value - 0.03,
    "ndcg@10_difference_low": value - 0.031, "ndcg@10_difference_high": value - 0.029, "p_holm": p,
    "training_seconds_vs_dense": None, "users": 9,
  }  # fmt: skip
  runs = [
    run(DENSE, "none", 1.0, 0.03, None),
    run("rastp, 1/2", "rastp", 0.74, 0.028, 0.01) | {
      "control": "recent, 1/2", "control_difference": -0.001, "control_difference_low": -0.002,
      "control_difference_high": 0.0,
    },
    run("recent, 1/2", "recent", 0.74, 0.029, 0.2),
    run("item_sum, <before>", "item_sum", 0.24, 0.032, 0.2),
  ]  # fmt: skip
  seen = {
    "users": 9, "rise": 0.1, "error": 0.01, "tokens": 0.3, "kept_by_level": [0.5] * 4, "kept_by_age": [0.5] * 10,
    "overlap_with_recent": 0.4,
  }  # fmt: skip
  rows = {"rastp, 1/4": seen, "oracle, gradient, 1/4": seen, "tome, 1/4": seen | {"overlap_with_recent": None}}
  timed = {"vs_dense": 0.5, "low": 0.4, "high": 0.6, "samples_per_second": 1000.0, "peak_bytes": 5e7}
  return {
    "runs": runs,
    "screens": {"c": {"about": {"users": 2000}, "rows": rows}},
    "seconds": {"c": {"about": {}, "rows": {"item_sum, <before>": timed}}},
  }


def test_the_page_shows_everything_plots_first():
  stored = make_stored()
  stored["runs"][0]["devices"] = ["cpu"]
  shown = page.make(stored)
  (table,) = (rows for rows in shown.tables.values() if rows[0][-1] == "trained on")
  assert {row[0]: row[-1] for row in table[1:]}[DENSE] == "cpu"
  html = page.render("A & B", shown, "python x")
  assert [svg.count("<circle") >= 3 for _, svg, _ in shown.plots] == [True, True]
  assert html.index("<svg") < html.index("<table") and "A &amp; B" in html and "item_sum, &lt;before&gt;" in html
  assert "prefers-color-scheme:dark" in html and "width=device-width" in html
  for rows in shown.tables.values():
    assert len(rows) > 1 and all(len(row) == len(rows[0]) for row in rows)
  assert [row[table[0].index("to recent of nearest FLOPs (its FLOPs)")] for row in table[1:]].count("-3.3% (0.74)") == 1
  assert set(shown.files) == {"beauty_c_train_flops", "c_inside"}
  stored["runs"] = [
    run | {"config": config} for run in stored["runs"] for config in ("configs/beauty.py:cpu", "b.py:x,y")
  ]
  assert set(page.make(stored).files) == {"beauty_cpu_train_flops", "beauty_b_x_y_train_flops", "c_inside"}
  for svg in shown.files.values():
    xml.etree.ElementTree.fromstring(svg)


def test_labels_do_not_overlap_and_every_point_is_inside():
  """Of many points in one place only some are labelled; ticks hold all values."""
  points = [Point(f"point {i}", "drop", 0.5 + 0.001 * i, 1.0, 0.9, 1.2) for i in range(20)]
  points.append(Point("far", "dense", 1.0, 0.4, 0.4, 0.4))
  svg = scatter.draw(points, "cost", "value", level=1.0)
  assert 2 <= svg.count(">point ") - 20 < 12 and ">far<" in svg
  circles = re.findall(r"cx='([\d.]+)' cy='([\d.]+)' r='3.2'/></g>", svg)
  assert all(0 <= float(x) <= scatter.WIDTH and 0 <= float(y) <= scatter.HEIGHT for x, y in circles)
