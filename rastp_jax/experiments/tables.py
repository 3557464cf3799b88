"""Fills the tables of README.md and docs/*.md from docs/results/*.json.

python -m rastp_jax.experiment tables
"""

import json
import pathlib
import re
from typing import Any

from rastp_jax import config as config_lib
from rastp_jax.experiments import quality_runs
from rastp_jax.experiments.lab import page
from rastp_jax.experiments.lab.rows import DENSE
from rastp_jax.experiments.lab.training import comparison
from rastp_jax.experiments.speed.ratios import speed_intervals
from rastp_jax.reduction.methods import REDUCTIONS, describe
from rastp_jax.runtime.text_tables import markdown

DOCS = pathlib.Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))


def read(name: str) -> dict[str, Any]:
  """A file of docs/results."""
  return json.loads((RESULTS / f"{name}.json").read_text())


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


def attention() -> str:
  """What attention takes on a GPU: our form beside JAX's own."""
  forms = {"ours": "ours", "xla": "JAX's, XLA", "cudnn": "JAX's, cuDNN"}
  runs: dict[tuple[int, int], dict[str, Any]] = {}
  for run in read("attention_h100")["rows"]:
    runs.setdefault((run["rows"], run["positions"]), {})[run["form"]] = run
  rows = [["rows", "positions", *(f"{text}, forward" for text in forms.values())]]
  rows[0] += [f"{text}, with gradient" for text in forms.values()]
  for (count, positions), found in runs.items():
    cells = []
    for key in ("forward_seconds", "forward_backward_seconds"):
      cells += [f"{1e3 * found[form][key]:.2f} ms" if key in found[form] else "refused" for form in forms]
    rows.append([str(count), str(positions), *cells])
  return markdown(rows)


def speed_runs() -> dict[str, dict]:
  """The benchmark's run in either compute dtype."""
  return {"float32": read("speed_cpu"), "bfloat16": read("speed_cpu_bfloat16")}


def speed_training() -> str:
  """The benchmark's ways to train one model on the same samples."""
  rows = [["", "", "samples/s", "ratio", "padding", "MFLOP per sample", "peak memory", "compile"]]
  for dtype, run in speed_runs().items():
    first = run["training"]["padded_dense"]["samples_per_second"]
    for name, variant in run["training"].items():
      rows.append(
        [
          dtype,
          name.replace("_", ", "),
          f"{variant['samples_per_second']:,.1f}",
          f"{variant['samples_per_second'] / first:.2f}",
          f"{variant['padding_share']:.0%}",
          f"{variant['flops_a_sample'] / 1e6:,.0f}",
          f"{variant['peak_bytes'] / 1e6:,.0f} MB",
          f"{variant['compile_seconds']:.0f} s",
        ]
      )
  return markdown(rows)


def speed_summary() -> str:
  """What less padding and pruning give, each against the published set-up without pruning."""
  rows = [["", *(f"training speed, {dtype}" for dtype in speed_runs()), "peak memory"]]
  named = {
    "every history padded to 30 items, as published": "padded_dense",
    "the same, pruned": "padded_pruned",
    "real lengths (`data.bucket_lengths`)": "bucketed_dense",
    "real lengths, pruned": "bucketed_pruned",
  }
  for text, name in named.items():
    pairs = [(run["training"][name], run["training"]["padded_dense"]) for run in speed_runs().values()]
    speeds = [f"{one['samples_per_second'] / first['samples_per_second']:.2f}" for one, first in pairs]
    rows.append([text, *speeds, f"{pairs[0][0]['peak_bytes'] / pairs[0][1]['peak_bytes']:.2f}"])
  return markdown(rows)


def speed_ratios() -> str:
  """Every ratio of the benchmark's runs, those of training speed with their 95 % intervals."""
  runs = speed_runs()
  names = next(iter(runs.values()))["ratios"]
  intervals = {dtype: speed_intervals(run["training"]) for dtype, run in runs.items()}

  def cell(dtype, name):
    interval = " ({:.3g} to {:.3g})".format(*intervals[dtype][name]) if name in intervals[dtype] else ""
    return f"{runs[dtype]['ratios'][name]:.3g}{interval}"

  rows = [[f"`{name}`", *(cell(dtype, name) for dtype in runs)] for name in names]
  return markdown([["ratio", *runs], *rows])


def speed_decoding() -> str:
  """Users decoded per second, by what constrains them."""
  tables = {dtype: run["decoding"]["tables"] for dtype, run in speed_runs().items()}
  rows = [["", *(f"users/s, {dtype}" for dtype in tables), "most children of a prefix, by level"]]
  for name, table in next(iter(tables.values())).items():
    branches = ", ".join(map(str, table["branches"])) if table["branches"] else ""
    rows.append([name, *(f"{found[name]['users_per_second']:,.0f}" for found in tables.values()), branches])
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


