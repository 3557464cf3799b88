"""The training loop: optimizers against their formulas, exact resume, one compile a shape, refusals, stopping."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rastp_jax import config as config_lib
from rastp_jax.batches.batches import ORDER
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.errors import InputError
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.model.factory import make_model
from rastp_jax.runtime import sharding
from rastp_jax.training import optimizer, progress, runs, step
from rastp_jax.training.plan import BestMetric, Due, SavedProgress, make_plan
from rastp_jax.training.setup import make_setup
from rastp_jax.training.workdir import Workdir
from tests.helpers import compiling
from tests.helpers.training import (
  Died,
  assert_equal,
  count_compilations,
  die_at,
  logged,
  newest,
  one_device,
  run,
  saved_params,
  setup_of,
  single_batches,
)

GOLDEN = pathlib.Path(__file__).parent / "golden" / "small_trained.npz"
ROOT = pathlib.Path(__file__).parent.parent


# Optimizers


def torch_adam(param, grads, *, rate, decay, decoupled, b1=0.9, b2=0.999, eps=1e-8):
  """PyTorch's documented Adam / AdamW, in NumPy."""
  first, second = np.zeros_like(param), np.zeros_like(param)
  for number, grad in enumerate(grads, 1):
    if decoupled:
      param = param - rate * decay * param
    else:
      grad = grad + decay * param
    first = b1 * first + (1 - b1) * grad
    second = b2 * second + (1 - b2) * grad**2
    param = param - rate / (1 - b1**number) * first / (np.sqrt(second) / np.sqrt(1 - b2**number) + eps)
  return param


def apply(rule, params, grads):
  state = rule.init(params)
  for grad in grads:
    change, state = rule.update(grad, state, params)
    params = optax.apply_updates(params, change)
  return params


@pytest.mark.parametrize("name, decoupled", [("adam_l2", False), ("adamw", True)])
def test_optimizers_match_torch(name, decoupled):
  rng = np.random.default_rng(0)
  param = {"heads": {"kernel": rng.normal(size=(3, 4))}, "norm": {"scale": rng.normal(size=(4,))}}
  grads = [jax.tree.map(lambda p: rng.normal(size=p.shape) * 1e-3, param) for _ in range(3)]
  train = make_config(
    train__optimizer=name, train__learning_rate=0.01, train__weight_decay=0.1, train__clip_norm=0.0
  ).train
  got = apply(optimizer.make_optimizer(train, 3), jax.tree.map(jnp.float32, param), jax.tree.map(jnp.float32, grads))
  for path, decay in ((("heads", "kernel"), 0.1), (("norm", "scale"), 0.0 if decoupled else 0.1)):
    pick = lambda tree: tree[path[0]][path[1]]  # noqa: B023, E731
    expected = torch_adam(pick(param), [pick(g) for g in grads], rate=0.01, decay=decay, decoupled=decoupled)
    np.testing.assert_allclose(pick(got), expected, rtol=2e-5)


