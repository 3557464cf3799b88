"""One self-contained HTML page about a comparison of runs: what differs, by how much, for whom, and what it looks like.

The page needs no other file; the same plots are beside it as SVG files.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.evaluation import plots, svg, tables
from rastp_jax.evaluation.baselines import Baselines
from rastp_jax.evaluation.comparison import Difference, Group, by_dataset, compare
from rastp_jax.evaluation.results import Result
from rastp_jax.evaluation.user_ranks import ANSWERS
from rastp_jax.reduction.survival import SURVIVED, Survival
from rastp_jax.runtime import files

SAMPLE_USERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
  """What the page shows of one run beyond its results.

  Attributes:
    titles: of all items, in the order of their rows.
    histories: item rows before the held-out one, the most recent one last, by user index.
    targets: item rows, each user's held-out one, by user index.
    survival: which tokens of which users survive; None for a model that reduces nothing.
    levels: learned codes of an item.
  """

  titles: Sequence[str]
  histories: Sequence[np.ndarray]
  targets: np.ndarray
  survival: Survival | None
  levels: int


@dataclasses.dataclass
class _Page:
  """What a page is made from, and the plots made so far.

  Attributes:
    logs: `Workdir.read_log` of every run, by its name.
    inspect: loads a run, by its name.
    plots: SVG text by file name.
  """

  logs: Mapping[str, plots.Log]
  inspect: Callable[[str], Inspection]
  plots: dict[str, str]

  def add(self, name: str, chart: str | None) -> str | None:
    """Keeps a chart under a name that stays inside its directory whatever a run is called; returns it as it is."""
    if chart is not None:
      self.plots[re.sub(r"[^A-Za-z0-9.-]+", "_", name).lstrip(".") + ".svg"] = chart
    return chart


def write(
  output: str | pathlib.Path,
  results: Sequence[Result],
  logs: Mapping[str, plots.Log],
  inspect: Callable[[str], Inspection],
  *,
  command: str,
  baselines: Baselines | None = None,
) -> pathlib.Path:
  """Writes index.html and its plots into a directory.

  Args:
    output: the directory, made if needed; files of the same names in it are replaced.
    results: evaluated runs, of one or several datasets; the others are compared with the first one of each dataset.
    logs: `Workdir.read_log` of every run, by its name.
    inspect: loads a run, by its name; called for one seed of each setting.
    command: what the page names as its origin.
    baselines: to stand beside the runs of their dataset.

  Returns:
    The page's path.
  """
  page = _Page(logs, inspect, {})
  sections = [_section(page, name, groups, baselines) for name, groups in by_dataset(results).items()]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  html = environment.get_template("html_report.html.jinja").render(sections=sections, style=svg.STYLE, command=command)
  output = files.check_path(output)
  for name, chart in page.plots.items():
    files.write_atomic(output / name, svg.standalone(chart))
  files.write_atomic(output / "index.html", html)
  return output / "index.html"


def _section(page: _Page, dataset: str, groups: Sequence[Group], baselines: Baselines | None) -> dict[str, Any]:
  """What the page says about one dataset."""
  metric = f"recall@{max(tables.common_top_k(groups))}"
  found = [compare(groups[0], group) for group in groups[1:]]
  inspections = [page.inspect(group.results[0].name) for group in groups]
  add = lambda kind, chart: page.add(f"{dataset}_{kind}", chart)
  costs = [("step_bytes", 1e-6, "memory of a training step, MB"), ("users_per_second", 1.0, "users decoded per second")]
  differing = tables.settings(groups)
  differing_rows, equal_rows = tables.split_equal(tables.comparison(groups))
  return {
    "dataset": dataset,
    "metric": metric,
    "first": groups[0].name,
    "headlines": [
      _headline(group, groups[0], differences, metric, inspection.survival)
      for group, differences, inspection in zip(groups[1:], found, inspections[1:], strict=True)
    ],
    "single": None if found else f"{groups[0].name}: {metric} {groups[0].mean(metric):.4f}",
    "forest": add("differences", plots.forest(groups, found)) if found else None,
    "difference_note": tables.difference_note(groups),
    "comparison": differing_rows,
    "equal": equal_rows,
    "baselines": baselines.rows(groups, metric) if baselines and baselines.fits(groups[0].results[0]) else None,
    "differing": differing if len(differing) > 1 else None,
    "curves": [
      add("training_loss", plots.loss(groups, page.logs)),
      add("validation_by_step", plots.validation(groups, page.logs, metric, minutes=False)),
      add("validation_by_minute", plots.validation(groups, page.logs, metric, minutes=True)),
    ],
    "costs": [
      chart
      for chart in (
        add("quality_and_time", plots.quality_and_time(groups, metric)),
        *(add(key, plots.bars(groups, key, scale, label)) for key, scale, label in costs),
      )
      if chart is not None
    ],
    "unfinished": any(not group.values("training_seconds") for group in groups),
    "breakdowns": [
      (add(f"by_{name}", plots.breakdown(groups, name, metric)), tables.breakdown(groups, name, metric))
      for name in tables.GROUPED_BY
    ],
    "survivals": [
      _survival(page, dataset, group, inspection)
      for group, inspection in zip(groups, inspections, strict=True)
      if inspection.survival is not None
    ],
    "strips": _strips(groups, inspections),
    "provenance": [_provenance(result) for group in groups for result in group.results],
  }


def _headline(
  group: Group, first: Group, differences: Sequence[Difference], metric: str, survival: Survival | None
) -> dict[str, Any]:
  """The comparison of a group with the first in a sentence and four tiles."""
  by_metric = {difference.metric: difference for difference in differences}
  gain = metric.replace("recall", "ndcg")
  quality = [_quality_tile(by_metric[name], first, name) for name in (metric, gain)]
  cost = [
    _cost_tile(group, first, "training_seconds", "training time", 1 / 60, "min"),
    _cost_tile(group, first, "step_bytes", "memory of a training step", 1e-6, "MB"),
  ]
  parts = [f"{tile['name']} {tile['words']}" for tile in (quality[0], cost[0]) if tile["words"]]
  return {
    "name": group.name,
    "tokens": None if survival is None else _tokens(survival),
    "words": ", ".join(parts),
    "certain": quality[0]["colour"] != "",
    "tiles": quality + cost,
  }


def _tokens(survival: Survival) -> str:
  """'half of the tokens', of the users whom a reduction took some from."""
  if survival.left is None:
    return ""
  real = (survival.dropped_at >= SURVIVED).sum((1, 2))
  share = survival.left.sum() / real.sum()
  named = {0.5: "half", 1 / 3: "a third", 0.25: "a quarter", 0.75: "three quarters"}
  for value, text in named.items():
    if abs(share - value) < 0.02:
      return f"{text} of the tokens"
  return f"{share:.0%} of the tokens"


def _quality_tile(difference: Difference, first: Group, name: str) -> dict[str, Any]:
  """Coloured only where the interval excludes 0."""
  base = first.mean(name) or float("nan")
  value, low, high = (100 * number / base for number in (difference.value, difference.low, difference.high))
  colour = "good" if difference.low > 0 else "bad" if difference.high < 0 else ""
  return {
    "name": name.replace("ndcg", "NDCG"),
    "value": _percent(value),
    "detail": f"{_signed(low)} to {_signed(high)}; {base + difference.value:.4f}, {first.name} {base:.4f}",
    "words": f"{_percent(value)} ({_signed(low)} to {_signed(high)})",
    "colour": colour,
  }


def _cost_tile(group: Group, first: Group, key: str, name: str, scale: float, unit: str) -> dict[str, Any]:
  """Without an interval, and so never coloured."""
  mean, base = group.mean(key), first.mean(key)
  if not mean or not base:
    return {"name": name, "value": "-", "detail": "known when every run is finished", "words": "", "colour": ""}
  change = _percent(100 * (mean / base - 1))
  detail = f"{mean * scale:,.1f} {unit}, {first.name} {base * scale:,.1f} {unit}"
  return {"name": name, "value": change, "detail": detail, "words": change, "colour": ""}


def _signed(value: float) -> str:
  return f"{value:+.0f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float) -> str:
  return f"{_signed(value)}\N{NO-BREAK SPACE}%"


def _level_names(kinds: Sequence[str], levels: int) -> list[str]:
  """What people call an item's tokens: learned codes from coarse to fine, the code of collisions, the separator."""
  named = []
  for number, kind in enumerate(kinds):
    if kind == "separator":
      named.append("separator")
    elif number >= levels:
      named.append("collision code")
    else:
      place = ", coarse" if number == 0 else ", fine" if number == levels - 1 else ""
      named.append(f"code {number + 1}{place}")
  return named


