"""How long a run is, how often it logs, validates and saves, and when it stops."""

import dataclasses
import math

from rastp_jax.config import Config, Duration
from rastp_jax.errors import InputError

CRITERION = "recall@5"  # of the validation users: chooses the best checkpoint and stops early


@dataclasses.dataclass(frozen=True)
class Plan:
  """The config's durations in steps, all multiples of `steps_per_dispatch`: the host only looks up between dispatches.

  Exactly one of `total_steps` and `total_seconds` is set.
  """

  total_steps: int | None
  total_seconds: float | None
  warmup_updates: int
  log_every: int
  eval_every: int
  checkpoint_every: int
  steps_per_epoch: int
  steps_per_dispatch: int
  accumulate: int
  patience: int

  @property
  def total_updates(self) -> int | None:
    return None if self.total_steps is None else self.total_steps // self.accumulate

  @property
  def length(self) -> str:
    return f"{self.total_steps:,} steps" if self.total_seconds is None else f"{self.total_seconds / 60:g} minutes"

  def reason_to_stop(self, step: int, seconds: float, standing: "Standing") -> str:
    """Why a run that has come so far is over, or ""."""
    if self.total_steps is not None and step >= self.total_steps:
      return f"all {self.total_steps:,} steps are done"
    if self.total_seconds is not None and seconds >= self.total_seconds:
      return f"the {self.length} of training are over"
    if self.patience and standing.evaluations_since_best >= self.patience:
      return f"validation {CRITERION} has not improved for {self.patience} evaluations"
    return ""


@dataclasses.dataclass
class Standing:
  """The best validation result so far, and how long ago it was."""

  best_step: int | None = None
  best: float | None = None
  evaluations_since_best: int = 0

  def add(self, step: int, value: float) -> bool:
    """Takes note of a result; True if it is the best so far."""
    better = self.best is None or value > self.best
    if better:
      self.best_step, self.best, self.evaluations_since_best = step, value, 0
    else:
      self.evaluations_since_best += 1
    return better


def make_plan(config: Config, steps_per_epoch: int, samples_per_step: float) -> Plan:
  """Converts the config's durations.

  A length in steps is rounded up to whole dispatches and whole updates, so that the last batches' gradients are not
  lost; intervals are rounded up to whole dispatches.

  Args:
    config: the run's settings.
    steps_per_epoch: batches in which every training sample occurs about once.
    samples_per_step: samples a batch, on average.

  Raises:
    InputError: an interval is zero.
  """
  train = config.train
  length = Duration.parse(train.length, "train.length")
  total = None
  if length.unit != "minutes":
    total = length.steps(steps_per_epoch=steps_per_epoch, samples_per_step=samples_per_step)
    total += -total % math.lcm(train.accumulate, train.steps_per_dispatch)

  def steps(name: str) -> int:
    duration = Duration.parse(getattr(train, name), f"train.{name}")
    if duration.amount == 0:
      return 0
    return max(1, duration.steps(steps_per_epoch=steps_per_epoch, samples_per_step=samples_per_step, total_steps=total))

  intervals = {name: steps(name) for name in ("log_every", "eval_every", "checkpoint_every")}
  for name, value in intervals.items():
    if not value:
      raise InputError(f"config.train.{name}={getattr(train, name)!r} is no interval: give at least 1 step.")
  dispatch = train.steps_per_dispatch
  return Plan(
    total_steps=total,
    total_seconds=length.amount * 60 if length.unit == "minutes" else None,
    warmup_updates=-(-steps("warmup") // train.accumulate),
    steps_per_epoch=steps_per_epoch,
    steps_per_dispatch=dispatch,
    accumulate=train.accumulate,
    patience=train.patience,
    **{name: value + -value % dispatch for name, value in intervals.items()},
  )
