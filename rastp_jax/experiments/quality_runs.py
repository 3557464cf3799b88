"""The runs behind the table of quality: what is trained, what is chosen on validation, and the table itself."""

import dataclasses
import importlib
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rastp_jax import config as config_lib
from rastp_jax.config import CountsConfig
from rastp_jax.errors import InputError
from rastp_jax.evaluation import published_results
from rastp_jax.evaluation import results as evaluation_results
from rastp_jax.evaluation.comparison import Group
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.experiments.checks import check_lengths
from rastp_jax.experiments.commands import RunCommand
from rastp_jax.runtime import files
from rastp_jax.training import runs
from rastp_jax.training.workdir import Workdir

METRICS = published_results.METRICS
# Name -> variants of the config.
MODELS = {"best": "cpu,best", "repeats": "cpu,best,repeats", "dense": "cpu,best,dense", "plain": "cpu,items"}
ITEM_SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
COUNTS_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
CHOSEN_BY = "ndcg@10"
_AGAIN = "remove it and run this command again"


@dataclasses.dataclass(frozen=True)
class Trained:
  """One model of one dataset, all its seeds; `length` of training, where it is not the config's own."""

  dataset: str
  model: str
  seeds: tuple[int, ...]
  data_dir: str
  runs_dir: str
  length: str = ""

  @property
  def config_flags(self) -> list[str]:
    """What training and its check are given."""
    return [
      f"--config=configs/{self.dataset}.py:{MODELS[self.model]}",
      f"--config.data.data_dir={self.data_dir}",
      "--config.train.patience=0",
      *([f"--config.train.length={self.length}"] if self.length else []),
    ]

  def workdir(self, seed: int) -> Workdir:
    return Workdir(pathlib.Path(self.runs_dir) / self.dataset / self.model / f"seed_{seed}")

  @property
  def shares(self) -> pathlib.Path:
    """Where `choose` keeps what it chose."""
    return self.workdir(self.seeds[0]).path / "shares.json"

  def train(self, seed: int) -> RunCommand:
    arguments = (*self.config_flags, f"--config.train.seed={seed}", f"--workdir={self.workdir(seed)}")
    done = self.workdir(seed).read_summary() is not None
    return RunCommand(f"Training {self.dataset}, {self.model}, seed {seed}", ("rastp_jax.train", *arguments), done)

  def evaluate(self, seed: int, name: str, overrides: Mapping[str, Any]) -> tuple[RunCommand, pathlib.Path]:
    """Looks at test with some settings; the result has a file of its own beside the run's.

    Raises:
      InputError: that file is there, but of other settings.
    """
    workdir = self.workdir(seed)
    output = workdir.path / f"test_{name}.json"
    if output.exists():
      _check_settings(output, overrides)
    given = [f"--override={setting}={value}" for setting, value in overrides.items()]
    arguments = ("rastp_jax.evaluate", f"--workdir={workdir}", "--split=test", *given, f"--output={output}")
    return RunCommand(f"Evaluating {workdir}, {name}", arguments, output.exists()), output


def check(trained: Trained, users: int) -> None:
  """Raises InputError if runs that are there have another length, or shares were chosen on other validation users."""
  own = importlib.import_module(f"rastp_jax.configs.{trained.dataset}").get_config(MODELS[trained.model])
  check_lengths(map(trained.workdir, trained.seeds), trained.length or own.train.length, "--runs_dir")
  path = trained.shares
  if path.exists() and (before := files.read_json(path, _AGAIN).get("users")) != users:
    raise InputError(
      f"{path} was chosen on {before} validation users, not {users}: {_AGAIN}, or give --choice_users={before}."
    )


def _check_settings(output: pathlib.Path, wanted: Mapping[str, Any]) -> None:
  found = config_lib.flatten(evaluation_results.read_metrics(output, str(output))["config"])
  for name, value in wanted.items():
    if found[name] != value:
      raise InputError(
        f"{output} was made with {name}={found[name]}, but {value} is wanted now: remove it and the other test_*.json "
        "beside it, and run this command again."
      )


def choose(trained: Trained, users: int, counts: Mapping[str, Any]) -> dict[str, Any]:
  """The shares with the best validation NDCG@10 of the first seed, and every value that was tried; kept in a file.

  Args:
    trained: the model.
    users: validation users looked at.
    counts: settings of the counts, as the dataset's anchors chose them.
  """
  workdir, path = trained.workdir(trained.seeds[0]), trained.shares
  if path.exists():
    return files.read_json(path, _AGAIN)
  saved = runs.load_model(str(workdir))

  def value(settings: Mapping[str, Any]) -> float:
    config = config_lib.with_values(saved.config, {"eval.beam_width": 50, **settings}.items())
    evaluator = Evaluator(config, saved.histories, saved.semantic_ids, saved.mesh)
    found = evaluator.evaluate(saved.model, "validation", users=users)[CHOSEN_BY]
    print(f"{workdir}: {settings}: validation {CHOSEN_BY} {found:.4f}", flush=True)
    return found

  item_values = {share: value({"eval.item_share": share}) for share in ITEM_SHARES}
  item_share = max(item_values, key=lambda share: item_values[share])
  fused = {"eval.item_share": item_share, "eval.exclude_history": True, **counts}
  counts_values = {share: value({**fused, "counts.share": share}) for share in COUNTS_SHARES}
  chosen = {
    "item_share": item_share,
    "counts_share": max(counts_values, key=lambda share: counts_values[share]),
    "users": users,
    "item_shares": list(item_values.items()),
    "counts_shares": list(counts_values.items()),
  }
  files.write_json(path, chosen)
  return chosen


