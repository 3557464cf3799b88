"""Compares runs: seeds are grouped, and differences are tested on the same users."""

import dataclasses
import json
import os
import re
import statistics
from collections.abc import Sequence

import numpy as np
import scipy.stats

from rastp_jax import config as config_lib
from rastp_jax.config import May
from rastp_jax.evaluation import metrics
from rastp_jax.evaluation.results import Result

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """The seeds of one setting.

  Attributes:
    name: the workdir of a single run, or what the seeds' workdirs have in common, without what all groups share.
    results: one per seed, at least one.
  """

  name: str
  results: tuple[Result, ...]

  @property
  def top_k(self) -> tuple[int, ...]:
    return tuple(self.results[0].metrics["config"]["eval"]["top_k"])

  def values(self, key: str) -> list[float]:
    """A metric of every seed, or [] where one lacks it."""
    found = [value for result in self.results if (value := result.metrics.get(key)) is not None]
    return found if len(found) == len(self.results) else []

  @property
  def devices(self) -> list[str]:
    """The kinds of devices that the seeds were trained on, by JAX's names."""
    return sorted({result.metrics.get("device_kind", "unknown") for result in self.results})

  def mean(self, key: str) -> float | None:
    values = self.values(key)
    return statistics.fmean(values) if values else None

  def deviation(self, key: str) -> float | None:
    """Sample standard deviation over seeds, None for a single one."""
    values = self.values(key)
    return statistics.stdev(values) if len(values) > 1 else None

  def user_values(self, name: str) -> np.ndarray:
    """Each user's value of a metric (see metrics.user_values), averaged over seeds: float64 (users,)."""
    return np.mean([metrics.user_values(result.ranks, name) for result in self.results], axis=0)


@dataclasses.dataclass(frozen=True)
class Difference:
  """How two groups differ in one metric.

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
    values = result.metrics
    same_users = [found for found in datasets if _users(datasets[found][0]) == _users(result)]
    name = values["config"]["data"]["dataset"]
    if not same_users and name in datasets:  # of that name, but prepared from other files
      name = f"{name} ({values['split']}, {values['dataset_fingerprint'][:8]})"
    datasets.setdefault(same_users[0] if same_users else name, []).append(result)
  return {name: group_seeds(members) for name, members in datasets.items()}


def group_seeds(results: Sequence[Result]) -> list[Group]:
  """Groups runs whose settings differ only where seeds may (`config.May.SEED`), in the order of their first runs.

  A repetition of a run, same seed included, does not count as a further seed: it becomes a group of its own.
  """
  groups: dict[tuple[str, int], list[Result]] = {}
  for result in results:
    setting, repetition = _setting(result), 0
    while any(_seed(result) == _seed(other) for other in groups.get((setting, repetition), [])):
      repetition += 1
    groups.setdefault((setting, repetition), []).append(result)
  names = [_common_name([result.name for result in group]) for group in groups.values()]
  if len(set(names)) < len(names):  # the workdirs' names do not tell the groups apart
    names = [f"{group[0].name} …" if len(group) > 1 else group[0].name for group in groups.values()]
  if len(names) > 1:
    shared = os.path.commonprefix(names).rpartition("/")[0]
    names = [name.removeprefix(shared).lstrip("/") for name in names]
  return [Group(name, tuple(group)) for name, group in zip(names, groups.values(), strict=True)]


def compare(first: Group, second: Group) -> list[Difference]:
  """`paired_bootstrap` of every metric that both have."""
  common = sorted(set(first.top_k) & set(second.top_k))
  return [paired_bootstrap(name, first.user_values(name), second.user_values(name)) for name in metrics.names(common)]


def paired_bootstrap(
  metric: str, first: np.ndarray, second: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
  """Percentile bootstrap of the mean difference (Efron & Tibshirani 1993, ch. 13), users drawn with replacement.

  A user's two values are drawn together, so differences between users cancel out. The interval is about the choice of
  users, not about that of training seeds.

  Args:
    metric: its name.
    first: (users,) values of one group.
    second: (users,) values of the other, same users.
    resamples: draws.
    seed: of the draws; the same one gives the same result.
  """
  values, counts = np.unique(second - first, return_counts=True)
  users = len(first)
  # Users with the same difference are interchangeable: only the number drawn of each kind matters.
  rng = np.random.default_rng(seed)
  chunk = max(1, 10_000_000 // len(values))  # bounds memory
  means = np.concatenate(
    [
      rng.multinomial(users, counts / users, size=min(chunk, resamples - done)) @ values / users
      for done in range(0, resamples, chunk)
    ]
  )
  low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
  # Adding one to both counts keeps p above 0 (Davison & Hinkley 1997, eq. 4.11).
  tails = [(np.sum(means <= 0) + 1) / (resamples + 1), (np.sum(means >= 0) + 1) / (resamples + 1)]
  return Difference(metric, float(np.mean(second - first)), float(low), float(high), float(min(1.0, 2 * min(tails))))


def paired_seeds(metric: str, first: Sequence[float], second: Sequence[float]) -> Difference:
  """Student's t interval of the mean difference of seeds that were trained in both groups.

  The interval is about the choice of training seeds, not about that of users.

  Args:
    metric: its name.
    first: of each seed, at least two, the mean over users in one group.
    second: in the other group, same seeds.
  """
  if first == second:
    return Difference(metric, 0.0, 0.0, 0.0, 1.0)
  tested = scipy.stats.ttest_rel(second, first)
  low, high = tested.confidence_interval(CONFIDENCE)
  value = statistics.fmean(second) - statistics.fmean(first)
  return Difference(metric, value, float(low), float(high), float(tested.pvalue))


def _users(result: Result) -> tuple[str, str]:
  """Equal exactly where two results' users, and these users' targets, are the same."""
  return result.metrics["dataset_fingerprint"], result.metrics["split"]


def _seed(result: Result) -> int:
  return result.metrics["config"]["train"]["seed"]


def _setting(result: Result) -> str:
  """Equal exactly where two results differ in nothing but what seeds may differ in."""
  incidental = config_lib.differing_settings(May.SEED)
  values = config_lib.flatten(result.metrics["config"])
  return json.dumps({name: value for name, value in values.items() if name not in incidental}, sort_keys=True)


def _common_name(names: Sequence[str]) -> str:
  if len(names) == 1:
    return names[0]
  common = re.sub(r"[/_.-]*(seed)?[_.-]*\d*$", "", os.path.commonprefix(names))
  return common or f"{names[0]} and {len(names) - 1} more"
