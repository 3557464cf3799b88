"""Trained rows: the commands behind them, and which are finished."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.config import Config, May
from rastp_jax.errors import InputError
from rastp_jax.evaluation import results as evaluation_results
from rastp_jax.evaluation.comparison import Group
from rastp_jax.evaluation.results import Result
from rastp_jax.experiments.commands import RunCommand
from rastp_jax.experiments.lab.rows import DENSE, Row
from rastp_jax.training.workdir import Workdir

# What an evaluation says of the data: names of fingerprints, of the histories and of the codes.
DATA = ("dataset_fingerprint", "semantic_ids_fingerprint")
# What the commands choose for each run, what has no effect where the last weights answer, and what a run computes in.
_OF_EACH_RUN = {
  "train.length",
  "train.eval_every",
  "train.eval_users",
  "train.patience",
  "train.teacher",
  "model.dtype",
}
_DENSE = Row(DENSE, "none", None, ())
_AGAIN = "move it away, and the row is trained again"


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
    names = (run.name.removeprefix("seed_") for run in self.workdir(row, 0).path.parent.glob("seed_*"))
    ended = lambda seed: all(one.finished for one in dataclasses.replace(self, seeds=(seed,)).commands(row))
    return {seed for name in names if name.isdigit() and ended(seed := int(name))}  # not those that were moved away

  def check(self, rows: Sequence[Row], config: Config, fingerprints: Mapping[str, str]) -> None:
    """Looks at all runs of these rows that are finished, of dense at all lengths.

    Args:
      rows: of the laboratory.
      config: what `config_flags` say.
      fingerprints: of the data at hand, by the names in `DATA`; where there is none, all runs must be of the same.

    Raises:
      InputError: as `group` does, or because a run has other settings than the row's or the config's, or other data.
    """
    data = dict(fingerprints)
    for row in rows:
      for length in {self.length, *(self.lengths(row) if row.name == DENSE else ())}:
        there = dataclasses.replace(self, length=length)
        for result in dataclasses.replace(there, seeds=tuple(there.finished(row))).group(row).results:
          self._check_settings(row, config, result)
          for name in DATA:
            of_run = result.metrics.get(name)  # evaluations of before do not say which codes
            if of_run is not None and of_run != data.setdefault(name, of_run):
              raise InputError(
                f"{result.name} was trained on other data ({name} {of_run[:12]}, elsewhere {data[name][:12]}): give "
                "another --runs_dir."
              )

  def _check_settings(self, row: Row, config: Config, result: Result) -> None:
    """Raises InputError for a setting that changes what is learned or answered; dense has no settings of reductions."""
    free = config_lib.differing_settings(May.SEED) | _OF_EACH_RUN
    if not config.data.bucket_lengths:
      free |= {"data.bucket_lengths"}  # a run notes those that its data gave it
    of_row, trained = dict(row.settings), config_lib.flatten(result.metrics["config"])
    for name, wanted in config_lib.flat(row.apply(config)).items():
      section, _, setting = name.partition(".")
      if name in free or (row.name == DENSE and section == "reduction" and setting != "method"):
        continue
      if trained[name] != wanted:
        shown = f"{result.name} was trained with {name}={trained[name]}, where"
        if section == "reduction" and setting in of_row:
          raise InputError(f"{shown} the row {row.name!r} has {wanted}: {_AGAIN}.")
        raise InputError(f"{shown} {self.config_name} as given has {wanted}: give another --runs_dir.")

  def lengths(self, row: Row) -> list[str]:
    """How long this row was trained, by the directories that are there."""
    return [path.name.replace("_", " ") for path in sorted(self.workdir(row, 0).path.parent.parent.glob("*_*"))]

  def group(self, row: Row) -> Group:
    """The results of `seeds`, all finished; without ranks of users where only the metrics are there.

    Raises:
      InputError: a run answered with weights from before its end.
    """
    return Group(row.name, tuple(self._result(row, seed) for seed in self.seeds))

  def _result(self, row: Row, seed: int) -> Result:
    workdir = self.workdir(row, seed)
    path, name = workdir.evaluation(self.split), str(workdir)
    if evaluation_results.ranks_path(path).exists():
      result = evaluation_results.load(path, name)
    else:
      result = Result(name, evaluation_results.read_metrics(path, name), np.empty(0, np.int32))
    step, steps = result.metrics["step"], result.metrics.get("steps")
    if steps is None:
      raise InputError(f"{workdir} was evaluated before its end: remove {path}, and it is evaluated again.")
    if step < steps:
      at = f"step {step:,} of {steps:,}"
      raise InputError(f"{workdir} was evaluated at {at}, where the last weights of rows are compared: {_AGAIN}.")
    return result
