"""Everything before the first step: what a run trains on, how long, and with what. Refuses what cannot be trained."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rastp_jax.batches.batches import Batch, TrainingBatches, training_iterator, what_is_read
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.reduction import schedule
from rastp_jax.runtime import processes, sharding
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.collaborative import cooccurrence_vectors
from rastp_jax.training import runs
from rastp_jax.training.optimizer import make_optimizer, make_schedule
from rastp_jax.training.plan import CRITERION, TrainPlan, make_plan
from rastp_jax.training.step import (
  TrainState,
  abstract_model,
  fresh_params,
  make_state,
  make_train_step,
  placed,
  to_saved,
  zero_sums,
)
from rastp_jax.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Setup:
  """A run before its first step; nothing in it has computed anything yet.

  Attributes:
    config: all settings, as given.
    histories: the prepared dataset.
    semantic_ids: its items' codes.
    mesh: where the state lives.
    lengths: of the buckets, in items.
    batches: training batches by number, this host's rows of them.
    plan: the run's durations in steps.
    schedule: learning rate by the update's number.
    optimizer: made from the plan.
    graph: the model without its parameters.
    drawn_graphs: the same with each of the budgets that steps draw from; `graph` alone unless they are random.
    loss_parts: names of what the loss reports besides itself.
    shapes: the state's shapes and types, placed on the mesh.
  """

  config: Config
  histories: Histories
  semantic_ids: SemanticIds
  mesh: Mesh
  lengths: tuple[int, ...]
  batches: TrainingBatches
  plan: TrainPlan
  schedule: optax.Schedule
  optimizer: optax.GradientTransformationExtraArgs
  graph: nnx.GraphDef
  drawn_graphs: tuple[nnx.GraphDef, ...]
  loss_parts: tuple[str, ...]
  shapes: TrainState

  @property
  def fingerprints(self) -> dict[str, str]:
    return runs.fingerprints(self.histories, self.semantic_ids)

  @property
  def parameters(self) -> int:
    """How many numbers the model has."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.shapes.params))

  @property
  def warning(self) -> str:
    """What may not be meant, or ""."""
    layout = nnx.merge(self.graph, self.shapes.params).layout
    positions = [items * layout.item_length for items in self.lengths]
    idle = schedule.idle_blocks(schedule.drawn(self.config.reduction), positions, layout)
    if not idle:
      return ""
    return (
      f"WARNING: config.reduction shortens no history after block {', '.join(map(str, idle))}, not even one of "
      f"{positions[-1]} positions: a budget is of the bucket's positions, not of what another stage has left. Give a "
      "lower keep_ratio or keep_tokens there, or leave that stage out."
    )

  @property
  def saved_shapes(self) -> dict[str, Any]:
    """What a checkpoint holds, as shapes and types placed on the mesh."""
    return placed(jax.eval_shape(to_saved, self.shapes), self.mesh)

  @functools.cached_property
  def train_steps(self) -> tuple[Callable[[TrainState, Mapping[str, jax.Array]], TrainState], ...]:
    """The step for each of `drawn_graphs`, see `make_train_step`; trained twice, a setup compiles them once."""
    return tuple(make_train_step(graph, self.optimizer, self.mesh) for graph in self.drawn_graphs)

  def fresh_state(self) -> TrainState:
    """The state before the first step, made where it belongs."""
    given = {}
    if self.config.model.item_scores == "vectors":
      given["item_embedding"] = taken_together(self.histories, self.config.model.d_model)
    return self._fresh_state(given)

  @functools.cached_property
  def _fresh_state(self) -> Callable[[Mapping[str, np.ndarray]], TrainState]:
    def fresh(given: Mapping[str, jax.Array]) -> TrainState:
      params = fresh_params(self.config, self.semantic_ids)
      for name, values in given.items():  # rows of zeros: nothing is known
        params[name] = jnp.where(jnp.any(values != 0, axis=1, keepdims=True), values, params[name])
      return self._state_of(params)

    return jax.jit(fresh, out_shardings=_shardings(self.shapes))

  def state_with(self, params: Any) -> TrainState:
    """The state before the first step with given parameters: a nested dict of arrays."""
    return jax.device_put(self._state_of(params), _shardings(self.shapes))

  def fresh_sums(self) -> dict[str, jax.Array]:
    """`TrainState.sums` at the beginning of a log interval, for `jax.jit`."""
    return zero_sums(self.loss_parts)

  def learning_rate(self, updates: int) -> float:
    """The rate of an update, by its number from 1; of the first one where none was made."""
    return np.asarray(self.schedule(max(updates - 1, 0))).item()

  def draw(self, step: int) -> int:
    """Which of `drawn_graphs` the dispatch takes that begins after `step` steps: a function of seed and step."""
    count = len(self.drawn_graphs)
    return 0 if count == 1 else int(np.random.default_rng([self.config.train.seed, step, 0]).integers(count))

  def make_teacher(self) -> Teacher | None:
    """Loads the model whose probabilities are learned too; None without one."""
    if not self.config.train.teacher:
      return None
    return Teacher(self.config, self.histories, self.semantic_ids, self.mesh)

  def stacked_batches(self, start: int) -> Iterator[Batch]:
    """Batches from number `start` on, stacked for one dispatch each, made ahead of the consumer."""
    config = self.config
    return training_iterator(
      self.batches, start=start, run_length=config.train.steps_per_dispatch, workers=config.data.workers
    )

  def _state_of(self, params: Any) -> TrainState:
    return make_state(params, self.optimizer, self.config.train.seed, self.loss_parts)


