"""Every way to shorten a history, side by side: screened, trained on equal samples, confirmed over seeds.

    python -m rastp_jax.experiment laboratory --config=configs/beauty.py:cpu --stage=screen
    python -m rastp_jax.experiment laboratory --config=configs/beauty.py:cpu --stage=train --methods=recent,item_sum
    python -m rastp_jax.experiment laboratory --config=configs/beauty.py:cpu --stage=confirm --methods=rastp,item_sum

The dataset must be prepared. *screen* trains one dense model and lets every method without weights of its own shorten
histories in it: how much likelihood does the target lose, on the validation users that lose tokens? *train* trains
rows at equal samples and compares them on validation users. *confirm* does so for longer and over several seeds, and
looks at test. *cost* times training steps in turns, and *page* collects what is finished. Finished rows are skipped,
interrupted ones go on; each call adds to the same JSON file and makes table, plot and page again. A method that is
added to the registry (rastp_jax/reduction/methods.py) is a row of its own at once.
"""

import dataclasses
import os
import pathlib
import sys
from typing import Any

from absl import flags

from rastp_jax.config import Config
from rastp_jax.experiments.commands import AT_ONCE, run_all
from rastp_jax.experiments.lab import collecting, cost, page
from rastp_jax.experiments.lab.rows import DENSE, Row, all_rows, choose, possible
from rastp_jax.experiments.lab.screen import Screen, oracle_rows, screened
from rastp_jax.experiments.lab.training import DATA, Trainings
from rastp_jax.experiments.results import write_result
from rastp_jax.runtime import cli, files, text_tables
from rastp_jax.training import runs