def _survival(page: _Page, dataset: str, group: Group, inspection: Inspection) -> dict[str, Any]:
  """Which tokens of a run survive: plots and a summary."""
  survival = inspection.survival
  assert survival is not None
  losing = survival.losing()
  if not len(losing.users):
    return {"name": group.name, "plots": None}
  kinds = _level_names(survival.kinds, inspection.levels)
  counts = losing.counts()
  separators = (
    f" Separators are {counts['separator_share']:.0%} of their tokens and "
    f"{counts['separator_share_of_surviving']:.0%} of those that survive."
    if "separator" in losing.kinds
    else ""
  )
  others = len(survival.users) - len(losing.users)
  rest = f"; the histories of the other {others:,} fit into the budget of their length" if others else ""
  return {
    "name": group.name,
    "plots": [
      page.add(f"{dataset}_survival_{group.name}", plots.survival_grid(losing, kinds)),
      page.add(f"{dataset}_survival_by_level_{group.name}", plots.survival_by_kind(losing, kinds)),
    ],
    "summary": (
      f"{len(losing.users):,} of {len(survival.users):,} users lose tokens{rest}. The plots are about these "
      f"{len(losing.users):,}: a user has {counts['tokens']:.1f} tokens on average and keeps "
      f"{counts['surviving']:.1f}.{separators}"
    ),
  }


