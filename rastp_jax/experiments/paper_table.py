"""The runs behind the paper's table: which commands, which are done, and the table itself."""

import dataclasses
import json
import pathlib
import shlex
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rastp_jax.errors import InputError
from rastp_jax.evaluation import published_results
from rastp_jax.evaluation import results as evaluation_results
from rastp_jax.evaluation.comparison import Group, compare
from rastp_jax.experiments.checks import check_known, check_lengths
from rastp_jax.experiments.commands import RunCommand
from rastp_jax.experiments.results import write_result
from rastp_jax.runtime import files, text_tables
from rastp_jax.training.workdir import Workdir

SEEDS = (999, 1024, 2025)
MODELS = ("dense", "pruned")
DATASETS = ("beauty", "sports", "toys")


@dataclasses.dataclass(frozen=True)
class TableRuns:
  """The runs that a table is made of.

  Attributes:
    raw_dir: holds a directory of raw files for each dataset; "" where everything is prepared already.
    data_dir: for the prepared data.
    runs_dir: for a workdir per dataset, model and seed.
    datasets: some of `DATASETS`.
    length: of training, like "20 epochs"; "" for the configs' own.
  """

  raw_dir: str = ""
  data_dir: str = "data"
  runs_dir: str = "runs/paper_table"
  datasets: tuple[str, ...] = DATASETS
  length: str = ""

  def workdir(self, dataset: str, model: str, seed: int) -> str:
    return f"{self.runs_dir}/{dataset}/{model}/seed_{seed}"


def commands(runs: TableRuns) -> list[RunCommand]:
  """Everything to do, in order: one dataset after the other, each seed dense and pruned, so that pairs come first.

  Raises:
    InputError: a dataset is not known, raw files are missing, or a run that is there already has another length.
  """
  check_known("datasets", runs.datasets, DATASETS)
  for dataset in runs.datasets:
    workdirs = [Workdir(runs.workdir(dataset, model, seed)) for seed in SEEDS for model in MODELS]
    check_lengths(workdirs, runs.length, "--runs_dir")
  found = []
  for dataset in runs.datasets:
    raw_dir = pathlib.Path(runs.raw_dir) / dataset
    if runs.raw_dir and not raw_dir.is_dir():
      raise InputError(f"There is no directory {raw_dir}: give --raw_dir a directory that holds {_names(runs)}.")
    raw = [f"--raw_dir={raw_dir}"] if runs.raw_dir else []
    prepare = ("rastp_jax.prepare", _config(dataset, "pruned"), f"--config.data.data_dir={runs.data_dir}", *raw)
    after = [command for seed in SEEDS for model in MODELS for command in _run(runs, dataset, model, seed)]
    found += [RunCommand(f"Preparing {dataset}", prepare, all(command.finished for command in after)), *after]
  return found


def execute(
  runs: TableRuns, output: str, run: Callable[[RunCommand], None], say: Callable[[str], None] = print
) -> list[str]:
  """Runs every command that is not finished, then writes the table as NAME.json and NAME.md into a directory.

  Args:
    runs: what the table needs.
    output: the directory.
    run: runs a command, and raises if it fails.
    say: prints a line.

  Returns:
    The paths written.
  """
  todo = commands(runs)
  paths = [str(pathlib.Path(output) / f"paper_table.{ending}") for ending in ("json", "md")]
  for path in paths:
    files.check_writable(path)
  for number, command in enumerate(todo, start=1):
    say(f"== {number} of {len(todo)}: {command.progress}")
    if not command.finished:
      run(command)
  table = make_table(runs)
  write_result(paths[0], table)
  files.write_atomic(paths[1], text_tables.markdown(table["rows"]) + "\n\n" + "\n".join(table["notes"]) + "\n")
  say("\n" + text_tables.align(table["rows"]) + "\n\n" + "\n".join(table["notes"]))
  workdirs = [command.arguments[1] for command in todo if command.arguments[0] == "rastp_jax.evaluate"]
  say(f"\nCurves and plots: python -m rastp_jax.report {shlex.join([*workdirs, f'--output={output}'])}\n")
  return paths


