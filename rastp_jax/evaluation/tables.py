"""Results as tables: rows of cells, the first row the heading."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rastp_jax import config as config_lib
from rastp_jax.errors import InputError
from rastp_jax.evaluation.comparison import CONFIDENCE, RESAMPLES, Difference, Group, compare
from rastp_jax.runtime.text_tables import align, markdown

Rows = list[list[str]]

# What a comparison shows before and after the metrics, where the results have it: key -> (heading, format, scale).
_BEFORE = {
  "parameters": ("parameters", "{:,.0f}", 1.0),
  "training_samples": ("samples seen", "{:,.0f}", 1.0),
  "training_seconds": ("training, minutes", "{:,.1f}", 1 / 60),
  "training_samples_per_second": ("samples/s", "{:,.0f}", 1.0),
  "step_bytes": ("step memory, MB", "{:,.0f}", 1e-6),
  "beam_width": ("beams", "{:,.0f}", 1.0),
}
_AFTER = {"users_per_second": ("users/s", "{:,.0f}", 1.0)}
_RATIO = "ratio to the first"
GROUPED_BY = {"history_items": "items in the history", "target_seen": "target seen in training"}


def comparison(groups: Sequence[Group]) -> Rows:
  """One column per group (mean ± sample standard deviation over seeds), and each one's ratio to the first."""
  head = [""]
  for index, group in enumerate(groups):
    seeds = f" ({len(group.results)} seeds)" if len(group.results) > 1 else ""
    head += [group.name + seeds] + [_RATIO] * (index > 0)
  rows = [head]
  for key, (heading, form, scale) in {**_BEFORE, **_metrics(groups), **_AFTER}.items():
    means = [mean for group in groups if (mean := group.mean(key)) is not None]
    if len(means) < len(groups):
      continue
    row = [heading]
    for index, (group, mean) in enumerate(zip(groups, means, strict=True)):
      deviation = group.deviation(key)
      row.append(form.format(mean * scale) + (f" ± {form.format(deviation * scale)}" if deviation else ""))
      if index:
        row.append(f"{mean / means[0]:.2f}x" if means[0] else "-")
    rows.append(row)
  return rows


def split_equal(rows: Rows) -> tuple[Rows, list[str]]:
  """Of a `comparison`, the rows in which groups differ, and a text for each of those where all are equal."""
  if len(rows[0]) == 2:  # a single group
    return rows, []
  columns = [number for number, name in enumerate(rows[0]) if number and name != _RATIO]
  equal = [row for row in rows[1:] if len({row[number] for number in columns}) == 1]
  return [row for row in rows if row not in equal], [f"{row[0]} {row[1]}" for row in equal]


def differences(groups: Sequence[Group]) -> Rows:
  """How each group differs from the first, by paired bootstrap; only the heading for a single group."""
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


def describe_difference(found: Difference) -> str:
  """'recall@10: -0.0120 (-0.0160 to -0.0070), p 0.0002'."""
  return f"{found.metric}: {found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}), p {found.p:.4f}"


def difference_note(groups: Sequence[Group]) -> str:
  """How `differences` were computed, in one sentence."""
  return (
    f"Paired bootstrap over the {len(groups[0].results[0].ranks):,} users ({RESAMPLES:,} draws; seeds averaged first, "
    "so p is about other users, not about other seeds)."
  )


def breakdown(groups: Sequence[Group], grouped_by: str, metric: str) -> Rows:
  """A metric by group of users (empty ones left out), one column per group of runs (mean over seeds).

  Args:
    groups: of runs.
    grouped_by: "history_items" or "target_seen".
    metric: like "recall@10".
  """
  tables = [[result.metrics["breakdowns"][grouped_by] for result in group.results] for group in groups]
  rows = [[GROUPED_BY[grouped_by], "users", *(f"{metric}, {group.name}" for group in groups)]]
  for index, first in enumerate(tables[0][0]):
    if not first["users"]:
      continue
    cells = [f"{statistics.fmean(table[index][metric] for table in seeds):.4f}" for seeds in tables]
    rows.append([interval(first), f"{first['users']:,}", *cells])
  return rows


def interval(group: Mapping[str, Any]) -> str:
  """'never', '1-4', '50+': the values of a breakdown's group."""
  low, high = group["from"], group["to"]
  if high is None:
    return f"{low}+"
  if low == high:
    return str(low) if low else "never"
  return f"{low}-{high}"


def text(datasets: Mapping[str, Sequence[Group]], *, markdown_tables: bool = False) -> str:
  """All tables about one or several datasets, for the terminal or as Markdown."""
  draw = markdown if markdown_tables else align
  parts = []
  for dataset, groups in datasets.items():
    if len(datasets) > 1:
      parts.append(f"## {dataset}")
    parts.append(draw(comparison(groups)))
    if len(groups) > 1:
      parts += [difference_note(groups), draw(differences(groups))]
    metric = f"recall@{max(common_top_k(groups))}"
    parts += [draw(breakdown(groups, name, metric)) for name in GROUPED_BY]
  return "\n\n".join(parts)


def settings(groups: Sequence[Group]) -> Rows:
  """The settings in which groups differ, one column per group; only the heading where they differ in none."""
  configs = [config_lib.flatten(group.results[0].metrics["config"]) for group in groups]
  rows = [["", *(group.name for group in groups)]]
  for name in configs[0]:
    values = [str(config[name]) for config in configs]
    if len(set(values)) > 1:
      rows.append([name, *values])
  return rows


def describe_evaluation(metrics: Mapping[str, Any]) -> str:
  """One line that says how metrics were obtained: users, beams, decoding, checkpoint."""
  decoding = "constrained to items" if metrics["config"]["eval"]["constrained"] else "unconstrained"
  return (
    f"{metrics['split']}: {metrics['users']:,} users of {metrics['config']['data']['dataset']}, "
    f"{metrics['beam_width']} beams, {decoding}, {metrics['invalid_beams']:,} beams that are not an item, "
    f"{metrics['repeated_beams']:,} repeated; checkpoint of step {metrics['step']:,}"
  )


def common_top_k(groups: Sequence[Group]) -> list[int]:
  """The cut-offs that all groups were evaluated at.

  Raises:
    InputError: there is none.
  """
  common = [k for k in groups[0].top_k if all(k in group.top_k for group in groups)]
  if not common:
    lists = ", ".join(f"{group.name} at {group.top_k}" for group in groups)
    raise InputError(f"No cut-off is common to all runs ({lists}): evaluate them with the same eval.top_k.")
  return common


def _metrics(groups: Sequence[Group]) -> dict[str, tuple[str, str, float]]:
  measures = ("recall", "ndcg", "mrr", "coverage")
  keys = [f"{measure}@{k}" for measure in measures for k in common_top_k(groups)]
  return {key: (key, "{:.4f}", 1.0) for key in keys}
