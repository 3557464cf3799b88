"""Results on disk: a JSON of metrics, and beside it an .npz of every user's rank and first answers, so that runs can be
paired and shown."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.errors import InputError
from rastp_jax.evaluation import metrics
from rastp_jax.evaluation.user_ranks import ANSWERS
from rastp_jax.runtime import files
from rastp_jax.training.workdir import Workdir


def _no_answers() -> np.ndarray:
  return np.empty((0, ANSWERS), np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """An evaluated run.

  Attributes:
    name: what tables call it, its workdir.
    metrics: the JSON's content; "config" as from `config.to_dict`.
    ranks: int32 (users,) of each user's target from 0, the beam width where it was not found; empty where a reader
      can do without.
    answers: int32 (users, `ANSWERS`), see `UserRanks`; empty where they were not kept.
  """

  name: str
  metrics: Mapping[str, Any]
  ranks: np.ndarray
  answers: np.ndarray = dataclasses.field(default_factory=_no_answers)


def save(path: str | os.PathLike, result: Result) -> None:
  """Writes a result's metrics to `path` and its arrays beside it, under the same name with .npz."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, ranks=result.ranks.astype(np.int32), answers=result.answers.astype(np.int32))
  files.write_atomic(ranks_path(path), buffer.getvalue())
  files.write_json(path, result.metrics)


def load(path: str | os.PathLike, name: str) -> Result:
  """Reads what `save` wrote.

  Args:
    path: the JSON.
    name: what tables call the run.

  Raises:
    InputError: a file is missing or damaged, or the two are of different evaluations.
  """
  values = read_metrics(path, name)
  try:
    with files.open_npz(ranks_path(path)) as file:
      ranks, answers = file["ranks"], file.get("answers", _no_answers())
    counted = {key: metrics.user_values(ranks, key).mean() for key in metrics.names(values["config"]["eval"]["top_k"])}
    fits = len(ranks) == values["users"] and answers.shape in ((len(ranks), ANSWERS), (0, ANSWERS))
    fits = fits and all(abs(values[key] - value) < 1e-9 for key, value in counted.items())
  except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on a torn file
    raise _unusable(path, name, error) from error
  if not fits:
    raise InputError(f"{path} and {ranks_path(path)} are of different evaluations: {_again(name)}.")
  return Result(name, values, ranks, answers)


def read_metrics(path: str | os.PathLike, name: str) -> dict[str, Any]:
  """The JSON of an evaluation, its settings under today's names; settings that are newer have their defaults.

  Args:
    path: the JSON.
    name: what the sentence about a mistake calls the run.

  Raises:
    InputError: it is missing or damaged.
  """
  if not files.check_path(path).exists():
    raise InputError(f"{name} has no results yet (there is no {path}): {_again(name)}.")
  values = files.read_json(path, _again(name))
  try:
    values["config"] = config_lib.to_dict(config_lib.from_dict(values["config"]))
    counts = ("users", "beam_width", "step", *metrics.names(values["config"]["eval"]["top_k"]))
    wrong = [key for key in counts if not isinstance(values.get(key, 0), int | float)]
    lacking = [key for key in ("users", "beam_width", "step", "split") if key not in values]
    if lacking:
      raise KeyError(lacking[0])
  except Exception as error:  # whatever a damaged JSON happens to lack
    raise _unusable(path, name, error) from error
  if wrong:
    raise _unusable(path, name, TypeError(f"{wrong[0]} is not a number"))
  return values


def ranks_path(path: str | os.PathLike) -> pathlib.Path:
  """Where the ranks of the results at `path` are."""
  return files.check_path(path).with_suffix(".npz")


def training_summary(workdir: str | os.PathLike) -> dict[str, Any]:
  """The summary of a finished run, its time and samples as training_…; {} while the run goes on."""
  summary = Workdir(workdir).read_summary() or {}
  ambiguous = ("samples", "samples_per_second", "seconds")  # an evaluation has its own
  return {f"training_{name}" if name in ambiguous else name: value for name, value in summary.items()}


def _unusable(path: str | os.PathLike, name: str, error: Exception) -> InputError:
  if isinstance(error, FileNotFoundError):
    return InputError(f"{name} has no results yet (there is no {error.filename}): {_again(name)}.")
  return InputError(
    f"The results of {name} in {path} cannot be read ({type(error).__name__}: {error}): {_again(name)}."
  )


def _again(name: str) -> str:
  return f"run `python -m rastp_jax.evaluate` on {name} again"