def test_adam_l2_matches_the_published_step():
  golden = np.load(GOLDEN)
  names = [key.removeprefix("prune/adam1/") for key in golden if key.startswith("prune/adam1/")]
  names = [name for name in names if f"prune/grad/{name}" in golden]
  assert names
  train = make_config(
    train__optimizer="adam_l2", train__weight_decay=1e-4, train__clip_norm=0.0, train__learning_rate=1e-3
  ).train
  params, grads = ({name: jnp.asarray(golden[prefix + name]) for name in names} for prefix in ("param/", "prune/grad/"))
  got = apply(optimizer.make_optimizer(train, None), params, [grads])
  for name in names:
    np.testing.assert_allclose(got[name], golden[f"prune/adam1/{name}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("given", [{}, {"norm": 5.0}])
def test_clipping_bounds_the_gradient(given):
  train = make_config(train__optimizer="adam_l2", train__weight_decay=0.0, train__clip_norm=0.5).train
  rule = optimizer.make_optimizer(train, None)
  params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
  gradient = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([0.0, 4.0])}
  _, state = rule.update(gradient, rule.init(params), params, **given)
  first_moment = optax.tree.get(state, "mu")
  np.testing.assert_allclose(first_moment["a"], [0.03, 0.0], rtol=1e-5)  # 0.1 * 3 * 0.5 / 5
  np.testing.assert_allclose(first_moment["b"], [0.0, 0.04], rtol=1e-5)


def test_clipping_takes_the_norm_of_an_averaged_gradient():
  train = make_config(train__weight_decay=0.0, train__clip_norm=0.5, train__grad_accumulation_steps=2).train
  rule = optimizer.make_optimizer(train, None)
  params = {"a": jnp.zeros(2)}
  state = rule.init(params)
  for gradient in ([3.0, 8.0], [3.0, 0.0]):  # their average is (3, 4)
    norm = optax.tree.norm(jnp.asarray(gradient))
    _, state = rule.update({"a": jnp.asarray(gradient)}, state, params, norm=norm)
  np.testing.assert_allclose(optax.tree.get(state, "mu")["a"], [0.03, 0.04], rtol=1e-5)  # 0.1 * (3, 4) * 0.5 / 5


def test_decay_spares_all_but_matrices():
  config = make_config()
  mask = optimizer.decay_mask(step.fresh_params(config, make_data()[1]))
  named = {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(mask)}
  assert named.pop("['heads'][0]['kernel']")
  for name, decays in named.items():
    assert decays == name.endswith("['kernel']"), name
  assert not named["['code_embedding']"]


def test_schedule():
  train = make_config(train__schedule="cosine", train__learning_rate=2.0).train
  rates = [float(optimizer.make_schedule(train, 12, 4)(update)) for update in range(13)]
  np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
  np.testing.assert_allclose([rates[8], rates[12]], [1.0, 0.0], atol=1e-6)
  constant = make_config(train__learning_rate=2.0).train
  assert float(optimizer.make_schedule(constant, None, 0)(0)) == 2.0


def test_adam_refuses_a_decay_it_has_not():
  with pytest.raises(InputError, match="train.weight_decay=0.05 has no effect with train.optimizer='adam'"):
    optimizer.make_optimizer(make_config(train__optimizer="adam").train, 10)


# Lengths


@pytest.mark.parametrize(
  "length, accumulate, dispatch, steps",
  [("7 steps", 1, 1, 7), ("7 steps", 2, 1, 8), ("7 steps", 2, 3, 12), ("2 epochs", 1, 1, 20), ("160 samples", 1, 1, 5)],
)
def test_lengths(length, accumulate, dispatch, steps):
  changes = {
    "train__length": length,
    "train__grad_accumulation_steps": accumulate,
    "train__steps_per_dispatch": dispatch,
  }
  plan = make_plan(make_config(**changes), 10, 32.0)
  assert all(every % dispatch == 0 for every in (plan.log_every, plan.eval_every, plan.checkpoint_every))
  assert (plan.total_steps, plan.total_updates, plan.total_seconds) == (steps, steps // accumulate, None)
  assert not plan.reason_to_stop(steps - 1, 1e9, BestMetric()) and plan.reason_to_stop(steps, 0.0, BestMetric())


@pytest.mark.parametrize(("steps", "lines"), [(99, 2), (100, 20), (1000, 20), (2000, 40)])
def test_every_run_but_a_short_one_logs_twenty_times(steps, lines):
  plan = make_plan(make_config(train__length=f"{steps} steps", train__log_every="50 steps"), 10, 32.0)
  assert -(-steps // plan.log_every) == lines


@pytest.mark.slow
def test_minutes_count_training_only_and_survive_restarts(tmp_path, monkeypatch):
  """On a clock by which a batch takes 0.05 s and an evaluation 100 s, of which only the former is training."""
  now = [0.0]
  monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

  def slow_batches(upcoming, start):
    for batch in upcoming:
      now[0] += 0.05
      yield batch

  def slow_evaluation(model):
    now[0] += 100.0
    return {"recall@5": 0.1}

  changes = {"train__length": "0.021 minutes", "train__eval_every": "10 steps", "train__patience": 0}
  result = run(tmp_path, slow_evaluation, batches=slow_batches, **changes)
  assert (result.step, result.reason) == (26, "the 0.021 minutes of training are over")
  np.testing.assert_allclose(result.seconds, 26 * 0.05)
  assert now[0] > 300
  again = run(tmp_path, slow_evaluation, batches=slow_batches, **changes | {"train__length": "0.024 minutes"})
  assert again.step == 29
  np.testing.assert_allclose(again.seconds, 29 * 0.05)


def test_a_clock_can_be_read_while_the_loop_pauses_it(monkeypatch):
  """As by the thread that reads an interval's numbers."""
  monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: 0.0))
  clock, paused = progress.Clock(1.0), contextlib.ExitStack()

  def pause():
    monkeypatch.setattr(progress.time, "monotonic", lambda: 5.0)
    paused.enter_context(clock.paused())
    return 5.0

  monkeypatch.setattr(progress.time, "monotonic", pause)
  assert clock.seconds == 6.0 and clock.seconds == 6.0
  paused.close()
  monkeypatch.setattr(progress.time, "monotonic", lambda: 7.0)
  assert clock.seconds == 8.0


# Resume


def test_resume_is_exact_and_compiles_once_a_bucket(tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  buckets = {"data__bucket_lengths": (3, 6), "train__seed": 204}  # so that no other test compiles this
  compiled = count_compilations("jit(train_step)")
  run(whole, **buckets)
  assert compiled() == 2
  with pytest.raises(Died):
    run(broken, batches=die_at(8), **buckets)
  with (broken / "metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "loss": 1.0}\n{"step": 9, "lo')  # logged after the checkpoint of step 5, and torn
  assert run(broken, **buckets).step == 12
  assert compiled() == 2  # of one setup, however often it is trained
  assert list(logged(broken)) == [3, 6, 9, 12]
  for field in ("loss", "loss_level_0", "grad_norm", "learning_rate", "epoch"):
    assert logged(broken, field) == logged(whole, field)
  ours, theirs = saved_params(broken), saved_params(whole)
  assert (ours.step, theirs.step) == (12, 12)
  assert_equal(ours.params, theirs.params)
  ours, theirs = (json.loads((workdir / "summary.json").read_text()) for workdir in (broken, whole))
  assert (ours["steps"], ours["samples"]) == (theirs["steps"], theirs["samples"])
  assert ours["step_bytes"] > 4 * ours["parameters"] * 4  # parameters, two moments, gradient


@pytest.mark.slow
def test_many_steps_a_dispatch_are_the_same_steps(tmp_path, monkeypatch):
  """Stacked batches give bit for bit what one after the other gives, and resume as exactly.

  That holds as XLA compiles for users; the tests' cheaper compiling fuses the two programs differently.
  """
  monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=compiling.AS_USERS))
  buckets, stacked, single = {"data__bucket_lengths": (3, 6)}, tmp_path / "stacked", tmp_path / "single"
  more = {"train__steps_per_dispatch": 3, "train__checkpoint_every": "4 steps"}  # 6, in whole dispatches
  with pytest.raises(Died):
    run(stacked, batches=die_at(8), **buckets, **more)
  assert newest(stacked) == 6
  assert run(stacked, **buckets, **more).step == 12
  order = setup_of(**buckets, **more)  # of the batches; they come one per dispatch
  run(single, batches=lambda _, start: single_batches(order, start), **buckets)
  assert logged(stacked) == logged(single)
  assert_equal(saved_params(stacked).params, saved_params(single).params)


def test_finished_run_stays_as_it_is(reference, tmp_path, capsys):
  finished = tmp_path / "run"
  shutil.copytree(reference, finished)
  before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
  result = run(finished)
  assert result.step == 12
  said = capsys.readouterr().out.splitlines()
  assert said[0] == f"This run is finished: all 12 steps are done (step 12 of {finished})."
  assert [line.split()[0] for line in said[1:]] == ["checkpoint", "next"]
  after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
  for name in ("config.json", "lock"):
    before.pop(finished / name), after.pop(finished / name)
  assert before == after


def test_a_finished_run_that_is_made_longer_has_no_summary_until_it_ends(reference, tmp_path):
  shutil.copytree(reference, tmp_path / "run")
  summary = Workdir(tmp_path / "run").summary
  assert json.loads(summary.read_text())["steps"] == 12
  with pytest.raises(Died):
    run(tmp_path / "run", train__length="14 steps", batches=die_at(13))
  assert not summary.exists()
  run(tmp_path / "run", train__length="14 steps")
  assert json.loads(summary.read_text())["steps"] == 14


def test_a_run_says_what_it_does_and_what_comes_next(tmp_path, capsys):
  scores = iter([0.25, 0.5, 0.125])
  evaluate = lambda model: {"recall@5": next(scores)}
  assert not setup_of().warning
  run(tmp_path / "a run", evaluate, train__eval_every="4 steps", reduction__keep_ratio=(1.0,))
  said = capsys.readouterr().out
  assert "\nWARNING: config.reduction shortens no history after block 0, not even one of 30 positions: a" in said
  assert "compiling 1 of 1: histories of up to 6 items …\n" in said and "validating at step 4 …\n" in said
  assert re.search(r"^step 4/12  33% .* left \| validation recall@5 0.2500 at step 4$", said, re.MULTILINE)
  assert re.search(r"^step 9/12  75% .* validation recall@5 0.5000 at step 8$", said, re.MULTILINE)
  assert re.search(r"^step 12/12 100% .* 0.1250 at step 12 \(best 0.5000 at step 8\)$", said, re.MULTILINE)
  assert said.splitlines()[-3:] == [
    "  score       validation recall@5 0.5000, the best, at step 8",
    f"  checkpoint  {tmp_path / 'a run' / 'checkpoints' / '8'}",
    f"  next        python -m rastp_jax.evaluate --workdir='{tmp_path}/a run'",
  ]
  assert (tmp_path / "a run" / "checkpoints" / "8").is_dir()


def test_torn_checkpoint_is_skipped(tmp_path, reference):
  run(tmp_path, train__length="10 steps")
  tear(tmp_path / "checkpoints" / "10")
  with pytest.warns(UserWarning, match=r"The checkpoint of step 10 cannot be read .*; going on from step 5\."):
    assert run(tmp_path).step == 12
  assert {path.name for path in (tmp_path / "unreadable_checkpoints").iterdir()} == {"10"}
  assert logged(tmp_path) == logged(reference)
  for number in (10, 12):
    tear(tmp_path / "checkpoints" / str(number))
  with pytest.raises(InputError, match=r"None of the 2 checkpoints in .* can be read \(step 12: "):
    run(tmp_path, train__length="20 steps")


def tear(directory):
  files = [path for path in directory.rglob("*") if path.is_file()]
  assert files
  for path in files:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_killed_process_goes_on(tmp_path):
  """kill -9, at moments that hit saving too; what is logged in the end equals an uninterrupted run's."""
  script = (
    "import pathlib, sys\n"
    "from tests.helpers.training import run\n"
    "run(pathlib.Path(sys.argv[1]), train__length='30 steps', train__checkpoint_every='2 steps')"
  )
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", script, str(tmp_path / "killed")]
  for delay in (0.15, 0.4):
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = newest(tmp_path / "killed")
    deadline = time.monotonic() + 300
    while newest(tmp_path / "killed") <= before and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  assert newest(tmp_path / "killed") < 30
  run(tmp_path / "killed", train__length="30 steps", train__checkpoint_every="2 steps")
  run(tmp_path / "whole", train__length="30 steps", train__checkpoint_every="30 steps")
  assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
  assert_equal(saved_params(tmp_path / "killed").params, saved_params(tmp_path / "whole").params)


# Validation


def test_early_stopping_keeps_the_best(tmp_path):
  results = iter([0.1, 0.3, 0.2, 0.3, 0.9])
  seen = []

  def evaluate(model):
    seen.append(jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    return {"recall@5": next(results), "ndcg@5": 0.01}

  result = run(
    tmp_path,
    evaluate,
    train__length="40 steps",
    train__eval_every="2 steps",
    train__patience=2,
    train__checkpoint_every="3 steps",
    train__keep_checkpoints=1,
  )
  assert (result.step, result.best) == (8, BestMetric(best_step=4, best=0.3, evaluations_since_best=2))
  assert result.reason == "validation recall@5 has not improved for 2 evaluations"
  assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8"}
  best = saved_params(tmp_path)
  assert best.step == 4
  assert_equal(best.params, seen[1])
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  recalls = {line["step"]: line["validation/recall@5"] for line in lines if "validation/recall@5" in line}
  assert recalls == {2: 0.1, 4: 0.3, 6: 0.2, 8: 0.3}
  assert all("loss" in line for line in lines)


# Devices, precision, accumulation


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(tmp_path, reference):
  run(tmp_path, mesh=sharding.make_mesh())
  one, eight = logged(reference), logged(tmp_path)
  assert one.keys() == eight.keys()
  np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-5)


def test_bfloat16_stays_close(tmp_path, reference):
  run(tmp_path, model__dtype="bfloat16")
  np.testing.assert_allclose(list(logged(tmp_path).values()), list(logged(reference).values()), rtol=0.02)
  assert logged(tmp_path) != logged(reference)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(saved_params(tmp_path).params))


