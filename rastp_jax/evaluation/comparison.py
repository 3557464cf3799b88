"""Runs against each other: seeds brought together, and differences tested on the same users."""

import dataclasses
import json
import os
import re
import statistics
from collections.abc import Sequence

import numpy as np

from rastp_jax.evaluation import metrics
from rastp_jax.evaluation.results import Result

RESAMPLES = 10_000
CONFIDENCE = 0.95

# Runs that differ in nothing else are seeds of one setting: these change no result, or only by chance.
_INCIDENTAL = (
  "data.data_dir",
  "data.workers",
  "train.seed",
  "train.log_every",
  "train.checkpoint_every",
  "train.keep_checkpoints",
  "eval.batch_size",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """The seeds of one setting.

  Attributes:
    name: the workdir of a single run, or what the seeds' workdirs have in common, without what all groups share.
    results: one a seed, at least one.
  """

  name: str
  results: tuple[Result, ...]

  @property
  def ks(self) -> tuple[int, ...]:
    return tuple(self.results[0].figures["config"]["eval"]["ks"])

  def values(self, key: str) -> list[float]:
    """A figure of every seed, or [] where one lacks it."""
    found = [result.figures.get(key) for result in self.results]
    return [] if None in found else found

  def mean(self, key: str) -> float | None:
    values = self.values(key)
    return statistics.fmean(values) if values else None

  def deviation(self, key: str) -> float | None:
    """Sample standard deviation over seeds, None for a single one."""
    values = self.values(key)
    return statistics.stdev(values) if len(values) > 1 else None

  def user_values(self, name: str) -> np.ndarray:
    """Each user's share in a metric (see metrics.user_values), averaged over seeds: float64 (users,)."""
    return np.mean([metrics.user_values(result.ranks, name) for result in self.results], axis=0)


@dataclasses.dataclass(frozen=True)
class Difference:
  """What separates two groups in one metric.

  Attributes:
    metric: its name.
    value: the second group's mean minus the first's.
    low: lower end of the `CONFIDENCE` interval.
    high: upper end.
    p: two-sided: how often chance alone puts the difference on the other side of 0, twice.
  """

  metric: str
  value: float
  low: float
  high: float
  p: float


def by_dataset(results: Sequence[Result]) -> dict[str, list[Group]]:
  """Runs that can be compared user by user, under the name of their dataset, in the order of their first runs."""
  datasets: dict[str, list[Result]] = {}
  for result in results:
    f = result.figures
    same_users = [found for found in datasets if _users(datasets[found][0]) == _users(result)]
    name = f["config"]["data"]["dataset"]
    if not same_users and name in datasets:  # of that name, but prepared from other files
      name = f"{name} ({f['split']}, {f['dataset_fingerprint'][:8]})"
    datasets.setdefault(same_users[0] if same_users else name, []).append(result)
  return {name: group_seeds(members) for name, members in datasets.items()}


def group_seeds(results: Sequence[Result]) -> list[Group]:
  """Brings runs together whose settings differ in the seed only, in the order of their first runs.

  A repetition of a run, same seed included, is no further seed: it becomes a group of its own.
  """
  groups: dict[tuple[str, int], list[Result]] = {}
  for result in results:
    setting, repetition = _setting(result), 0
    while any(_seed(result) == _seed(other) for other in groups.get((setting, repetition), [])):
      repetition += 1
    groups.setdefault((setting, repetition), []).append(result)
  names = [_common_name([result.name for result in group]) for group in groups.values()]
  if len(set(names)) < len(names):  # workdirs that say nothing about what is in them
    names = [f"{group[0].name} …" if len(group) > 1 else group[0].name for group in groups.values()]
  if len(names) > 1:
    shared = os.path.commonprefix(names).rpartition("/")[0]
    names = [name.removeprefix(shared).lstrip("/") for name in names]
  return [Group(name, tuple(group)) for name, group in zip(names, groups.values(), strict=True)]


def compare(first: Group, second: Group) -> list[Difference]:
  """`paired_bootstrap` of every metric that both have."""
  ks = [k for k in first.ks if k in second.ks]
  return [
    paired_bootstrap(name, first.user_values(name), second.user_values(name)) for name in metrics.names(sorted(ks))
  ]


def paired_bootstrap(
  metric: str, first: np.ndarray, second: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
  """Percentile bootstrap of the mean difference (Efron & Tibshirani 1993, ch. 13), users drawn with replacement.

  A user's two values are drawn together, so what makes users easy or hard cancels out. It answers for the choice of
  users, not for that of training seeds.

  Args:
    metric: its name.
    first: (users,) values of one group.
    second: (users,) values of the other, same users.
    resamples: draws.
    seed: of the draws; the same one gives the same answer.
  """
  values, counts = np.unique(second - first, return_counts=True)
  users = len(first)
  # Users with the same difference are interchangeable: how many of each kind are drawn is all that matters.
  rng = np.random.default_rng(seed)
  chunk = max(1, 10_000_000 // len(values))  # bounds memory
  means = np.concatenate(
    [
      rng.multinomial(users, counts / users, size=min(chunk, resamples - done)) @ values / users
      for done in range(0, resamples, chunk)
    ]
  )
  low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
  # One is added on both sides, so that a p of 0 is never claimed (Davison & Hinkley 1997, eq. 4.11).
  tails = [(np.sum(means <= 0) + 1) / (resamples + 1), (np.sum(means >= 0) + 1) / (resamples + 1)]
  return Difference(metric, float(np.mean(second - first)), float(low), float(high), float(min(1.0, 2 * min(tails))))


def _users(result: Result) -> tuple[str, str]:
  """Equal exactly where two results' users, and these users' targets, are the same."""
  return result.figures["dataset_fingerprint"], result.figures["split"]


def _seed(result: Result) -> int:
  return result.figures["config"]["train"]["seed"]


def _setting(result: Result) -> str:
  fields = {
    f"{section}.{name}": value
    for section, values in result.figures["config"].items()
    for name, value in values.items()
    if f"{section}.{name}" not in _INCIDENTAL
  }
  return json.dumps(fields, sort_keys=True)


def _common_name(names: Sequence[str]) -> str:
  if len(names) == 1:
    return names[0]
  common = re.sub(r"[/_.-]*(seed)?[_.-]*\d*$", "", os.path.commonprefix(names))
  return common or f"{names[0]} and {len(names) - 1} more"
