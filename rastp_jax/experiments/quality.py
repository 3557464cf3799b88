"""How good the models of the `:cpu` configs are, beside anchors and published numbers, from raw data to one table.

    python -m rastp_jax.experiment quality --raw_dir=DIR

DIR holds beauty/, sports/ and toys/; it is not needed where they are prepared already. Per dataset: the anchors
(`experiment baselines`), then each model is trained for each seed; shares of the mixtures are chosen on validation
users (`--choice_users` of them), and test is looked at once for each of the rows. Rows: beams alone; the model with its
scores of all items; fused with counts, items of the history excluded. The same command again goes on where it stopped.
"""

import json
import pathlib

from absl import flags

from rastp_jax.data.prepared import open_prepared
from rastp_jax.evaluation import published_results
from rastp_jax.experiments import quality_runs
from rastp_jax.experiments.checks import check_known
from rastp_jax.experiments.commands import AT_ONCE, RunCommand, run_all
from rastp_jax.experiments.quality_runs import MODELS, Trained
from rastp_jax.experiments.results import write_result
from rastp_jax.runtime import files, text_tables

_RAW_DIR = flags.DEFINE_string("raw_dir", "", "Directory that holds beauty/, sports/ and toys/.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Directory for the prepared data.")
_RUNS_DIR = flags.DEFINE_string("runs_dir", "runs/quality", "Directory for the runs.")
_OUTPUT = flags.DEFINE_string("output", "docs/results/quality.json", "JSON file for the table; earlier rows are kept.")
_DATASETS = flags.DEFINE_list("datasets", ["beauty", "sports", "toys"], "In this order.")
_MODELS = flags.DEFINE_list("models", ["best", "repeats"], f"Of {', '.join(MODELS)}.")
_SEEDS = flags.DEFINE_list("seeds", ["999"], "Of every model.")
_LENGTH = flags.DEFINE_string("length", "", 'Of each training, like "6 epochs", in place of the config\'s own.')
_AT_ONCE = flags.DEFINE_integer("at_once", 1, AT_ONCE, lower_bound=1)
_CHOICE_USERS = flags.DEFINE_integer("choice_users", 4000, "Validation users that shares are chosen on.", lower_bound=1)


def main() -> None:
  files.check_writable(_OUTPUT.value)
  check_known("models", _MODELS.value, MODELS)
  check_known("datasets", _DATASETS.value, published_results.RESULTS)
  seeds = tuple(int(seed) for seed in _SEEDS.value)
  of = lambda dataset, model: Trained(dataset, model, seeds, _DATA_DIR.value, _RUNS_DIR.value, _LENGTH.value)
  for dataset in _DATASETS.value:
    for model in _MODELS.value:
      quality_runs.check(of(dataset, model), _CHOICE_USERS.value)
  output = pathlib.Path(_OUTPUT.value)
  kept = json.loads(output.read_text())["rows"] if output.exists() else []
  for dataset in _DATASETS.value:
    _prepare(dataset)
    fingerprint = open_prepared(_DATA_DIR.value, dataset).fingerprint
    found, counts = quality_runs.anchors(dataset, _anchors_file(dataset), fingerprint)
    for model in _MODELS.value:
      trained = of(dataset, model)
      run_all([[trained.train(seed)] for seed in seeds], _AT_ONCE.value)
      chosen = quality_runs.choose(trained, _CHOICE_USERS.value, counts)
      evaluations = {
        name: [trained.evaluate(seed, name, settings) for seed in seeds]
        for name, settings in quality_runs.settings_of_rows(chosen, counts).items()
      }
      run_all([[command] for each in evaluations.values() for command, _ in each], _AT_ONCE.value)
      outputs = {name: [path for _, path in each] for name, each in evaluations.items()}
      train = trained.train(seeds[0]).text
      texts = {name: f"{train}; {each[0][0].text}" for name, each in evaluations.items()}
      found += quality_runs.rows_of(trained, outputs, texts)
    key = lambda row: (row["dataset"], row["model"], row.get("config"))
    new = {key(row) for row in found}
    kept = [row for row in kept if key(row) not in new] + found
    write_result(output, {"rows": sorted(kept, key=lambda row: row["dataset"])})
  print("\n" + text_tables.align(quality_runs.table(json.loads(output.read_text())["rows"])))


def _anchors_file(dataset: str) -> pathlib.Path:
  return pathlib.Path(_OUTPUT.value).parent / f"baselines_{dataset}.json"


def _prepare(dataset: str) -> None:
  """The dataset and its anchors, where they are not there yet."""
  config = [f"--config=configs/{dataset}.py:cpu", f"--config.data.data_dir={_DATA_DIR.value}"]
  raw = [f"--raw_dir={pathlib.Path(_RAW_DIR.value) / dataset}"] if _RAW_DIR.value else []
  prepared = (pathlib.Path(_DATA_DIR.value) / "semantic_ids" / f"{dataset}.npz").exists()
  prepare = RunCommand(f"Preparing {dataset}", ("rastp_jax.prepare", *config, *raw), prepared)
  output = _anchors_file(dataset)
  arguments = ("rastp_jax.experiment", "baselines", *config, f"--output={output}")
  run_all([[prepare, RunCommand(f"Anchors of {dataset}", arguments, output.exists())]])
