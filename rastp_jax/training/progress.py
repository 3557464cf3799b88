"""What a run tells the outside world: the progress line, metrics.jsonl, TensorBoard, and the clock behind the rates.

The only file of training/ that prints or logs. Everything is written by the first process alone.
"""

import contextlib
import glob
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rastp_jax import files
from rastp_jax.training.board import Board
from rastp_jax.training.plan import CRITERION, Plan, Standing

ACCELERATORS = (
  # device file, what it is, the documented installation
  ("/dev/nvidia0", "an NVIDIA GPU", 'pip install -U "jax[cuda13]"'),
  ("/dev/accel[0-9]*", "a TPU", 'pip install -U "jax[tpu]"'),
  ("/dev/vfio/[0-9]*", "a TPU", 'pip install -U "jax[tpu]"'),
)


def say(text: str) -> None:
  """Prints a line for people, once however many processes there are."""
  if jax.process_index() == 0:
    print(text, flush=True)


def describe_devices(mesh: Mesh) -> str:
  """What JAX computes on, with a warning if an accelerator of this machine lies idle."""
  devices = jax.devices()
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
  text = (
    f"Training on {len(devices)} x {devices[0].device_kind} ({devices[0].platform}"
    f"{f'; {axes}' if axes else ''}), JAX {jax.__version__}."
  )
  if devices[0].platform == "cpu":
    for pattern, name, command in ACCELERATORS:
      if glob.glob(pattern):
        return text + f"\nWARNING: this machine has {name}, but the installed JAX only uses the CPU: run {command}"
  return text


class Clock:
  """Seconds of training: what passes while it is not paused, over all restarts of a run."""

  def __init__(self, seconds: float = 0.0):
    self._before = seconds
    self._since: float | None = time.monotonic()

  @property
  def seconds(self) -> float:
    return self._before + (time.monotonic() - self._since if self._since is not None else 0.0)

  @contextlib.contextmanager
  def paused(self):
    """Leaves out compiling, evaluating and saving. Device work must be finished before, or it escapes the clock."""
    self._before, self._since = self.seconds, None
    try:
      yield
    finally:
      self._since = time.monotonic()


class Progress:
  """Reports one log interval after the other.

  A thread waits for the device to finish an interval and looks at the clock then, so that the loop itself goes on: it
  waits only if it is a whole interval ahead.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    plan: Plan,
    clock: Clock,
    standing: Standing,
    *,
    step: int,
    samples: float,
    logged_seconds: float,
    learning_rate: Callable[[int], float],
  ):
    """Opens the logs, dropping what an interrupted run logged after `step`, where this one goes on.

    Args:
      workdir: metrics.jsonl and tensorboard/ are in here.
      plan: the run's length.
      clock: the run's training time.
      standing: the best validation so far, kept up to date by the caller.
      step: steps done so far.
      samples: samples logged so far.
      logged_seconds: the run's training time when its last log interval ended.
      learning_rate: the rate that a step used, by the step's number from 1.
    """
    self._plan, self._clock, self._standing, self._learning_rate = plan, clock, standing, learning_rate
    self._first_step, self._first_seconds = step, clock.seconds
    self.samples, self.logged_seconds = samples, logged_seconds
    self.skipped = {"in_a_row": 0, "last": 0}  # of TrainState, as of the last interval reported
    self._waiting: tuple[int, futures.Future] | None = None
    self._reader = futures.ThreadPoolExecutor(max_workers=1)
    self._validation = ""
    self._writes = jax.process_index() == 0
    if self._writes:
      path = pathlib.Path(workdir) / "metrics.jsonl"
      _drop_lines_after(path, step)
      self._lines = path.open("a", buffering=1)
      self._board = Board(pathlib.Path(workdir) / "tensorboard", step)

  def poll(self) -> None:
    """Reports the last closed interval if the device is through with it."""
    if self._waiting is not None and self._waiting[1].done():
      self.flush()

  def interval(self, step: int, sums: Mapping[str, jax.Array], skipped: Mapping[str, jax.Array]) -> None:
    """Closes the interval that ends with `step`.

    Args:
      step: steps done.
      sums, skipped: device scalars, as in `step.TrainState`; owned from now on.
    """
    self.flush()
    self._waiting = (step, self._reader.submit(self._read, (dict(sums), dict(skipped))))

  def flush(self, validation: Mapping[str, float] | None = None, kept: np.ndarray | None = None) -> None:
    """Reports the last closed interval now, waiting for the device if need be.

    Args:
      validation: figures of an evaluation at its end, to go on the same line.
      kept: places of tokens that survived pruning then, counted back from the newest.
    """
    if self._waiting is None:
      return
    step, reading = self._waiting
    (sums, skipped), seconds = reading.result()
    self._waiting, self.skipped = None, {name: int(value) for name, value in skipped.items()}
    steps, samples, norms, bad = (sums.pop(name) for name in ("steps", "samples", "grad_norm", "skipped"))
    line = {"step": step, "epoch": round(step / self._plan.steps_per_epoch, 4)}
    line |= {name: value / samples if samples else None for name, value in sums.items()}
    line |= {
      "samples_per_second": round(samples / max(seconds - self.logged_seconds, 1e-9), 2),
      "learning_rate": float(self._learning_rate(step)),
      "grad_norm": norms / steps if steps else None,
      "seconds": round(seconds, 3),
    }
    line |= {"skipped_steps": int(bad)} if bad else {}
    line |= {f"validation/{name}": value for name, value in (validation or {}).items()}
    self.samples, self.logged_seconds = self.samples + samples, seconds
    if validation:
      self._validation = f" | validation {CRITERION} {validation[CRITERION]:.4f}"
    if self._writes:
      self._lines.write(json.dumps(line) + "\n")
      scalars = {name: value for name, value in line.items() if name != "step" and value is not None}
      self._board.write(
        step,
        {name if "/" in name else f"train/{name}": value for name, value in scalars.items()},
        {} if kept is None else {"pruning/kept_places_from_the_newest": kept},
      )
    say(self._line(line))
    if bad:
      say(
        f"WARNING: {bad:.0f} steps up to step {self.skipped['last']:,} had a NaN or infinite loss or gradient and were "
        "skipped."
      )

  def close(self) -> None:
    """Reports what is left and closes the files."""
    self.flush()
    self._reader.shutdown()
    if self._writes:
      self._lines.close()
      self._board.close()

  def _read(self, scalars: Any) -> tuple[Any, float]:
    """The scalars as floats, and the time at which the device had them."""
    return jax.tree.map(float, jax.device_get(scalars)), self._clock.seconds

  def _line(self, line: Mapping[str, float]) -> str:
    step, seconds = line["step"], line["seconds"]
    if self._plan.total_steps is not None:
      done, length = step / self._plan.total_steps, f"/{self._plan.total_steps:,}"
      per_step = (seconds - self._first_seconds) / max(step - self._first_step, 1)
      left = per_step * (self._plan.total_steps - step)
    else:
      done, length = min(seconds / self._plan.total_seconds, 1.0), ""
      left = max(self._plan.total_seconds - seconds, 0.0)
    loss = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
    best = ""
    if self._standing.best is not None:
      best = f" (best {self._standing.best:.4f} at step {self._standing.best_step:,})"
    return (
      f"step {step:,}{length} {done:4.0%} | epoch {line['epoch']:.2f} | loss {loss} | "
      f"{line['samples_per_second']:,.0f} samples/s | {duration_text(left)} left{self._validation}{best}"
    )


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
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except (ValueError, KeyError, TypeError):
      continue
  files.write_whole(path, "".join(kept))