def test_two_accumulated_batches_equal_one_of_twice_the_rows():
  _, semantic_ids = make_data()
  codes = semantic_ids.codes[np.random.default_rng(0).integers(0, 40, (16, 7))]
  rows = {"history": codes[:, :6], "target": codes[:, 6], "weight": np.ones(16, np.float32)}
  halves = [{name: value[part] for name, value in rows.items()} for part in (slice(0, 8), slice(8, 16))]
  config = make_config(model__dropout=0.0, model__mlp_dropout=0.0)
  graph, params = nnx.split(
    make_model(config, semantic_ids.widths, num_items=semantic_ids.num_items, rngs=nnx.Rngs(0)), nnx.Param
  )
  params = jax.tree.map(np.array, nnx.to_pure_dict(params))
  moments, moved = {}, {}
  for accumulate, batches in ((1, [rows]), (2, halves)):
    rule = optimizer.make_optimizer(make_config(train__grad_accumulation_steps=accumulate).train, 2)
    parts = [f"loss_level_{level}" for level in range(4)]
    state = step.make_state(jax.tree.map(jnp.array, params), rule, 0, parts)
    train_step = step.make_train_step(graph, rule, one_device())
    moved[accumulate] = []
    for batch in batches:
      stacked = {name: value[None] for name, value in batch.items()}
      state = train_step(state, sharding.place_batch(stacked, one_device(), row_axis=1))
      moved[accumulate].append(not np.array_equal(params["code_embedding"], state.params["code_embedding"]))
    # Adam's first moment shows the gradient itself; parameters would magnify rounding where it is near 0.
    moments[accumulate] = optax.tree.get(state.opt_state, "mu")
  assert moved == {1: [True], 2: [False, True]}
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moments[1]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * largest), moments[1], moments[2])


