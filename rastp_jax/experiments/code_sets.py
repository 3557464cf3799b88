"""Trains one model per code set, and compares its test metrics with the health of the codes.

    python -m rastp_jax.experiment code_sets --raw_dir=DIR --output=docs/results/code_sets_trained.json

DIR holds Beauty's raw files (sequences.txt, items.jsonl, embeddings.npy, published_ids/). Every run is prepared,
trained and evaluated by the ordinary commands, in --work; the same command again goes on where it stopped. Besides the
JSON file it draws a plot of the same name.
"""

import io
import json
import pathlib
from typing import Any

import numpy as np
from absl import flags
from scipy import stats

from rastp_jax.experiments import results
from rastp_jax.experiments.checks import check_known, check_lengths
from rastp_jax.experiments.commands import RunCommand, run_all
from rastp_jax.runtime import cli, files
from rastp_jax.training.workdir import Workdir

_RAW_DIR = flags.DEFINE_string("raw_dir", "", "Beauty's raw files.")
_WORK = flags.DEFINE_string("work", "runs/code_sets", "Directory for the prepared data and the runs.")
_LENGTH = flags.DEFINE_string("length", "2 epochs", "Length of every training.")
_ONLY = flags.DEFINE_list("only", [], "Run these sets only; the table holds all that are finished.")
_OUTPUT = flags.DEFINE_string("output", "docs/results/code_sets_trained.json", "JSON file; the plot goes beside it.")

# name -> what prepare is told; every other setting is the config's.
LEARNED = {
  "residual k-means": ["semantic_ids.collaborative_weight=0.0"],
  "RQ-VAE": ["semantic_ids.collaborative_weight=0.0", "semantic_ids.method=rqvae"],
  "TF-IDF k-means": ["semantic_ids.collaborative_weight=0.0", "semantic_ids.embeddings=tfidf_svd"],
  "text and behaviour k-means": [],
  "random": ["semantic_ids.collaborative_weight=0.0", "semantic_ids.method=random"],
}
PUBLISHED = {
  "UniGenRec RQ-VAE": "unigenrec_text.rqvae_faiss.npy",
  "UniGenRec RQ k-means": "unigenrec_text.rqkmeans.npy",
  "LETTER": "letter_codes.npy",
}
TEST_METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
# name -> how to read it from a health report
HEALTH = {
  "colliding items, %": lambda health: health["colliding_percent"],
  "same category, share": lambda health: health["shared_category"]["share"],
  "same category, x shuffled": lambda health: health["shared_category"]["ratio"],
  "consecutive items, shared codes": lambda health: health["shared_prefix"]["consecutive"],
  "consecutive items, x random": lambda health: health["shared_prefix"]["ratio"],
}


def commands(name: str) -> list[RunCommand]:
  """Prepare, train and evaluate one code set."""
  settings = ["--config=beauty:cpu,rastp", f"--config.data.data_dir={_directory(name) / 'data'}"]
  codes = [f"--codes={pathlib.Path(_RAW_DIR.value) / 'published_ids' / PUBLISHED[name]}"] if name in PUBLISHED else []
  learned = [f"--config.{setting}" for setting in LEARNED.get(name, [])]
  length = [f"--config.train.length={_LENGTH.value}", "--config.train.patience=0"]
  run = _workdir(name)
  return [
    RunCommand(
      f"Preparing {name}",
      ("rastp_jax.prepare", *settings, *learned, *codes, f"--raw_dir={_RAW_DIR.value}"),
      _health_file(name).exists(),
    ),
    RunCommand(
      f"Training on {name}",
      ("rastp_jax.train", *settings, *learned, *length, f"--workdir={run}"),
      run.summary.exists(),
    ),
    RunCommand(f"Evaluating {name}", ("rastp_jax.evaluate", f"--workdir={run}"), run.evaluation("test").exists()),
  ]


def _directory(name: str) -> pathlib.Path:
  return pathlib.Path(_WORK.value) / name.replace(" ", "_")


def _health_file(name: str) -> pathlib.Path:
  return _directory(name) / "data/semantic_ids/beauty.health.json"


def _workdir(name: str) -> Workdir:
  return Workdir(_directory(name) / "run")


def row(name: str) -> dict[str, Any]:
  """A finished set's metrics, and the commands behind them."""
  health = json.loads(_health_file(name).read_text())
  run = json.loads(_workdir(name).evaluation("test").read_text())
  kept = ("users", "beam_width", "step", "steps", "training_samples")
  return {
    "name": name,
    "levels": health["levels"],
    "tokens_per_item": len(health["widths"]),
    "health": {key: read(health) for key, read in HEALTH.items()},
    "test": {key: run[key] for key in TEST_METRICS},
    **{key: run[key] for key in kept},
    "commands": [command.text for command in commands(name)],
  }


def rank_correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
  """Spearman's rank correlation of each health number with test recall@10; none for fewer than three rows."""
  if len(rows) < 3:
    return {}
  recall = stats.rankdata([row["test"]["recall@10"] for row in rows])
  ranks = {key: stats.rankdata([row["health"][key] for row in rows]) for key in HEALTH}
  return {key: float(np.corrcoef(values, recall)[0, 1]) for key, values in ranks.items()}


def plot(rows: list[dict[str, Any]], correlations: dict[str, dict[str, float]]) -> bytes:
  """One panel per health number, one point per code set."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(16, 4.2), layout="constrained", dpi=110)
  panels = figure.subplots(1, len(HEALTH), sharey=True)
  for axes, key in zip(panels, HEALTH, strict=True):
    for index, found in enumerate(rows):
      marker = "s" if found["name"] in PUBLISHED else "o"
      axes.plot(found["health"][key], found["test"]["recall@10"], marker, color=f"C{index}", label=found["name"])
    axes.set(xlabel=key)
    if correlations["all"]:
      axes.set(title=f"rank correlation {correlations['all'][key]:+.2f}")
    axes.grid(alpha=0.3)
  panels[0].set(ylabel="test recall@10", ylim=(0, None))
  figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()


def main() -> None:
  cli.require(_RAW_DIR, "raw/beauty")
  names = [*LEARNED, *PUBLISHED]
  check_known("only", _ONLY.value, names)
  check_lengths(map(_workdir, names), _LENGTH.value, "--work")
  files.check_writable(_OUTPUT.value)
  run_all([commands(name) for name in _ONLY.value or names])
  rows = [row(name) for name in names if all(command.finished for command in commands(name))]
  correlations = {
    "all": rank_correlations(rows),
    "without random codes": rank_correlations([found for found in rows if found["name"] != "random"]),
  }
  result = {
    "config": "beauty:cpu,rastp",
    "length": _LENGTH.value,
    "rank_correlation_with_recall@10": correlations,
    "code_sets": rows,
  }
  results.write_result(_OUTPUT.value, result)
  files.write_atomic(pathlib.Path(_OUTPUT.value).with_suffix(".png"), plot(rows, correlations))
