"""Results as tables: rows of cells, aligned for a terminal or written as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rastp_jax.errors import InputError
from rastp_jax.evaluation.comparison import CONFIDENCE, RESAMPLES, Group, compare

Rows = list[list[str]]

# What a comparison shows beside the metrics, where the results have it: key -> (heading, format, scale).
_BEFORE = {
  "parameters": ("parameters", "{:,.0f}", 1.0),
  "training_samples": ("samples seen", "{:,.0f}", 1.0),
  "training_seconds": ("training, minutes", "{:,.1f}", 1 / 60),
  "training_samples_per_second": ("samples/s", "{:,.0f}", 1.0),
  "step_bytes": ("step memory, MB", "{:,.0f}", 1e-6),
  "beam_width": ("beams", "{:,.0f}", 1.0),
}
_AFTER = {"users_per_second": ("users/s", "{:,.0f}", 1.0)}
GROUPED_BY = {"history_items": "items in the history", "target_seen": "target seen in training"}


def comparison(groups: Sequence[Group]) -> Rows:
  """One column a group (mean ± sample standard deviation over seeds), and each one's ratio to the first."""
  head = [""]
  for place, group in enumerate(groups):
    seeds = f" ({len(group.results)} seeds)" if len(group.results) > 1 else ""
    head += [group.name + seeds] + ["ratio to the first"] * (place > 0)
  rows = [head]
  for key, (heading, form, scale) in {**_BEFORE, **_metrics(groups), **_AFTER}.items():
    means = [group.mean(key) for group in groups]
    if None in means:
      continue
    row = [heading]
    for place, (group, mean) in enumerate(zip(groups, means, strict=True)):
      deviation = group.deviation(key)
      row.append(form.format(mean * scale) + (f" ± {form.format(deviation * scale)}" if deviation else ""))
      if place:
        row.append(f"{mean / means[0]:.2f}x" if means[0] else "-")
    rows.append(row)
  return rows


def differences(groups: Sequence[Group]) -> Rows:
  """What separates each group from the first, by paired bootstrap; nothing but the heading for a single group."""
  rows = [["", "metric", "difference", f"{CONFIDENCE:.0%} interval", "p"]]
  for group in groups[1:]:
    rows += [
      [
        f"{group.name} - {groups[0].name}",
        found.metric,
        f"{found.value:+.4f}",
        f"{found.low:+.4f} to {found.high:+.4f}",
        f"{found.p:.4f}",
      ]
      for found in compare(groups[0], group)
    ]
  return rows


def difference_note(groups: Sequence[Group]) -> str:
  """How `differences` came about, in one sentence."""
  return (
    f"Paired bootstrap over the {len(groups[0].results[0].ranks):,} users ({RESAMPLES:,} draws; seeds averaged first, "
    "so p speaks of other users, not of other seeds)."
  )


def breakdown(groups: Sequence[Group], grouped_by: str, metric: str) -> Rows:
  """A metric by group of users (those with nobody in them left out), one column a group of runs (mean over seeds).

  Args:
    groups: of runs.
    grouped_by: "history_items" or "target_seen".
    metric: like "recall@10".
  """
  tables = [[result.figures["breakdowns"][grouped_by] for result in group.results] for group in groups]
  rows = [[GROUPED_BY[grouped_by], "users", *(f"{metric}, {group.name}" for group in groups)]]
  for place, first in enumerate(tables[0][0]):
    if not first["users"]:
      continue
    cells = [f"{statistics.fmean(table[place][metric] for table in seeds):.4f}" for seeds in tables]
    rows.append([interval(first), f"{first['users']:,}", *cells])
  return rows


def interval(group: Mapping[str, Any]) -> str:
  """'never', '1-4', '50+': the values a breakdown's group stands for."""
  low, high = group["from"], group["to"]
  if high is None:
    return f"{low}+"
  if low == high:
    return str(low) if low else "never"
  return f"{low}-{high}"


def text(datasets: Mapping[str, Sequence[Group]], *, markdown_tables: bool = False) -> str:
  """Everything about the comparisons of one or several datasets, for the terminal or as Markdown."""
  draw = markdown if markdown_tables else align
  parts = []
  for dataset, groups in datasets.items():
    if len(datasets) > 1:
      parts.append(f"## {dataset}")
    parts.append(draw(comparison(groups)))
    if len(groups) > 1:
      parts += [difference_note(groups), draw(differences(groups))]
    metric = f"recall@{max(common_ks(groups))}"
    parts += [draw(breakdown(groups, name, metric)) for name in GROUPED_BY]
  return "\n\n".join(parts)


def settings(groups: Sequence[Group]) -> Rows:
  """The settings in which groups differ, one column a group; only the heading where they differ in none.

  A setting that the program of a run did not have yet stays empty.
  """
  configs = [group.results[0].figures["config"] for group in groups]
  rows = [["", *(group.name for group in groups)]]
  fields = dict.fromkeys((section, name) for config in configs for section in config for name in config[section])
  for section, name in fields:
    values = [str(config.get(section, {}).get(name, "")) for config in configs]
    if len(set(values)) > 1:
      rows.append([f"{section}.{name}", *values])
  return rows


def setting(figures: Mapping[str, Any]) -> str:
  """One line on how the figures were obtained, without which they mean little."""
  decoding = "constrained to items" if figures["config"]["eval"]["constrained"] else "unconstrained"
  return (
    f"{figures['split']}: {figures['users']:,} users of {figures['config']['data']['dataset']}, "
    f"{figures['beam_width']} "
    f"beams, {decoding}, {figures['invalid_beams']:,} beams that are no item, {figures['repeated_beams']:,} repeated; "
    f"checkpoint of step {figures['step']:,}"
  )


def common_ks(groups: Sequence[Group]) -> list[int]:
  """The cut-offs that all groups were evaluated at.

  Raises:
    InputError: there is none.
  """
  ks = [k for k in groups[0].ks if all(k in group.ks for group in groups)]
  if not ks:
    lists = ", ".join(f"{group.name} at {group.ks}" for group in groups)
    raise InputError(f"No cut-off is common to all runs ({lists}): evaluate them with the same eval.ks.")
  return ks


def align(rows: Sequence[Sequence[str]]) -> str:
  """Columns side by side: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
    for row in rows
  )


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table, its first row the heading."""
  rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
  lines = [[cell.replace("|", r"\|") for cell in row] for row in [rows[0], rule, *rows[1:]]]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _metrics(groups: Sequence[Group]) -> dict[str, tuple[str, str, float]]:
  measures = ("recall", "ndcg", "mrr", "coverage")
  keys = [f"{measure}@{k}" for measure in measures for k in common_ks(groups)]
  return {key: (key, "{:.4f}", 1.0) for key in keys}
