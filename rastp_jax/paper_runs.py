"""The runs behind the paper's table: which commands, which are done, and the table itself."""

import dataclasses
import json
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from rastp_jax import files
from rastp_jax.errors import InputError
from rastp_jax.evaluation import published, report, results
from rastp_jax.evaluation.comparison import Group, compare

SEEDS = (999, 1024, 2025)
MODELS = ("dense", "pruned")
DATASETS = ("beauty", "sports", "toys")

# Six runs, three of them dense, within two hours on 2 slow cores (docs/results/paper_table_cpu.json).
CPU_LENGTH = "4 epochs"


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the table needs.

  Attributes:
    raw_dir: holds a directory of raw files for each dataset; "" where everything is prepared already.
    data_dir: takes the prepared data.
    runs_dir: takes a workdir for each dataset, model and seed.
    cpu: Beauty only, with the `:cpu` configs.
    length: of training, like "20 epochs"; "" for the configs' own (`CPU_LENGTH` with `cpu`).
  """

  raw_dir: str = ""
  data_dir: str = "data"
  runs_dir: str = "runs/paper_table"
  cpu: bool = False
  length: str = ""

  @property
  def name(self) -> str:
    """Of the table's files."""
    return "paper_table_cpu" if self.cpu else "paper_table"

  @property
  def datasets(self) -> tuple[str, ...]:
    return DATASETS[:1] if self.cpu else DATASETS

  @property
  def training(self) -> str:
    """The length that is asked for; "" for the configs' own."""
    return self.length or (CPU_LENGTH if self.cpu else "")

  def workdir(self, dataset: str, model: str, seed: int) -> str:
    return f"{self.runs_dir}{'_cpu' if self.cpu else ''}/{dataset}/{model}/seed_{seed}"


@dataclasses.dataclass(frozen=True)
class Step:
  """One command of the plan.

  Attributes:
    what: it does, for people.
    arguments: of `python -m`.
    finished: whether its outcome is there already.
  """

  what: str
  arguments: tuple[str, ...]
  finished: bool = False

  @property
  def command(self) -> str:
    return shlex.join(["python", "-m", *self.arguments])


def steps(plan: Plan) -> list[Step]:
  """Everything to do, in order: one dataset after the other, each seed dense and pruned, so that pairs come first.

  Raises:
    InputError: raw files are missing, or a run that is there already has another length.
  """
  _check_lengths(plan)
  found = []
  for dataset in plan.datasets:
    raw_dir = pathlib.Path(plan.raw_dir) / dataset
    if plan.raw_dir and not raw_dir.is_dir():
      raise InputError(f"There is no directory {raw_dir}: give --raw_dir a directory that holds {_names(plan)}.")
    raw = [f"--raw_dir={raw_dir}"] if plan.raw_dir else []
    prepare = ("rastp_jax.prepare", _config(plan, dataset, "pruned"), f"--config.data.data_dir={plan.data_dir}", *raw)
    runs = [step for seed in SEEDS for model in MODELS for step in _run(plan, dataset, model, seed)]
    found += [Step(f"Preparing {dataset}", prepare, all(step.finished for step in runs)), *runs]
  return found


def execute(plan: Plan, output: str, run: Callable[[Step], None], say: Callable[[str], None] = print) -> list[str]:
  """Runs every step that is not finished, then writes the table as NAME.json and NAME.md into a directory.

  Args:
    plan: what the table needs.
    output: the directory.
    run: carries a step out, and raises if it fails.
    say: takes a line for people.

  Returns:
    The paths written.
  """
  todo = steps(plan)
  paths = [str(pathlib.Path(output) / f"{plan.name}.{ending}") for ending in ("json", "md")]
  for path in paths:
    files.check_writable(path)
  for number, step in enumerate(todo, start=1):
    say(f"== {number} of {len(todo)}: {step.what}" + (", done before" if step.finished else f"\n   {step.command}"))
    if not step.finished:
      run(step)
  table = make_table(plan)
  files.write_json(paths[0], table)
  files.write_whole(paths[1], report.markdown(table["rows"]) + "\n\n" + "\n".join(table["notes"]) + "\n")
  say("\n" + report.align(table["rows"]) + "\n\n" + "\n".join(table["notes"]))
  workdirs = [step.arguments[1] for step in todo if step.arguments[0] == "rastp_jax.evaluate"]
  say(f"\nCurves and pictures: python -m rastp_jax.report {shlex.join(workdirs)} --output={output}\n")
  return paths


def dry_run(plan: Plan) -> str:
  """Every command, a line each; those whose outcome is there already say so."""
  return "\n".join(step.command + ("  # done" if step.finished else "") for step in steps(plan))


def run_command(step: Step) -> None:
  """Carries a step out in a process of its own, whose output goes where ours goes.

  Raises:
    InputError: it failed; the sentence holds the process's own last words, and how to go on.
  """
  process = subprocess.Popen([sys.executable, "-m", *step.arguments], stderr=subprocess.PIPE, text=True)
  before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # or it would go on without us
  last = ""
  try:
    for line in process.stderr:
      sys.stderr.write(line)
      last = line.strip() or last
    code = process.wait()
  except KeyboardInterrupt:
    process.wait()  # the terminal has told it, too
    raise InputError(f"{step.what} was interrupted: {_go_on()}.") from None
  finally:
    signal.signal(signal.SIGTERM, before)
  if code < 0:
    raise InputError(f"{step.what} was stopped by {signal.Signals(-code).name}: {_go_on()}.")
  if code:
    words = last.removeprefix("error: ").rstrip(".")
    raise InputError(f"{step.what} failed with exit code {code} ({words}): put that right, then {_go_on()}.")


