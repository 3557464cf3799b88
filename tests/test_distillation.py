"""Training with random budgets and with a teacher: what is drawn, what is learned, resuming, refusals."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from rastp_jax import config as config_lib
from rastp_jax.errors import InputError
from rastp_jax.model.factory import make_model
from rastp_jax.reduction import schedule
from rastp_jax.training.teacher import teacher_forced
from rastp_jax.training.trainer import train
from rastp_jax.training.workdir import Workdir
from tests.helpers.training import setup_of

BUDGETS: dict[str, Any] = {"reduction__random_keep_ratios": (1.0, 0.5, 0.25), "reduction__after_block": (0,)}


def test_budgets_are_drawn_alike_from_seed_and_step():
  setup = setup_of(**BUDGETS)
  drawn = [setup.draw(step) for step in range(300)]
  assert drawn == [setup.draw(step) for step in range(300)] and min(np.bincount(drawn)) > 70
  reductions = [nnx.merge(graph, setup.shapes.params).reduction for graph in setup.drawn_graphs]
  assert [reduction.keep_ratio for reduction in reductions] == [(1.0,), (0.5,), (0.25,)]
  layout = nnx.merge(setup.graph, setup.shapes.params).layout
  assert [schedule.budgets(reduction, 40, layout) for reduction in reductions] == [{}, {0: 20}, {0: 10}]
  plain = setup_of()
  assert plain.drawn_graphs == (plain.graph,) and {plain.draw(step) for step in range(9)} == {0}


@pytest.mark.parametrize(
  "changes",
  [
    {"after_block": (0, 1), "keep_ratio": (0.5, 0.5)},
    {"keep_tokens": (8,)},
    {"method": "item_sum"},
  ],
)
def test_random_budgets_need_a_budget(changes):
  settings = {"random_keep_ratios": (1.0, 0.5), "after_block": (0,), **changes}
  with pytest.raises(InputError, match="random_keep_ratios=.1.0, 0.5. replaces the keep_ratio of a single stage"):
    config_lib.from_dict({"reduction": settings})


def weights(workdir):
  setup = setup_of(reduction__method="none")
  restored = workdir.restore_params(setup.shapes.params, setup.fingerprints)
  return jax.tree.map(np.asarray, restored.params)


@pytest.mark.slow
def test_a_teacher_and_random_budgets_resume_exactly(tmp_path):
  """Two runs of six steps, one of them interrupted after three: the same weights."""
  length: dict[str, Any] = {"train__length": "6 steps", "train__checkpoint_every": "3 steps"}
  teacher, whole, parts = (Workdir(tmp_path / name) for name in ("teacher", "whole", "parts"))
  train(setup_of(reduction__method="none", **length), teacher)
  budgets = {**BUDGETS, "reduction__random_keep_ratios": (0.5, 0.25)}
  taught: dict[str, Any] = {**budgets, "train__teacher": str(teacher.path), "train__teacher_weight": 0.9}
  train(setup_of(**taught, **length), whole)
  train(setup_of(**taught, **length | {"train__length": "3 steps"}), parts)
  train(setup_of(**taught, **length), parts)
  jax.tree.map(np.testing.assert_array_equal, weights(parts), weights(whole))


def test_what_a_teacher_adds_is_the_gradient_of_kl(tmp_path):
  """Soft targets mix code and probability; the gradient is the mixture of both losses' gradients."""
  teacher = Workdir(tmp_path / "teacher")
  dense = setup_of(reduction__method="none", train__length="2 steps")
  train(dense, teacher)
  setup = setup_of(train__teacher=str(teacher.path), train__teacher_weight=0.25)
  stacked = jax.tree.map(jax.numpy.asarray, next(setup.stacked_batches(0)))
  made = setup.make_teacher()
  assert made is not None
  soft = made(stacked)["soft_targets"]
  batch = {name: value[0] for name, value in stacked.items()}
  there = nnx.merge(dense.graph, jax.tree.map(jax.numpy.asarray, weights(teacher)))
  predicted = jax.jit(lambda: [jax.nn.softmax(x) for x in there(batch["history"], batch["target"])])()
  for level, (ours, expected) in enumerate(zip(soft, predicted, strict=True)):
    code = np.eye(expected.shape[1])[batch["target"][:, level]]
    np.testing.assert_allclose(ours[0], 0.75 * code + 0.25 * np.asarray(expected), rtol=1e-4, atol=1e-6)
  model = make_model(setup.config, setup.semantic_ids.widths, rngs=nnx.Rngs(5))
  graph, params = nnx.split(model, nnx.Param)

  def kl(params):
    logits = nnx.merge(graph, params)(batch["history"], batch["target"])
    each = [(p * (jax.numpy.log(p) - jax.nn.log_softmax(x))).sum(-1) for p, x in zip(predicted, logits, strict=True)]
    return (sum(each) * batch["weight"]).sum() / batch["weight"].sum()

  @jax.jit
  def gradients(params):
    loss = lambda params, batch: nnx.merge(graph, params).loss(batch)[0]
    taught = {**batch, "soft_targets": [level[0] for level in soft]}
    return jax.grad(loss)(params, batch), jax.grad(kl)(params), jax.grad(loss)(params, taught)

  hard, soft_only, both = gradients(params)
  expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, hard, soft_only)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6), both, expected)


def test_teacher_forcing_by_the_interface_is_that_of_the_model():
  setup = setup_of()
  model = make_model(setup.config, setup.semantic_ids.widths, rngs=nnx.Rngs(0))
  batch = {name: value[0] for name, value in next(setup.stacked_batches(0)).items()}

  @jax.jit
  def both(history, target):
    return teacher_forced(model, history, target), model(history, target)

  for ours, expected in zip(*both(batch["history"], batch["target"]), strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
  student = Workdir(tmp_path / "student")
  with pytest.raises(InputError, match="nowhere"):
    train(setup_of(train__teacher=str(tmp_path / "nowhere")), student)
  wide = Workdir(tmp_path / "wide")
  train(setup_of(model__uniform_width=True, train__length="1 steps"), wide)
  with pytest.raises(InputError, match="was trained with model.uniform_width=True, this run has False"):
    train(setup_of(train__teacher=str(wide.path)), student)
  assert not student.path.exists()
