"""Trained rows: the commands behind them, and which are finished."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.evaluation import results as evaluation_results
from rastp_jax.evaluation.comparison import Group
from rastp_jax.evaluation.results import Result
from rastp_jax.experiments.commands import RunCommand
from rastp_jax.experiments.lab.rows import DENSE, Row
from rastp_jax.training.workdir import Workdir

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
