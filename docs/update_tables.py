"""Fills the tables of README.md and docs/*.md from docs/results/*.json: python -m docs.update_tables"""

import json
import pathlib
import re

from rastp_jax.benchmarking.ratios import speed_intervals

DOCS = pathlib.Path(__file__).parent
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))


def table(rows: list[list[str]]) -> str:
  head, *body = rows
  rule = ["---"] + ["---:"] * (len(head) - 1)
  return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def beauty_cpu() -> str:
  """One row a run and beam width of the CPU-sized model."""
  rows = [
    ["", "codes of", "beams", "recall@5", "recall@10", "NDCG@5", "NDCG@10", "samples/s", "training", "step memory"]
  ]
  for file in ("pruned", "dense", "text_pruned", "text_dense"):
    for beams in ("", "_beam50", "_beam100"):
      run = json.loads((DOCS / "results" / f"beauty_cpu_{file}{beams}.json").read_text())
      rows.append(_beauty_row(run))
  return table(rows)


def _beauty_row(run: dict) -> list[str]:
  figures = [f"{run[key]:.4f}" for key in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")]
  return [
    "dense" if run["config"]["pruning"]["criterion"] == "none" else "pruned",
    "text, behaviour" if run["config"]["semantic_ids"].get("behaviour") else "text",
    str(run["beam_width"]),
    *figures,
    f"{run['training_samples_per_second']:,.0f}",
    f"{run['training_seconds'] / 60:.0f} min",
    f"{run['step_bytes'] / 1e6:,.0f} MB",
  ]


def parity() -> str:
  """Largest differences from the published code's numbers."""
  quantities = json.loads((DOCS / "results" / "parity.json").read_text())["quantities"]
  rows = [["quantity", "tolerance", "largest difference seen"]]
  for name, figures in quantities.items():
    exact = not figures["tolerance"]
    rows.append(
      [
        name,
        "equal" if exact else f"{figures['tolerance']:.0e}",
        "equal" if exact else f"{figures['largest difference']:.1e}",
      ]
    )
  return table(rows)


def paper_table() -> str:
  """Ours beside the published figures, as launch/paper_table.sh left it."""
  return table(json.loads((DOCS / "results" / "paper_table.json").read_text())["rows"])


def paper_table_cpu() -> str:
  """The same from launch/paper_table.sh --cpu."""
  return table(json.loads((DOCS / "results" / "paper_table_cpu.json").read_text())["rows"])


def speed_runs() -> dict[str, dict]:
  """The benchmark's run in either compute dtype."""
  files = {"float32": "speed_cpu.json", "bfloat16": "speed_cpu_bfloat16.json"}
  return {dtype: json.loads((DOCS / "results" / file).read_text()) for dtype, file in files.items()}


def speed_training() -> str:
  """The benchmark's ways to train one model on the same samples."""
  rows = [["", "", "samples/s", "ratio", "padding", "MFLOP a sample", "peak memory", "compile"]]
  for dtype, run in speed_runs().items():
    first = run["training"]["padded_dense"]["samples_per_second"]
    for name, figures in run["training"].items():
      rows.append(
        [
          dtype,
          name.replace("_", ", "),
          f"{figures['samples_per_second']:,.1f}",
          f"{figures['samples_per_second'] / first:.2f}",
          f"{figures['padding_share']:.0%}",
          f"{figures['flops_a_sample'] / 1e6:,.0f}",
          f"{figures['peak_bytes'] / 1e6:,.0f} MB",
          f"{figures['compile_seconds']:.0f} s",
        ]
      )
  return table(rows)


def speed_summary() -> str:
  """What dropping padding and pruning give, each against the published set-up without pruning."""
  rows = [["", *(f"training speed, {dtype}" for dtype in speed_runs()), "peak memory"]]
  named = {
    "every history padded to 30 items, as published": "padded_dense",
    "the same, pruned": "padded_pruned",
    "real lengths (`data.bucket_items`)": "bucketed_dense",
    "real lengths, pruned": "bucketed_pruned",
  }
  for text, name in named.items():
    pairs = [(run["training"][name], run["training"]["padded_dense"]) for run in speed_runs().values()]
    speeds = [f"{figures['samples_per_second'] / first['samples_per_second']:.2f}" for figures, first in pairs]
    rows.append([text, *speeds, f"{pairs[0][0]['peak_bytes'] / pairs[0][1]['peak_bytes']:.2f}"])
  return table(rows)


def speed_ratios() -> str:
  """Every ratio of the benchmark's runs, those of training speed with their 95 % intervals."""
  runs = speed_runs()
  names = next(iter(runs.values()))["ratios"]
  intervals = {dtype: speed_intervals(run["training"]) for dtype, run in runs.items()}

  def cell(dtype, name):
    interval = " ({:.3g} to {:.3g})".format(*intervals[dtype][name]) if name in intervals[dtype] else ""
    return f"{runs[dtype]['ratios'][name]:.3g}{interval}"

  rows = [[f"`{name}`", *(cell(dtype, name) for dtype in runs)] for name in names]
  return table([["ratio", *runs], *rows])


def speed_decoding() -> str:
  """Users decoded a second, by what constrains them."""
  tables = {dtype: run["decoding"]["tables"] for dtype, run in speed_runs().items()}
  rows = [["", *(f"users/s, {dtype}" for dtype in tables), "children a prefix has at most, by level"]]
  for name, figures in next(iter(tables.values())).items():
    branches = ", ".join(map(str, figures["branches"])) if figures["branches"] else ""
    rows.append([name, *(f"{found[name]['users_per_second']:,.0f}" for found in tables.values()), branches])
  return table(rows)


def code_sets() -> str:
  """Health of Beauty's semantic IDs, ours and published, before any training."""
  rows = [["codes", "levels", "colliding", "same category", "x shuffled", "consecutive items", "x random"]]
  for codes in json.loads((DOCS / "results" / "semantic_ids_beauty.json").read_text())["code_sets"]:
    figures = codes["figures"]
    category, prefix = figures["shared_category"], figures["shared_prefix"]
    rows.append(
      [
        f"`{codes['name']}`",
        str(figures["levels"]),
        f"{figures['colliding_percent']:.1f} %",
        f"{category['share']:.1%}",
        f"{category['ratio']:.1f}",
        f"{prefix['consecutive']:.3f}",
        f"{prefix['ratio']:.1f}",
      ]
    )
  return table(rows)


def code_sets_trained() -> str:
  """Test figures of one model trained on each code set, best first, beside the codes' health."""
  run = json.loads((DOCS / "results" / "code_sets_trained.json").read_text())
  found = sorted(run["code_sets"], key=lambda row: -row["test"]["recall@10"])
  rows = [["codes", "tokens an item", *found[0]["test"], *found[0]["health"]]]
  for row in found:
    test = [f"{value:.4f}" for value in row["test"].values()]
    rows.append([row["name"], str(row["tokens_an_item"]), *test, *(f"{value:.3g}" for value in row["health"].values())])
  for name, correlations in run["rank_correlation_with_recall@10"].items():
    blank = [""] * (1 + len(found[0]["test"]))
    rows.append([f"*rank correlation with recall@10, {name}*", *blank, *(f"{v:+.2f}" for v in correlations.values())])
  return table(rows)


def levers() -> str:
  """Step time with a lever undone or tried, over that of the program as shipped."""
  run = json.loads((DOCS / "results" / "levers.json").read_text())
  times = run["step_time_relative_to_shipped"]
  return table([["", "step time"], *([name, f"{value:.2f}"] for name, value in times.items())])


def memory() -> str:
  """Step time by what glibc does with freed memory, over that of a program that keeps it."""
  files = {
    "CPU-sized, float32": "levers_memory_cpu_sized.json",
    "paper-sized, float32": "levers_memory_paper_float32.json",
    "paper-sized, bfloat16": "levers_memory_paper_bfloat16.json",
  }
  runs = [json.loads((DOCS / "results" / file).read_text())["step_time_relative_to_shipped"] for file in files.values()]
  names = {
    "kept": "as shipped",
    "kept, once more": "as shipped, once more",
    "given back, as now": "undone: glibc keeps freed memory",
    "given back, huge pages": "tried: huge pages; undone: glibc keeps freed memory",
  }
  rows = [[text, *(f"{run[name]:.2f}" for run in runs)] for text, name in names.items()]
  return table([["freed memory", *files], *rows])


def pytorch() -> str:
  """Samples and users a second of the published model in PyTorch and of ours, and their ratios."""
  run = json.loads((DOCS / "results" / "torch_cpu.json").read_text())
  sides = ["pytorch float32", "pytorch bfloat16", "ours float32", "ours bfloat16"]
  ratios = [("ours float32", "pytorch float32"), ("ours bfloat16", "pytorch bfloat16"), (sides[3], sides[0])]
  rows = [["samples or users a second", *(side.replace("pytorch", "PyTorch") for side in sides)]]
  rows[0] += ["ours / PyTorch float32", "both bfloat16", "ours bfloat16, PyTorch float32"]
  for name, figures in run["compared"].items():
    rates = [f"{figures[side]:.1f}" for side in sides]
    rows.append([name, *rates, *(f"{figures[ours] / figures[theirs]:.2f}" for ours, theirs in ratios)])
  return table(rows)


TABLES = {
  make.__name__: make
  for make in (
    beauty_cpu,
    parity,
    paper_table,
    paper_table_cpu,
    speed_summary,
    speed_training,
    speed_ratios,
    speed_decoding,
    code_sets,
    code_sets_trained,
    levers,
    memory,
    pytorch,
  )
}


def filled(text: str) -> str:
  """A page with whatever stands between <!-- NAME --> and <!-- end NAME --> made anew, NAME being one of TABLES."""
  names = re.findall(r"<!-- (?!end )(.*?) -->", text)
  assert sorted(names) == sorted(set(names) & set(TABLES)), f"a page has marks other than {', '.join(TABLES)}: {names}"
  for name in names:
    marks = f"<!-- {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.DOTALL)
    text, found = pattern.subn(lambda _, name=name, marks=marks: f"{marks[0]}\n{TABLES[name]()}\n{marks[1]}", text)
    assert found == 1, f"a page needs {marks[1]} after {marks[0]}"
  return text


def main():
  for page in PAGES:
    page.write_text(filled(page.read_text()))


if __name__ == "__main__":
  main()