# Refusals


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (
      {"model__d_ff": 64},
      "config.model.d_ff=32, not 64: resume it with its own value (--config=RUN/config.json has all of them), or train "
      "in another --workdir.",
    ),
    ({"reduction__keep_ratio": (0.5,)}, "config.reduction.keep_ratio=(0.3333333333333333,), not (0.5,): "),
    ({"train__schedule": "cosine"}, "config.train.schedule='constant', not 'cosine': "),
  ],
)
def test_other_config_is_refused(reference, changes, sentence):
  before = (reference / "config.json").read_text()
  with pytest.raises(InputError) as error:
    run(reference, **changes)
  assert f"{reference} holds a run with {sentence.replace('RUN', str(reference))}" in str(error.value)
  assert (reference / "config.json").read_text() == before


def test_length_counts_where_the_learning_rate_depends_on_it(tmp_path):
  config = make_config(train__schedule="cosine")
  (tmp_path / "config.json").write_text(config_lib.to_json(config))
  with pytest.raises(InputError, match="config.train.length='12 steps', not '13 steps'"):
    run(tmp_path, train__schedule="cosine", train__length="13 steps")


def test_other_semantic_ids_are_refused(reference):
  with pytest.raises(InputError, match=r"was trained with other semantic IDs \(fingerprint \w{12}, now \w{12}\): put"):
    run(reference, data_seed=1)


