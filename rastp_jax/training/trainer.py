"""The training loop. Read `train` from top to bottom; everything above it is what it uses.

A *step* is one batch; with `train.accumulate` = k, the parameters change every k steps (see optimizer.py). Lengths,
intervals, metrics.jsonl and checkpoints count steps.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from rastp_jax import files, sharding
from rastp_jax.config import Config
from rastp_jax.data.batches import TrainingBatches, training_iterator
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.programs import device_bytes
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.checkpoint import Checkpoints
from rastp_jax.training.optimizer import make_optimizer, make_schedule
from rastp_jax.training.plan import CRITERION, Standing, make_plan
from rastp_jax.training.progress import Clock, Progress, describe_devices, duration_text, say
from rastp_jax.training.step import (
  TrainState,
  abstract_model,
  fresh_model,
  from_saved,
  loss_parts,
  make_state,
  make_train_step,
  placed,
  to_saved,
  zero_sums,
)
from rastp_jax.training.stopping import Interrupted, StopRequests
from rastp_jax.training.watch import Trace, make_kept_places


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """How a run ended: steps done, seconds of training, the best validation, and why it is over.

  `interrupted` is true if it is not over: it was told to stop, and the same command goes on with it.
  """

  step: int
  seconds: float
  standing: Standing
  reason: str
  interrupted: bool = False


def train(
  config: Config,
  histories: Histories,
  semantic_ids: SemanticIds,
  workdir: str | os.PathLike,
  evaluate: Callable[[EncoderDecoder], Mapping[str, float]] | None = None,
  *,
  profile_steps: tuple[int, int] | None = None,
) -> TrainResult:
  """Trains, or goes on where the workdir's last checkpoint stands, exactly as if there had been no interruption.

  Args:
    config: all settings.
    histories: the prepared dataset.
    semantic_ids: its items' codes.
    workdir: takes config.json, metrics.jsonl, tensorboard/, checkpoints/ and, in the end, summary.json. Several
      processes share it.
    evaluate: validation figures of a model with a full copy on every device, "recall@5" among them. None: no
      validation, no early stopping.
    profile_steps: first and last step of a trace to leave in workdir/profile.

  Raises:
    InputError: before anything is compiled or overwritten, if settings, data, devices, workdir or the processes do not
      fit together; later, if the disk is full, or after too many steps in a row that are not finite.
  """
  # 1. What to train on, and for how long. Everything that can be refused is refused here.
  if evaluate is not None and 5 not in config.eval.ks:
    raise InputError(f"config.eval.ks={config.eval.ks} lacks 5: training picks its best checkpoint by {CRITERION}.")
  mesh = sharding.make_mesh(config.mesh)
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
  if plan.total_seconds is not None and jax.process_count() > 1:
    raise InputError(
      f"config.train.length={config.train.length!r} goes by the clock, and {jax.process_count()} processes have as "
      "many clocks: give the length in steps, epochs or samples."
    )
  optimizer = make_optimizer(config.train, plan.total_updates, plan.warmup_updates)
  graph, params = abstract_model(config, semantic_ids.widths, mesh)
  parts = loss_parts(graph, params, source[0])

  def fresh() -> TrainState:
    params = nnx.to_pure_dict(nnx.state(fresh_model(config, semantic_ids.widths), nnx.Param))
    return make_state(params, optimizer, config.train.seed, parts)

  fingerprints = {"semantic IDs": semantic_ids.fingerprint, "dataset": histories.fingerprint}
  with Checkpoints(workdir, config, fingerprints) as checkpoints, StopRequests() as requests, _room(workdir):
    # 2. The state. Its shape comes first, so that a resumed run never makes weights only to drop them.
    shapes = placed(jax.eval_shape(fresh), mesh)
    places = jax.tree.map(lambda shape: shape.sharding, shapes)
    restored = checkpoints.restore(placed(jax.eval_shape(lambda: to_saved(fresh())), mesh))
    if restored is None:
      state = jax.jit(fresh, out_shardings=places)()
      saved = {"next_batch": 0, "samples": 0.0, "seconds": 0.0, "logged_seconds": 0.0, "pending": False}
      standing = Standing()
    else:
      state, saved = from_saved(restored[0]), restored[1]
      standing = Standing(**saved["standing"])
    step, pending = saved["next_batch"], saved["pending"]
    reason = plan.reason_to_stop(step, saved["seconds"], standing)
    if reason and not pending:
      say(f"This run is finished: {reason} (step {step:,} of {workdir}).")
      return TrainResult(step, saved["seconds"], standing, reason)

    # 3. What the loop calls.
    train_step = make_train_step(graph, optimizer, mesh)
    reset_sums = jax.jit(lambda: zero_sums(parts), out_shardings=places.sums)
    copy_to_all = jax.jit(lambda params: params, out_shardings=sharding.replicated(sharding.whole_batch_mesh(mesh)))
    kept_places = make_kept_places(graph, config, histories, semantic_ids) if evaluate else None
    schedule = make_schedule(config.train, plan.total_updates, plan.warmup_updates)
    batches = training_iterator(source, start=step, run_length=plan.steps_per_dispatch, workers=config.data.workers)
    trace = Trace(workdir, profile_steps)
    programs = {}  # batch shape -> compiled step
    size = sum(value.size for value in jax.tree.leaves(params))
    start = f"going on from step {step:,}" if step else "from scratch"
    say(describe_devices(mesh))
    say(f"{size:,} parameters, {plan.length} ({plan.steps_per_epoch:,} steps an epoch), {start}. Logs: {workdir}")
    clock = Clock(saved["seconds"])
    progress = Progress(
      workdir,
      plan,
      clock,
      standing,
      step=step,
      samples=saved["samples"],
      logged_seconds=saved["logged_seconds"],
      learning_rate=lambda step: schedule((step - 1) // plan.accumulate),
    )

    def save() -> None:
      """Saves the state after `step`; if `pending`, what is due after that step has not been done yet."""
      with _paused(clock, state):
        progress.flush()  # a line older than the checkpoint would never be written after a crash
        reached = {
          "next_batch": step,
          "pending": pending,
          "samples": progress.samples,
          "seconds": clock.seconds,
          "logged_seconds": progress.logged_seconds,
          "standing": dataclasses.asdict(standing),
          "best_step": standing.best_step,
        }
        checkpoints.save(step, to_saved(state), reached)

    # 4. The loop: a dispatch, then what is due after it. The host runs ahead of the devices, by one log interval at
    #    most: only `_paused` waits for them.
    while True:
      if not pending:
        trace.at(step, state)
        batch = next(batches)
        batch_on_mesh = sharding.place_batch(batch, mesh, row_axis=1)
        shape = batch["history"].shape
        if shape not in programs:
          with _paused(clock, state):
            programs[shape] = train_step.lower(state, batch_on_mesh).compile()
        with jax.transfer_guard("disallow"):  # nothing may make the host wait for the devices unnoticed
          state = programs[shape](state, batch_on_mesh)
        progress.poll()
        step, pending = step + plan.steps_per_dispatch, True
      stop = requests.reason(range(step - plan.steps_per_dispatch + 1, step + 1))
      if stop:
        save()
        break

      reason = plan.reason_to_stop(step, clock.seconds, standing)
      evaluates = evaluate is not None and (bool(reason) or step % plan.eval_every == 0)
      figures = kept = None
      best = False
      if evaluates:
        try:
          with _paused(clock, state), requests.interrupting():  # decoding wants all weights everywhere
            on_all = copy_to_all(state.params)
            figures = evaluate(nnx.merge(graph, on_all))
            kept = kept_places(on_all) if kept_places else None
            del on_all
        except Interrupted:
          continue  # to the stop above
        best = standing.add(step, figures[CRITERION])
      if evaluates or reason or step % plan.log_every == 0:
        progress.interval(step, state.sums, jax.tree.map(jnp.copy, state.skipped))
        state = dataclasses.replace(state, sums=reset_sums())
      if evaluates or reason:
        progress.flush(validation=figures, kept=kept)
        reason = reason or plan.reason_to_stop(step, clock.seconds, standing)
      pending = False
      bad = progress.skipped
      if bad["in_a_row"] > config.train.max_nonfinite_steps:
        state = dataclasses.replace(state, skipped=jax.tree.map(lambda x: x * 0, state.skipped))
        save()
        raise InputError(
          f"Loss or gradient are NaN or infinite from step {bad['last'] - bad['in_a_row'] + 1} to {bad['last']}, more "
          f"than config.train.max_nonfinite_steps={config.train.max_nonfinite_steps} in a row: the weights as they "
          f"were before are saved as step {step} in {workdir}; look at the data or lower config.train.learning_rate in "
          "another --workdir, or run the same command again to go on behind these steps."
        )
      if best or reason or step % plan.checkpoint_every == 0:
        save()
      if reason:
        break

    # 5. The end: leaving the context waits until the last checkpoint is on disk, and a summary says that all is well.
    trace.close()
    progress.close()
  if stop:
    say(f"Interrupted: {stop}; step {step:,} is saved, and the same command goes on from there.")
    return TrainResult(step, clock.seconds, standing, stop, interrupted=True)
  if jax.process_index() == 0:
    summary = {
      "steps": step,
      "samples": progress.samples,
      "seconds": clock.seconds,
      "samples_per_second": progress.samples / clock.seconds,
      "parameters": size,
      "step_bytes": max((device_bytes(program) for program in programs.values()), default=0),
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


@contextlib.contextmanager
def _room(workdir: str | os.PathLike):
  """Logs that can no longer be written end the run with a sentence; checkpoints have one of their own."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
      raise
    raise InputError(
      f"{error.filename or workdir} cannot be written ({error.strerror}): make room and run the same command again, "
      "which goes on from the last checkpoint."
    ) from error
