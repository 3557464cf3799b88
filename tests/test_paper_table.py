"""The paper's table: which commands it takes, how it goes on after an interruption, and its cells."""

import dataclasses
import pathlib
import shlex

import numpy as np
import pytest

from rastp_jax.errors import InputError
from rastp_jax.evaluation import results
from rastp_jax.experiments import paper_table
from rastp_jax.experiments.commands import RunCommand
from rastp_jax.experiments.paper_table import MODELS, SEEDS, TableRuns
from rastp_jax.runtime import files
from tests.helpers.results import make_result

GOLDEN = """\
python -m rastp_jax.prepare --config=beauty --config.data.data_dir=data --raw_dir={raw}/beauty
python -m rastp_jax.train --config=beauty:dense --config.data.data_dir=data --config.train.seed=999 \
--config.train.patience=0 '--config.train.length=2 epochs' --workdir=runs/t/beauty/dense/seed_999
python -m rastp_jax.evaluate --workdir=runs/t/beauty/dense/seed_999
python -m rastp_jax.train --config=beauty --config.data.data_dir=data --config.train.seed=999 \
--config.train.patience=0 '--config.train.length=2 epochs' --workdir=runs/t/beauty/pruned/seed_999
python -m rastp_jax.evaluate --workdir=runs/t/beauty/pruned/seed_999
"""


class Machine:
  """Stands in for the processes: writes what training and evaluation write."""

  def __init__(self, break_at=None):
    self.done, self.break_at = [], break_at

  def __call__(self, command: RunCommand):
    if command.title == self.break_at:
      raise InputError("broken")
    self.done.append(command.title)
    if command.arguments[0] == "rastp_jax.prepare":
      return
    workdir = pathlib.Path(command.arguments[-1].removeprefix("--workdir="))
    model, seed = workdir.parts[-2], int(workdir.parts[-1].removeprefix("seed_"))
    summary = {"steps": 5, "seconds": {"dense": 600.0, "pruned": 300.0}[model], "samples": 100.0, "devices": 2}
    summary["device_kind"] = "cpu"
    if command.arguments[0] == "rastp_jax.train":
      files.write_json(workdir / "summary.json", summary)
      files.write_json(workdir / "config.json", {"train": {"length": "2 epochs"}})
      return
    ranks = np.random.default_rng([seed, model == "dense"]).integers(0, 20, 40)
    result = make_result(workdir.name, ranks, seed=seed, method="rastp" if model == "pruned" else "none")
    result.metrics["config"]["train"]["length"] = "2 epochs"
    metrics = {**result.metrics, **results.training_summary(workdir)}
    results.save(workdir / "eval_test.json", dataclasses.replace(result, metrics=metrics))


def test_commands(tmp_path):
  (tmp_path / "beauty").mkdir()
  runs = TableRuns(str(tmp_path), runs_dir="runs/t", datasets=("beauty",), length="2 epochs")
  printed = paper_table.dry_run(runs)
  assert printed.startswith(GOLDEN.format(raw=shlex.quote(str(tmp_path))))
  assert len(printed.splitlines()) == 1 + 2 * len(MODELS) * len(SEEDS)
  whole = paper_table.dry_run(TableRuns()).splitlines()
  assert len(whole) == 3 * 13 and "--config=toys --" in whole[-2] and "length" not in whole[-2]
  with pytest.raises(InputError, match="sports"):
    paper_table.dry_run(TableRuns(str(tmp_path)))


def test_it_goes_on_where_it_stopped(tmp_path):
  runs = TableRuns(runs_dir=str(tmp_path / "runs"), datasets=("beauty",), length="2 epochs")
  first, second, third = Machine("Training beauty, pruned, seed 1024"), Machine(), Machine()
  with pytest.raises(InputError, match="broken"):
    paper_table.execute(runs, str(tmp_path / "out"), first, lambda _: None)
  assert not list((tmp_path / "out").iterdir())
  assert sum(line.endswith("# done") for line in paper_table.dry_run(runs).splitlines()) == 6
  paths = paper_table.execute(runs, str(tmp_path / "out"), second, lambda _: None)
  assert second.done[:2] == ["Preparing beauty", "Training beauty, pruned, seed 1024"]
  assert not set(first.done[1:]) & set(second.done) and len(first.done) + len(second.done) == 1 + 13
  paper_table.execute(runs, str(tmp_path / "out"), third, lambda _: None)
  assert not third.done
  assert all(pathlib.Path(path).exists() for path in paths)
  with pytest.raises(InputError, match="seed_999 holds a run of '2 epochs', not '3 epochs'"):
    paper_table.commands(TableRuns(runs_dir=str(tmp_path / "runs"), datasets=("beauty",), length="3 epochs"))


def test_an_output_that_cannot_be_written_is_refused_before_any_run(tmp_path):
  (tmp_path / "file").touch()
  machine = Machine()
  with pytest.raises(InputError, match="paper_table.json cannot be written"):
    paper_table.execute(TableRuns(), str(tmp_path / "file"), machine, lambda _: None)
  assert not machine.done


def test_a_run_evaluated_before_its_end_is_evaluated_again(tmp_path):
  runs = TableRuns(runs_dir=str(tmp_path / "runs"), datasets=("beauty",), length="2 epochs")
  paper_table.execute(runs, str(tmp_path / "out"), Machine(), lambda _: None)
  workdir = pathlib.Path(runs.workdir("beauty", "dense", 2025))
  early = results.load(workdir / "eval_test.json", "early")
  results.save(workdir / "eval_test.json", dataclasses.replace(early, metrics={**early.metrics, "steps": 4}))
  again = Machine()
  paper_table.execute(runs, str(tmp_path / "out"), again, lambda _: None)
  assert again.done == ["Preparing beauty", "Evaluating beauty, dense, seed 2025"]


def test_the_table(tmp_path):
  runs = TableRuns(runs_dir=str(tmp_path / "runs"), datasets=("beauty",), length="2 epochs")
  said = []
  _, path = paper_table.execute(runs, str(tmp_path / "out"), Machine(), said.append)
  ranks = [np.random.default_rng([seed, True]).integers(0, 20, 40) for seed in SEEDS]
  recalls = [np.mean(r < 10) for r in ranks]
  table = paper_table.make_table(runs)
  rows = {row[0]: dict(zip(table["rows"][0], row, strict=True)) for row in table["rows"]}
  assert rows["beauty, dense"]["recall@10"] == f"{np.mean(recalls):.4f} ± {np.std(recalls, ddof=1):.4f}"
  assert rows["beauty, dense"]["beams"] == "10" and rows["beauty, dense"]["training, minutes"] == "10.0 ± 0.0"
  assert rows["beauty, pruned"]["pruned / dense time"] == "0.50"
  assert rows["beauty, published RASTP, pruned"]["recall@10"] == "0.0656"
  assert rows["beauty, published RASTP, pruned"]["pruned / dense time"] == "0.73"
  assert len(table["datasets"]["beauty"]["pruned"]) == 3 and table["datasets"]["beauty"]["time_ratio"] == 0.5
  text = pathlib.Path(path).read_text()
  assert "| beauty, published TIGER |" in text
  assert "python -m rastp_jax.report --workdir=" in said[-1]