def settings_of_rows(chosen: Mapping[str, Any], counts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The settings of every row of a model, by the name of its result."""
  with_scores = {"eval.item_share": chosen["item_share"]}
  fused = {**with_scores, "eval.exclude_history": True}
  return {
    "beams_10": {"eval.beam_width": 10, "eval.item_share": 0.0},
    "beams_50": {"eval.beam_width": 50, "eval.item_share": 0.0},
    "scores_10": {"eval.beam_width": 10, **with_scores},
    "scores_50": {"eval.beam_width": 50, **with_scores},
    "excluded_50": {"eval.beam_width": 50, **fused},
    "fused_50": {"eval.beam_width": 50, **fused, **counts, "counts.share": chosen["counts_share"]},
  }


def anchors(dataset: str, file: pathlib.Path, fingerprint: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Rows of the anchors, from what `experiment baselines` wrote, and the settings that validation chose for counts.

  Args:
    dataset: its name.
    file: what was written.
    fingerprint: of the prepared dataset that the models are trained on.

  Raises:
    InputError: the file cannot be read, or is of a dataset that was prepared otherwise.
  """
  found = files.read_json(file, "run `python -m rastp_jax.experiment baselines` again")
  before = found.get("dataset_fingerprint") or fingerprint  # older files do not say
  if before != fingerprint:
    raise InputError(
      f"{file} was measured on {dataset} as it was prepared then ({before[:12]}), not as it is now "
      f"({fingerprint[:12]}): {_AGAIN}, or give --output in another directory."
    )
  rows = []
  for model, values in found["models"].items():
    for excluded in (False, True):
      metrics = values["test, history excluded" if excluded else "test"]
      rows.append(
        {
          "dataset": dataset,
          "model": model,
          "reduction": None,
          "seeds": [values["seed"]] if "seed" in values else [],
          "samples": None,
          "beams": None,
          "fused": False,
          "exclude_history": excluded,
          "devices": [found["machine"]["device_kind"]],
          **{metric: metrics[metric] for metric in METRICS},
          "training_minutes": values["minutes"],
          "command": found["command"],
        }
      )
  chosen = found["models"]["counts"]["settings"]
  names = {field.name for field in config_lib.settings_of(CountsConfig)} - {"share", "neighbours"}
  return rows, {f"counts.{name}": chosen[name] for name in sorted(names)}


def rows_of(trained: Trained, outputs: Mapping[str, Sequence[pathlib.Path]], commands: Mapping[str, str]) -> list[dict]:
  """A row per way to answer: means over the seeds, with their deviation."""
  rows = []
  for name, paths in outputs.items():
    group = Group(name, tuple(evaluation_results.load(path, str(path)) for path in paths))
    settings = group.results[0].metrics["config"]
    rows.append(
      {
        "dataset": trained.dataset,
        "model": "sid",
        "config": f"configs/{trained.dataset}.py:{MODELS[trained.model]}",
        "answers": name,
        "reduction": settings["reduction"]["method"],
        "seeds": list(trained.seeds),
        "samples": group.mean("training_samples"),
        "beams": settings["eval"]["beam_width"],
        "item_share": settings["eval"]["item_share"],
        "counts_share": settings["counts"]["share"],
        "fused": settings["counts"]["share"] > 0,
        "exclude_history": settings["eval"]["exclude_history"],
        "item_repeats": settings["model"].get("item_repeats", False),  # runs of earlier versions do not say
        "users": len(group.results[0].ranks),
        "devices": group.devices,
        "checkpoint_users": settings["train"]["eval_users"],
        **{metric: group.mean(metric) for metric in METRICS},
        "deviation": {metric: group.deviation(metric) for metric in METRICS},
        "training_minutes": statistics.fmean(group.values("training_seconds")) / 60,
        "command": commands[name],
      }
    )
  return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """The rows as cells, published numbers among them."""
  cells = [["dataset", "model", "answers", "seeds", "history", *METRICS, "minutes", "trained on"]]
  for dataset in dict.fromkeys(row["dataset"] for row in rows):
    for row in (row for row in rows if row["dataset"] == dataset):
      model = row["config"].rpartition(":")[2] if row["model"] == "sid" else row["model"]
      history = "left out" if row["exclude_history"] else "learned" if row.get("item_repeats") else ""
      deviation = {metric: value for metric, value in row.get("deviation", {}).items() if value is not None}
      plus_minus = {metric: f" ± {value:.4f}" for metric, value in deviation.items()}
      metrics = [f"{row[metric]:.4f}{plus_minus.get(metric, '')}" for metric in METRICS]
      minutes, devices = f"{row['training_minutes']:.0f}", " and ".join(row.get("devices", ()))
      cells.append(
        [dataset, model, row.get("answers", ""), f"{len(row['seeds'])}", history, *metrics, minutes, devices]
      )
    for method, values in published_results.RESULTS[dataset].items():
      cells.append([dataset, f"published {method}", "", "", "", *(f"{value:.4f}" for value in values), "", ""])
  return cells
