"""Popularity, co-occurrence counts and SASRec: what a model must beat, on the same split.

    python -m rastp_jax.experiment baselines --config=configs/beauty.py

The dataset must be prepared. All settings of the counts are chosen on the validation users, and printed as
flags for the commands that mix counts into a model's answers; SASRec's training ends when
their NDCG@10 no longer rises. Test users are looked at once per recommender. All items are ranked; a second set of
metrics leaves out the items of the user's history. The result also says what is special about the data: how much of
the order within a history is that of product numbers, what it costs to shuffle it, and how many users take an item
twice. On a generated dataset the best possible predictor stands beside them. All is written to
docs/results/baselines_DATASET.json, and every user's ranks to RUNS_DIR/DATASET.npz.
"""

import dataclasses
import io
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from rastp_jax.config import CountsConfig
from rastp_jax.data import datasets
from rastp_jax.data import histories as histories_lib
from rastp_jax.data.histories import Histories
from rastp_jax.data.sources.synthetic import SyntheticSource
from rastp_jax.data.sources.synthetic_long import SyntheticLongSource
from rastp_jax.evaluation.breakdown import breakdowns
from rastp_jax.experiments.anchors import evaluation, ties
from rastp_jax.experiments.anchors.planted import Planted
from rastp_jax.experiments.anchors.popularity import Popularity
from rastp_jax.experiments.anchors.sasrec import Sasrec, SasrecSettings
from rastp_jax.experiments.results import write_result
from rastp_jax.generation.counts import Counts
from rastp_jax.runtime import cli, files

_CONFIG = cli.define_config_flag()
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: docs/results/baselines_DATASET.json.")
_RUNS_DIR = flags.DEFINE_string("runs_dir", "runs/baselines", "Directory for every user's ranks.")
_EPOCHS = flags.DEFINE_integer(
  "epochs", SasrecSettings.epochs, "SASRec: at most this many; 0: no SASRec.", lower_bound=0
)
_SHUFFLES = flags.DEFINE_integer("shuffles", 5, "Draws of ties in random order, to make counts from.", lower_bound=0)

# The values that are tried on the validation users, one setting after another, until nothing gets better.
GRID = {
  "window": (1, 2, 3, 5, 8, 12, 20),
  "distance_power": (0.0, 0.5, 1.0, 1.5),
  "backward": (0.0, 0.25, 0.5, 0.75, 1.0),
  "popularity_power": (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75),
  "decay": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
  "last_items": (3, 5, 10, 20),
}
CHOSEN_BY = "ndcg@10"


def choose_counts(histories: Histories) -> tuple[CountsConfig, list[dict[str, Any]]]:
  """The settings with the best validation metric, and every setting that was tried with its value."""
  values: dict[CountsConfig, float] = {}

  def value(settings: CountsConfig) -> float:
    if settings not in values:
      found = evaluation.ranks(Counts.fit(histories, settings), histories, "validation")
      values[settings] = evaluation.means(found, (10,))[CHOSEN_BY]
    return values[settings]

  best, before = CountsConfig(), None
  while best != before:
    before = best
    for name, choices in GRID.items():
      best = max((best, *(dataclasses.replace(best, **{name: choice}) for choice in choices)), key=value)
  return best, [{**dataclasses.asdict(settings), CHOSEN_BY: found} for settings, found in values.items()]


def as_overrides(settings: CountsConfig) -> str:
  """The settings that are chosen here, as flags of the commands that mix counts into a model's answers."""
  return " ".join(f"--override=counts.{name}={getattr(settings, name)}" for name in GRID)


