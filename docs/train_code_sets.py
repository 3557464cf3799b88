"""What code sets are worth: trains one model on each, and holds test figures against the health figures.

    python -m docs.train_code_sets --raw_dir=DIR --output=docs/results/code_sets_trained.json

DIR holds Beauty's raw files (sequences.txt, items.jsonl, embeddings.npy, published_ids/). Every run is prepared,
trained and evaluated by the ordinary commands, in --work; the same command again goes on where it stopped. Besides the
JSON file it draws a plot of the same name.
"""

import io
import json
import pathlib
import shlex
import sys

from absl import flags
from scipy import stats

from rastp_jax import cli, files
from rastp_jax.errors import InputError
from rastp_jax.paper_runs import Step, run_command

_RAW_DIR = flags.DEFINE_string("raw_dir", None, "Beauty's raw files.", required=True)
_WORK = flags.DEFINE_string("work", "runs/code_sets", "Takes the prepared data and the runs.")
_LENGTH = flags.DEFINE_string("length", "2 epochs", "Of every training.")
_ONLY = flags.DEFINE_list("only", [], "Run these sets only; the table holds all that are finished.")
_OUTPUT = flags.DEFINE_string("output", "docs/results/code_sets_trained.json", "JSON file for all figures.")

# name -> what prepare is told; every other setting is the config's.
LEARNED = {
  "residual k-means": ["semantic_ids.behaviour=0.0"],
  "RQ-VAE": ["semantic_ids.behaviour=0.0", "semantic_ids.method=rqvae"],
  "TF-IDF k-means": ["semantic_ids.behaviour=0.0", "semantic_ids.embeddings=tfidf_svd"],
  "text and behaviour k-means": [],
  "random": ["semantic_ids.behaviour=0.0", "semantic_ids.method=random"],
}
PUBLISHED = {
  "UniGenRec RQ-VAE": "unigenrec_text.rqvae_faiss.npy",
  "UniGenRec RQ k-means": "unigenrec_text.rqkmeans.npy",
  "LETTER": "letter_codes.npy",
}
TEST_FIGURES = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
# name -> how to read it from a health report
HEALTH = {
  "colliding items, %": lambda health: health["colliding_percent"],
  "same category, share": lambda health: health["shared_category"]["share"],
  "same category, x shuffled": lambda health: health["shared_category"]["ratio"],
  "consecutive items, shared codes": lambda health: health["shared_prefix"]["consecutive"],
  "consecutive items, x random": lambda health: health["shared_prefix"]["ratio"],
}


def steps(name: str) -> list[Step]:
  """Prepare, train and evaluate one code set."""
  place = pathlib.Path(_WORK.value) / name.replace(" ", "_")
  settings = ["--config=configs/beauty.py:cpu", f"--config.data.data_dir={place / 'data'}"]
  codes = [f"--codes={pathlib.Path(_RAW_DIR.value) / 'published_ids' / PUBLISHED[name]}"] if name in PUBLISHED else []
  learned = [f"--config.{setting}" for setting in LEARNED.get(name, [])]
  length = [f"--config.train.length={_LENGTH.value}", "--config.train.patience=0"]
  run = place / "run"
  return [
    Step(
      f"Preparing {name}",
      ("rastp_jax.prepare", *settings, *learned, *codes, f"--raw_dir={_RAW_DIR.value}"),
      (place / "data/semantic_ids/beauty.health.json").exists(),
    ),
    Step(
      f"Training on {name}",
      ("rastp_jax.train", *settings, *learned, *length, f"--workdir={run}"),
      (run / "summary.json").exists(),
    ),
    Step(f"Evaluating {name}", ("rastp_jax.evaluate", f"--workdir={run}"), (run / "eval_test.json").exists()),
  ]


def row(name: str) -> dict:
  """A finished set's figures, and the commands behind them."""
  place = pathlib.Path(_WORK.value) / name.replace(" ", "_")
  health = json.loads((place / "data/semantic_ids/beauty.health.json").read_text())
  run = json.loads((place / "run/eval_test.json").read_text())
  kept = ("users", "beam_width", "step", "steps", "training_samples")
  return {
    "name": name,
    "levels": health["levels"],
    "tokens_an_item": len(health["widths"]),
    "health": {key: read(health) for key, read in HEALTH.items()},
    "test": {key: run[key] for key in TEST_FIGURES},
    **{key: run[key] for key in kept},
    "commands": [step.command for step in steps(name)],
  }


def rank_correlations(rows: list[dict]) -> dict[str, float]:
  """Spearman's rank correlation of each health figure with test recall@10; none of fewer than three rows."""
  if len(rows) < 3:
    return {}
  recall = [row["test"]["recall@10"] for row in rows]
  return {key: float(stats.spearmanr([row["health"][key] for row in rows], recall).statistic) for key in HEALTH}


def plot(rows: list[dict], correlations: dict[str, dict[str, float]]) -> bytes:
  """One panel a health figure, one point a code set."""
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
  names = [*LEARNED, *PUBLISHED]
  if set(_ONLY.value) - set(names):
    raise InputError(f"--only={','.join(_ONLY.value)} names a code set that is none of {', '.join(names)}.")
  files.check_writable(_OUTPUT.value)
  for step in (step for name in _ONLY.value or names for step in steps(name)):
    print(f"== {step.what}" + (", done before" if step.finished else f"\n   {step.command}"), flush=True)
    if not step.finished:
      run_command(step)
  rows = [row(name) for name in names if all(step.finished for step in steps(name))]
  correlations = {
    "all": rank_correlations(rows),
    "without random codes": rank_correlations([found for found in rows if found["name"] != "random"]),
  }
  result = {
    "command": shlex.join(["python", *sys.orig_argv[1:]]),
    "config": "configs/beauty.py:cpu",
    "length": _LENGTH.value,
    "rank_correlation_with_recall@10": correlations,
    "code_sets": rows,
  }
  files.write_json(_OUTPUT.value, result)
  files.write_whole(pathlib.Path(_OUTPUT.value).with_suffix(".png"), plot(rows, correlations))


if __name__ == "__main__":
  cli.run(main)
