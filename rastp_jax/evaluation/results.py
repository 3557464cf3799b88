"""Results on disk: a JSON of figures, and beside it every user's rank in an .npz, so that runs can be paired."""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rastp_jax import files
from rastp_jax.errors import InputError
from rastp_jax.evaluation import metrics


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """An evaluated run.

  Attributes:
    name: what tables call it, its workdir.
    figures: the JSON's content.
    ranks: int32 (users,) of each user's target from 0, the beam width where it was not found.
  """

  name: str
  figures: Mapping[str, Any]
  ranks: np.ndarray


def save(path: str | os.PathLike, figures: Mapping[str, Any], ranks: np.ndarray) -> None:
  """Writes the figures to `path` and the ranks beside it, under the same name with .npz."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, ranks=ranks.astype(np.int32))
  files.write_whole(ranks_path(path), buffer.getvalue())
  files.write_json(path, figures)


def load(path: str | os.PathLike, name: str) -> Result:
  """Reads what `save` wrote.

  Args:
    path: the JSON.
    name: what tables shall call the run.

  Raises:
    InputError: a file is missing or damaged, or the two are of different evaluations.
  """
  path = pathlib.Path(path)
  again = f"run `python -m rastp_jax.evaluate` on {name} again"
  try:
    figures = json.loads(path.read_text())
    with np.load(ranks_path(path), allow_pickle=False) as file:
      ranks = file["ranks"]
    counted = {key: metrics.user_values(ranks, key).mean() for key in metrics.names(figures["config"]["eval"]["ks"])}
    fits = len(ranks) == figures["users"] and all(abs(figures[key] - value) < 1e-9 for key, value in counted.items())
  except FileNotFoundError as error:
    raise InputError(f"{name} has no results yet (there is no {error.filename}): {again}.") from error
  except Exception as error:  # json, zipfile, zlib and numpy each raise their own kinds on a torn file
    raise InputError(
      f"The results of {name} in {path} cannot be read ({type(error).__name__}: {error}): {again}."
    ) from error
  if not fits:
    raise InputError(f"{path} and {ranks_path(path)} are of different evaluations: {again}.")
  return Result(name, figures, ranks)


def ranks_path(path: str | os.PathLike) -> pathlib.Path:
  """Where the ranks of the results at `path` are."""
  return pathlib.Path(path).with_suffix(".npz")


def training_summary(workdir: str | os.PathLike) -> dict[str, Any]:
  """What summary.json says about a finished run, its time and samples as training_…; {} while the run goes on."""
  path = pathlib.Path(workdir) / "summary.json"
  summary = json.loads(path.read_text()) if path.exists() else {}
  ambiguous = ("samples", "samples_per_second", "seconds")  # evaluation takes its own time, too
  return {f"training_{name}" if name in ambiguous else name: value for name, value in summary.items()}


def training_log(workdir: str | os.PathLike) -> dict[str, np.ndarray]:
  """A run's metrics.jsonl as columns.

  Returns:
    For every name that occurs in it, float64 (lines,), NaN in lines without it.

  Raises:
    InputError: there is no log, or a line of it cannot be read.
  """
  path = pathlib.Path(workdir) / "metrics.jsonl"
  try:
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    names = sorted({name for line in lines for name in line})
    return {name: np.asarray([line.get(name, np.nan) for line in lines], np.float64) for name in names}
  except OSError as error:
    raise InputError(f"{path} cannot be read ({error.strerror}): give the --workdir of a training run.") from error
  except (ValueError, TypeError, AttributeError) as error:
    raise InputError(f"{path} is damaged ({error}): remove the line, or resume the run, which mends it.") from error
