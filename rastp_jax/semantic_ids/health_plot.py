"""The health metrics of codes in one plot."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rastp_jax.semantic_ids import collisions, health
from rastp_jax.semantic_ids.codes import SemanticIds


def draw(ids: SemanticIds, metrics: Mapping[str, Any], title: str) -> bytes:
  """Draws what `health.measure` found: a PNG."""
  # Imported here: training needs no plots.
  from matplotlib.figure import Figure

  levels = list(range(metrics["levels"]))
  names = [f"level {level}" for level in levels]
  shades = [f"C{level % 10}" for level in levels]
  figure = Figure(figsize=(13, 7.4), layout="constrained", dpi=110)
  figure.suptitle(f"{title}\n{_headline(metrics)}", color="firebrick" if _bad(metrics) else "black", fontsize=12)
  ((load, spread, left), (groups, category, prefix)) = figure.subplots(2, 3)

  load.set(title="Items per code, most used code first", xlabel="codes, by use", ylabel="items", yscale="log")
  for name, shade, counts in zip(names, shades, health.code_counts(ids), strict=True):
    used = np.sort(counts[counts > 0])[::-1]
    load.plot(np.arange(1, len(used) + 1), used, color=shade, label=name)
  load.yaxis.set_major_formatter("{x:g}")
  load.axhline(metrics["items"] / max(metrics["widths"][: len(levels)]), color="grey", ls=":", label="even")
  load.legend(fontsize=8)

  spread.set(title="How evenly codes are used (1 = ideal)", ylim=(0, 1.55), yticks=np.linspace(0, 1, 6))
  in_use = [used / width for used, width in zip(metrics["codes_in_use"], metrics["widths"], strict=False)]
  spread.axhline(
    health.COLLAPSED_ENTROPY, color="firebrick", ls="--", lw=1.2, label="entropy below: collapsed", zorder=3
  )
  _bars(spread, names, {"codes in use": in_use, "entropy": metrics["entropy"]}, "{:.2f}")

  left.set(title="Share of the embeddings' variance left")
  if metrics["reconstruction_error"] is None:
    _say(left, "unknown: no codebooks")
  else:
    left.set(ylim=(0, max(1.12, 1.1 * max(metrics["reconstruction_error"]))))
    drawn = left.bar([f"after {name}" for name in names], metrics["reconstruction_error"], color="C0")
    left.bar_label(drawn, fmt="{:.2f}", fontsize=8)

  sizes = collisions.group_rows(ids.learned)[1]
  held = np.bincount(np.minimum(sizes, 10), weights=sizes, minlength=11)[1:]
  groups.set(title="Items by how many share all their codes", xlabel="items with equal learned codes")
  drawn = groups.bar([*map(str, range(1, 10)), "10+"], 100 * held / metrics["items"], color="C0")
  groups.bar_label(drawn, fmt="{:.1f}", fontsize=8)
  groups.set(ylabel="% of items", ylim=(0, 112))

  category.set(title="Two items of a leaf category:\nsame first code", ylabel="% of pairs")
  found = metrics["shared_category"]
  if found is None:
    _say(category, "unknown: no categories")
  else:
    drawn = category.bar(
      ["these codes", "shuffled codes"], [100 * found["share"], 100 * found["shuffled"]], color=["C0", "0.7"]
    )
    category.bar_label(drawn, fmt="{:.1f} %", fontsize=9)
    category.margins(y=0.12)

  prefix.set(title="Two items of a history:\nsame first 1, 2, … codes", ylabel="% of pairs")
  found = metrics["shared_prefix"]
  if found is None:
    _say(prefix, "unknown: no histories")
  else:
    series = {
      "consecutive": [100 * share for share in found["consecutive_by_level"]],
      "random": [100 * share for share in found["random_by_level"]],
    }
    _bars(prefix, [f"first {level + 1}" for level in levels], series, "{:.2g}")
    if sum(series["consecutive"] + series["random"]):  # a logarithmic axis needs a value above 0
      prefix.set_yscale("log")
      prefix.yaxis.set_major_formatter("{x:g}")
    prefix.margins(y=0.15)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()


def _bad(metrics: Mapping[str, Any]) -> bool:
  return metrics["collapsed"] or metrics["uninformative"]


def _headline(metrics: Mapping[str, Any]) -> str:
  verdict = "COLLAPSED: see the advice in the report. " if metrics["collapsed"] else ""
  verdict += "They say almost nothing about the items. " if metrics["uninformative"] else ""
  shared = f"{metrics['colliding_percent']:.1f} % share all learned codes with another"
  return f"{verdict}{metrics['items']:,} items, {shared}"


def _bars(axes, names: Sequence[str], series: Mapping[str, Sequence[float]], label: str) -> None:
  """Groups of bars: one group per name, one bar per series, each with its value above."""
  width = 0.8 / len(series)
  for index, (name, values) in enumerate(series.items()):
    offset = (index - (len(series) - 1) / 2) * width
    drawn = axes.bar(np.arange(len(names)) + offset, values, width * 0.95, label=name, color=["C0", "0.7"][index])
    axes.bar_label(drawn, fmt=label, fontsize=8)
  axes.set_xticks(np.arange(len(names)), names)
  axes.legend(fontsize=8, loc="upper right")


def _say(axes, text: str) -> None:
  axes.text(0.5, 0.5, text, ha="center", va="center", color="grey", transform=axes.transAxes)
  axes.set(xticks=[], yticks=[])