def ablations() -> str:
  """Step time with one choice undone or tried, divided by that of the program as shipped."""
  run = read("ablations")
  times = run["step_time_relative_to_shipped"]
  named = {name.replace(" a core", " per core"): value for name, value in times.items()}
  return markdown([["", "step time"], *([name, f"{value:.2f}"] for name, value in named.items())])


def memory() -> str:
  """Step time by what glibc does with freed memory, divided by that of a program that keeps it."""
  files = {
    "CPU-sized, float32": "ablations_memory_cpu_sized",
    "paper-sized, float32": "ablations_memory_paper_float32",
    "paper-sized, bfloat16": "ablations_memory_paper_bfloat16",
  }
  runs = [read(file)["step_time_relative_to_shipped"] for file in files.values()]
  names = {
    "kept": "as shipped",
    "kept, once more": "as shipped, once more",
    "given back, as now": "undone: glibc keeps freed memory",
    "given back, huge pages": "tried: huge pages; undone: glibc keeps freed memory",
  }
  rows = [[text, *(f"{run[name]:.2f}" for run in runs)] for text, name in names.items()]
  return markdown([["freed memory", *files], *rows])


def pytorch() -> str:
  """Samples and users per second of the published model in PyTorch and of ours, and their ratios."""
  run = read("torch_cpu")
  sides = ["pytorch float32", "pytorch bfloat16", "ours float32", "ours bfloat16"]
  ratios = [("ours float32", "pytorch float32"), ("ours bfloat16", "pytorch bfloat16"), (sides[3], sides[0])]
  rows = [["samples or users per second", *(side.replace("pytorch", "PyTorch") for side in sides)]]
  rows[0] += ["ours / PyTorch float32", "both bfloat16", "ours bfloat16, PyTorch float32"]
  for name, rates in run["compared"].items():
    cells = [f"{rates[side]:.1f}" for side in sides]
    rows.append([name, *cells, *(f"{rates[ours] / rates[theirs]:.2f}" for ours, theirs in ratios)])
  return markdown(rows)


def answer() -> str:
  """Is a reduction worth it? Dense, RASTP, the best reduction, the controls and counts on Beauty.

  From the laboratory's rows of the last stage there is ("confirm": test users, looked at once; before that, "train").
  """
  beauty = [run for run in read("laboratory")["runs"] if run["dataset"] == "beauty"]
  confirmed = [run for run in beauty if run["stage"] == "confirm"]
  runs = {run["name"]: run for run in confirmed or beauty}
  dense = runs[DENSE]
  controls = {"recent, 1/2": "recent tokens, half", "the last half of the items": "recent items, half"}
  rastp = {"rastp, 1/2": "RASTP, half of the tokens"}
  compared = lambda name, run: name not in (DENSE, *controls, *rastp) and run["method"] != "recent"
  others = [run for name, run in runs.items() if compared(name, run) and run["seeds"] == dense["seeds"]]
  best = max(others, key=lambda run: run["ndcg@10"])
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
    f"{dense['samples'] / 1e6:.1f} million training samples, {seeds}. *To dense*: relative difference of NDCG@10, its "
    "interval over users. FLOPs and time: dense = 1, time from steps in turns in one process."
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
  return [*shown, f"{run['ndcg@10_difference'] / base:+.0%}", f"{low:+.0%} to {high:+.0%}", *costs]


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
  runs = read("laboratory")["runs"]
  parts = []
  for one in dict.fromkeys(map(comparison, runs)):
    mine = [run for run in runs if comparison(run) == one]
    parts += [page.describe(mine) + ":", markdown(page.table(mine))]
  return "\n\n".join(parts)


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


def tpu_traffic() -> str:
  """What a training step moves on a TPU chip, before its forms followed the platform and now."""
  rows = [["", "", "accessed", "HBM", "temporary", "arithmetic", "memory", "kernels"]]
  now = {model: read(f"tpu_plan_v5e_2x2_{model}")["programs"]["train, 29 items"] for model in ("dense", "rastp")}
  for name, programs in {**read("tpu_traffic")["changes"], "now": now}.items():
    for model, step in programs.items():
      sizes = [f"{step[key] / 1e9:.2f} GB" for key in ("bytes_accessed", "hbm_bytes", "temporary_bytes")]
      times = [f"{1e3 * step['seconds'][key]:.1f} ms" for key in ("arithmetic", "memory", "kernels")]
      rows.append([name, model, *sizes, *times])
  return markdown(rows)


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
    attention,
    speed_summary,
    speed_training,
    speed_ratios,
    speed_decoding,
    code_sets,
    code_sets_trained,
    ablations,
    memory,
    pytorch,
    baselines,
    tpu_traffic,
    quickstart,
    laboratory,
    laboratory_cost,
    screen,
  )
}


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