def _strips(groups: Sequence[Group], inspections: Sequence[Inspection]) -> list[dict[str, Any]]:
  """Some users: their history with what each reduction leaves of it, and what each model answers."""
  return [_strip(user, groups, inspections) for user in _sample_users(groups, inspections)]


def _sample_users(groups: Sequence[Group], inspections: Sequence[Inspection]) -> list[int]:
  """`SAMPLE_USERS` users that some model, but not every one, answered well, from short histories to long ones.

  Always the same ones. Where too few are so, others follow.
  """
  measured = [inspection.survival.users for inspection in inspections if inspection.survival is not None]
  candidates = measured[0] if measured else np.arange(len(groups[0].results[0].ranks))
  candidates = np.random.default_rng(0).permutation(candidates)
  hits = np.stack([group.results[0].ranks[candidates] < ANSWERS for group in groups])
  telling = hits.any(0) & (~hits.all(0) | (len(groups) == 1))
  chosen = candidates[np.argsort(~telling, kind="stable")][: max(SAMPLE_USERS, int(telling.sum()))]
  lengths = np.asarray([len(inspections[0].histories[user]) for user in chosen])
  chosen = chosen[np.argsort(lengths, kind="stable")]
  places = np.linspace(0, len(chosen) - 1, min(SAMPLE_USERS, len(chosen)))
  return [int(user) for user in chosen[places.round().astype(int)]]


def _strip(user: int, groups: Sequence[Group], inspections: Sequence[Inspection]) -> dict[str, Any]:
  """One user: a row per item, the most recent first, with the cells of each reducing run; and the answers."""
  first = inspections[0]
  target = int(first.targets[user])
  reduced = [
    (group, inspection, inspection.survival, int(np.flatnonzero(inspection.survival.users == user)[0]))
    for group, inspection in zip(groups, inspections, strict=True)
    if inspection.survival is not None and user in inspection.survival.losing().users
  ]
  history = first.histories[user][::-1]
  read = max(((survival.items[row] >= 0).sum() for *_, survival, row in reduced), default=len(history))
  return {
    "number": user,
    "target": _title(first, target),
    "columns": [group.name for group, *_ in reduced],
    "history": [
      {
        "title": _title(first, int(item)),
        "cells": [_cells(inspection.levels, survival, row, back) for _, inspection, survival, row in reduced],
      }
      for back, item in enumerate(history[:read])
    ],
    "answers": [{"name": group.name, "items": _answers(group.results[0], user, first)} for group in groups],
  }


def _answers(result: Result, user: int, inspection: Inspection) -> list[dict[str, Any]] | None:
  """The items that a model recommended to a user when it was evaluated; None where they were not kept."""
  if not len(result.answers):
    return None
  target = inspection.targets[user]
  items = [int(item) for item in result.answers[user] if item >= 0]  # unless decoding is constrained, some are none
  return [{"title": _title(inspection, item), "hit": item == target} for item in items]


def _cells(levels: int, survival: Survival, row: int, back: int) -> list[dict[str, Any]]:
  """The tokens of the item `back` places before the most recent one; none where the model reads fewer items."""
  if back >= survival.dropped_at.shape[1]:
    return []
  kinds, stages = _level_names(survival.kinds, levels), survival.dropped_at[row, -1 - back]
  return [
    {"kind": kind, "survived": stage == SURVIVED, "stage": int(stage)}
    for kind, stage in zip(kinds, stages, strict=True)
    if stage >= SURVIVED
  ]


def _title(inspection: Inspection, item: int) -> str:
  return inspection.titles[item] or f"(item {item}, without a title)"


def _provenance(result: Result) -> dict[str, Any]:
  """Where a run's metrics come from. Evaluations by 0.1.0 recorded less."""
  metrics = result.metrics
  versions, machine = metrics.get("versions", {}), metrics.get("machine", {})
  settings = config_lib.flatten(metrics["config"])
  return {
    "name": result.name,
    "facts": {
      "evaluated": f"{metrics.get('date', 'date not recorded')}, {tables.describe_evaluation(metrics)}",
      "versions": ", ".join(f"{name} {value}" for name, value in versions.items()) or "not recorded",
      "commit": metrics.get("commit") or "not recorded",
      "device": f"{machine['devices']} x {machine['device_kind']}, {machine['cores']} cores"
      if machine
      else "not recorded",
      "command": metrics.get("command", "not recorded"),
    },
    "settings": [[name, str(value)] for name, value in settings.items()],
  }
