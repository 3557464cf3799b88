"""Plots of a comparison, as SVG text, one pair of axes each. A group of runs has the same colour in every plot."""

from collections.abc import Mapping, Sequence

import numpy as np

from rastp_jax.evaluation import tables
from rastp_jax.evaluation.comparison import Difference, Group
from rastp_jax.evaluation.svg import Chart, ticks
from rastp_jax.reduction.survival import Survival

Log = Mapping[str, np.ndarray]

_CURVE_POINTS = 200  # of a loss curve: more cannot be seen


def forest(groups: Sequence[Group], found: Sequence[Sequence[Difference]]) -> str:
  """How each group differs from the first in every metric, relative to the first's mean, with its interval.

  Args:
    groups: the first one, and those that are compared with it.
    found: of each of the latter, a difference per metric.
  """
  first, rows = groups[0], []
  for colour, (group, differences) in enumerate(zip(groups[1:], found, strict=True), 1):
    for difference in (one for one in differences if not one.metric.startswith("mrr")):
      base = first.mean(difference.metric) or np.nan
      rows.append(
        (colour, group.name, difference, [v / base for v in (difference.value, difference.low, difference.high)])
      )
  values = [value for row in rows for value in row[3] if np.isfinite(value)] or [0.0]
  low, high = min(0.0, *values), max(0.0, *values)
  margin = 0.06 * (high - low or 1.0)
  chart = Chart(
    (low - margin, high + margin),
    (len(rows), 0),
    x_ticks=[(value, label if value else "0") for value, label in ticks(low - margin, high + margin, "{:+.0%}")],
    y_ticks=[(number + 0.5, row[2].metric.replace("ndcg", "NDCG")) for number, row in enumerate(rows)],
    x_label=f"difference to {first.name}, relative, {tables.CONFIDENCE:.0%} interval over users",
    height=max(26 * len(rows), 60),
    left=82,
    grid="x",
  )
  chart.segment((0, 0), (len(rows), 0))
  for number, (colour, name, difference, (value, start, end)) in enumerate(rows):
    if np.isfinite(value):
      chart.segment((start, end), (number + 0.5, number + 0.5), colour)
      chart.dot(value, number + 0.5, colour, f"{name} - {first.name}, {tables.describe_difference(difference)}")
  chart.legend([group.name for group in groups])
  return chart.render("Differences to the first run in every metric, with intervals")


def loss(groups: Sequence[Group], logs: Mapping[str, Log]) -> str:
  """Training loss against steps; a line per run."""
  return _curves(groups, logs, "loss", "step", "steps", "training loss, nats", "{:,.0f}")


def validation(groups: Sequence[Group], logs: Mapping[str, Log], metric: str, *, minutes: bool) -> str:
  """A validation metric against steps or minutes of training; a line per run."""
  x, label, form = ("seconds", "minutes of training", "{:g}") if minutes else ("step", "steps", "{:,.0f}")
  return _curves(groups, logs, f"validation/{metric}", x, label, f"validation {metric}", form)


def _curves(groups, logs, key, x, x_label, y_label, form) -> str:
  lines = []
  for colour, group in enumerate(groups):
    for result in group.results:
      log = logs[result.name]
      known = np.flatnonzero(~np.isnan(log[key])) if key in log else np.zeros(0, int)
      if len(known):
        known = known[np.unique(np.linspace(0, len(known) - 1, min(len(known), _CURVE_POINTS)).astype(int))]
        lines.append(
          (colour, result.name, log["step"][known], log[x][known] / (60 if x == "seconds" else 1), log[key][known])
        )
  right = max((line[3].max() for line in lines), default=1.0)
  low = min((line[4].min() for line in lines), default=0.0)
  high = max((line[4].max() for line in lines), default=1.0)
  pad = 0.05 * (high - low or 1.0)
  chart = Chart(
    (0, right),
    (low - pad, high + pad),
    x_ticks=ticks(0, right, form),
    y_ticks=ticks(low - pad, high + pad),
    x_label=x_label,
    y_label=y_label,
  )
  for colour, name, steps, xs, ys in lines:
    dotted = len(xs) <= 40
    tips = [f"{name}, step {step:,.0f}: {y:.4f}" for step, y in zip(steps, ys, strict=True)] if dotted else ()
    chart.line(xs, ys, colour, tips)
  chart.legend([group.name for group in groups])
  return chart.render(f"{y_label} against {x_label}")