def test_unusable_workdir_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot be written"):
    run(tmp_path / "file")
  with pytest.raises(InputError, match="holds no training run"):
    Workdir(tmp_path).read_config()
  with pytest.raises(InputError, match="holds no checkpoint yet"):
    Workdir(tmp_path).restore_params({})
  (tmp_path / "config.json").write_text(config_lib.to_json(make_config(model__dtype="auto")))
  with pytest.raises(InputError, match="config.json cannot be read \\(model.dtype is auto, and a run records"):
    Workdir(tmp_path).read_config()


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"eval__top_k": (10,)}, r"config.eval.top_k=\(10,\) lacks 5"),
    ({"train__optimizer": "adam"}, "config.train.weight_decay=0.05 has no effect with train.optimizer='adam'"),
    ({"train__eval_every": "0 steps"}, "config.train.eval_every='0 steps' is not an interval"),
    ({"mesh": None, "mesh__data": 3}, "config.mesh asks for data=3 x fsdp=1 x tensor=1, but there are 8 devices"),
  ],
)
def test_what_cannot_be_trained_is_refused_before_a_workdir_is_touched(changes, sentence):
  config = make_config(**{name: value for name, value in changes.items() if name != "mesh"})
  with pytest.raises(InputError, match=sentence):
    make_setup(config, *make_data(), mesh=changes.get("mesh", one_device()), validates=True)


