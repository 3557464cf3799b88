"""What a run reports: the progress line, metrics.jsonl, TensorBoard, and the clock behind the rates.

Everything is written by the first process alone.
"""

import contextlib
import pathlib
import shlex
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np

from rastp_jax.runtime import buckets, files, terminal
from rastp_jax.training.plan import CRITERION, BestMetric, Due, SavedProgress, TrainPlan
from rastp_jax.training.tensorboard import EventWriter


class Clock:
  """Seconds of training: what passes while it is not paused, over all restarts of a run."""

  def __init__(self, seconds: float = 0.0):
    # Seconds before, and since when more are counted; one value, as the reader's thread asks at any time.
    self._counted: tuple[float, float | None] = (seconds, time.monotonic())

  @property
  def seconds(self) -> float:
    before, since = self._counted
    return before if since is None else before + (time.monotonic() - since)

  @contextlib.contextmanager
  def paused(self):
    """Leaves out compiling, evaluating and saving. Device work must be finished before, or it escapes the clock."""
    self._counted = self.seconds, None
    try:
      yield
    finally:
      self._counted = self.seconds, time.monotonic()


class Progress:
  """Reports one log interval after the other.

  A thread waits for the device to finish an interval and reads the clock then, so that the loop itself goes on: it
  waits only if it is a whole interval ahead.
  """

  def __init__(
    self,
    log: pathlib.Path,
    tensorboard: pathlib.Path,
    plan: TrainPlan,
    clock: Clock,
    saved: SavedProgress,
    *,
    learning_rate: Callable[[int], float],
  ):
    """Opens the logs, dropping what an interrupted run logged after the checkpoint where this one goes on.

    Args:
      log: takes one JSON object per interval.
      tensorboard: directory of the event files.
      plan: the run's length.
      clock: the run's training time.
      saved: where the run goes on; the caller keeps its `best` up to date.
      learning_rate: the rate of an update, by its number from 1.
    """
    self._plan, self._clock, self._best, self._learning_rate = plan, clock, saved.best, learning_rate
    self._first_step, self._first_seconds = saved.step, clock.seconds
    self.samples, self.logged_seconds = saved.samples, saved.logged_seconds
    self.skipped = {"in_a_row": 0, "last": 0}  # of TrainState, as of the last interval reported
    self._waiting: tuple[int, futures.Future] | None = None
    self._reader = futures.ThreadPoolExecutor(max_workers=1)
    self._validation = ""
    self._writes = jax.process_index() == 0
    if self._writes:
      last = saved.step - 1 if saved.due is Due.AFTER_STEP else saved.step  # whose line is not written again
      _drop_lines_after(log, last)
      self._lines = log.open("a", buffering=1)
      self._events = EventWriter(tensorboard, last)
      self._directory = log.parent
      self._bar = terminal.bar(plan.total_steps, "training", " steps", initial=saved.step)

  @contextlib.contextmanager
  def doing(self, text: str, *, every_line: bool = False):
    """Says beside the bar what is done in place of training, and with `every_line` on a line where there is no bar."""
    if not self._writes:
      yield
      return
    if every_line and self._bar.disable:
      terminal.say(f"{text} …")
    self._bar.set_description(text)
    try:
      yield
    finally:
      self._bar.set_description("training")

  def poll(self, step: int) -> None:
    """Moves the bar to `step`, the dispatched one, and reports the last closed interval if the device is through."""
    if self._writes:
      self._bar.update(step - self._bar.n)
    if self._waiting is not None and self._waiting[1].done():
      self.flush()

  def interval(
    self, step: int, sums: Mapping[str, jax.Array], skipped: Mapping[str, jax.Array], updates: jax.Array
  ) -> None:
    """Closes the interval that ends with `step`.

    Args:
      step: steps done.
      sums, skipped: device scalars, as in `step.TrainState`; owned from now on.
      updates: a device scalar, `optimizer.updates_made`; owned as well.
    """
    self.flush()
    self._waiting = (step, self._reader.submit(self._read, (dict(sums), dict(skipped), updates)))

  def flush(self, validation: Mapping[str, float] | None = None, kept: np.ndarray | None = None) -> None:
    """Reports the last closed interval now, waiting for the device if necessary.

    Args:
      validation: metrics of an evaluation at its end, to go on the same line.
      kept: positions of tokens that survived the reduction then, counted back from the newest.
    """
    if self._waiting is None:
      return
    step, reading = self._waiting
    (sums, skipped, updates), seconds = reading.result()
    self._waiting, self.skipped = None, {name: int(value) for name, value in skipped.items()}
    line = self._line_of(step, sums, self._learning_rate(int(updates)), seconds, validation or {})
    self.samples, self.logged_seconds = self.samples + sums["samples"], seconds
    if self._writes:
      self._write_json(line)
      self._write_tensorboard(line, kept)
      buckets.upload_soon(self._directory)
    self._print(line)

  def _line_of(
    self, step: int, sums: Mapping[str, float], learning_rate: float, seconds: float, validation: Mapping[str, float]
  ) -> dict[str, Any]:
    """The log line of an interval that ended with `step`, when `seconds` of training had passed."""
    steps, samples, skipped = sums["steps"], sums["samples"], sums["skipped"]
    means = {name: value for name, value in sums.items() if name not in ("steps", "samples", "grad_norm", "skipped")}
    line = {"step": step, "epoch": round(step / self._plan.steps_per_epoch, 4)}
    line |= {name: value / samples if samples else None for name, value in means.items()}
    line |= {
      "samples_per_second": round(samples / max(seconds - self.logged_seconds, 1e-9), 2),
      "learning_rate": learning_rate,
      "grad_norm": sums["grad_norm"] / steps if steps else None,
      "seconds": round(seconds, 3),
    }
    line |= {"skipped_steps": int(skipped)} if skipped else {}
    return line | {f"validation/{name}": value for name, value in validation.items()}

  def _write_json(self, line: Mapping[str, Any]) -> None:
    self._lines.write(files.to_json(line) + "\n")

  def _write_tensorboard(self, line: Mapping[str, Any], kept: np.ndarray | None) -> None:
    scalars = {name: value for name, value in line.items() if name != "step" and value is not None}
    self._events.write(
      line["step"],
      {name if "/" in name else f"train/{name}": value for name, value in scalars.items()},
      {} if kept is None else {"reduction/kept_positions_from_the_newest": kept},
    )

  def _print(self, line: Mapping[str, Any]) -> None:
    if (value := line.get(f"validation/{CRITERION}")) is not None:
      self._validation = f" | validation {CRITERION} {value:.4f} at step {line['step']:,}"
      best = self._best
      if best.best_step is not None and best.best_step != line["step"]:
        self._validation += f" (best {best.best:.4f} at step {best.best_step:,})"
    terminal.say(self._text(line))
    if bad := line.get("skipped_steps"):
      terminal.say(
        f"WARNING: {bad} steps up to step {self.skipped['last']:,} had a NaN or infinite loss or gradient and were "
        "skipped."
      )

  def save(self) -> None:
    """Reports the last closed interval, and makes sure that no line can be lost."""
    self.flush()
    if self._writes:
      buckets.upload(self._directory)

  def close(self) -> None:
    """Closes the files; `flush` before it reports what is left."""
    self._reader.shutdown()
    if self._writes:
      self._bar.close()
      self._lines.close()
      self._events.close()
      buckets.upload(self._directory)

  def _read(self, scalars: Any) -> tuple[Any, float]:
    """The scalars as floats, and the time at which the device had them."""
    return jax.tree.map(float, jax.device_get(scalars)), self._clock.seconds

  def _text(self, line: Mapping[str, Any]) -> str:
    """The line for people."""
    step, seconds = line["step"], line["seconds"]
    if self._plan.total_steps is not None:
      done, length = step / self._plan.total_steps, f"/{self._plan.total_steps:,}"
      per_step = (seconds - self._first_seconds) / max(step - self._first_step, 1)
      left = per_step * (self._plan.total_steps - step)
    else:
      done, length = min(seconds / self._plan.total_seconds, 1.0), ""
      left = max(self._plan.total_seconds - seconds, 0.0)
    loss = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
    return (
      f"step {step:,}{length} {done:4.0%} | epoch {line['epoch']:.2f} | loss {loss} | "
      f"{line['samples_per_second']:,.0f} samples/s | {duration_text(left)} left{self._validation}"
    )


def ending(best: BestMetric, step: int, workdir: pathlib.Path) -> str:
  """What a finished run has come to, on which checkpoint, and the command to go on with."""
  at = step if best.best_step is None else best.best_step
  shown = buckets.shown(workdir)
  lines = [f"  checkpoint  {shown}/checkpoints/{at}"]
  if best.best is not None:
    lines.insert(0, f"  score       validation {CRITERION} {best.best:.4f}, the best, at step {at:,}")
  command = "evaluate" if best.best is not None else "recommend --users=all --output=recommendations.jsonl"
  return "\n".join([*lines, f"  next        python -m rastp_jax.{command} --workdir={shlex.quote(shown)}"])


def duration_text(seconds: float) -> str:
  """'45 s', '12 min 5 s', '3 h 20 min'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes} min"
  return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
  """Keeps the lines up to `step`: a resumed run writes the later ones again. A torn last line goes too."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(errors="replace").splitlines():
    try:
      if files.parse_json(line)["step"] <= step:
        kept.append(line + "\n")
    except (ValueError, KeyError, TypeError):
      continue
  files.write_atomic(path, "".join(kept))
