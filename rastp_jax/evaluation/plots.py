"""Plots of a comparison, as PNG bytes. A group of runs has the same colour in every plot."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rastp_jax.evaluation import tables
from rastp_jax.evaluation.comparison import Group
from rastp_jax.reduction.survival import Survival

# Okabe and Ito's colours, which can be told apart with any kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLE: dict[Any, Any] = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.color": "#e4e4e4",
  "axes.axisbelow": True,
  "legend.frameon": False,
  "text.parse_math": False,  # names come from users and may hold dollar signs
  "savefig.dpi": 110,
}

Log = Mapping[str, np.ndarray]


def learning_curves(groups: Sequence[Group], logs: Mapping[str, Log], metric: str) -> bytes:
  """Loss and validation metric, against steps and against minutes of training; a line per run.

  Args:
    groups: of runs.
    logs: `Workdir.read_log` of every run, by its name.
    metric: like "recall@10".
  """
  return _drawn(_learning_curves, (10, 6), (2, 2), groups, logs, metric)


def quality_and_cost(groups: Sequence[Group], metric: str) -> bytes | None:
  """Quality against training time, and bars of training memory and decoding speed, a colour per group.

  Returns:
    None while a run is not finished: its time and memory are not known yet.
  """
  if any(not group.values(key) for group in groups for key in ("training_seconds", "step_bytes")):
    return None
  return _drawn(_quality_and_cost, (10, 3.4), (1, 3), groups, metric)


def breakdowns(groups: Sequence[Group], metric: str) -> bytes:
  """A metric by length of history and by popularity of the target; a bar per group of runs."""
  return _drawn(_breakdowns, (10, 3.6), (1, 2), groups, metric)


def survival(survival: Survival) -> bytes:
  """How often tokens survive: by level and recency together, by level, and by recency with separators apart."""
  return _drawn(_survival, (10, 3.4), (1, 3), survival, width_ratios=(2, 1, 1.3))


def _drawn(draw, size, shape, *content, width_ratios=None) -> bytes:
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=size, layout="constrained")
    draw(figure, figure.subplots(*shape, squeeze=False, width_ratios=width_ratios), *content)
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, the same runs give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
  return buffer.getvalue()


def _learning_curves(figure, axes, groups, logs, metric):
  for row, (key, heading) in enumerate(
    [("loss", "training loss, nats"), (f"validation/{metric}", f"validation {metric}")]
  ):
    for column, (x, unit) in enumerate([("step", "steps"), ("seconds", "minutes of training")]):
      axis = axes[row, column]
      for colour, group in zip(_colours(groups), groups, strict=True):
        for index, result in enumerate(group.results):
          log = logs[result.name]
          known = ~np.isnan(log[key]) if key in log else np.zeros(0, bool)
          if known.any():
            scale = 1 / 60 if x == "seconds" else 1
            axis.plot(
              log[x][known] * scale,
              log[key][known],
              color=colour,
              linewidth=1.4,
              marker="." if row else None,
              alpha=1 if len(group.results) == 1 else 0.7,
              label=None if index else group.name,
            )
      axis.set(xlabel=unit, ylabel=heading)
      axis.xaxis.set_major_formatter("{x:,.0f}" if x == "step" else "{x:g}")
      axis.set_xlim(left=0)
  axes[0, 0].legend()


def _quality_and_cost(figure, axes, groups, metric):
  quality, memory, speed = axes[0]
  base = groups[0].mean("training_seconds")
  colours = _colours(groups)
  for colour, group in zip(colours, groups, strict=True):
    times = np.asarray(group.values("training_seconds")) / base
    values = group.values(metric)
    quality.scatter(times, values, color=colour, s=14, alpha=0.5, linewidths=0)
    quality.errorbar(
      times.mean(),
      np.mean(values),
      xerr=times.std(ddof=1) if len(times) > 1 else None,
      yerr=group.deviation(metric),
      color=colour,
      marker="o",
      capsize=3,
      label=group.name,
    )
  quality.set(xlabel=f"training time, {groups[0].name} = 1", ylabel=metric)
  quality.margins(x=0.1, y=0.25)
  quality.set_xlim(left=0)
  quality.legend()
  for axis, key, scale, heading in (
    (memory, "step_bytes", 1e-6, "memory of a training step, MB"),
    (speed, "users_per_second", 1.0, "users decoded per second"),
  ):
    means = [group.mean(key) * scale for group in groups]
    bars = axis.bar(range(len(groups)), means, color=colours, width=0.6)
    axis.bar_label(bars, fmt="{:,.0f}")
    axis.set_xticks(range(len(groups)), [_wrapped(group.name) for group in groups])
    axis.set_ylabel(heading)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.grid(axis="x", visible=False)


def _breakdowns(figure, axes, groups, metric):
  for axis, grouped_by in zip(axes[0], tables.GROUPED_BY, strict=True):
    head, *rows = tables.breakdown(groups, grouped_by, metric)
    width = 0.8 / len(groups)
    for index, (colour, group) in enumerate(zip(_colours(groups), groups, strict=True)):
      heights = [float(row[2 + index]) for row in rows]
      offsets = np.arange(len(rows)) + (index - (len(groups) - 1) / 2) * width
      axis.bar(offsets, heights, width, color=colour, label=group.name)
    axis.set_xticks(range(len(rows)), [f"{row[0]}\n{row[1]}" for row in rows])
    axis.set(xlabel=f"{head[0]} (below: users)", ylabel=metric)
    axis.grid(axis="x", visible=False)
  axes[0, 0].legend()


def _survival(figure, axes, survival):
  grid, bars, lines = axes[0]
  shares = survival.by_recency()
  shares = shares[: int((~np.isnan(shares).all(1)).sum())]
  image = grid.imshow(shares.T, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
  grid.set_yticks(range(len(survival.kinds)), survival.kinds)
  step = max(1, len(shares) // 8)
  grid.set_xticks(range(0, len(shares), step), range(1, len(shares) + 1, step))
  grid.set_xlabel("items back from the target (1 = most recent)")
  grid.grid(visible=False)
  figure.colorbar(image, ax=grid, label="share that survives", pad=0.02, format="{x:.0%}")
  drawn = bars.barh(range(len(survival.kinds)), survival.by_kind(), color=COLOURS[0], height=0.6)
  bars.bar_label(drawn, fmt="{:.0%}", padding=2)
  bars.set_yticks(range(len(survival.kinds)), survival.kinds)
  bars.invert_yaxis()
  bars.set(xlabel="share that survives", xlim=(0, 1.15))
  bars.xaxis.set_major_formatter("{x:.0%}")
  bars.set_xticks([0, 0.5, 1])
  bars.grid(axis="y", visible=False)
  back = np.arange(1, len(shares) + 1)
  lines.plot(back, shares[:, : survival.depth].mean(1), color=COLOURS[0], marker=".", label="codes")
  if len(survival.kinds) > survival.depth:
    lines.plot(back, shares[:, survival.depth], color=COLOURS[1], marker=".", label="separators")
  lines.set(xlabel="items back from the target", ylabel="share that survives", ylim=(0, 1.02))
  lines.yaxis.set_major_formatter("{x:.0%}")
  lines.legend()


def _colours(groups: Sequence[Group]) -> list[str]:
  return [COLOURS[index % len(COLOURS)] for index in range(len(groups))]


def _wrapped(name: str) -> str:
  """A workdir with a line break after each slash, so that labels do not overlap."""
  return name.replace("/", "/\n")
