"""One self-contained HTML page about a comparison of runs, with its plots also as PNG files."""

import base64
import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from rastp_jax.evaluation import plots, tables
from rastp_jax.evaluation.comparison import Group, by_dataset
from rastp_jax.evaluation.results import Result
from rastp_jax.reduction.survival import SURVIVED, Survival
from rastp_jax.runtime import files

SAMPLE_USERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class SurvivalSection:
  """What the page shows of a run's surviving tokens.

  Attributes:
    survival: of its users.
    titles: of all items.
    targets: item rows, each user's held-out one, by user index.
  """

  survival: Survival
  titles: Sequence[str]
  targets: np.ndarray


def write(
  output: str | pathlib.Path,
  results: Sequence[Result],
  logs: Mapping[str, plots.Log],
  survival_of: Callable[[str], SurvivalSection],
  *,
  command: str,
) -> pathlib.Path:
  """Writes index.html and the PNGs it shows into a directory.

  Args:
    output: the directory, made if needed; files of the same names in it are replaced.
    results: evaluated runs, of one or several datasets; the others are compared with the first one of each dataset.
    logs: `Workdir.read_log` of every run, by its name.
    survival_of: measures a run, by its name; called for one seed of each setting that reduces tokens.
    command: what the page names as its origin.

  Returns:
    The page's path.
  """
  pngs: dict[str, bytes] = {}
  sections = [_section(name, groups, logs, survival_of, pngs) for name, groups in by_dataset(results).items()]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
  )
  html = environment.get_template("html_report.html.jinja").render(
    sections=sections,
    plots={name: base64.b64encode(png).decode() for name, png in pngs.items()},
    command=command,
  )
  output = files.check_path(output)
  for name, png in pngs.items():
    files.write_atomic(output / name, png)
  files.write_atomic(output / "index.html", html)
  return output / "index.html"


def _section(
  dataset: str,
  groups: Sequence[Group],
  logs: Mapping[str, plots.Log],
  survival_of: Callable[[str], SurvivalSection],
  pngs: dict[str, bytes],
) -> dict[str, Any]:
  """What the page says about one dataset; adds its PNGs to `pngs`."""
  metric = f"recall@{max(tables.common_top_k(groups))}"

  def add(kind: str, png: bytes | None) -> str | None:
    name = _file_name(f"{dataset}_{kind}.png")
    if png is not None:
      pngs[name] = png
    return None if png is None else name

  several = len(groups) > 1
  differing = tables.settings(groups)
  return {
    "dataset": dataset,
    "metric": metric,
    "evaluations": [f"{r.name}: {tables.describe_evaluation(r.metrics)}" for group in groups for r in group.results],
    "comparison": tables.comparison(groups),
    "differences": tables.differences(groups) if several else None,
    "difference_note": tables.difference_note(groups),
    "differing": differing if len(differing) > 1 else None,
    "curves": add("learning_curves", plots.learning_curves(groups, logs, metric)),
    "cost": add("quality_and_cost", plots.quality_and_cost(groups, metric)),
    "breakdown_plot": add("breakdowns", plots.breakdowns(groups, metric)),
    "breakdowns": [tables.breakdown(groups, grouped_by, metric) for grouped_by in tables.GROUPED_BY],
    "survivals": [
      _survival(
        group.name, survival_of(group.results[0].name), lambda png, group=group: add(f"survival_{group.name}", png)
      )
      for group in groups
      if group.results[0].metrics["config"]["reduction"]["method"] != "none"
    ],
  }


def _survival(name: str, section: SurvivalSection, add: Callable[[bytes], str | None]) -> dict[str, Any]:
  every, losing = section.survival, section.survival.losing()
  if not len(losing.users):
    return {"name": name, "plot": None}
  counts = losing.counts()
  separators = (
    f" Separators are {counts['separator_share']:.0%} of their tokens and "
    f"{counts['separator_share_of_surviving']:.0%} of those that survive."
    if "separator" in losing.kinds
    else ""
  )
  others = len(every.users) - len(losing.users)
  rest = f"; the histories of the other {others:,} fit into the budget of their length" if others else ""
  return {
    "name": name,
    "plot": add(plots.survival(losing)),
    "summary": (
      f"{len(losing.users):,} of {len(every.users):,} users lose tokens{rest}. The plot is about these "
      f"{len(losing.users):,}: a user has {counts['tokens']:.1f} tokens on average and keeps "
      f"{counts['surviving']:.1f}.{separators}"
    ),
    "stages": int(losing.dropped_at.max()),
    "kinds": losing.kinds,
    "users": [_user(losing, row, section) for row in losing.samples(SAMPLE_USERS)],
  }


def _user(survival: Survival, row: int, section: SurvivalSection) -> dict[str, Any]:
  """One user's tokens as cells, the most recent item first."""
  user, items, dropped_at = survival.users[row], survival.items[row], survival.dropped_at[row]
  return {
    "number": int(user),
    "tokens": int((dropped_at >= SURVIVED).sum()),
    "survived": int((dropped_at == SURVIVED).sum()),
    "target": _title(section, int(section.targets[user])),
    "history": [
      {
        "title": _title(section, int(item)),
        "cells": [
          {"kind": kind, "survived": stage == SURVIVED, "stage": int(stage)}
          for kind, stage in zip(survival.kinds, stages, strict=True)
        ],
      }
      for item, stages in zip(items[::-1], dropped_at[::-1], strict=True)
      if item >= 0
    ],
  }


def _title(section: SurvivalSection, item: int) -> str:
  return section.titles[item] or f"(item {item}, without a title)"


def _file_name(text: str) -> str:
  """A name that stays inside its directory whatever a run is called."""
  return re.sub(r"[^A-Za-z0-9.-]+", "_", text).lstrip(".")