def measure(
  recommender: evaluation.Recommender, histories: Histories, top_k: Sequence[int]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """A recommender's rows of the table, and every user's ranks by "SPLIT" and "SPLIT, history excluded"."""
  every, row = {}, {}
  for split in ("validation", "test"):
    every[split] = evaluation.ranks(recommender, histories, split)
    every[f"{split}, history excluded"] = evaluation.ranks(recommender, histories, split, exclude_history=True)
  for name, found in every.items():
    row[name] = evaluation.means(found, top_k)
  row["by_group"] = breakdowns(histories, "test", every["test"], top_k)
  return row, every


def data_facts(histories: Histories, numbers: Sequence[str]) -> dict[str, Any]:
  """What is special about the order of the histories.

  Args:
    histories: all users.
    numbers: product number of each item; empty ones where the source has none.
  """
  starts, ends = histories.spans("test")
  taken_before = [
    bool(np.isin(histories.items[end - 1], histories.items[start : end - 1]))
    for start, end in zip(starts, ends, strict=True)
  ]
  facts: dict[str, Any] = {"users": histories.num_users, "users_whose_test_item_is_in_the_history": sum(taken_before)}
  if all(numbers):
    rising = ties.rising_steps(histories, numbers)
    share = float(rising.sum() / (len(rising) - histories.num_users))  # a user's last item has no next one
    facts["product_numbers_rise"] = {
      "to_the_test_item": float(rising[ends - 2].mean()),
      "at_any_step": share,
      "share_of_steps_between_ties": ties.tied_share(share),
    }
  return facts


def main() -> None:
  config = cli.load_config(_CONFIG.value)
  dataset, top_k, seed = config.data.dataset, config.eval.top_k, config.train.seed
  output = pathlib.Path(_OUTPUT.value or f"docs/results/baselines_{dataset}.json")
  ranks_file = pathlib.Path(_RUNS_DIR.value) / f"{dataset}.npz"
  for path in (output, ranks_file):
    files.check_writable(path)
  histories = histories_lib.load(config.data.data_dir, dataset)
  numbers = [item.asin for item in histories_lib.load_items(config.data.data_dir, dataset)]
  rows, every_rank = {}, {}

  def report(name: str, recommender: evaluation.Recommender, start: float, **more: Any) -> None:
    minutes = (time.monotonic() - start) / 60
    row, found = measure(recommender, histories, top_k)
    rows[name] = {"minutes": round(minutes, 2), **more, **row}
    every_rank.update({f"{name}, {what}": ranks for what, ranks in found.items()})
    for what in ("validation", "test"):
      shown = ", ".join(f"{key} {row[what][key]:.4f}" for key in row[what] if not key.startswith("mrr"))
      print(f"{name}, {what}: {shown}", flush=True)

  def write() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **every_rank)
    files.write_atomic(ranks_file, buffer.getvalue())
    found = {"dataset": dataset, "dataset_fingerprint": histories.fingerprint, "data": facts}
    write_result(output, {**found, "chosen_by": f"validation {CHOSEN_BY}", "models": rows})

  facts = data_facts(histories, numbers)
  start = time.monotonic()
  report("popularity", Popularity(histories), start)
  start = time.monotonic()
  counts_settings, tried = choose_counts(histories)
  chosen = dataclasses.asdict(counts_settings)
  print(f"counts: {chosen}", flush=True)
  print(f"counts, chosen for evaluate, recommend and export: {as_overrides(counts_settings)}", flush=True)
  report("counts", Counts.fit(histories, counts_settings), start, settings=chosen, tried=tried)
  if "product_numbers_rise" in facts and _SHUFFLES.value:
    facts["counts_on_shuffled_ties"] = shuffled_counts(histories, numbers, facts, top_k)
  source = (datasets.named(dataset).source or (lambda: None))()
  if isinstance(source, SyntheticSource | SyntheticLongSource):
    start = time.monotonic()
    report("best possible", Planted(source, int(np.diff(histories.offsets).max())), start)
  write()  # training takes most of the time
  if not _EPOCHS.value:
    return
  start = time.monotonic()
  settings = dataclasses.replace(SasrecSettings(), epochs=_EPOCHS.value)
  sasrec = Sasrec.fit(histories, settings, seed=seed, log=lambda text: print(f"sasrec, {text}", flush=True))
  report(
    "sasrec",
    sasrec,
    start,
    settings=dataclasses.asdict(settings),
    seed=seed,
    parameters=sasrec.num_parameters,
    epochs=sasrec.epochs,
    curve=sasrec.curve,
  )
  write()


def shuffled_counts(
  histories: Histories, numbers: Sequence[str], facts: dict[str, Any], top_k: Sequence[int]
) -> dict[str, Any]:
  """Test metrics of counts when likely ties are in random order, with mean and deviation over `_SHUFFLES` draws.

  As many rising steps as the data's tied share says are taken for ties, drawn at random. The counts' settings are
  chosen again, on the validation users of the first draw.
  """
  rise = facts["product_numbers_rise"]
  share = rise["share_of_steps_between_ties"] / rise["at_any_step"]
  draws = [ties.shuffled(histories, numbers, share, np.random.default_rng(draw)) for draw in range(_SHUFFLES.value)]
  settings, _ = choose_counts(draws[0])
  values = [evaluation.means(evaluation.ranks(Counts.fit(draw, settings), draw, "test"), top_k) for draw in draws]
  result: dict[str, Any] = {
    "draws": len(draws),
    "share_of_rising_steps": share,
    "settings": dataclasses.asdict(settings),
  }
  for key in values[0]:
    one = [value[key] for value in values]
    result[key] = {"mean": float(np.mean(one)), "deviation": float(np.std(one, ddof=1)) if one[1:] else 0.0}
    print(f"counts, likely ties shuffled: {key} {result[key]['mean']:.4f}", flush=True)
  return result
