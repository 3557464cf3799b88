"""The training loop. Read `train` from top to bottom; everything above it is what it uses.

A *step* is one batch; with `train.accumulate` = k, the parameters change every k steps (see optimizer.py). Lengths,
intervals, metrics.jsonl and checkpoints count steps.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rastp_jax import files, sharding
from rastp_jax.config import Config
from rastp_jax.data.batches import TrainingBatches, training_iterator
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.model import encoder_decoder
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.programs import device_bytes
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.checkpoint import Checkpoints
from rastp_jax.training.optimizer import make_optimizer, make_schedule
from rastp_jax.training.plan import CRITERION, Standing, make_plan
from rastp_jax.training.progress import Clock, Progress, describe_devices, duration_text, say

# The model hashes its dropout masks from a few words of the step's key, so only the reproducibility of these counts,
# and threefry gives the same ones on every backend and number of devices.
KEY_GENERATOR = "threefry2x32"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a step changes.

  Attributes:
    step: int32 (), steps done.
    params: nested dict of float32 arrays.
    opt_state: Optax's.
    key: random key, never changed: a step uses fold_in(key, step).
    sums: float32 scalars over the open log interval: "samples", "steps", "grad_norm" (before clipping), and the loss
      and its parts, each times the batch's samples.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  key: jax.Array
  sums: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """How a run ended: steps done, seconds of training, the best validation, and why it is over."""

  step: int
  seconds: float
  standing: Standing
  reason: str


def make_state(params: Any, optimizer: optax.GradientTransformation, seed: int, loss_parts: list[str]) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    key=jax.random.key(seed, impl=KEY_GENERATOR),
    sums=zero_sums(loss_parts),
  )


def zero_sums(loss_parts: list[str]) -> dict[str, jax.Array]:
  return {name: jnp.zeros((), jnp.float32) for name in ("samples", "steps", "grad_norm", "loss", *loss_parts)}


def make_train_step(
  graph: nnx.GraphDef, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Mapping[str, jax.Array]], TrainState]:
  """The compiled program: (state, stacked batches (steps, rows, ...)) -> state after so many steps.

  It consumes the state it is given, and compiles once a batch shape.
  """

  def one_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, None]:
    def loss_of(params):
      model = nnx.merge(graph, params)
      key = jax.random.fold_in(state.key, state.step)
      return encoder_decoder.loss(model, batch["history"], batch["target"], batch["weight"], key=key)

    (loss, parts), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    change, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    samples = jnp.sum(batch["weight"])
    new = {"samples": samples, "steps": 1.0, "grad_norm": optax.tree.norm(gradient)}
    new |= {name: value * samples for name, value in {"loss": loss, **parts}.items()}
    return TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, change),
      opt_state=opt_state,
      key=state.key,
      sums={name: total + new[name] for name, total in state.sums.items()},
    ), None

  def train_step(state: TrainState, batches: Mapping[str, jax.Array]) -> TrainState:
    return jax.lax.scan(one_step, state, batches)[0]

  return jax.jit(train_step, donate_argnums=0, out_shardings=sharding.replicated(mesh))


def to_saved(state: TrainState) -> dict[str, Any]:
  """The state as the two trees a checkpoint holds; random keys go as plain integers."""
  rest = {"step": state.step, "opt_state": state.opt_state, "key": jax.random.key_data(state.key), "sums": state.sums}
  return {"params": state.params, "rest": rest}


def from_saved(saved: Mapping[str, Any]) -> TrainState:
  rest = {**saved["rest"], "key": jax.random.wrap_key_data(saved["rest"]["key"], impl=KEY_GENERATOR)}
  return TrainState(params=saved["params"], **rest)


def abstract_model(config: Config, widths: tuple[int, ...], mesh: Mesh) -> tuple[nnx.GraphDef, Any]:
  """The model without its numbers: (graph, parameters as `jax.ShapeDtypeStruct`s placed on the mesh)."""
  graph, params = nnx.split(nnx.eval_shape(lambda: _fresh_model(config, widths)), nnx.Param)
  return graph, _placed(nnx.to_pure_dict(params), mesh)


def train(
  config: Config,
  histories: Histories,
  semantic_ids: SemanticIds,
  workdir: str | os.PathLike,
  evaluate: Callable[[EncoderDecoder], Mapping[str, float]] | None = None,
) -> TrainResult:
  """Trains, or goes on where the workdir's last checkpoint stands, exactly as if there had been no interruption.

  Args:
    config: all settings.
    histories: the prepared dataset.
    semantic_ids: its items' codes.
    workdir: takes config.json, metrics.jsonl, tensorboard/, checkpoints/ and, in the end, summary.json.
    evaluate: validation figures of a model, "recall@5" among them. It must not keep the model: the next step consumes
      its arrays. None: no validation, no early stopping.

  Raises:
    InputError: before anything is compiled or overwritten, if settings, data, devices or workdir do not fit together.
  """
  # 1. What to train on, and for how long. Everything that can be refused is refused here.
  if evaluate is not None and 5 not in config.eval.ks:
    raise InputError(f"config.eval.ks={config.eval.ks} lacks 5: training picks its best checkpoint by {CRITERION}.")
  mesh = sharding.make_mesh()
  source = TrainingBatches(
    histories,
    semantic_ids,
    config.data,
    batch_size=config.train.batch_size,
    seed=config.train.seed,
    row_multiple=sharding.row_multiple(mesh),
    run_length=config.train.steps_per_dispatch,
    shard=(jax.process_index(), jax.process_count()),
  )
  plan = make_plan(config, source.steps_per_epoch, source.samples_per_step)
  optimizer = make_optimizer(config.train, plan.total_updates, plan.warmup_updates)
  graph, params = abstract_model(config, semantic_ids.widths, mesh)
  fingerprints = {"semantic IDs": semantic_ids.fingerprint, "dataset": histories.fingerprint}

  with contextlib.closing(Checkpoints(workdir, config, fingerprints)) as checkpoints:
    # 2. The state. Its shape comes first, so that a resumed run never makes weights only to drop them.
    parts = _loss_parts(graph, params, source[0])

    def fresh() -> TrainState:
      params = nnx.to_pure_dict(nnx.state(_fresh_model(config, semantic_ids.widths), nnx.Param))
      return make_state(params, optimizer, config.train.seed, parts)

    restored = checkpoints.restore(_placed(jax.eval_shape(lambda: to_saved(fresh())), mesh))
    if restored is None:
      state = jax.jit(fresh, out_shardings=sharding.replicated(mesh))()
      step, samples, seconds, standing = 0, 0.0, 0.0, Standing()
    else:
      state, saved = from_saved(restored[0]), restored[1]
      step, samples, seconds = saved["next_batch"], saved["samples"], saved["seconds"]
      standing = Standing(**saved["standing"])
    reason = plan.reason_to_stop(step, seconds, standing)
    if reason:
      say(f"This run is finished: {reason} (step {step:,} of {workdir}).")
      return TrainResult(step, seconds, standing, reason)

    # 3. What the loop calls.
    train_step = make_train_step(graph, optimizer, mesh)
    schedule = make_schedule(config.train, plan.total_updates, plan.warmup_updates)
    batches = training_iterator(source, start=step, run_length=plan.steps_per_dispatch, workers=config.data.workers)
    programs = {}  # batch shape -> compiled step
    size = sum(value.size for value in jax.tree.leaves(params))
    start = f"going on from step {step:,}" if step else "from scratch"
    say(describe_devices())
    say(f"{size:,} parameters, {plan.length} ({plan.steps_per_epoch:,} steps an epoch), {start}. Logs: {workdir}")
    clock = Clock(seconds)
    progress = Progress(
      workdir,
      plan,
      clock,
      standing,
      step=step,
      samples=samples,
      learning_rate=lambda step: schedule((step - 1) // plan.accumulate),
    )

    # 4. The loop. The host runs ahead of the devices, by one log interval at most: only `_paused` waits for them.
    while not reason:
      batch = next(batches)
      placed = sharding.place_batch(batch, mesh, row_axis=1)
      shape = batch["history"].shape
      if shape not in programs:
        with _paused(clock, state):
          programs[shape] = train_step.lower(state, placed).compile()
      with jax.transfer_guard("disallow"):  # nothing may make the host wait for the devices unnoticed
        state = programs[shape](state, placed)
      progress.count(float(np.sum(batch["weight"])) * jax.process_count())
      step += plan.steps_per_dispatch

      reason = plan.reason_to_stop(step, clock.seconds, standing)
      evaluates = evaluate is not None and (bool(reason) or step % plan.eval_every == 0)
      saves = bool(reason) or step % plan.checkpoint_every == 0
      if evaluates or reason or step % plan.log_every == 0:
        progress.interval(step, state.sums)
        state = dataclasses.replace(state, sums=jax.device_put(zero_sums(parts), sharding.replicated(mesh)))
      if evaluates:
        with _paused(clock, state):
          figures = evaluate(nnx.merge(graph, state.params))
          saves |= standing.add(step, figures[CRITERION])
          progress.flush(validation=figures)
        reason = reason or plan.reason_to_stop(step, clock.seconds, standing)
      if saves or reason:
        with _paused(clock, state):
          progress.flush()  # a line older than the checkpoint would never be written after a crash
          reached = {
            "next_batch": step,
            "samples": progress.samples,
            "seconds": clock.seconds,
            "standing": dataclasses.asdict(standing),
            "best_step": standing.best_step,
          }
          checkpoints.save(step, to_saved(state), reached)

    # 5. The end: `closing` waits until the last checkpoint is on disk, and a summary says that all is well.
    progress.close()
  if jax.process_index() == 0:
    summary = {
      "steps": step,
      "samples": progress.samples,
      "seconds": clock.seconds,
      "samples_per_second": progress.samples / clock.seconds,
      "parameters": size,
      "step_bytes": max(device_bytes(program) for program in programs.values()),
      "devices": jax.device_count(),
      "device_kind": jax.devices()[0].device_kind,
      "best": dataclasses.asdict(standing),
      "stopped": reason,
    }
    files.write_json(pathlib.Path(workdir) / "summary.json", summary)
  say(f"Finished: {reason}, after {duration_text(clock.seconds)} of training.")
  return TrainResult(step, clock.seconds, standing, reason)


@contextlib.contextmanager
def _paused(clock: Clock, state: TrainState):
  """Stops the clock once the devices have done their steps, so that these count and what follows does not."""
  jax.block_until_ready(state)
  with clock.paused():
    yield


def _placed(tree: Any, mesh: Mesh) -> Any:
  place = sharding.replicated(mesh)
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def _fresh_model(config: Config, widths: tuple[int, ...]) -> EncoderDecoder:
  return EncoderDecoder(config.model, config.pruning, widths, rngs=nnx.Rngs(config.train.seed))


def _loss_parts(graph: nnx.GraphDef, params: Any, batch: Mapping[str, np.ndarray]) -> list[str]:
  """Names of what the loss reports beside itself."""

  def parts(params, batch):
    return encoder_decoder.loss(nnx.merge(graph, params), batch["history"], batch["target"], batch["weight"])[1]

  return sorted(jax.eval_shape(parts, params, batch))