def make_table(plan: Plan) -> dict[str, Any]:
  """The finished table: ours (mean ± sample standard deviation over seeds) beside the published figures.

  Returns:
    `rows` of cells, `notes`, and `datasets`: for each one, by model, every figure of every seed with its command, and
    the differences between pruned and dense.
  """
  rows = [["", "beams", *published.METRICS, "training, minutes", "pruned / dense time"]]
  details: dict[str, Any] = {}
  for dataset in plan.datasets:
    groups = {model: _group(plan, dataset, model) for model in MODELS}
    ratio = groups["pruned"].mean("training_seconds") / groups["dense"].mean("training_seconds")
    for model, group in groups.items():
      cells = [f"{group.mean(key):.4f} ± {group.deviation(key):.4f}" for key in published.METRICS]
      minutes = f"{group.mean('training_seconds') / 60:,.1f} ± {group.deviation('training_seconds') / 60:,.1f}"
      beams = f"{group.mean('beam_width'):.0f}"
      rows.append([f"{dataset}, {model}", beams, *cells, minutes, f"{ratio:.2f}" if model == "pruned" else ""])
    for method, values in published.RESULTS[dataset].items():
      saved = f"{1 - published.RASTP_TRAINING_TIME_SAVED:.2f}" if method == "RASTP, pruned" else ""
      rows.append([f"{dataset}, published {method}", "", *(f"{value:.4f}" for value in values), "", saved])
    details[dataset] = {
      **{model: [dict(result.figures) for result in group.results] for model, group in groups.items()},
      "time_ratio": ratio,
      "pruned_minus_dense": [dataclasses.asdict(d) for d in compare(groups["dense"], groups["pruned"])],
    }
  return {"rows": rows, "notes": _notes(plan, details), "command": _command(), "datasets": details}


def _notes(plan: Plan, details: dict[str, Any]) -> list[str]:
  first = next(iter(details.values()))["dense"][0]
  notes = [
    f"Ours: mean ± sample standard deviation over seeds {', '.join(map(str, SEEDS))}; every run saw "
    f"{first['config']['train']['length']} of samples on {first['devices']} x {first['device_kind']}; time is training "
    "alone, without compiling and evaluating.",
    "Published: " + "; ".join(f"{name}, {source}" for name, source in published.SOURCES.items()) + ".",
  ]
  if plan.cpu:
    notes.append("These are the small :cpu models; the published figures are of paper-sized ones.")
  return notes


def _run(plan: Plan, dataset: str, model: str, seed: int) -> list[Step]:
  workdir = plan.workdir(dataset, model, seed)
  train = (
    "rastp_jax.train",
    _config(plan, dataset, model),
    f"--config.data.data_dir={plan.data_dir}",
    f"--config.train.seed={seed}",
    "--config.train.patience=0",  # every run sees the same number of samples
    *([f"--config.train.length={plan.training}"] if plan.training else []),
    f"--workdir={workdir}",
  )
  name = f"{dataset}, {model}, seed {seed}"
  summary, evaluated = (_read(pathlib.Path(workdir) / file) for file in ("summary.json", "eval_test.json"))
  trained = summary is not None
  counted = trained and evaluated is not None and evaluated.get("steps") == summary["steps"]
  return [
    Step(f"Training {name}", train, trained),
    Step(f"Evaluating {name}", ("rastp_jax.evaluate", f"--workdir={workdir}"), counted),
  ]


def _config(plan: Plan, dataset: str, model: str) -> str:
  variants = ",".join((["cpu"] if plan.cpu else []) + (["dense"] if model == "dense" else []))
  return f"--config=configs/{dataset}.py" + (f":{variants}" if variants else "")


def _check_lengths(plan: Plan) -> None:
  """Refuses to bring runs together that saw different amounts of data, before hours are spent on it."""
  for dataset in plan.datasets:
    lengths = {}
    for seed in SEEDS:
      for model in MODELS:
        config = _read(pathlib.Path(plan.workdir(dataset, model, seed)) / "config.json")
        if config is not None:
          lengths[plan.workdir(dataset, model, seed)] = config["train"]["length"]
    wanted = plan.training or next(iter(lengths.values()), "")
    for workdir, length in lengths.items():
      if length != wanted:
        raise InputError(
          f"{workdir} holds a run of {length!r}, not {wanted!r} like the others of the table: remove it, or choose "
          "another --runs_dir or --length."
        )


def _group(plan: Plan, dataset: str, model: str) -> Group:
  workdirs = [plan.workdir(dataset, model, seed) for seed in SEEDS]
  return Group(model, tuple(results.load(pathlib.Path(workdir) / "eval_test.json", workdir) for workdir in workdirs))


def _names(plan: Plan) -> str:
  return ", ".join(f"{dataset}/" for dataset in plan.datasets)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  return json.loads(path.read_text()) if path.exists() else None


def _command() -> str:
  return shlex.join(["python", *sys.orig_argv[1:]])


def _go_on() -> str:
  return f"go on where it stopped by `{_command()}`"