def test_histories_too_short_to_train_on_are_refused():
  histories, semantic_ids = make_data()
  short = dataclasses.replace(histories, items=histories.items[:9], offsets=np.arange(0, 10, 3), user_ids=["a"] * 3)
  with pytest.raises(InputError, match="No user of beauty has the 4 items that training needs"):
    make_setup(make_config(), short, semantic_ids, mesh=one_device())


def test_several_processes_are_not_timed_by_the_clock(monkeypatch):
  mesh = one_device()
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(InputError, match="config.train.length='5 minutes' goes by the clock, and each of"):
    make_setup(make_config(train__length="5 minutes"), *make_data(), mesh=mesh)


# Bucket lengths, and what earlier versions wrote


@pytest.mark.slow
def test_bucket_lengths_left_open_are_chosen_and_recorded(tmp_path):
  left_open = {"data__bucket_lengths": (), "data__num_buckets": 2}
  assert run(tmp_path, **left_open, train__length="5 steps").step == 5
  chosen = Workdir(tmp_path).read_config().data.bucket_lengths
  histories, _ = make_data()
  assert chosen == bucket_lengths(make_config(**left_open).data, histories) and len(chosen) > 1
  assert run(tmp_path, **left_open, train__length="7 steps").step == 7
  assert run(tmp_path, **left_open | {"data__bucket_lengths": chosen}, train__length="9 steps").step == 9
  with pytest.raises(InputError, match=r"holds a run with config.data.bucket_lengths=\(.*\), not \(6,\): resume it"):
    run(tmp_path, **left_open | {"data__bucket_lengths": (6,)})
  assert Workdir(tmp_path).read_config().data.bucket_lengths == chosen