_CONFIG = cli.define_config_flag()
_STAGE = flags.DEFINE_enum("stage", "train", ["screen", "train", "confirm", "cost", "page"], "What to do.")
_METHODS = flags.DEFINE_list("methods", [], "Methods or rows; default: all.")
_LENGTH = flags.DEFINE_string("length", "", 'Of each training; default: "4 epochs" (train), "16 epochs" (confirm).')
_SEEDS = flags.DEFINE_list("seeds", [], "To train. Default: 999 (train), 999,1024,2025 (confirm).")
_AT_ONCE = flags.DEFINE_integer("at_once", 1, AT_ONCE, lower_bound=1)
_RUNS_DIR = flags.DEFINE_string("runs_dir", "runs/laboratory", "Holds the runs.")
_USERS = flags.DEFINE_integer("users", 2000, "screen: validation users with long histories; 0: all.", lower_bound=0)
_REPEATS = flags.DEFINE_integer("repeats", 7, "cost: timings of each step.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "docs/results/laboratory.json", "JSON file that the results are added to.")

LENGTHS = {"train": "4 epochs", "confirm": "16 epochs"}
SEEDS = {"train": (999,), "confirm": (999, 1024, 2025)}
KEPT = ("screens", "seconds", "flops", "runs")


def main() -> None:
  config = cli.load_config(_CONFIG.value)
  files.check_writable(_OUTPUT.value)
  rows = choose(_METHODS.value, {**_rows(config, say=True), **(oracle_rows() if _STAGE.value == "screen" else {})})
  stored = _read()
  data = None if _STAGE.value == "page" else runs.load_data(config)  # refuses here what every run would refuse
  fingerprints = {} if data is None else {name: part.fingerprint for name, part in zip(DATA, data, strict=True)}
  for stage in LENGTHS:
    _trainings(stage, config.data.dataset).check(list(_rows(config).values()), config, fingerprints)
  if _STAGE.value == "screen":
    _screen(rows, stored, config)
  elif _STAGE.value == "cost":
    _time(rows, stored, config)
  elif _STAGE.value != "page":
    trainings = _trainings(_STAGE.value, config.data.dataset)
    for taught in (False, True):  # last, because dense, which is always among the others, teaches these
      run_all([chain for row in rows if row.taught == taught for chain in trainings.chains(row)], _AT_ONCE.value)
  _collect(stored, config)
  write_result(_OUTPUT.value, stored)
  show(stored)


def _rows(config: Config, *, say: bool = False) -> dict[str, Row]:
  """The rows that this config allows; on demand, why it refuses the others is printed."""
  allowed, refused = possible(all_rows(config), config)
  for name, reason in refused.items() if say else ():
    print(f"{name} is left out: {reason}")
  return allowed


def _trainings(stage: str, dataset: str) -> Trainings:
  given = tuple(argument for argument in sys.argv[1:] if argument.startswith("--config"))
  asked = _STAGE.value in (stage, "page")
  length = _LENGTH.value if asked and _LENGTH.value else LENGTHS[stage]
  seeds = tuple(int(seed) for seed in _SEEDS.value) if asked and _SEEDS.value else SEEDS[stage]
  return Trainings(given, dataset, stage, length, seeds, _RUNS_DIR.value)


def _screen(rows: list[Row], stored: dict[str, Any], config: Config) -> None:
  """Adds every row's effect on a dense model, which is trained first if it is not there yet; a row at a time."""
  dataset = config.data.dataset
  trainings, dense = _trainings("train", dataset), _rows(config)[DENSE]
  run_all(trainings.chains(dense))
  workdir = trainings.workdir(dense, trainings.seeds[0])
  saved = runs.load_model(str(workdir))
  screen = Screen(saved, _USERS.value)
  about = {"model": str(workdir), "step": saved.step, "split": "validation", "users": screen.users}
  about |= {"chosen": "at random from those in the longest bucket", "bucket_lengths": list(saved.lengths)}
  name = trainings.config_name
  before = stored.get("screens", {}).get(name, {})
  found = dict(before["rows"]) if before.get("about") == about else {}
  stored["screens"] = {**stored.get("screens", {}), name: {"about": about, "rows": found}}
  wanted = screened(rows)
  for number, row in enumerate(wanted, 1):
    if row.name not in found:
      found[row.name] = dataclasses.asdict(screen.see(row))
      write_result(_OUTPUT.value, stored)
    seen = found[row.name]
    print(f"{number}/{len(wanted)} {row.name}: {seen['rise']:+.4f} ± {seen['error']:.4f} nats", flush=True)


def _time(rows: list[Row], stored: dict[str, Any], config: Config) -> None:
  """Training seconds of rows, measured in turns in this process; they replace earlier ones, whose dense was another."""
  name, chosen = _trainings("train", config.data.dataset).config_name, [row for row in rows if row.untrained]
  for row in rows:
    if not row.untrained:
      print(f"{row.name} is not timed: it has weights of its own, or is trained in another way.")
  load = os.getloadavg()[0]
  seconds = cost.training_seconds(config, *runs.load_data(config), chosen, _REPEATS.value)
  about = {
    "command": cli.command_line(),
    "turns": _REPEATS.value,
    "load_before": load,
    "load_after": os.getloadavg()[0],
  }
  stored["seconds"] = {**stored.get("seconds", {}), name: {"about": about, "rows": seconds}}


def _collect(stored: dict[str, Any], config: Config) -> None:
  """Adds all finished runs of this dataset to those in the file, with what they cost."""
  rows, finished = _rows(config), [_trainings(stage, config.data.dataset) for stage in ("train", "confirm")]
  name = finished[0].config_name
  costs = dict(stored.get("flops", {}).get(name, {}))
  missing = [row for row in rows.values() if row.name not in costs and any(one.finished(row) for one in finished)]
  if missing:
    costs |= cost.encoder_flops(config, *runs.load_data(config), [rows[DENSE], *missing])
    stored["flops"] = {**stored.get("flops", {}), name: costs}
  timed = stored.get("seconds", {}).get(name, {"rows": {}})["rows"]
  before = stored.get("runs", [])
  found = [run for one in finished for run in collecting.collect(one, list(rows.values()), costs, timed, before)]
  stored["runs"] = collecting.merge(before, found)


def _read() -> dict[str, Any]:
  """What earlier calls have found; where it came from is written again."""
  path = pathlib.Path(_OUTPUT.value)
  found = files.read_json(path, "move it away, and finished runs are collected again") if path.exists() else {}
  return {name: found[name] for name in KEPT if name in found}


def show(stored: dict[str, Any]) -> None:
  """Prints the tables and writes the page beside the JSON file."""
  shown = page.make(stored)
  for heading, rows in shown.tables.items():
    print(f"\n{heading}\n{text_tables.align(rows)}")
  path = pathlib.Path(_OUTPUT.value).with_suffix(".html")
  files.write_atomic(path, page.render("The laboratory of token reductions", shown, cli.command_line()))
  for name, svg in shown.files.items():
    files.write_atomic(path.with_name(f"{path.stem}_{name}.svg"), svg)
  print(f"\n{path}")
