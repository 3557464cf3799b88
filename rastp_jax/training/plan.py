"""How long a run is, how often it logs, validates and saves, when it stops, and how far it has come."""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

from rastp_jax.batches.batches import ORDER
from rastp_jax.config import Config, Duration
from rastp_jax.errors import InputError

LOG_LINES = 20  # that a run shows at least, unless it is very short
_FEWEST_STEPS_FOR_LINES = 100
CRITERION = "recall@5"  # of the validation users: chooses the best checkpoint and stops early


@dataclasses.dataclass(frozen=True)
class TrainPlan:
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
  steps_per_update: int
  patience: int

  @property
  def total_updates(self) -> int | None:
    return None if self.total_steps is None else self.total_steps // self.steps_per_update

  @property
  def length(self) -> str:
    return f"{self.total_steps:,} steps" if self.total_seconds is None else f"{self.total_seconds / 60:g} minutes"

  def reason_to_stop(self, step: int, seconds: float, best: "BestMetric") -> str:
    """Why a run that has come so far is over, or ""."""
    if self.total_steps is not None and step >= self.total_steps:
      return f"all {self.total_steps:,} steps are done"
    if self.total_seconds is not None and seconds >= self.total_seconds:
      return f"the {self.length} of training are over"
    if self.patience and best.evaluations_since_best >= self.patience:
      return f"validation {CRITERION} has not improved for {self.patience} evaluations"
    return ""


@dataclasses.dataclass
class BestMetric:
  """The best validation result so far, and how long ago it was."""

  best_step: int | None = None
  best: float | None = None
  evaluations_since_best: int = 0

  def add(self, step: int, value: float) -> bool:
    """Counts a result; True if it is the best so far."""
    better = self.best is None or value > self.best
    if better:
      self.best_step, self.best, self.evaluations_since_best = step, value, 0
    else:
      self.evaluations_since_best += 1
    return better


class Due(enum.Enum):
  """What a run does next."""

  STEP = "a dispatch"
  AFTER_STEP = "what follows the last dispatch: perhaps a validation, a log line and a checkpoint"


@dataclasses.dataclass(frozen=True)
class SavedProgress:
  """How far a run has come: what a checkpoint says besides its arrays.

  Attributes:
    step: steps done, and so the next batch's number.
    due: what comes next.
    samples: samples logged so far.
    seconds: of training.
    logged_seconds: the run's training time when its last log interval ended.
    best: the best validation.
    order: which sample comes when, see `batches.ORDER`; the first order was not recorded.
  """

  step: int = 0
  due: Due = Due.STEP
  samples: float = 0.0
  seconds: float = 0.0
  logged_seconds: float = 0.0
  best: BestMetric = dataclasses.field(default_factory=BestMetric)
  order: int = ORDER

  def to_json(self) -> dict[str, Any]:
    return {
      "next_batch": self.step,
      "pending": self.due is Due.AFTER_STEP,
      "samples": self.samples,
      "seconds": self.seconds,
      "logged_seconds": self.logged_seconds,
      "standing": dataclasses.asdict(self.best),
      "best_step": self.best.best_step,
      "order": self.order,
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> "SavedProgress":
    """Reads what `to_json` wrote.

    Raises:
      KeyError, TypeError, ValueError: the values are damaged.
    """
    best = BestMetric(**values["standing"])
    # The best step names a directory: anything but a number could lead out of the directory of checkpoints.
    if not isinstance(values["best_step"], int | None) or values["best_step"] != best.best_step:
      raise ValueError("its progress file is damaged")
    counts = [values["next_batch"], best.evaluations_since_best, best.best_step or 0, values.get("order", 1)]
    numbers = [values["samples"], values["seconds"], values["logged_seconds"], best.best or 0.0]
    typed = all(type(one) is int and one >= 0 for one in counts) and isinstance(values["pending"], bool)
    if not typed or not all(map(_is_number, numbers)):
      raise ValueError("its progress file is damaged")
    due = Due.AFTER_STEP if values["pending"] else Due.STEP
    order = values.get("order", 1)
    return cls(values["next_batch"], due, values["samples"], values["seconds"], values["logged_seconds"], best, order)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def make_plan(config: Config, steps_per_epoch: int, samples_per_step: float) -> TrainPlan:
  """Converts the config's durations.

  A length in steps is rounded up to whole dispatches and whole updates, so that the last batches' gradients are not
  lost; intervals are rounded up to whole dispatches. `log_every` is shortened where a run of 100 steps or more
  would show fewer than `LOG_LINES` lines.

  Args:
    config: the run's settings.
    steps_per_epoch: batches in which every training sample occurs about once.
    samples_per_step: samples per batch, on average.

  Raises:
    InputError: an interval is zero.
  """
  train = config.train
  length = Duration.parse(train.length, "train.length")
  total = None
  if length.unit != "minutes":
    total = length.steps(steps_per_epoch=steps_per_epoch, samples_per_step=samples_per_step)
    total += -total % math.lcm(train.grad_accumulation_steps, train.steps_per_dispatch)

  def steps(name: str) -> int:
    duration = Duration.parse(getattr(train, name), f"train.{name}")
    if duration.amount == 0:
      return 0
    return max(1, duration.steps(steps_per_epoch=steps_per_epoch, samples_per_step=samples_per_step, total_steps=total))

  intervals = {name: steps(name) for name in ("log_every", "eval_every", "checkpoint_every")}
  for name, value in intervals.items():
    if not value:
      raise InputError(f"config.train.{name}={getattr(train, name)!r} is not an interval: give at least 1 step.")
  if total is not None and total >= _FEWEST_STEPS_FOR_LINES:
    intervals["log_every"] = min(intervals["log_every"], total // LOG_LINES)
  dispatch = train.steps_per_dispatch
  return TrainPlan(
    total_steps=total,
    total_seconds=length.amount * 60 if length.unit == "minutes" else None,
    warmup_updates=-(-steps("warmup") // train.grad_accumulation_steps),
    steps_per_epoch=steps_per_epoch,
    steps_per_dispatch=dispatch,
    steps_per_update=train.grad_accumulation_steps,
    patience=train.patience,
    **{name: value + -value % dispatch for name, value in intervals.items()},
  )