def dry_run(runs: TableRuns) -> str:
  """Every command, a line each; those whose result exists already say so."""
  return "\n".join(command.text + ("  # done" if command.finished else "") for command in commands(runs))


def make_table(runs: TableRuns) -> dict[str, Any]:
  """The finished table: ours (mean ± sample standard deviation over seeds) beside the published numbers.

  Returns:
    `rows` of cells, `notes`, and `datasets`: for each one, by model, every metric of every seed with its command, and
    the differences between pruned and dense.
  """
  rows = [["", "beams", *published_results.METRICS, "training, minutes", "pruned / dense time"]]
  details: dict[str, Any] = {}
  for dataset in runs.datasets:
    groups = {model: _group(runs, dataset, model) for model in MODELS}
    seconds = {model: statistics.fmean(group.values("training_seconds")) for model, group in groups.items()}
    ratio = seconds["pruned"] / seconds["dense"]
    for model, group in groups.items():
      cells = [_spread(group.values(key), ".4f") for key in published_results.METRICS]
      minutes = _spread([value / 60 for value in group.values("training_seconds")], ",.1f")
      beams = f"{group.mean('beam_width'):.0f}"
      rows.append([f"{dataset}, {model}", beams, *cells, minutes, f"{ratio:.2f}" if model == "pruned" else ""])
    for method, values in published_results.RESULTS[dataset].items():
      saved = f"{1 - published_results.RASTP_TRAINING_TIME_SAVED:.2f}" if method == "RASTP, pruned" else ""
      rows.append([f"{dataset}, published {method}", "", *(f"{value:.4f}" for value in values), "", saved])
    details[dataset] = {
      **{model: [dict(result.metrics) for result in group.results] for model, group in groups.items()},
      "time_ratio": ratio,
      "pruned_minus_dense": [dataclasses.asdict(d) for d in compare(groups["dense"], groups["pruned"])],
    }
  return {"rows": rows, "notes": _notes(runs, details), "datasets": details}


def _spread(values: Sequence[float], form: str) -> str:
  return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):{form}}"


def _notes(runs: TableRuns, details: dict[str, Any]) -> list[str]:
  first = next(iter(details.values()))["dense"][0]
  return [
    f"Ours: mean ± sample standard deviation over seeds {', '.join(map(str, SEEDS))}; every run saw "
    f"{first['config']['train']['length']} of samples on {first['devices']} x {first['device_kind']}; time is training "
    "alone, without compiling and evaluating.",
    "Published: " + "; ".join(f"{name}, {source}" for name, source in published_results.SOURCES.items()) + ".",
  ]


def _run(runs: TableRuns, dataset: str, model: str, seed: int) -> list[RunCommand]:
  workdir = runs.workdir(dataset, model, seed)
  train = (
    "rastp_jax.train",
    _config(dataset, model),
    f"--config.data.data_dir={runs.data_dir}",
    f"--config.train.seed={seed}",
    "--config.train.patience=0",  # every run sees the same number of samples
    *([f"--config.train.length={runs.length}"] if runs.length else []),
    f"--workdir={workdir}",
  )
  name = f"{dataset}, {model}, seed {seed}"
  summary, evaluation = Workdir(workdir).read_summary(), Workdir(workdir).evaluation("test")
  trained = summary is not None
  evaluated = trained and evaluation.exists() and json.loads(evaluation.read_text()).get("steps") == summary["steps"]
  return [
    RunCommand(f"Training {name}", train, trained),
    RunCommand(f"Evaluating {name}", ("rastp_jax.evaluate", f"--workdir={workdir}"), evaluated),
  ]


def _config(dataset: str, model: str) -> str:
  return f"--config={dataset}" + (":dense" if model == "dense" else "")


def _group(runs: TableRuns, dataset: str, model: str) -> Group:
  workdirs = [Workdir(runs.workdir(dataset, model, seed)) for seed in SEEDS]
  return Group(model, tuple(evaluation_results.load(one.evaluation("test"), str(one)) for one in workdirs))


def _names(runs: TableRuns) -> str:
  return ", ".join(f"{dataset}/" for dataset in runs.datasets)
