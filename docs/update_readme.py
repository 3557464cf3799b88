"""Fills README.md's tables from docs/results/*.json: python docs/update_readme.py"""

import json
import pathlib
import re

DOCS = pathlib.Path(__file__).parent
README = DOCS.parent / "README.md"


def table(rows: list[list[str]]) -> str:
  head, *body = rows
  rule = ["---"] + ["---:"] * (len(head) - 1)
  return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def beauty_cpu() -> str:
  """One row a run and beam width of the CPU-sized model."""
  rows = [["", "beams", "recall@5", "recall@10", "NDCG@5", "NDCG@10", "samples/s", "training", "step memory"]]
  for file in ("dense", "pruned", "dense_beam50", "pruned_beam50", "dense_beam100", "pruned_beam100"):
    run = json.loads((DOCS / "results" / f"beauty_cpu_{file}.json").read_text())
    figures = [f"{run[key]:.4f}" for key in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")]
    rows.append(
      [
        file.partition("_")[0],
        str(run["beam_width"]),
        *figures,
        f"{run['training_samples_per_second']:,.0f}",
        f"{run['training_seconds'] / 60:.0f} min",
        f"{run['step_bytes'] / 1e6:,.0f} MB",
      ]
    )
  return table(rows)


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


def main():
  text = README.read_text()
  for make in (beauty_cpu, parity):
    marks = f"<!-- {make.__name__} -->", f"<!-- end {make.__name__} -->"
    pattern = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.DOTALL)
    text, found = pattern.subn(lambda _, make=make, marks=marks: f"{marks[0]}\n{make()}\n{marks[1]}", text)
    assert found == 1, f"README.md needs the marks {marks[0]} … {marks[1]} exactly once"
  README.write_text(text)


if __name__ == "__main__":
  main()