def test_a_workdir_with_the_names_of_version_0_1_resumes_exactly(tmp_path, reference):
  """Its config.json has former names; so has the config in its checkpoints."""
  with pytest.raises(Died):
    run(tmp_path, batches=die_at(8))
  old = json.loads(CONFIG_0_1)
  Workdir(tmp_path).config.write_text(CONFIG_0_1)
  for path in Workdir(tmp_path).checkpoints.glob("*/progress/metadata"):
    written = json.loads(path.read_text())
    del written["checksum"]  # of the names as they are now
    progress = json.loads(PROGRESS_0_1)
    assert written.keys() == progress.keys() | {"order"}
    assert written["standing"].keys() == progress["standing"].keys()
    path.write_text(json.dumps(written | {"config": old}))
  assert run(tmp_path).step == 12
  assert logged(tmp_path) == logged(reference)
  assert_equal(saved_params(tmp_path).params, saved_params(reference).params)
  assert Workdir(tmp_path).read_config() == Workdir(reference).read_config()
  Workdir(tmp_path).config.write_text(CONFIG_0_1)
  with pytest.raises(InputError, match="holds a run with config.reduction.method='rastp', not 'recent': "):
    run(tmp_path, reduction__method="recent")


def test_a_run_begun_in_another_order_of_samples_goes_on_in_this_one_and_says_so(tmp_path, reference, capsys):
  unfinished, finished = tmp_path / "unfinished", tmp_path / "finished"
  with pytest.raises(Died):
    run(unfinished, batches=die_at(8))
  shutil.copytree(reference, finished)
  for path in tmp_path.glob("*/checkpoints/*/progress/metadata"):
    written = json.loads(path.read_text())
    assert written.pop("order") == ORDER and written.pop("checksum")
    path.write_text(json.dumps(written))  # as before orders were recorded
  capsys.readouterr()
  epoch = 5 // setup_of().plan.steps_per_epoch + 1
  assert run(unfinished).step == 12
  warning = f"another order. From step 5 on it takes them in this version's: of epoch {epoch}, some may come twice"
  assert warning in capsys.readouterr().out
  assert logged(unfinished) == logged(reference)  # whose batches from step 5 on are this version's
  assert_equal(saved_params(unfinished).params, saved_params(reference).params)
  newest = Workdir(unfinished).checkpoints / "12" / "progress" / "metadata"
  assert json.loads(newest.read_text())["order"] == ORDER
  assert run(unfinished, train__length="15 steps").step == 15
  assert run(finished).step == 12
  assert "another order" not in capsys.readouterr().out  # one is in this version's now, the other takes no sample
  assert run(finished, train__length="15 steps").step == 15
  assert "another order. From step 12 on" in capsys.readouterr().out


def test_progress_of_version_0_1_is_read():
  progress = SavedProgress.from_json(json.loads(PROGRESS_0_1))
  assert progress == SavedProgress(60, Due.STEP, 5646.0, 3.1838, 3.1807, BestMetric(60, 0.035, 0), order=1)
  written = progress.to_json()
  assert written == {name: json.loads(PROGRESS_0_1).get(name, 1) for name in written}
  pending = SavedProgress.from_json(json.loads(PROGRESS_0_1) | {"pending": True})
  assert pending.due is Due.AFTER_STEP and pending.to_json()["pending"] is True
  for damage in ({"best_step": "../../elsewhere"}, {"best_step": 40}):
    with pytest.raises(ValueError, match="damaged"):
      SavedProgress.from_json(json.loads(PROGRESS_0_1) | damage)


def test_a_stage_with_weights_can_be_left_out_of_a_trained_run(tmp_path, monkeypatch):
  reduction = {"method": "item_projection+learned_score", "after_block": (-1, 0), "keep_ratio": (1.0, 0.1)}
  run(tmp_path, train__length="1 steps", **{f"reduction__{name}": value for name, value in reduction.items()})
  monkeypatch.setattr(runs, "_read_data", lambda config: make_data())
  monkeypatch.setattr(runs, "fingerprints", lambda *data: {})
  overrides = ["method=item_projection", "after_block=(-1,)", "keep_ratio=(1.0,)"]
  whole, less = (runs.load_model(tmp_path, [f"reduction.{one}" for one in some]) for some in ([], overrides))
  (ours, theirs) = (dict(nnx.to_flat_state(nnx.state(saved.model, nnx.Param))) for saved in (less, whole))
  assert 0 < len(ours) < len(theirs) and all((ours[path][...] == theirs[path][...]).all() for path in ours)