def make_setup(
  config: Config,
  histories: Histories,
  semantic_ids: SemanticIds,
  *,
  mesh: Mesh | None = None,
  batch_size: int | None = None,
  validates: bool = False,
) -> Setup:
  """Puts together what a run needs, in every process alike.

  Args:
    config: all settings.
    histories: the prepared dataset.
    semantic_ids: its items' codes.
    mesh: where the state lives; None: what the config asks for.
    batch_size: samples per step, on average; None: the config's.
    validates: whether the run chooses its best checkpoint by validation.

  Raises:
    InputError: settings, data, devices or the number of processes do not fit together.
  """
  if validates and 5 not in config.eval.top_k:
    raise InputError(
      f"config.eval.top_k={config.eval.top_k} lacks 5: training picks its best checkpoint by {CRITERION}."
    )
  mesh = sharding.make_mesh(config.mesh) if mesh is None else mesh
  lengths = bucket_lengths(config.data, histories)
  table = what_is_read(semantic_ids, config.model)
  batches = TrainingBatches(
    histories,
    table,
    config.data,
    lengths=lengths,
    batch_size=batch_size or config.train.batch_size,
    seed=config.train.seed,
    row_multiple=sharding.row_multiple(mesh),
    run_length=config.train.steps_per_dispatch,
    shard=(jax.process_index(), jax.process_count()),
  )
  plan = make_plan(config, batches.steps_per_epoch, batches.samples_per_step)
  if plan.total_seconds is not None and jax.process_count() > 1:
    raise InputError(
      f"config.train.length={config.train.length!r} goes by the clock, and each of the {jax.process_count()} processes "
      "has its own: give the length in steps, epochs or samples."
    )
  optimizer = make_optimizer(config.train, plan.total_updates, plan.warmup_updates)
  graph, params = abstract_model(config, semantic_ids, mesh)
  reductions = schedule.drawn(config.reduction)
  variants = [dataclasses.replace(config, reduction=reduction) for reduction in reductions]
  others = (abstract_model(variant, semantic_ids, mesh)[0] for variant in variants)
  drawn_graphs = (graph,) if len(variants) == 1 else tuple(others)
  parts = loss_parts(graph, params, lengths[0], table.shape[1])
  shapes = jax.eval_shape(lambda params: make_state(params, optimizer, config.train.seed, parts), params)
  return Setup(
    config=config,
    histories=histories,
    semantic_ids=semantic_ids,
    mesh=mesh,
    lengths=lengths,
    batches=batches,
    plan=plan,
    schedule=make_schedule(config.train, plan.total_updates, plan.warmup_updates),
    optimizer=optimizer,
    graph=graph,
    drawn_graphs=drawn_graphs,
    loss_parts=parts,
    shapes=placed(shapes, mesh),
  )


def taken_together(histories: Histories, width: int) -> np.ndarray:
  """Where vectors of items begin: near those that users take next to them in the training part.

  Returns:
    float32 (items, width), of unit length; zeros for items without a neighbour.
  """
  vectors = cooccurrence_vectors(histories.items, *histories.training_spans(), histories.num_items, width, seed=0)
  vectors = np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))
  return processes.allgather(vectors)[0]  # the first one's everywhere: hosts may round differently


def loss_parts(graph: nnx.GraphDef, params: Any, items: int, read: int) -> tuple[str, ...]:
  """Names of what the loss reports besides itself."""
  batch = {
    "history": np.zeros((1, items, read), np.int32),
    "target": np.zeros((1, read), np.int32),
    "weight": np.ones(1, np.float32),
  }

  def parts(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return nnx.merge(graph, params).loss(batch)[1]

  return tuple(sorted(jax.eval_shape(parts, params, jax.tree.map(jnp.asarray, batch))))


def _shardings(shapes: TrainState) -> Any:
  return jax.tree.map(lambda shape: shape.sharding, shapes)
