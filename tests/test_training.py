"""The training loop: optimizers against their formulas, exact resume, one compile a shape, refusals, stopping."""

import functools
import itertools
import json
import os
import pathlib
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
from rastp_jax import sharding
from rastp_jax.errors import InputError
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.training import checkpoint, optimizer, progress, trainer
from rastp_jax.training.plan import Standing, make_plan
from tests.tools import compiling
from tests.tools.tiny import make_config, make_data

GOLDEN = pathlib.Path(__file__).parent / "golden" / "small_trained.npz"


_make_mesh = sharding.make_mesh


def one_device(*_):
  return _make_mesh(devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def _on_one_device(monkeypatch):
  monkeypatch.setattr(sharding, "make_mesh", one_device)


def run(workdir, evaluate=None, **changes):
  return trainer.train(make_config(**changes), *make_data(), workdir, evaluate)


def logged(workdir, field="loss") -> dict[int, float]:
  """step -> field, checking on the way that no step is logged twice and that they rise."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  steps = [line["step"] for line in lines]
  assert steps == sorted(set(steps))
  assert all({"step", "epoch", "loss", "samples_per_second", "learning_rate", "seconds"} <= set(line) for line in lines)
  return {line["step"]: line[field] for line in lines}


def saved_params(workdir):
  _, semantic_ids = make_data()
  _, target = trainer.abstract_model(checkpoint.read_config(workdir), semantic_ids.widths, one_device())
  return checkpoint.restore_params(workdir, target)


def assert_equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """The workdir of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp("reference")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh", one_device)
    run(workdir)
  return workdir


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
  train = make_config(train__optimizer="adam_l2", train__weight_decay=1e-4, train__clip_norm=0.0).train
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
  train = make_config(train__weight_decay=0.0, train__clip_norm=0.5, train__accumulate=2).train
  rule = optimizer.make_optimizer(train, None)
  params = {"a": jnp.zeros(2)}
  state = rule.init(params)
  for gradient in ([3.0, 8.0], [3.0, 0.0]):  # their average is (3, 4)
    norm = optax.tree.norm(jnp.asarray(gradient))
    _, state = rule.update({"a": jnp.asarray(gradient)}, state, params, norm=norm)
  np.testing.assert_allclose(optax.tree.get(state, "mu")["a"], [0.03, 0.04], rtol=1e-5)  # 0.1 * (3, 4) * 0.5 / 5


def test_decay_spares_all_but_matrices():
  config = make_config()
  model = EncoderDecoder(config.model, config.pruning, (8, 8, 8, 2), rngs=nnx.Rngs(0))
  mask = optimizer.decay_mask(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
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
  changes = {"train__length": length, "train__accumulate": accumulate, "train__steps_per_dispatch": dispatch}
  plan = make_plan(make_config(**changes), 10, 32.0)
  assert all(every % dispatch == 0 for every in (plan.log_every, plan.eval_every, plan.checkpoint_every))
  assert (plan.total_steps, plan.total_updates, plan.total_seconds) == (steps, steps // accumulate, None)
  assert not plan.reason_to_stop(steps - 1, 1e9, Standing()) and plan.reason_to_stop(steps, 0.0, Standing())


def test_minutes_count_training_only_and_survive_restarts(tmp_path, monkeypatch):
  """On a clock by which a batch takes 0.05 s and an evaluation 100 s, of which only the former is training."""
  now = [0.0]
  monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
  real = trainer.training_iterator

  def slow_batches(*args, **kwargs):
    for batch in real(*args, **kwargs):
      now[0] += 0.05
      yield batch

  def slow_evaluation(model):
    now[0] += 100.0
    return {"recall@5": 0.1}

  monkeypatch.setattr(trainer, "training_iterator", slow_batches)
  changes = {"train__length": "0.021 minutes", "train__eval_every": "10 steps", "train__patience": 0}
  result = run(tmp_path, slow_evaluation, **changes)
  assert (result.step, result.reason) == (26, "the 0.021 minutes of training are over")
  np.testing.assert_allclose(result.seconds, 26 * 0.05)
  assert now[0] > 300
  again = run(tmp_path, slow_evaluation, **changes | {"train__length": "0.024 minutes"})
  assert again.step == 29
  np.testing.assert_allclose(again.seconds, 29 * 0.05)


# Resume


class Interrupted(Exception):
  pass


def interrupt_after(monkeypatch, steps):
  """The next `train` dies when it asks for batch `steps`."""
  real = trainer.training_iterator

  def dying(source, *, start, run_length, workers):
    runs = real(source, start=start, run_length=run_length, workers=workers)
    for index, batch in zip(itertools.count(start, run_length), runs, strict=False):
      if index >= steps:
        raise Interrupted
      yield batch

  monkeypatch.setattr(trainer, "training_iterator", dying)
  return lambda: monkeypatch.setattr(trainer, "training_iterator", real)


def count_compilations(function):
  """A counter of the programs XLA was asked for from now on under this name."""
  names = []
  event = "/jax/core/compile/backend_compile_duration"
  listener = lambda name, _, **details: names.append(details.get("fun_name")) if name == event else None  # noqa: E731
  jax.monitoring.register_event_duration_secs_listener(listener)
  return lambda: names.count(function)


def test_resume_is_exact_and_compiles_once_a_bucket(tmp_path, monkeypatch):
  whole, broken, buckets = tmp_path / "whole", tmp_path / "broken", {"data__bucket_items": (3, 6)}
  compiled = count_compilations("jit(train_step)")
  run(whole, **buckets)
  assert compiled() == 2
  restore = interrupt_after(monkeypatch, 8)
  with pytest.raises(Interrupted):
    run(broken, **buckets)
  restore()
  with (broken / "metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "loss": 1.0}\n{"step": 9, "lo')  # logged after the checkpoint of step 5, and torn
  assert run(broken, **buckets).step == 12
  assert compiled() == 6
  assert list(logged(broken)) == [3, 6, 9, 12]
  for field in ("loss", "loss_level_0", "grad_norm", "learning_rate", "epoch"):
    assert logged(broken, field) == logged(whole, field)
  ours, theirs = saved_params(broken), saved_params(whole)
  assert (ours.step, theirs.step) == (12, 12)
  assert_equal(ours.params, theirs.params)
  ours, theirs = (json.loads((workdir / "summary.json").read_text()) for workdir in (broken, whole))
  assert (ours["steps"], ours["samples"]) == (theirs["steps"], theirs["samples"])
  assert ours["step_bytes"] > 4 * ours["parameters"] * 4  # parameters, two moments, gradient


def test_many_steps_a_dispatch_are_the_same_steps(tmp_path, monkeypatch):
  """Stacked batches give bit for bit what one after the other gives, and resume as exactly.

  That holds as XLA compiles for users; the tests' cheaper compiling fuses the two programs differently.
  """
  monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=compiling.AS_USERS))
  buckets, stacked, single = {"data__bucket_items": (3, 6)}, tmp_path / "stacked", tmp_path / "single"
  more = {"train__steps_per_dispatch": 3, "train__checkpoint_every": "4 steps"}  # 6, in whole dispatches
  restore = interrupt_after(monkeypatch, 8)
  with pytest.raises(Interrupted):
    run(stacked, **buckets, **more)
  restore()
  assert newest(stacked) == 6
  assert run(stacked, **buckets, **more).step == 12
  batches = trainer.TrainingBatches
  monkeypatch.setattr(trainer, "TrainingBatches", lambda *args, **kw: batches(*args, **kw | {"run_length": 3}))
  run(single, **buckets)  # the same order of batches, one a dispatch
  assert logged(stacked) == logged(single)
  assert_equal(saved_params(stacked).params, saved_params(single).params)


def test_finished_run_stays_as_it_is(reference, capsys):
  before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
  result = run(reference)
  assert result.step == 12
  assert capsys.readouterr().out == f"This run is finished: all 12 steps are done (step 12 of {reference}).\n"
  after = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
  for name in ("config.json", "lock"):
    before.pop(reference / name), after.pop(reference / name)
  assert before == after


def test_torn_checkpoint_is_skipped(tmp_path, reference):
  run(tmp_path, train__length="10 steps")
  tear(tmp_path / "checkpoints" / "10")
  with pytest.warns(UserWarning, match=r"The checkpoint of step 10 cannot be read .*; going on from step 5\."):
    assert run(tmp_path).step == 12
  assert {path.name for path in (tmp_path / "unreadable_checkpoints").iterdir()} == {"10"}
  assert logged(tmp_path) == logged(reference)
  for step in (10, 12):
    tear(tmp_path / "checkpoints" / str(step))
  with pytest.raises(InputError, match=r"None of the 2 checkpoints in .* can be read \(step 12: "):
    run(tmp_path, train__length="20 steps")


def tear(directory):
  files = [path for path in directory.rglob("*") if path.is_file()]
  assert files
  for path in files:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_killed_process_goes_on(tmp_path):
  """kill -9, at moments that hit saving too; what is logged in the end equals an uninterrupted run's."""
  script = (
    "import pathlib, sys, test_training as t\n"
    "t.sharding.make_mesh = t.one_device\n"
    "t.run(pathlib.Path(sys.argv[1]), train__length='60 steps', train__checkpoint_every='2 steps')"
  )
  environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])}
  command = [sys.executable, "-c", script, str(tmp_path / "killed")]
  for delay in (0.15, 0.4):
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = newest(tmp_path / "killed")
    deadline = time.monotonic() + 60
    while newest(tmp_path / "killed") <= before and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  assert newest(tmp_path / "killed") < 60
  run(tmp_path / "killed", train__length="60 steps", train__checkpoint_every="2 steps")
  run(tmp_path / "whole", train__length="60 steps", train__checkpoint_every="60 steps")
  assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
  assert_equal(saved_params(tmp_path / "killed").params, saved_params(tmp_path / "whole").params)


