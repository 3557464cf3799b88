"""The laboratory's table, its Pareto plot and its page."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rastp_jax.experiments.lab.rows import DENSE

# Okabe and Ito's colours by kind of method, which people of all kinds of colour vision tell apart.
COLOURS = {"dense": "#000000", "drop": "#0072b2", "merge": "#009e73", "pool": "#cc79a7", "combined": "#d55e00"}


def table(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """One row per trained arrangement, the best NDCG@10 first."""
  head = [
    "",
    "dataset",
    "samples",
    "seeds",
    "encoder FLOPs",
    "recall@10",
    "NDCG@10",
    "to dense",
    "95 % interval",
    "p, Holm",
  ]
  rows = [head]
  for run in sorted(runs, key=lambda run: (run["dataset"], run["stage"], -run["ndcg@10"])):
    cost, p = run["encoder_flops_vs_dense"], run["p_holm"]
    relative = lambda value, base=run["dense_ndcg@10"]: f"{value / base:+.1%}"
    dense = run["name"] == DENSE
    rows.append(
      [
        run["name"],
        run["dataset"],
        f"{run['samples'] / 1e6:.2f} M",
        str(len(run["seeds"])),
        "" if cost is None else f"{cost:.2f}",
        f"{run['recall@10']:.4f}",
        f"{run['ndcg@10']:.4f}",
        "" if dense else relative(run["ndcg@10_difference"]),
        "" if dense else f"{relative(run['ndcg@10_difference_low'])} to {relative(run['ndcg@10_difference_high'])}",
        "" if p is None else f"{p:.3f}",
      ]
    )
  return rows


def screen_table(screened: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """One row per screened arrangement, the smallest rise first."""
  rows = [
    ["", "users affected", "rise of the target's NLL", "tokens kept: newest item", "8 items ago", "overlap with recent"]
  ]
  for name, seen in sorted(screened.items(), key=lambda pair: pair[1]["rise"]):
    ages = seen["kept_by_age"]
    rows.append(
      [
        name,
        f"{seen['users']:,}",
        f"{seen['rise']:+.4f} ± {seen['error']:.4f}",
        f"{ages[0]:.0%}",
        f"{ages[8]:.0%}",
        f"{seen['overlap_with_recent']:.2f}",
      ]
    )
  return rows


def pareto(runs: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> bytes:
  """NDCG@10 relative to dense against encoder FLOPs, a point per row, with its interval: an SVG.

  Args:
    runs: of one dataset and stage.
    kinds: "drop", "merge", "pool" or "combined" by the name of the method.
  """
  import matplotlib
  from matplotlib.figure import Figure

  style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    for run in runs:
      base = run["dense_ndcg@10"]
      kind = "dense" if run["name"] == DENSE else kinds.get(run["method"], "combined")
      value = 1 + run["ndcg@10_difference"] / base
      low, high = (1 + run[f"ndcg@10_difference_{end}"] / base for end in ("low", "high"))
      cost = run["encoder_flops_vs_dense"]
      axes.errorbar(
        cost, value, [[value - low], [high - value]], fmt="o", color=COLOURS[kind], alpha=0.75, lw=1, capsize=2
      )
      axes.annotate(run["name"], (cost, value), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.axhline(1.0, color="grey", ls=":", lw=1)
    axes.set(xlabel="encoder FLOPs per training sample, dense = 1", ylabel="NDCG@10, dense = 1", xlim=(0, 1.08))
    handles = [axes.plot([], [], "o", color=colour, label=kind)[0] for kind, colour in COLOURS.items()]
    axes.legend(handles=handles, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
  return buffer.getvalue()


def render(title: str, plots: Mapping[str, bytes], tables: Mapping[str, Sequence[Sequence[str]]], command: str) -> str:
  """A self-contained page: plots first, then tables."""
  parts = [
    "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
    "<meta name='viewport' content='width=device-width, initial-scale=1'>",
    f"<title>{html.escape(title)}</title><style>",
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2rem auto;padding:0 1rem}",
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .7rem;text-align:right;",
    "border-bottom:1px solid #ddd;white-space:nowrap}td:first-child,th:first-child{text-align:left;padding-left:0}",
    ".wide{overflow-x:auto}svg{max-width:100%;height:auto}.note{color:#555;font-size:.9em}</style></head><body>",
    f"<h1>{html.escape(title)}</h1>",
  ]
  for heading, svg in plots.items():
    drawn = svg.decode()
    parts += [f"<h2>{html.escape(heading)}</h2>", drawn[drawn.index("<svg") :]]
  for heading, rows in tables.items():
    parts += [f"<h2>{html.escape(heading)}</h2><div class='wide'><table>"]
    for number, row in enumerate(rows):
      cell = "th" if number == 0 else "td"
      parts.append("<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row) + "</tr>")
    parts.append("</table></div>")
  parts.append(f"<p class='note'>Made by <code>{html.escape(command)}</code></p></body></html>")
  return "\n".join(parts) + "\n"
