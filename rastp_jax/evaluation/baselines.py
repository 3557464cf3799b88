"""Simpler recommenders beside runs: what `python -m rastp_jax.experiment baselines` wrote, as rows of a table."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rastp_jax.errors import InputError
from rastp_jax.evaluation.comparison import Group
from rastp_jax.evaluation.results import Result
from rastp_jax.runtime import files

_ADVICE = "give the JSON that `python -m rastp_jax.experiment baselines` wrote for the dataset of the runs"


@dataclasses.dataclass(frozen=True)
class Baselines:
  """Recommenders of one dataset.

  Attributes:
    dataset: its name.
    fingerprint: of the prepared data; None in older files, which do not say.
    models: name -> split, or "SPLIT, history excluded" -> metric -> value.
  """

  dataset: str
  fingerprint: str | None
  models: Mapping[str, Mapping[str, Mapping[str, float]]]

  def fits(self, result: Result) -> bool:
    """Whether a run was evaluated on this dataset."""
    values = result.metrics
    same = self.fingerprint in (None, values["dataset_fingerprint"])
    return same and values["config"]["data"]["dataset"] == self.dataset

  def rows(self, groups: Sequence[Group], metric: str) -> list[list[str]]:
    """A heading, the recommenders and the runs: of the same split, and with the history's items left out where runs
    leave them out; "-" where a metric is unknown.

    Args:
      groups: runs of this dataset and of one split.
      metric: the recall that the page is about, like "recall@10".
    """
    names = ("recall@5", metric, metric.replace("recall", "ndcg"))
    cells = lambda value: ["-" if value(name) is None else f"{value(name):.4f}" for name in names]
    rows = [["", *(name.replace("ndcg", "NDCG") for name in names)]]
    split = groups[0].results[0].metrics["split"]
    for left_out in dict.fromkeys(_leaves_history_out(group) for group in groups):
      for name, model in self.models.items():
        values = model.get(f"{split}, history excluded" if left_out else split, {})
        rows.append([f"{name}, history left out" if left_out else name, *cells(values.get)])
    return rows + [[group.name, *cells(group.mean)] for group in groups]


def read(path: str | os.PathLike, results: Sequence[Result]) -> Baselines:
  """Reads the JSON of `python -m rastp_jax.experiment baselines`.

  Args:
    path: the file.
    results: the runs that it is to stand beside.

  Raises:
    InputError: it cannot be read, is something else, or is of another dataset than all of the runs.
  """
  values: dict[str, Any] = files.read_json(files.check_path(path), _ADVICE)
  dataset, fingerprint, models = (values.get(name) for name in ("dataset", "dataset_fingerprint", "models"))
  if (
    not isinstance(dataset, str)
    or not isinstance(fingerprint, str | None)
    or not isinstance(models, dict)
    or not all(map(_is_model, models.values()))
  ):
    raise InputError(f"{path} does not hold recommenders and their metrics: {_ADVICE}.")
  found = Baselines(dataset, fingerprint, models)
  if not any(map(found.fits, results)):
    prepared = f" as prepared then ({found.fingerprint[:12]})" if found.fingerprint else ""
    raise InputError(f"{path} is about the dataset {dataset!r}{prepared}, and none of the runs is: {_ADVICE}.")
  return found


def _is_model(value: Any) -> bool:
  """Whether something is metrics by split, "test" among them."""
  if not isinstance(value, dict) or not isinstance(value.get("test"), dict):
    return False
  splits = [metrics for name, metrics in value.items() if name.startswith(("test", "validation"))]
  numbers = lambda metrics: isinstance(metrics, dict) and all(isinstance(one, int | float) for one in metrics.values())
  return all(map(numbers, splits))


def _leaves_history_out(group: Group) -> bool:
  return group.results[0].metrics["config"]["eval"]["exclude_history"]