def newest(workdir) -> int:
  return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


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
  assert (result.step, result.standing) == (8, Standing(best_step=4, best=0.3, evaluations_since_best=2))
  assert result.reason == "validation recall@5 has not improved for 2 evaluations"
  assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8"}
  best = saved_params(tmp_path)
  assert best.step == 4
  assert_equal(best.params, seen[1])
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  figures = {line["step"]: line["validation/recall@5"] for line in lines if "validation/recall@5" in line}
  assert figures == {2: 0.1, 4: 0.3, 6: 0.2, 8: 0.3}
  assert all("loss" in line for line in lines)


# Devices, precision, accumulation


def test_eight_devices_learn_what_one_does(tmp_path, reference, monkeypatch):
  monkeypatch.setattr(sharding, "make_mesh", _make_mesh)
  run(tmp_path)
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
  model = EncoderDecoder(config.model, config.pruning, semantic_ids.widths, rngs=nnx.Rngs(0))
  graph, params = nnx.split(model, nnx.Param)
  params = jax.tree.map(np.array, nnx.to_pure_dict(params))
  moments, moved = {}, {}
  for accumulate, batches in ((1, [rows]), (2, halves)):
    rule = optimizer.make_optimizer(make_config(train__accumulate=accumulate).train, 2)
    parts = [f"loss_level_{level}" for level in range(4)]
    state = trainer.make_state(jax.tree.map(jnp.array, params), rule, 0, parts)
    train_step = trainer.make_train_step(graph, rule, one_device())
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
      "config.model.d_ff=32, not 64: resume it with its own value, or train in another --workdir.",
    ),
    ({"pruning__keep_ratio": (0.5,)}, "config.pruning.keep_ratio=(0.3333333333333333,), not (0.5,): "),
    ({"train__schedule": "cosine"}, "config.train.schedule='constant', not 'cosine': "),
  ],
)
def test_other_config_is_refused(reference, changes, sentence):
  before = (reference / "config.json").read_text()
  with pytest.raises(InputError) as error:
    run(reference, **changes)
  assert f"{reference} holds a run with {sentence}" in str(error.value)
  assert (reference / "config.json").read_text() == before


def test_length_counts_where_the_learning_rate_depends_on_it(tmp_path):
  config = make_config(train__schedule="cosine")
  (tmp_path / "config.json").write_text(config_lib.to_json(config))
  with pytest.raises(InputError, match="config.train.length='12 steps', not '13 steps'"):
    run(tmp_path, train__schedule="cosine", train__length="13 steps")


def test_other_semantic_ids_are_refused(reference):
  with pytest.raises(InputError, match=r"was trained with other semantic IDs \(fingerprint \w{12}, now \w{12}\): put"):
    trainer.train(make_config(), make_data()[0], make_data(seed=1)[1], reference)


def test_unusable_workdir_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot be written"):
    run(tmp_path / "file")
  with pytest.raises(InputError, match="holds no training run"):
    checkpoint.read_config(tmp_path)
  with pytest.raises(InputError, match="holds no checkpoint yet"):
    checkpoint.restore_params(tmp_path, {})


def test_validation_needs_recall_at_5(tmp_path):
  with pytest.raises(InputError, match=r"config.eval.ks=\(10,\) lacks 5"):
    run(tmp_path / "new", lambda model: {}, eval__ks=(10,))
  assert not (tmp_path / "new").exists()