def quality_and_time(groups: Sequence[Group], metric: str) -> str | None:
  """Quality against training time, a dot per group, with deviations over seeds; None while a run is not finished."""
  if any(not group.values("training_seconds") for group in groups):
    return None
  base = groups[0].mean("training_seconds") or 1.0
  times = [np.asarray(group.values("training_seconds")) / base for group in groups]
  means = [group.mean(metric) or 0.0 for group in groups]
  spreads = [group.deviation(metric) or 0.0 for group in groups]
  low = min(m - s for m, s in zip(means, spreads, strict=True))
  high = max(m + s for m, s in zip(means, spreads, strict=True))
  pad = 0.15 * (high - low or high or 1.0)
  right = 1.1 * max(time.max() for time in times)
  chart = Chart(
    (0, right),
    (low - pad, high + pad),
    x_ticks=ticks(0, right),
    y_ticks=ticks(low - pad, high + pad),
    x_label=f"training time, {groups[0].name} = 1",
    y_label=metric,
  )
  for colour, (group, time, mean, spread) in enumerate(zip(groups, times, means, spreads, strict=True)):
    at = float(time.mean())
    if len(time) > 1:
      side = float(time.std(ddof=1))
      chart.segment((at - side, at + side), (mean, mean), colour)
      chart.segment((at, at), (mean - spread, mean + spread), colour)
    chart.dot(at, mean, colour, f"{group.name}: {metric} {mean:.4f} in {at * base / 60:,.1f} minutes")
  chart.legend([group.name for group in groups])
  return chart.render(f"{metric} against training time")


def bars(groups: Sequence[Group], key: str, scale: float, label: str) -> str | None:
  """A bar per group with the mean of one quantity; None where a run lacks it."""
  means = [group.mean(key) for group in groups]
  if any(mean is None for mean in means):
    return None
  values = [(mean or 0.0) * scale for mean in means]
  top = 1.12 * max(values) or 1.0
  chart = Chart((0, len(groups)), (0, top), x_ticks=(), y_ticks=ticks(0, top, "{:,g}", 4), y_label=label)
  for index, (group, value) in enumerate(zip(groups, values, strict=True)):
    chart.box((index + 0.2, index + 0.8), (0, value), index, f"{group.name}: {value:,.0f}")
    chart.text(index + 0.5, value, f"{value:,.0f}")
  chart.legend([group.name for group in groups])
  return chart.render(label)


def breakdown(groups: Sequence[Group], grouped_by: str, metric: str) -> str:
  """A metric by length of history or by popularity of the target; a bar per group of runs."""
  head, *rows = tables.breakdown(groups, grouped_by, metric)
  heights = [[float(cell) for cell in row[2:]] for row in rows]
  top = 1.05 * max(max(row) for row in heights) or 1.0
  chart = Chart(
    (0, len(rows)),
    (0, top),
    x_ticks=[(index + 0.5, f"{row[0]}\n{row[1]}") for index, row in enumerate(rows)],
    y_ticks=ticks(0, top),
    x_label=f"{head[0]} (below: users)",
    y_label=metric,
  )
  width = 0.84 / len(groups)
  for index, (row, values) in enumerate(zip(rows, heights, strict=True)):
    for number, (group, value) in enumerate(zip(groups, values, strict=True)):
      left = index + 0.08 + number * width
      chart.box((left, left + width), (0, value), number, f"{group.name}, {row[0]}: {value:.4f} ({row[1]} users)")
  chart.legend([group.name for group in groups])
  return chart.render(f"{metric} by {head[0]}")


def survival_grid(survival: Survival, kinds: Sequence[str]) -> str:
  """How often tokens survive, by what they are and by recency of their item: the darker, the more often."""
  shares = survival.by_recency()
  shares = shares[: int((~np.isnan(shares).all(1)).sum())]
  step = max(1, -(-len(shares) // 8))
  chart = Chart(
    (0, len(shares)),
    (len(kinds), 0),
    x_ticks=[(back + 0.5, str(back + 1)) for back in range(0, len(shares), step)],
    y_ticks=[(number + 0.5, kind) for number, kind in enumerate(kinds)],
    x_label="items back from the target (1 = most recent)",
    height=34 * len(kinds),
    left=104,
    grid="",
  )
  for back, row in enumerate(shares):
    for number, (kind, share) in enumerate(zip(kinds, row, strict=True)):
      if not np.isnan(share):
        tip = f"{kind}, {back + 1} back: {share:.0%} survive"
        chart.box((back + 0.04, back + 0.96), (number + 0.05, number + 0.95), 0, tip, opacity=0.06 + 0.94 * share)
  return chart.render("Share of tokens that survive, by level and recency")


def survival_by_kind(survival: Survival, kinds: Sequence[str]) -> str:
  """The share of a user's tokens of each kind that survives."""
  chart = Chart(
    (0, 1.12),
    (len(kinds), 0),
    x_ticks=[(value, f"{value:.0%}") for value in (0, 0.25, 0.5, 0.75, 1)],
    y_ticks=[(number + 0.5, kind) for number, kind in enumerate(kinds)],
    x_label="share that survives, mean over users",
    height=34 * len(kinds),
    left=104,
    grid="x",
  )
  for number, (kind, share) in enumerate(zip(kinds, survival.by_kind(), strict=True)):
    chart.box((0, share), (number + 0.2, number + 0.8), 0, f"{kind}: {share:.1%}")
    chart.text(share + 0.015, number + 0.5, f"{share:.0%}", "start", up=-4)
  return chart.render("Share of tokens that survive, by level")