def test_overrides_of_a_run_go_by_the_settings_roles():
  names = re.sub(r" \(but not .*?\)", "", config_lib.overridable())  # options of single methods
  assert names == "data.data_dir, data.bucket_lengths, reduction, eval, counts"
  config = runs.override(make_config(), ["pruning.criterion=none", "data.bucket_items=()"])
  assert (config.reduction.method, config.data.bucket_lengths) == ("none", ())
  for text, sentence in (
    ("train.seed=5", "only data.data_dir, data.bucket_lengths, reduction.*, eval, counts may differ from the run"),
    ("beam_width=5", "config.beam_width is not a setting of this program: did you mean config.eval.beam_width"),
  ):
    with pytest.raises(InputError, match=sentence):
      runs.override(make_config(), [text])


# What version 0.1.0 wrote into the workdir of a tiny run, but for the learning rate
CONFIG_0_1 = """
{"data": {"brand_column": "brand", "bucket_items": [6], "buckets": 5, "categories_column": "categories", "core": 5,
"data_dir": "data", "dataset": "beauty", "item_column": "item", "max_items": 6, "min_length": 3, "mix_users": true,
"repeats": "keep", "samples_per_draw": 512, "sampling": "prefixes", "time_column": "timestamp", "title_column":
"title", "user_column": "user", "users_per_draw": 32, "workers": 0}, "eval": {"batch_size": 256, "beam_width": 10,
"constrained": true, "ks": [5, 10], "renormalize": false}, "mesh": {"data": -1, "fsdp": 1, "tensor": 1}, "model":
{"attention_dropout": 0.0, "d_ff": 32, "d_model": 16, "decoder_blocks": 1, "dropout": 0.15, "dtype": "float32",
"encoder_blocks": 1, "head_dim": 8, "init": "fan_in", "mlp_dropout": 0.15, "mlp_hidden_layers": 1, "norm_eps": 1e-06,
"num_heads": 2, "relative_buckets": 32, "relative_max_distance": 128, "separator": true, "uniform_width": false},
"pruning": {"after_block": [0], "criterion": "rastp", "keep_ratio": [0.3333333333333333], "keep_tokens": [],
"positions": "original", "prune_separators": true, "score_dropout": false, "score_padded_queries": false},
"semantic_ids": {"behaviour": 0.0, "behaviour_dims": 64, "collisions": "extra_level", "embeddings": "auto", "levels":
3, "method": "residual_kmeans", "normalize_residuals": true, "rqvae_commitment": 0.25, "rqvae_hidden": [256],
"rqvae_latent": 64, "rqvae_learning_rate": 0.001, "seed": 0, "text_dims": 256, "text_model":
"sentence-transformers/all-MiniLM-L6-v2", "text_template": "Title: {title}; Brand: {brand}; Categories: {categories}",
"train_batch": 1024, "train_steps": 2000, "width": 256}, "train": {"accumulate": 1, "batch_size": 16,
"checkpoint_every": "5 steps", "clip_norm": 1.0, "eval_every": "100 steps", "eval_users": 0, "keep_checkpoints": 2,
"learning_rate": 0.0001, "length": "12 steps", "log_every": "3 steps", "max_nonfinite_steps": 10, "optimizer": "adamw",
"patience": 10, "schedule": "constant", "seed": 999, "steps_per_dispatch": 1, "warmup": "3 steps", "weight_decay":
0.05}}
"""
PROGRESS_0_1 = """
{"next_batch": 60, "pending": false, "samples": 5646.0, "seconds": 3.1838, "logged_seconds": 3.1807,
"standing": {"best_step": 60, "best": 0.035, "evaluations_since_best": 0}, "best_step": 60,
"fingerprints": {"semantic IDs": "b31f", "dataset": "1c4d"}, "config": {}, "checksums": {"params/bos": 1}}
"""
