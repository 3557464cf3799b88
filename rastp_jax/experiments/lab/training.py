"""Trained rows: the commands behind them, and what they come to beside dense."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.evaluation import results as evaluation_results
from rastp_jax.evaluation.comparison import Difference, Group, paired_bootstrap, paired_seeds
from rastp_jax.evaluation.results import Result
from rastp_jax.experiments.commands import RunCommand
from rastp_jax.experiments.lab.rows import DENSE, Row
from rastp_jax.training.workdir import Workdir

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
CONTROL = "recent"
_DENSE = Row(DENSE, "none", None, ())


@dataclasses.dataclass(frozen=True)
class Trainings:
  """Rows trained on equal samples.

  Attributes:
    config_flags: --config=... and its overrides, for every run.
    dataset: its name.
    stage: "train" (chosen on validation users) or "confirm" (test, looked at once).
    length: of every run.
    seeds: of every row.
    runs_dir: holds a workdir per dataset, row, length and seed.
  """

  config_flags: tuple[str, ...]
  dataset: str
  stage: str
  length: str
  seeds: tuple[int, ...]
  runs_dir: str

  @property
  def config_name(self) -> str:
    """The config file with its variants."""
    return next(flag.partition("=")[2] for flag in self.config_flags if flag.startswith("--config="))

  @property
  def split(self) -> str:
    return "test" if self.stage == "confirm" else "validation"

  def workdir(self, row: Row, seed: int) -> Workdir:
    length = self.length.replace(" ", "_")
    return Workdir(pathlib.Path(self.runs_dir) / self.dataset / row.directory / length / f"seed_{seed}")

  def commands(self, row: Row) -> list[RunCommand]:
    """Train and evaluate, for each seed."""
    return [command for chain in self.chains(row) for command in chain]

  def chains(self, row: Row) -> list[list[RunCommand]]:
    """Train, then evaluate: for each seed, by itself."""
    found = []
    for seed in self.seeds:
      workdir = self.workdir(row, seed)
      train = (
        "rastp_jax.train",
        *self.config_flags,
        *row.flags,
        *([f"--config.train.teacher={self.workdir(_DENSE, seed)}"] if row.taught else []),
        f"--config.train.seed={seed}",
        f"--config.train.length={self.length}",
        # Every run sees the same number of samples, and its last weights are compared.
        "--config.train.patience=0",
        f"--config.train.eval_every={self.length}",
        f"--workdir={workdir}",
      )
      evaluate = ("rastp_jax.evaluate", f"--workdir={workdir}", f"--split={self.split}")
      title = f"{self.dataset}, {row.name}, {self.length}, seed {seed}"
      trained = workdir.read_summary() is not None
      evaluated = trained and workdir.evaluation(self.split).exists()
      training = RunCommand(f"Training {title}", train, trained)
      found.append([training, RunCommand(f"Evaluating {title}", evaluate, evaluated)])
    return found

  def finished(self, row: Row) -> set[int]:
    """The seeds that were trained and evaluated, whether this call asks for them or not."""
    runs = self.workdir(row, 0).path.parent.glob("seed_*")
    ended = lambda seed: all(one.finished for one in dataclasses.replace(self, seeds=(seed,)).commands(row))
    return {seed for run in runs if ended(seed := int(run.name.removeprefix("seed_")))}

  def check(self, rows: Sequence[Row], config: Config) -> None:
    """Looks at all runs of these rows that are finished, of dense at all lengths.

    Raises:
      InputError: as `group` does, or because a run's model, but for what it computes in, is not the config's.
    """
    wanted = {name: value for name, value in config_lib.to_dict(config)["model"].items() if name != "dtype"}
    for row in rows:
      for length in {self.length, *(self.lengths(row) if row.name == DENSE else ())}:
        there = dataclasses.replace(self, length=length)
        for result in dataclasses.replace(there, seeds=tuple(there.finished(row))).group(row).results:
          trained = result.metrics["config"]["model"]
          for name, value in wanted.items():
            if trained[name] != value:
              raise InputError(
                f"{result.name} was trained with model.{name}={trained[name]}, where {self.config_name} has {value}: "
                "give another --runs_dir."
              )

  def lengths(self, row: Row) -> list[str]:
    """How long this row was trained, by the directories that are there."""
    return [path.name.replace("_", " ") for path in sorted(self.workdir(row, 0).path.parent.parent.glob("*_*"))]

  def group(self, row: Row) -> Group:
    """The results of `seeds`, all finished; without ranks of users where only the metrics are there.

    Raises:
      InputError: a workdir holds a run of other settings than the row's, or answered with weights from before its end.
    """
    return Group(row.name, tuple(self._result(row, seed) for seed in self.seeds))

  def _result(self, row: Row, seed: int) -> Result:
    workdir = self.workdir(row, seed)
    path, name = workdir.evaluation(self.split), str(workdir)
    if evaluation_results.ranks_path(path).exists():
      result = evaluation_results.load(path, name)
    else:
      result = Result(name, evaluation_results.read_metrics(path, name), np.empty(0, np.int32))
    again = "move it away, and the row is trained again"
    trained = config_lib.flatten(result.metrics["config"]["reduction"])
    for setting, value in row.settings:
      if trained[setting] != value:
        shown = f"reduction.{setting}={trained[setting]}, where the row {row.name!r} has {value}"
        raise InputError(f"{workdir} was trained with {shown}: {again}.")
    step, steps = result.metrics["step"], result.metrics.get("steps")
    if steps is None:
      raise InputError(f"{workdir} was evaluated before its end: remove {path}, and it is evaluated again.")
    if step < steps:
      at = f"step {step:,} of {steps:,}"
      raise InputError(f"{workdir} was evaluated at {at}, where the last weights of rows are compared: {again}.")
    return result


def collect(
  trainings: Trainings, rows: Sequence[Row], costs: Mapping[str, float], timed: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
  """A dict per finished row: metrics, and the difference to dense with its interval, over the seeds that both have.

  Args:
    trainings: which runs.
    rows: dense among them; those that are not finished are left out.
    costs: encoder FLOPs of each row over dense's, by name.
    timed: training seconds per sample over dense's (`vs_dense`), measured in turns, and their interval (`low`, `high`);
      rows without stay None.
  """
  finished = {row.name: trainings.finished(row) for row in rows}
  dense = next((row for row in rows if row.name == DENSE), None)
  if dense is None:
    return []
  runs = []
  for row in rows:
    seeds = finished[row.name] & finished[DENSE]
    if not seeds:
      continue
    mine = dataclasses.replace(trainings, seeds=tuple(sorted(seeds)))
    base, group = mine.group(dense), mine.group(row)
    compared = difference(base, group)
    if compared is None:
      (seed,) = mine.seeds
      of_both = [evaluation_results.ranks_path(mine.workdir(one, seed).evaluation(mine.split)) for one in (dense, row)]
      lacking = " and ".join(sorted({str(path) for path in of_both if not path.exists()}))
      raise InputError(
        f"{row.name} has one seed in common with {DENSE}, {seed}, and ranks of users are missing ({lacking}): run "
        "`python -m rastp_jax.evaluate` there again, or train with more seeds."
      )
    found, over = compared
    run = {
      "name": row.name,
      "method": row.method,
      "dataset": trainings.dataset,
      "config": trainings.config_name,
      "stage": trainings.stage,
      "length": trainings.length,
      "split": trainings.split,
      "budget": row.budget,
      "settings": dict(row.settings),
      "seeds": list(mine.seeds),
      "samples": group.mean("training_samples"),
      "beams": group.mean("beam_width"),
      "users": group.results[0].metrics["users"],
      "devices": group.devices,
      "encoder_flops_vs_dense": costs.get(row.name),
      **{name: group.mean(name) for name in METRICS},
      "deviation": {name: group.deviation(name) for name in METRICS},
      "ndcg@10_of_seeds": group.values("ndcg@10"),
      "dense_ndcg@10": base.mean("ndcg@10"),
      "dense_ndcg@10_of_seeds": base.values("ndcg@10"),
      "ndcg@10_difference": found.value,
      "ndcg@10_difference_low": found.low,
      "ndcg@10_difference_high": found.high,
      "p": found.p,
      "interval_over": over,
      "training_seconds_vs_dense": timed[row.name]["vs_dense"] if row.name in timed else None,
      "commands": [command.text for command in mine.commands(row)],
    }
    if row.name != DENSE and row.name in timed:
      run |= _at_equal_time(mine, row, dense, timed[row.name])
    control = _control(row, costs, [other for other in rows if seeds <= finished[other.name]])
    compared = None if control is None else difference(mine.group(control), group)
    if control is not None and compared is not None:
      beside, over = compared
      run |= {
        "control": control.name,
        "control_difference": beside.value,
        "control_difference_low": beside.low,
        "control_difference_high": beside.high,
        "control_interval_over": over,
      }
    runs.append(run)
  return runs


def difference(base: Group, group: Group) -> tuple[Difference, str] | None:
  """In NDCG@10, and what its interval is over: "users", or "seeds" where some ranks of users were not kept.

  None where they were not, and there is but one seed.
  """
  if all(len(result.ranks) for one in (base, group) for result in one.results):
    return paired_bootstrap("ndcg@10", base.user_values("ndcg@10"), group.user_values("ndcg@10")), "users"
  if len(base.results) < 2:
    return None
  return paired_seeds("ndcg@10", base.values("ndcg@10"), group.values("ndcg@10")), "seeds"


def _at_equal_time(trainings: Trainings, row: Row, dense: Row, seconds: Mapping[str, float]) -> dict[str, Any]:
  """The row beside a dense model that was trained as many seconds, on fewer samples, over the seeds that both have.

  As many: the interval of the row's seconds per sample, dense's being 1, holds dense's share of the samples.
  """
  for length in trainings.lengths(dense):
    shorter = dataclasses.replace(trainings, length=length)
    seeds = tuple(sorted(shorter.finished(dense) & set(trainings.seeds)))
    if not seeds or length == trainings.length:
      continue
    group = dataclasses.replace(trainings, seeds=seeds).group(row)
    base = dataclasses.replace(shorter, seeds=seeds).group(dense)
    (ours, theirs) = (one.values("training_samples") for one in (group, base))
    if seconds["low"] <= sum(theirs) / sum(ours) <= seconds["high"]:
      compared = difference(base, group)
      if compared is None:
        continue
      found, over = compared
      return {
        "equal_time": {
          "dense_length": length,
          "seeds": list(seeds),
          "ndcg@10_of_seeds": group.values("ndcg@10"),
          "dense_ndcg@10_of_seeds": base.values("ndcg@10"),
          "difference": found.value,
          "difference_low": found.low,
          "difference_high": found.high,
          "interval_over": over,
        }
      }
  return {}


def _control(row: Row, costs: Mapping[str, float], others: Sequence[Row]) -> Row | None:
  """The one of the newest tokens alone whose encoder costs most nearly the same."""
  controls = [other for other in others if other.method == CONTROL and other.name in costs]
  if row.name == DENSE or row.method == CONTROL or row.name not in costs or not controls:
    return None
  return min(controls, key=lambda other: abs(costs[other.name] - costs[row.name]))


def merge(stored: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Runs of the file and of now: what was found again takes the place of what was stored, nothing is lost.

  Holm's correction is over all rows that were compared with dense on the same samples.
  """
  runs = {(*comparison(run), run["name"]): dict(run) for run in (*stored, *found)}
  merged = list(runs.values())
  for one in dict.fromkeys(comparison(run) for run in merged):
    mine = [run for run in merged if comparison(run) == one]
    for run, p in zip(mine, holm([run["p"] if run["name"] != DENSE else None for run in mine]), strict=True):
      run["p_holm"] = p
  return sorted(merged, key=lambda run: (comparison(run), -run["ndcg@10"]))


def comparison(run: Mapping[str, Any]) -> tuple[str, str, str, int]:
  """Equal for runs that are compared with each other: dataset, config, stage, samples."""
  return run["dataset"], run["config"], run["stage"], round(run["samples"])


def holm(values: Sequence[float | None]) -> list[float | None]:
  """Holm's step-down correction of p values; None stays None."""
  order = sorted((value, index) for index, value in enumerate(values) if value is not None)
  corrected: list[float | None] = [None] * len(values)
  largest = 0.0
  for rank, (value, index) in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - rank) * value))
    corrected[index] = largest
  return corrected
