"""The training loop. Read `train` from top to bottom; everything below it is what it uses.

A *step* is one batch; with `train.grad_accumulation_steps` = k, the parameters change every k steps (see optimizer.py).
Lengths, intervals, metrics.jsonl and checkpoints count steps.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rastp_jax.batches.batches import ORDER, Batch
from rastp_jax.errors import InputError
from rastp_jax.model.interface import GenerativeModel
from rastp_jax.runtime import buckets, files, processes, sharding, terminal
from rastp_jax.runtime.preemption import Interrupted, StopRequests
from rastp_jax.runtime.xla import describe_devices, device_bytes
from rastp_jax.training.optimizer import updates_made
from rastp_jax.training.plan import CRITERION, BestMetric, Due, SavedProgress
from rastp_jax.training.profiling import Trace, make_kept_positions
from rastp_jax.training.progress import Clock, Progress, duration_text, ending
from rastp_jax.training.setup import Setup
from rastp_jax.training.step import TrainState, from_saved, to_saved
from rastp_jax.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """How a run ended: steps done, seconds of training, the best validation, and why it is over.

  `interrupted` is true if it is not over: it was told to stop, and the same command goes on with it.
  """

  step: int
  seconds: float
  best: BestMetric
  reason: str
  interrupted: bool = False


def train(
  setup: Setup,
  workdir: Workdir,
  evaluate: Callable[[GenerativeModel], Mapping[str, float]] | None = None,
  *,
  batches: Callable[[int], Iterator[Batch]] | None = None,
  profile_steps: tuple[int, int] | None = None,
) -> TrainResult:
  """Trains, or goes on where the workdir's last checkpoint stands, exactly as if it had not been interrupted.

  The one exception: a checkpoint of a version that takes samples in another order goes on in this one's, and says so.

  Args:
    setup: what to train on, and for how long.
    workdir: takes the logs, checkpoints and, in the end, the summary. Several processes share it.
    evaluate: validation metrics of a model with a full copy on every device, "recall@5" among them. None: no
      validation, no early stopping.
    batches: stacked batches from a batch number on; None: the setup's own.
    profile_steps: first and last step of a trace to leave in the workdir.

  Raises:
    InputError: before anything is compiled or overwritten, if the workdir does not fit; later, if the disk is full, or
      after too many steps in a row that are not finite.
  """
  config, plan, teacher = setup.config, setup.plan, setup.make_teacher()
  with (
    StopRequests() as requests,  # outside of all that is saved
    workdir.claim(config, setup.lengths, setup.fingerprints) as checkpoints,
    contextlib.ExitStack() as at_the_end,
  ):
    # 1. Where the run stands. A resumed one never makes weights only to drop them.
    with processes.raise_on_all():
      workdir.check_room(setup.saved_shapes)
    restored = checkpoints.restore(setup.saved_shapes)
    saved = restored[1] if restored else SavedProgress()
    step, due, best = saved.step, saved.due, saved.best
    reason = plan.reason_to_stop(step, saved.seconds, best)
    if reason and due is Due.STEP:
      terminal.say(f"This run is finished: {reason} (step {step:,} of {workdir}).")
      terminal.say(ending(best, step, workdir.path))
      result = TrainResult(step, saved.seconds, best, reason)
      if jax.process_index() == 0 and not workdir.summary.exists():  # it was killed between its last two files
        files.write_json(workdir.summary, _summary(result, setup, saved.samples))
      return result
    if jax.process_index() == 0:
      buckets.remove(workdir.summary)  # of a finished run that was made longer
    if step and saved.order != ORDER:  # before its first step, a run has no order yet
      terminal.say(
        f"WARNING: {workdir} was begun by a version of this program that takes samples in another order. From step "
        f"{step:,} on it takes them in this version's: of epoch {step // plan.steps_per_epoch + 1}, some may come "
        "twice and some not at all; later epochs are whole."
      )
    state = from_saved(restored[0]) if restored else setup.fresh_state()

    # 2. What the loop calls.
    reset_sums = jax.jit(setup.fresh_sums, out_shardings={name: x.sharding for name, x in setup.shapes.sums.items()})
    everywhere = sharding.replicated(sharding.whole_batch_mesh(setup.mesh))
    copy_to_all = jax.jit(lambda params: params, out_shardings=everywhere)
    kept_positions = make_kept_positions(setup) if evaluate else None
    upcoming = (batches or setup.stacked_batches)(step)
    trace = Trace(workdir.profile, profile_steps)
    programs: dict[tuple[int, ...], jax.stages.Compiled] = {}  # by drawn budget and batch shape
    terminal.say(f"Training on {describe_devices(setup.mesh, config.model.dtype)}")
    terminal.say(
      f"{setup.parameters:,} parameters, {plan.length} ({plan.steps_per_epoch:,} steps per epoch), "
      f"{f'going on from step {step:,}' if step else 'from scratch'}. Logs: {workdir}"
    )
    if setup.warning:
      terminal.say(setup.warning)
    clock = Clock(saved.seconds)
    progress = Progress(workdir.log, workdir.tensorboard, plan, clock, saved, learning_rate=setup.learning_rate)
    at_the_end.callback(progress.close)

    def save() -> None:
      """Saves the state after `step`, and what is due."""
      with _paused(clock, state):
        progress.save()  # a line older than the checkpoint would never be written after a crash
        reached = SavedProgress(step, due, progress.samples, clock.seconds, progress.logged_seconds, best)
        checkpoints.save(step, to_saved(state), reached)

    # 3. The loop: a dispatch, then what is due after it. The host runs ahead of the devices, by one log interval at
    #    most: only `_paused` waits for them.
    while True:
      if due is Due.STEP:
        trace.at(step, state)
        batch = sharding.place_batch(next(upcoming), setup.mesh, row_axis=1)
        drawn = setup.draw(step)
        shape = batch["history"].shape
        needed = drawn, *shape
        if needed not in programs:
          with _paused(clock, state), progress.doing(_compiling(setup, shape, len(programs) + 1), every_line=True):
            learned = teacher(batch) if teacher else batch
            programs[needed] = setup.train_steps[drawn].lower(state, learned).compile()
        with jax.transfer_guard("disallow"):  # nothing may make the host wait for the devices unnoticed
          state = programs[needed](state, teacher(batch) if teacher else batch)
        progress.poll(step + plan.steps_per_dispatch)
        step, due = step + plan.steps_per_dispatch, Due.AFTER_STEP
      stop = requests.reason(range(step - plan.steps_per_dispatch + 1, step + 1))
      if stop:
        save()
        break

      reason = plan.reason_to_stop(step, clock.seconds, best)
      validate = evaluate if reason or step % plan.eval_every == 0 else None
      metrics = kept = None
      is_best = False
      if validate is not None:
        try:
          validating = progress.doing(f"validating at step {step:,}", every_line=step == plan.eval_every)
          with _paused(clock, state), requests.interrupting(), validating:  # decoding needs all weights everywhere
            on_all = copy_to_all(state.params)
            metrics = validate(nnx.merge(setup.graph, on_all))
            kept = kept_positions(on_all) if kept_positions else None
            del on_all
        except Interrupted:
          continue  # to the stop above
        is_best = best.add(step, metrics[CRITERION])
      closes = validate or reason or step % plan.log_every == 0
      if closes:
        skipped, updates = jax.tree.map(jnp.copy, (state.skipped, updates_made(state.opt_state)))
        progress.interval(step, state.sums, skipped, updates)
        state = dataclasses.replace(state, sums=reset_sums())
      if validate or reason:
        progress.flush(validation=metrics, kept=kept)
        reason = reason or plan.reason_to_stop(step, clock.seconds, best)
      due = Due.STEP
      # Here every process knows of the same interval; in between, `poll` tells the ones earlier than the others.
      if closes and progress.skipped["in_a_row"] > config.train.max_nonfinite_steps:
        state = dataclasses.replace(state, skipped=jax.tree.map(lambda x: x * 0, state.skipped))
        sentence = _not_finite(progress.skipped, config.train.max_nonfinite_steps, step, workdir)
        save()  # which reports this interval, too: it may have been finite again
        raise InputError(sentence)
      if is_best or reason or step % plan.checkpoint_every == 0:
        save()
      if reason:
        break

    # 4. The end: once the last checkpoint is on disk, a summary says that all is well.
    trace.close()
    progress.flush()
    checkpoints.wait()
    result = TrainResult(step, clock.seconds, best, stop or reason, interrupted=bool(stop))
    if jax.process_index() == 0 and not stop:
      # Unknown to a run whose steps were all done when it went on: it has compiled none.
      measured = {"step_bytes": max(map(device_bytes, programs.values()))} if programs else {}
      files.write_json(workdir.summary, {**_summary(result, setup, progress.samples), **measured})
  if stop:
    terminal.say(f"Interrupted: {stop}; step {step:,} is saved, and the same command goes on from there.")
    return result
  terminal.say(f"Finished: {reason}, after {duration_text(clock.seconds)} of training.")
  terminal.say(ending(best, step, workdir.path))
  return result


@contextlib.contextmanager
def _paused(clock: Clock, state: TrainState):
  """Stops the clock once the devices have done their steps, so that these count and what follows does not."""
  jax.block_until_ready(state)
  with clock.paused():
    yield


def _compiling(setup: Setup, shape: tuple[int, ...], number: int) -> str:
  """What is said while the program for batches of one shape, the number-th that this run meets, is compiled."""
  programs = len(setup.lengths) * len(setup.drawn_graphs)
  return f"compiling {number} of {programs}: histories of up to {shape[-2]} items"


def _not_finite(skipped: Mapping[str, int], allowed: int, step: int, workdir: Workdir) -> str:
  """The sentence about too many steps in a row without a finite loss."""
  return (
    f"Loss or gradient are NaN or infinite from step {skipped['last'] - skipped['in_a_row'] + 1} to {skipped['last']}, "
    f"more than config.train.max_nonfinite_steps={allowed} in a row: the weights as they were before are saved as step "
    f"{step} in {workdir}; look at the data or lower config.train.learning_rate in another --workdir, or run the same "
    "command again to go on after these steps."
  )


def _summary(result: TrainResult, setup: Setup, samples: float) -> dict[str, Any]:
  """What summary.json holds, besides "step_bytes": the memory of one device that a step needs.

  Args:
    result: how the run ended.
    setup: its setup.
    samples: it trained on.
  """
  return {
    "steps": result.step,
    "samples": samples,
    "seconds": result.seconds,
    "samples_per_second": samples / max(result.seconds, 1e-9),
    "parameters": setup.parameters,
    "devices": jax.device_count(),
    "device_kind": jax.devices()[0].device_kind,
    "best": dataclasses.asdict(result.best),
    "stopped": result.reason,
  }
