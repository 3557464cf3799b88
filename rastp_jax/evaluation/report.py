"""Results as people look at them."""

from collections.abc import Mapping, Sequence
from typing import Any

# What a comparison shows, where the results have it: (key, heading, format).
_COLUMNS = (
  ("parameters", "parameters", "{:,.0f}"),
  ("training_samples", "samples seen", "{:,.0f}"),
  ("training_samples_per_second", "samples/s", "{:,.0f}"),
  ("step_bytes", "step memory", "{:,.0f} MB"),
  ("recall@5", "recall@5", "{:.4f}"),
  ("recall@10", "recall@10", "{:.4f}"),
  ("ndcg@5", "ndcg@5", "{:.4f}"),
  ("ndcg@10", "ndcg@10", "{:.4f}"),
  ("users_per_second", "users/s", "{:,.0f}"),
)
_SCALE = {"step_bytes": 1e-6}


def comparison(results: Mapping[str, Mapping[str, Any]]) -> str:
  """A text table, one row a run and, below each but the first, its ratio to the first.

  Args:
    results: figures under the runs' names, in the order to show them.
  """
  columns = [column for column in _COLUMNS if all(column[0] in figures for figures in results.values())]
  rows = [["", *(heading for _, heading, _ in columns)]]
  first = next(iter(results.values()))
  for place, (name, figures) in enumerate(results.items()):
    rows.append([name, *(form.format(figures[key] * _SCALE.get(key, 1)) for key, _, form in columns)])
    if place:
      rows.append(["  ratio to the first", *(_ratio(figures[key], first[key]) for key, _, _ in columns)])
  return align(rows)


def setting(figures: Mapping[str, Any]) -> str:
  """One line on how the figures were obtained, without which they mean little."""
  decoding = "constrained to items" if figures["config"]["eval"]["constrained"] else "unconstrained"
  return (
    f"{figures['split']}: {figures['users']:,} users of {figures['config']['data']['dataset']}, "
    f"{figures['beam_width']} "
    f"beams, {decoding}, {figures['invalid_beams']:,} beams that are no item, {figures['repeated_beams']:,} repeated; "
    f"checkpoint of step {figures['step']:,}"
  )


def align(rows: Sequence[Sequence[str]]) -> str:
  """Columns side by side: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
    for row in rows
  )


def _ratio(value: float, reference: float) -> str:
  return f"{value / reference:.2f}x" if reference else "-"
