"""Every way to shorten a history, side by side: screened, trained on equal samples, confirmed over seeds.

    python -m rastp_jax.experiment laboratory --config=configs/beauty.py:cpu --stage=screen
    python -m rastp_jax.experiment laboratory --config=configs/beauty.py:cpu --stage=train --methods=recent,item_sum
    python -m rastp_jax.experiment laboratory --config=configs/beauty.py:cpu --stage=confirm --methods=rastp,item_sum

The dataset must be prepared. *screen* trains one dense model and lets every method without weights of its own shorten
histories in it: how much likelihood does the target lose, on the validation users that lose tokens? *train* trains
rows at equal samples and compares them on validation users. *confirm* does so for longer and over several seeds, and
looks at test. Runs that are finished are skipped, interrupted ones go on; each call adds to the same JSON file and
makes table, plot and page again. A method that is added to the registry (rastp_jax/reduction/methods.py) is a row of
its own at once.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import flags

from rastp_jax.experiments.lab import cost, page, screen, training
from rastp_jax.experiments.lab.rows import DENSE, Row, all_rows, choose
from rastp_jax.experiments.lab.training import Trainings
from rastp_jax.experiments.paper_table import run_command
from rastp_jax.experiments.results import write_result
from rastp_jax.reduction.methods import REDUCTIONS
from rastp_jax.runtime import cli, files, text_tables
from rastp_jax.training import runs

_CONFIG = cli.define_config_flag()
_STAGE = flags.DEFINE_enum(
  "stage", "train", ["screen", "train", "confirm", "cost", "page"], "What to do; cost: time training steps in turns."
)
_METHODS = flags.DEFINE_list("methods", [], "Methods or rows; default: all.")
_LENGTH = flags.DEFINE_string("length", "", 'Of each training; default: "4 epochs" (train), "16 epochs" (confirm).')
_SEEDS = flags.DEFINE_list("seeds", [], "Default: 999 (train), 999,1024,2025 (confirm).")
_RUNS_DIR = flags.DEFINE_string("runs_dir", "runs/laboratory", "Holds the runs.")
_USERS = flags.DEFINE_integer("users", 0, "screen: validation users looked at; 0: all.", lower_bound=0)
_REPEATS = flags.DEFINE_integer("repeats", 7, "cost: timings of each step.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "docs/results/laboratory.json", "JSON file that the results are added to.")

LENGTHS = {"screen": "4 epochs", "train": "4 epochs", "confirm": "16 epochs"}
SEEDS = {"screen": (999,), "train": (999,), "confirm": (999, 1024, 2025)}


def main() -> None:
  config = cli.load_config(_CONFIG.value)
  files.check_writable(_OUTPUT.value)
  rows = choose(_METHODS.value, all_rows())
  stored = _read()
  if _STAGE.value != "page":
    data = runs.load_data(config)  # refuses here what every run would refuse
    dataset = config.data.dataset
    if _STAGE.value == "screen":
      stored["screens"] = {**stored.get("screens", {}), dataset: _screen(rows)}
    elif _STAGE.value == "cost":
      seconds = cost.training_seconds(config, *data, _without_weights(rows), _REPEATS.value)
      stored["seconds"] = {
        **stored.get("seconds", {}),
        dataset: {**stored.get("seconds", {}).get(dataset, {}), **seconds},
      }
    else:
      _train(rows)
    costs = cost.encoder_flops(config, *data, choose([], all_rows()))
    stored["flops"] = {**stored.get("flops", {}), dataset: costs}
    stored["runs"] = _collected(stored, dataset, costs)
  write_result(_OUTPUT.value, stored)
  show(stored)


def _trainings(stage: str, dataset: str, length: str, seeds: tuple[int, ...]) -> Trainings:
  given = tuple(argument for argument in sys.argv[1:] if argument.startswith("--config"))
  return Trainings(given, dataset, stage, length, seeds, _RUNS_DIR.value)


def _now() -> Trainings:
  stage = _STAGE.value
  seeds = tuple(int(seed) for seed in _SEEDS.value) or SEEDS[stage]
  dataset = cli.load_config(_CONFIG.value).data.dataset
  return _trainings("train" if stage == "screen" else stage, dataset, _LENGTH.value or LENGTHS[stage], seeds)


def _run(trainings: Trainings, row: Row) -> None:
  for command in trainings.commands(row):
    print(f"== {command.progress}", flush=True)
    if not command.finished:
      run_command(command)


def _train(rows: list[Row]) -> None:
  trainings = _now()
  for row in rows:
    _run(trainings, row)


def _screen(rows: list[Row]) -> dict[str, Any]:
  """Every row's effect on a dense model, which is trained first if it is not there yet."""
  trainings, dense = _now(), next(row for row in rows if row.name == DENSE)
  _run(trainings, dense)
  saved = runs.load_model(str(trainings.workdir(dense, trainings.seeds[0])))
  found = screen.screen(saved, {row.name: row for row in rows}, users=_USERS.value)
  return {name: dataclasses.asdict(seen) for name, seen in found.items()}


def _without_weights(rows: list[Row]) -> list[Row]:
  return [row for row in rows if all(REDUCTIONS[part].learned is None for part in row.method.split("+"))]


def _collected(stored: dict[str, Any], dataset: str, costs: dict[str, float]) -> list[dict[str, Any]]:
  """All finished runs of this dataset, and what the file says of others."""
  others = [run for run in stored.get("runs", []) if run["dataset"] != dataset]
  seconds = stored.get("seconds", {}).get(dataset, {})
  found = []
  for stage in ("train", "confirm"):
    asked = _STAGE.value == stage
    length = _LENGTH.value if asked and _LENGTH.value else LENGTHS[stage]
    seeds = tuple(int(seed) for seed in _SEEDS.value) if asked and _SEEDS.value else SEEDS[stage]
    found += training.collect(_trainings(stage, dataset, length, seeds), list(all_rows().values()), costs, seconds)
  return others + found


def _read() -> dict[str, Any]:
  """What earlier calls have found; where they came from is written again."""
  path = pathlib.Path(_OUTPUT.value)
  found = json.loads(path.read_text()) if path.exists() else {}
  return {name: value for name, value in found.items() if name in ("screens", "seconds", "flops", "runs")}


def show(stored: dict[str, Any]) -> None:
  """Prints the tables and writes the page beside the JSON file."""
  kinds = {name: method.kind for name, method in REDUCTIONS.items()}
  plots, tables = {}, {}
  for dataset, stage in dict.fromkeys((run["dataset"], run["stage"]) for run in stored.get("runs", [])):
    mine = [run for run in stored["runs"] if (run["dataset"], run["stage"]) == (dataset, stage)]
    heading = f"{dataset}: {'test, ' if stage == 'confirm' else 'validation, '}{mine[0]['samples'] / 1e6:.2f} M samples"
    if all(run["encoder_flops_vs_dense"] is not None for run in mine):
      plots[heading] = page.pareto(mine, kinds)
    tables[heading] = page.table(mine)
  for dataset, screened in stored.get("screens", {}).items():
    tables[f"{dataset}: screen in a dense model"] = page.screen_table(screened)
  for heading, rows in tables.items():
    print(f"\n{heading}\n{text_tables.align(rows)}")
  path = pathlib.Path(_OUTPUT.value).with_suffix(".html")
  files.write_atomic(path, page.render("The laboratory of token reductions", plots, tables, cli.command_line()))
  for number, svg in enumerate(plots.values()):
    files.write_atomic(path.with_name(f"{path.stem}_{number}.svg"), svg)
  print(f"\n{path}")
