"""The laboratory's tables, its Pareto plots and its page."""

import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rastp_jax.experiments.lab import scatter
from rastp_jax.experiments.lab.collecting import CONTROL, comparison
from rastp_jax.experiments.lab.rows import DENSE
from rastp_jax.experiments.lab.scatter import Point
from rastp_jax.reduction.methods import REDUCTIONS

_FEW = 12  # points that can all have their names beside them


@dataclasses.dataclass(frozen=True)
class Shown:
  """What the page is made of.

  Attributes:
    plots: (heading, SVG, what it shows), in the order in which they are shown.
    tables: rows of cells under their headings.
    files: plots that are files of their own besides, by a short name.
  """

  plots: Sequence[tuple[str, str, str]]
  tables: Mapping[str, Sequence[Sequence[str]]]
  files: Mapping[str, str]


def make(stored: Mapping[str, Any]) -> Shown:
  """Plots and tables of a result file."""
  plots, tables, files = [], {}, {}
  runs = stored.get("runs", [])
  for mine in comparisons(runs):
    first, name = mine[0], describe(mine)
    for key, measure in (
      ("encoder_flops_vs_dense", "encoder FLOPs"),
      ("training_seconds_vs_dense", "training seconds"),
    ):
      known = [run for run in mine if run[key] is not None]
      if len(known) > 2:
        svg = pareto(known, key, f"{measure} per sample, dense = 1")
        plots.append((f"{name}: quality against {measure}", svg, _PARETO))
        files[f"{_file_name(first)}_{first['stage']}_{key.split('_')[1]}"] = svg
    tables[name] = table(mine)
  if any("equal_time" in run for run in runs):
    tables["At equal training time"] = equal_time_table(runs)
  for name, screened in stored.get("screens", {}).items():
    heading = f"{name}: screen, {screened['about']['users']:,} users, nothing trained"
    if any(seen["overlap_with_recent"] is not None for seen in screened["rows"].values()):
      svg = inside(screened["rows"])
      plots.append((f"{name}: which methods are recency in disguise", svg, _INSIDE))
      files[f"{_short(name)}_inside"] = svg
    tables[heading] = screen_table(screened["rows"])
  for name, timed in stored.get("seconds", {}).items():
    tables[f"{name}: training steps timed in turns"] = cost_table(timed["rows"])
  return Shown(plots, tables, files)


