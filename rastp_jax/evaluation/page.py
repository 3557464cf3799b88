"""One self-contained HTML page about a comparison of runs, with its pictures also as PNG files."""

import base64
import dataclasses
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from rastp_jax import files
from rastp_jax.evaluation import figures, report
from rastp_jax.evaluation.comparison import Group, by_dataset
from rastp_jax.evaluation.results import Result
from rastp_jax.evaluation.survival import SURVIVED, Survival

SAMPLE_USERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
  """A run's surviving tokens, and what it takes to show them.

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
  logs: Mapping[str, figures.Log],
  survey: Callable[[str], Survey],
) -> pathlib.Path:
  """Writes index.html and the PNGs it shows into a directory.

  Args:
    output: the directory, made if needed; equal names in it are replaced.
    results: evaluated runs, of one or several datasets; the first one of each dataset is what others are compared to.
    logs: results.training_log of every run, by its name.
    survey: of a pruned run, by its name; called for one seed of each setting that prunes.

  Returns:
    The page's path.
  """
  pictures: dict[str, bytes] = {}
  sections = [_section(name, groups, logs, survey, pictures) for name, groups in by_dataset(results).items()]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
  )
  html = environment.get_template("page.html.jinja").render(
    sections=sections,
    pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
    command=shlex.join(["python", *sys.orig_argv[1:]]),
  )
  output = pathlib.Path(output)
  for name, png in pictures.items():
    files.write_whole(output / name, png)
  files.write_whole(output / "index.html", html)
  return output / "index.html"


def _section(
  dataset: str,
  groups: Sequence[Group],
  logs: Mapping[str, figures.Log],
  survey: Callable[[str], Survey],
  pictures: dict[str, bytes],
) -> dict[str, Any]:
  """What the page says about one dataset; adds its PNGs to `pictures`."""
  metric = f"recall@{max(report.common_ks(groups))}"

  def keep(kind: str, png: bytes | None) -> str | None:
    name = _file_name(f"{dataset}_{kind}.png")
    if png is not None:
      pictures[name] = png
    return None if png is None else name

  several = len(groups) > 1
  differing = report.settings(groups)
  return {
    "dataset": dataset,
    "metric": metric,
    "settings": [f"{r.name}: {report.setting(r.figures)}" for group in groups for r in group.results],
    "comparison": report.comparison(groups),
    "differences": report.differences(groups) if several else None,
    "difference_note": report.difference_note(groups),
    "differing": differing if len(differing) > 1 else None,
    "curves": keep("learning_curves", figures.learning_curves(groups, logs, metric)),
    "cost": keep("quality_and_cost", figures.quality_and_cost(groups, metric)),
    "breakdown_picture": keep("breakdowns", figures.breakdowns(groups, metric)),
    "breakdowns": [report.breakdown(groups, grouped_by, metric) for grouped_by in report.GROUPED_BY],
    "surveys": [
      _survey(group.name, survey(group.results[0].name), lambda png, group=group: keep(f"survival_{group.name}", png))
      for group in groups
      if group.results[0].figures["config"]["pruning"]["criterion"] != "none"
    ],
  }


def _survey(name: str, survey: Survey, keep: Callable[[bytes], str]) -> dict[str, Any]:
  everybody, losing = survey.survival, survey.survival.losing()
  if not len(losing.users):
    return {"name": name, "picture": None}
  counts = losing.counts()
  separators = (
    f" Separators are {counts['separator_share']:.0%} of their tokens and "
    f"{counts['separator_share_of_surviving']:.0%} of those that survive."
    if "separator" in losing.kinds
    else ""
  )
  spared = len(everybody.users) - len(losing.users)
  rest = f"; the histories of the other {spared:,} fit into the budget of their length" if spared else ""
  return {
    "name": name,
    "picture": keep(figures.survival(losing)),
    "summary": (
      f"{len(losing.users):,} of {len(everybody.users):,} users lose tokens{rest}. Of the {len(losing.users):,}, which "
      f"the picture is about, a user has {counts['tokens']:.1f} tokens on average and keeps "
      f"{counts['surviving']:.1f}.{separators}"
    ),
    "stages": int(losing.fates.max()),
    "kinds": losing.kinds,
    "users": [_user(losing, row, survey) for row in losing.samples(SAMPLE_USERS)],
  }


def _user(survival: Survival, row: int, survey: Survey) -> dict[str, Any]:
  """One user's strip of cells, the most recent item first."""
  user, items, fates = survival.users[row], survival.items[row], survival.fates[row]
  real = fates >= SURVIVED
  return {
    "number": int(user),
    "tokens": int(real.sum()),
    "survived": int((fates == SURVIVED).sum()),
    "target": _title(survey, survey.targets[user]),
    "history": [
      {
        "title": _title(survey, items[place]),
        "cells": [
          {"kind": kind, "survived": fate == SURVIVED, "stage": int(fate)}
          for kind, fate in zip(survival.kinds, fates[place], strict=True)
        ],
      }
      for place in range(len(items) - 1, -1, -1)
      if items[place] >= 0
    ],
  }


def _title(survey: Survey, item: int) -> str:
  return survey.titles[item] or f"(item {item}, without a title)"


def _file_name(text: str) -> str:
  """A name that stays inside its directory whatever a run is called."""
  return re.sub(r"[^A-Za-z0-9.-]+", "_", text).lstrip(".")
