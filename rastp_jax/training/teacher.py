"""Distillation: a trained model's probabilities beside the targets of a training batch."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.model.interface import GenerativeModel
from rastp_jax.runtime import sharding
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training import runs
from rastp_jax.training.step import abstract_model
from rastp_jax.training.workdir import Workdir


class Teacher:
  """Adds `soft_targets` to training batches: each level's mixture of the target's code and what the teacher predicts.

  The gradient is that of (1 - weight) * cross-entropy on the targets + weight * KL(teacher || student).

  Args:
    config: the student's; `train.teacher` is a workdir, `train.teacher_weight` the weight.
    histories, semantic_ids: the data that the student is trained on.
    mesh: where the student lives.

  Raises:
    InputError: there is no readable run, it was trained on other data, or its levels are of other widths.
  """

  def __init__(self, config: Config, histories: Histories, semantic_ids: SemanticIds, mesh: Mesh):
    run = Workdir(config.train.teacher)
    trained = run.read_config()
    for name in ("uniform_width", "item_scores"):
      theirs, ours = getattr(trained.model, name), getattr(config.model, name)
      if theirs != ours:
        raise InputError(
          f"config.train.teacher={config.train.teacher} was trained with model.{name}={theirs}, this run has {ours}: "
          "they must read and predict the same; train both with the same setting."
        )
    graph, shapes = abstract_model(trained, semantic_ids, mesh)
    self._params = run.restore_params(shapes, runs.fingerprints(histories, semantic_ids)).params
    weight = config.train.teacher_weight

    @jax.jit
    def soft_targets(params, batches):
      model = nnx.merge(graph, sharding.gather(params, mesh))

      def of_one(batch: Mapping[str, Array]) -> list[Float[Array, "B V"]]:
        levels = teacher_forced(model, batch["history"], batch["target"])
        codes = [jax.nn.one_hot(batch["target"][:, level], x.shape[-1]) for level, x in enumerate(levels)]
        return [(1 - weight) * c + weight * jax.nn.softmax(x) for c, x in zip(codes, levels, strict=True)]

      return jax.lax.map(of_one, batches)

    self._soft_targets = soft_targets

  def __call__(self, batches: Mapping[str, Array]) -> dict[str, Array]:
    """Stacked batches (steps, rows, ...) on the mesh, with `soft_targets`; compiles once per shape."""
    return {**batches, "soft_targets": self._soft_targets(self._params, batches)}


def teacher_forced(
  model: GenerativeModel, history: Int[Array, "B N C"], target: Int[Array, "B C"]
) -> list[Float[Array, "B V"]]:
  """Logits of every level after the target's codes before it, without dropout."""
  state, codes, found = model.start(model.encode(history)), None, []
  for level in range(len(model.widths)):
    logits, state = model.step(state, codes, level)
    found.append(jnp.squeeze(logits, 1))
    codes = target[:, level, None]
  return found