def comparisons(runs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
  """Runs that are compared with each other, together; dense alone, trained for the table at equal time, is left out."""
  found = [[run for run in runs if comparison(run) == one] for one in dict.fromkeys(map(comparison, runs))]
  return [together for together in found if len(together) > 1]


def describe(runs: Sequence[Mapping[str, Any]]) -> str:
  """What runs of one comparison have in common, for people."""
  run = runs[0]
  return f"{run['dataset']}, {run['config']}, {run['length']}, {run['users']:,} {run['split']} users"


def _file_name(run: Mapping[str, Any]) -> str:
  """Of a run's dataset and config: configs/beauty.py:cpu,best -> beauty_cpu_best."""
  name = _short(run["config"])
  return name if name.startswith(run["dataset"]) else f"{run['dataset']}_{name}"


def _short(config: str) -> str:
  return re.sub(r"\W+", "_", config.rpartition("/")[2].replace(".py", ""))


_PARETO = (
  "Up is better, left is cheaper; the dotted line is the dense model. Bars are 95 % intervals of the difference to "
  "dense, paired over users, or over seeds where the table says so. Names of points without a label appear under the "
  "mouse and in the tables."
)
_INSIDE = (
  "Budget 1/4 after the first block of a trained dense model. To the right: the kept tokens are the newest ones. Up: "
  "the target becomes less likely. Bars are one standard error."
)


def kind_of(run: Mapping[str, Any]) -> str:
  """A run's colour: dense, or the kind of its method."""
  if run["name"] == DENSE:
    return "dense"
  return REDUCTIONS[run["method"]].kind if run["method"] in REDUCTIONS else "combined"


def pareto(runs: Sequence[Mapping[str, Any]], cost: str, title: str) -> str:
  """NDCG@10 over dense's against a cost: an SVG. Where points are many, those are labelled that nothing beats in both,
  RASTP and the controls."""

  def matters(run: Mapping[str, Any]) -> bool:
    beaten = any(other["ndcg@10"] >= run["ndcg@10"] and other[cost] <= run[cost] and other is not run for other in runs)
    return not beaten or run["method"] in ("none", "rastp", CONTROL)

  points = []
  for run in sorted(runs, key=lambda run: (not matters(run), -run["ndcg@10"])):
    base = run["dense_ndcg@10"]
    value, low, high = (1 + run[f"ndcg@10_difference{end}"] / base for end in ("", "_low", "_high"))
    labelled = matters(run) or len(runs) <= _FEW
    points.append(Point(run["name"], kind_of(run), run[cost], value, low, high, labelled))
  return scatter.draw(points, title, "NDCG@10, dense = 1", level=1.0)


def inside(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """How much the target loses against how many of the kept tokens are the newest ones: an SVG."""
  points = []
  for name, seen in rows.items():
    method, _, budget = name.rpartition(", ")
    if budget != "1/4" or seen["overlap_with_recent"] is None or not (method in REDUCTIONS or "oracle" in method):
      continue
    rise, error = seen["rise"], seen["error"]
    kind = REDUCTIONS[method].kind if method in REDUCTIONS else "oracle"
    points.append(Point(method, kind, seen["overlap_with_recent"], rise, rise - error, rise + error))
  return scatter.draw(
    points, "share of the kept tokens that are among the newest", "rise of the target's NLL, nats", level=0.0
  )


def table(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """One row per trained arrangement, the best NDCG@10 first."""
  head = ["", "seeds", "encoder FLOPs", "recall@10", "NDCG@10", "to dense", "95 % interval", "of each seed", "p, Holm"]
  rows = [[*head, "to recent of nearest FLOPs (its FLOPs)", "95 % interval", "trained on"]]
  flops = {run["name"]: run["encoder_flops_vs_dense"] for run in runs}
  for run in sorted(runs, key=lambda run: -run["ndcg@10"]):
    cost, p, base = run["encoder_flops_vs_dense"], run["p_holm"], run["dense_ndcg@10"]
    relative = lambda value, base=base: f"{value / base:+.1%}"
    interval = lambda name, over, run=run, relative=relative: (
      f"{relative(run[f'{name}_low'])} to {relative(run[f'{name}_high'])}" + over_seeds(run, over)
    )
    dense, control = run["name"] == DENSE, run.get("control")
    rows.append(
      [
        run["name"],
        str(len(run["seeds"])),
        "" if cost is None else f"{cost:.2f}",
        f"{run['recall@10']:.4f}",
        f"{run['ndcg@10']:.4f}",
        "" if dense else relative(run["ndcg@10_difference"]),
        "" if dense else interval("ndcg@10_difference", "interval_over"),
        "" if dense else _of_seeds(run),
        "" if p is None else f"{p:.3f}",
        "" if control is None else f"{relative(run['control_difference'])} ({flops[control]:.2f})",
        "" if control is None else interval("control_difference", "control_interval_over"),
        " and ".join(run.get("devices", ())),
      ]
    )
  return rows


def equal_time_table(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Rows beside a dense model that was trained as many seconds, on fewer samples."""
  rows = [
    ["", "", "trained for", "dense for", "seeds", "NDCG@10", "dense", "to dense", "95 % interval", "of each seed"]
  ]
  for run in runs:
    if "equal_time" in run:
      found = run["equal_time"]
      ours, dense = found["ndcg@10_of_seeds"], found["dense_ndcg@10_of_seeds"]
      mean, base = sum(ours) / len(ours), sum(dense) / len(dense)
      interval = " to ".join(f"{found[f'difference_{end}'] / base:+.1%}" for end in ("low", "high"))
      interval += over_seeds(found)
      cells = [run["dataset"], run["name"], run["length"], found["dense_length"], str(len(ours)), f"{mean:.4f}"]
      rows.append([*cells, f"{base:.4f}", f"{mean / base - 1:+.1%}", interval, _of_seeds(found)])
  return rows


def over_seeds(run: Mapping[str, Any], key: str = "interval_over") -> str:
  """What follows an interval that is over seeds; most are over users."""
  return " (seeds)" if run.get(key) == "seeds" else ""


def _of_seeds(run: Mapping[str, Any]) -> str:
  """Each seed's difference to dense."""
  if "ndcg@10_of_seeds" not in run:  # rows of earlier versions
    return ""
  pairs = zip(run["ndcg@10_of_seeds"], run["dense_ndcg@10_of_seeds"], strict=True)
  return ", ".join(f"{mine / dense - 1:+.1%}" for mine, dense in pairs)


def screen_table(screened: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """One row per screened arrangement, the smallest rise first."""
  levels = len(next(iter(screened.values()))["kept_by_level"]) if screened else 0
  head = ["", "users affected", "rise of the target's NLL", "tokens left", "of which newest"]
  ages = (0, 1, 2, 4, 8)
  rows = [[*head, *(f"level {level} kept" for level in range(levels)), *(f"{age} items ago" for age in ages)]]
  for name, seen in sorted(screened.items(), key=lambda pair: pair[1]["rise"]):
    overlap = seen["overlap_with_recent"]
    rows.append(
      [
        name,
        f"{seen['users']:,}",
        f"{seen['rise']:+.4f} ± {seen['error']:.4f}",
        f"{seen['tokens']:.0%}",
        "" if overlap is None else f"{overlap:.0%}",
        *(f"{share:.0%}" for share in seen["kept_by_level"]),
        *(f"{seen['kept_by_age'][age]:.0%}" for age in ages),
      ]
    )
  return rows


def budgets_table(screened: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """One row per method, both budgets side by side, the smallest rise at the smaller budget first."""
  methods: dict[str, dict[str, Mapping[str, Any]]] = {}
  for name, seen in screened.items():
    method, _, budget = name.rpartition(", ")
    if budget in ("1/2", "1/4"):
      methods.setdefault(method, {})[budget] = seen
  rows = [["budget", "1/2", "1/4", "error", "newest tokens among the kept, 1/4", "last level kept, 1/4"]]
  both = {name: seen for name, seen in methods.items() if len(seen) == 2}
  for name, seen in sorted(both.items(), key=lambda pair: pair[1]["1/4"]["rise"]):
    half, quarter = seen["1/2"], seen["1/4"]
    overlap, last = quarter["overlap_with_recent"], quarter["kept_by_level"][-1]
    newest = ["", ""] if overlap is None else [f"{overlap:.0%}", f"{last:.0%}"]
    rows.append([name, f"{half['rise']:+.3f}", f"{quarter['rise']:+.3f}", f"{quarter['error']:.3f}", *newest])
  return rows


def cost_table(timed: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """One row per timed arrangement, the fastest first."""
  rows = [["", "training seconds, dense = 1", "95 % interval over turns", "samples/s", "memory of a step, MB"]]
  for name, seen in sorted(timed.items(), key=lambda pair: pair[1]["vs_dense"]):
    speed, memory = f"{seen['samples_per_second']:,.0f}", f"{seen['peak_bytes'] / 1e6:,.0f}"
    rows.append([name, f"{seen['vs_dense']:.2f}", f"{seen['low']:.2f} to {seen['high']:.2f}", speed, memory])
  return rows


def render(title: str, shown: Shown, command: str) -> str:
  """A self-contained page for phones and desks, light and dark: plots first, then tables."""
  parts = [
    "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
    "<meta name='viewport' content='width=device-width, initial-scale=1'>",
    "<meta name='color-scheme' content='light dark'>",
    f"<title>{html.escape(title)}</title><style>",
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1080px;margin:1.5rem auto;",
    "padding:0 .8rem;overflow-wrap:anywhere}h1{font-size:1.5rem;line-height:1.2}",
    "h2{font-size:1.05rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}",
    "td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}",
    "td:first-child,th:first-child{text-align:left;padding-left:0}.wide{overflow-x:auto}.note{color:#666;",
    "font-size:.9em}@media (prefers-color-scheme:dark){body{color:#ddd;background:#16181c}td,th{border-color:#444}",
    ".note{color:#aaa}}</style></head><body>",
    f"<h1>{html.escape(title)}</h1>",
  ]
  for heading, svg, note in shown.plots:
    parts += [f"<h2>{html.escape(heading)}</h2>{svg}<p class='note'>{html.escape(note)}</p>"]
  for heading, rows in shown.tables.items():
    parts += [f"<h2>{html.escape(heading)}</h2><div class='wide'><table>"]
    for number, row in enumerate(rows):
      cell = "th" if number == 0 else "td"
      parts.append("<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row) + "</tr>")
    parts.append("</table></div>")
  parts.append(f"<p class='note'>Made by <code>{html.escape(command)}</code></p></body></html>")
  return "\n".join(parts) + "\n"
