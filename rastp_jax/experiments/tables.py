"""Fills the tables of README.md and docs/*.md from docs/results/*.json.

python -m rastp_jax.experiment tables
"""

import re
from typing import Any

from rastp_jax import config as config_lib
from rastp_jax.experiments import quality_runs
from rastp_jax.experiments.lab import page
from rastp_jax.experiments.lab.rows import DENSE
from rastp_jax.experiments.results import CHECKOUT, RESULTS, read
from rastp_jax.experiments.speed import tables as speed_tables
from rastp_jax.reduction.methods import REDUCTIONS, describe
from rastp_jax.runtime.text_tables import markdown

PAGES = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))


def beauty_cpu() -> str:
  """One row per run and beam width of the CPU-sized model."""
  rows = [
    ["", "codes of", "beams", "recall@5", "recall@10", "NDCG@5", "NDCG@10", "samples/s", "training", "step memory"]
  ]
  for file in ("pruned", "dense", "text_pruned", "text_dense"):
    for beams in ("", "_beam50", "_beam100"):
      run = read(f"beauty_cpu_{file}{beams}")
      rows.append(_beauty_row(run))
  return markdown(rows)


def _beauty_row(run: dict[str, Any]) -> list[str]:
  settings = _current_settings(run["config"])
  metrics = [f"{run[key]:.4f}" for key in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")]
  return [
    "dense" if settings["reduction.method"] == "none" else "pruned",
    "text, behaviour" if settings.get("semantic_ids.collaborative_weight") else "text",
    str(run["beam_width"]),
    *metrics,
    f"{run['training_samples_per_second']:,.0f}",
    f"{run['training_seconds'] / 60:.0f} min",
    f"{run['step_bytes'] / 1e6:,.0f} MB",
  ]


def _current_settings(config: dict[str, Any]) -> dict[str, Any]:
  """A result's settings by their dotted names of today."""
  flat = config_lib.flatten(config)
  return {current: value for name, value in flat.items() for current in config_lib.current_names(name)}


def parity() -> str:
  """Largest differences from the published code's numbers."""
  rows = [["quantity", "tolerance", "largest difference seen"]]
  for name, found in read("parity")["quantities"].items():
    exact = not found["tolerance"]
    tolerance, difference = f"{found['tolerance']:.0e}", f"{found['largest difference']:.1e}"
    rows.append([name, "equal" if exact else tolerance, "equal" if exact else difference])
  return markdown(rows)


def paper_table() -> str:
  """Ours beside the published numbers, as launch/paper_table.sh left it."""
  return markdown(read("paper_table")["rows"])


def paper_table_cpu() -> str:
  """The same from launch/paper_table.sh --cpu."""
  return markdown(read("paper_table_cpu")["rows"])


def quality() -> str:
  """The best model beside anchors and published numbers, on all datasets."""
  return markdown(quality_runs.table(read("quality")["rows"]))


def recipe() -> str:
  """What was tried on the best model, by its ranking of validation users."""
  rows = [["", "epochs", "dropout", "also", "seed", "recall@10", "NDCG@10"]]
  named = {"train.learning_rate": "learning rate {}", "train.weight_decay": "weight decay {}"}
  for run in sorted(read("recipe_h100")["rows"], key=lambda run: (run["dataset"], run["epochs"], -run["ndcg@10"])):
    settings = run["settings"]
    also = [text.format(settings[name]) for name, text in named.items() if name in settings]
    also += [run["more_code"]] if run["more_code"] else []
    cells = [str(run["epochs"]), str(settings["model.dropout"]), "; ".join(also), str(run["seed"])]
    rows.append([run["dataset"], *cells, f"{run['recall@10']:.4f}", f"{run['ndcg@10']:.4f}"])
  return markdown(rows)


def recipe_codes() -> str:
  """What was tried with codes and losses of the model without vectors, by its ranking of validation users."""
  rows = [["tried", "epochs", "seed", "beams", "recall@10", "NDCG@10", "difference to the base"]]
  for run in read("recipe_codes")["rows"]:
    low, high = run["difference_low"], run["difference_high"]
    interval = "" if low is None else f"{low:+.4f} to {high:+.4f}"
    scores = [f"{run['recall@10']:.4f}", f"{run['ndcg@10']:.4f}"]
    settings = [str(run[name]) for name in ("epochs", "seed", "beams")]
    rows.append([run["what"], *settings, *scores, interval])
  return markdown(rows)


def code_sets() -> str:
  """Health of Beauty's semantic IDs, ours and published, before any training."""
  rows = [["codes", "levels", "colliding", "same category", "x shuffled", "consecutive items", "x random"]]
  for codes in read("semantic_ids_beauty")["code_sets"]:
    health = codes["metrics"]
    category, prefix = health["shared_category"], health["shared_prefix"]
    rows.append(
      [
        f"`{codes['name']}`",
        str(health["levels"]),
        f"{health['colliding_percent']:.1f} %",
        f"{category['share']:.1%}",
        f"{category['ratio']:.1f}",
        f"{prefix['consecutive']:.3f}",
        f"{prefix['ratio']:.1f}",
      ]
    )
  return markdown(rows)


def code_sets_trained() -> str:
  """Test metrics of one model trained on each code set, best first, beside the codes' health."""
  run = read("code_sets_trained")
  found = sorted(run["code_sets"], key=lambda row: -row["test"]["recall@10"])
  rows = [["codes", "tokens per item", *found[0]["test"], *found[0]["health"]]]
  for row in found:
    test = [f"{value:.4f}" for value in row["test"].values()]
    rows.append(
      [
        row["name"],
        str(row.get("tokens_per_item", row.get("tokens_an_item"))),
        *test,
        *(f"{value:.3g}" for value in row["health"].values()),
      ]
    )
  for name, correlations in run["rank_correlation_with_recall@10"].items():
    blank = [""] * (1 + len(found[0]["test"]))
    rows.append([f"*rank correlation with recall@10, {name}*", *blank, *(f"{v:+.2f}" for v in correlations.values())])
  return markdown(rows)


def answer() -> str:
  """Is a reduction worth it? Dense, RASTP, the best reduction, the controls and counts on Beauty.

  From the laboratory's rows of the last stage there is ("confirm": test users, looked at once; before that, "train").
  Which reduction is the best one, validation users say ("train").
  """
  beauty = [run for run in read("laboratory")["runs"] if run["config"] == "configs/beauty.py:cpu"]
  confirmed = [run for run in beauty if run["stage"] == "confirm"]
  runs = {run["name"]: run for run in confirmed or beauty}
  dense = runs[DENSE]
  controls = {"recent, 1/2": "recent tokens, half", "the last half of the items": "recent items, half"}
  rastp = {"rastp, 1/2": "RASTP, half of the tokens"}
  compared = lambda name, run: name not in (DENSE, *controls, *rastp) and run["method"] != "recent"
  others = [run for name, run in runs.items() if compared(name, run) and run["seeds"] == dense["seeds"]]
  on_validation = {run["name"]: run["ndcg@10"] for run in beauty if run["stage"] == "train"}
  best = max(others, key=lambda run: on_validation.get(run["name"], 0.0))
  cheapest = {"item_sum, before block 0": "one token per item, before the first block"}
  named = {DENSE: "dense", **rastp, **cheapest, best["name"]: f"best reduction: `{best['name']}`", **controls}
  named = {name: text for name, text in named.items() if name in runs}
  rows = [["Amazon Beauty", "recall@10", "NDCG@10", "to dense", "95 % interval", "encoder FLOPs", "training time"]]
  rows += [[text, *_answer_cells(runs[name])] for name, text in named.items()]
  counts = read("baselines_beauty")["models"]["counts"][dense["split"]]
  rows.append(["co-occurrence counts", f"{counts['recall@10']:.4f}", f"{counts['ndcg@10']:.4f}", "", "", "", ""])
  count = lambda run: len(run["seeds"])
  seeds = "one seed" if count(dense) == 1 else f"mean ± deviation over {count(dense)} seeds"
  fewer = [f"{count(runs[name])} of {text}" for name, text in named.items() if count(runs[name]) != count(dense)]
  seeds += f" ({'; '.join(fewer)})" if fewer else ""
  note = (
    f"{dense['users']:,} users, their {dense['split']} items, full ranking, {dense['beams']:.0f} beams; "
    f"{dense['samples'] / 1e6:.1f} million training samples, {seeds}. *Best*: by validation users. "
    "*To dense*: relative difference of NDCG@10, its interval over users, or over seeds where it says so. FLOPs and "
    "time: dense = 1, time from steps in turns in one process on a CPU core."
  )
  return f"{markdown(rows)}\n\n{note}"


def _answer_cells(run: dict[str, Any]) -> list[str]:
  """recall@10, NDCG@10, and what a laboratory's row costs and loses against dense."""

  def metric(name: str) -> str:
    deviation = run["deviation"][name]
    return f"{run[name]:.4f}" + (f" ± {deviation:.4f}" if deviation else "")

  ratio = lambda name: "" if run[name] is None else f"{run[name]:.2f}"
  shown = [metric("recall@10"), metric("ndcg@10")]
  costs = [ratio("encoder_flops_vs_dense"), "1.00" if run["name"] == DENSE else ratio("training_seconds_vs_dense")]
  if run["name"] == DENSE:
    return [*shown, "", "", *costs]
  base = run["dense_ndcg@10"]
  low, high = (run[f"ndcg@10_difference_{end}"] / base for end in ("low", "high"))
  interval = f"{low:+.1%} to {high:+.1%}{page.over_seeds(run)}"
  return [*shown, f"{run['ndcg@10_difference'] / base:+.1%}", interval, *costs]


def methods() -> str:
  """The registered ways to reduce tokens."""
  rows = [["`reduction.method`", "what it does", "from", "where it may stand", "rows that fit the budget"]]
  rows += [[f"`{name}`", *map(str, describe(method))] for name, method in REDUCTIONS.items()]
  return markdown(rows)


def quickstart() -> str:
  """What ./launch/quickstart.sh comes to on the generated data: recommenders that are not trained, and three models."""
  metrics = ("recall@5", "recall@10", "ndcg@10")
  rows = [["", "recall@5", "recall@10", "NDCG@10", "memory of a training step"]]
  for name, model in read("baselines_synthetic")["models"].items():
    rows.append([name, *(f"{model['test'][metric]:.4f}" for metric in metrics), ""])
  for name, text in {"dense": "dense", "rastp": "RASTP", "items": "one token per item"}.items():
    run = read(f"synthetic_{name}")
    rows.append([text, *(f"{run[metric]:.4f}" for metric in metrics), f"{run['step_bytes'] / 1e6:,.0f} MB"])
  return markdown(rows)


def laboratory() -> str:
  """The laboratory's trained rows, a table for each dataset and stage."""
  parts = []
  for runs in page.comparisons(read("laboratory")["runs"]):
    parts += [page.describe(runs) + ":", markdown(page.table(runs))]
  return "\n\n".join(parts)


def equal_time() -> str:
  """Reductions beside a dense model that was trained as many seconds."""
  return markdown(page.equal_time_table(read("laboratory")["runs"]))


def screen() -> str:
  """What methods do to a trained dense model, a table for each config."""
  parts = []
  for name, screened in read("laboratory")["screens"].items():
    about = screened["about"]
    parts += [f"`{name}`, {about['users']:,} {about['split']} users:", markdown(page.budgets_table(screened["rows"]))]
  return "\n\n".join(parts)


def laboratory_cost() -> str:
  """What training steps take beside dense ones, timed in turns, a table for each config."""
  parts = []
  for name, timed in read("laboratory")["seconds"].items():
    parts += [f"`{name}`, medians of {timed['about']['turns']} turns:", markdown(page.cost_table(timed["rows"]))]
  return "\n\n".join(parts)


def baselines() -> str:
  """Recommenders that a model must beat, and what is special about the order of the data."""
  measured = [name for name in ("beauty", "sports", "toys") if (RESULTS / f"baselines_{name}.json").exists()]
  runs = [read(f"baselines_{name}") for name in measured]
  names = {"popularity": "popularity", "counts": "co-occurrence counts", "sasrec": "SASRec"}
  metrics = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
  rows = [["", "", *(metric.replace("ndcg", "NDCG") for metric in metrics)]]
  rows[0] += ["history excluded: recall@10", "NDCG@10", "minutes"]
  for run in runs:
    for name, model in run["models"].items():
      values = [model["test"][metric] for metric in metrics]
      values += [model["test, history excluded"][metric] for metric in ("recall@10", "ndcg@10")]
      rows.append([run["dataset"], names[name], *(f"{value:.4f}" for value in values), f"{model['minutes']:.1f}"])
  facts = [["", *(run["dataset"] for run in runs)]]
  for text, name in {
    "the test item's product number is above that of the item before": "to_the_test_item",
    "an item's product number is above that of the item before": "at_any_step",
    "steps between ties, estimated": "share_of_steps_between_ties",
  }.items():
    facts.append([text, *(f"{run['data']['product_numbers_rise'][name]:.0%}" for run in runs)])
  for metric in ("recall@10", "ndcg@10"):
    shuffled = [run["data"]["counts_on_shuffled_ties"][metric] for run in runs]
    text = metric.replace("ndcg", "NDCG")
    facts.append([f"{text} of the counts", *(f"{run['models']['counts']['test'][metric]:.4f}" for run in runs)])
    facts.append(
      [f"{text} of the counts, ties shuffled", *(f"{s['mean']:.4f} ± {s['deviation']:.4f}" for s in shuffled)]
    )
  taken = [run["data"]["users_whose_test_item_is_in_the_history"] for run in runs]
  facts.append(["users whose test item is in their history", *map(str, taken)])
  return f"{markdown(rows)}\n\n{markdown(facts)}"


TABLES = {
  make.__name__: make
  for make in (
    answer,
    methods,
    beauty_cpu,
    parity,
    paper_table,
    paper_table_cpu,
    quality,
    recipe,
    recipe_codes,
    code_sets,
    code_sets_trained,
    baselines,
    quickstart,
    laboratory,
    equal_time,
    laboratory_cost,
    screen,
  )
} | speed_tables.TABLES


def filled(text: str) -> str:
  """A page in which the text between <!-- NAME --> and <!-- end NAME --> is the table of that name, of TABLES."""
  names = re.findall(r"<!-- (?!end )(.*?) -->", text)
  assert sorted(names) == sorted(set(names) & set(TABLES)), f"a page has marks other than {', '.join(TABLES)}: {names}"
  for name in names:
    marks = f"<!-- {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.DOTALL)
    text, found = pattern.subn(lambda _, name=name, marks=marks: f"{marks[0]}\n{TABLES[name]()}\n{marks[1]}", text)
    assert found == 1, f"a page needs {marks[1]} after {marks[0]}"
  return text


def main() -> None:
  for path in PAGES:
    path.write_text(filled(path.read_text()))
