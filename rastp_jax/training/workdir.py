"""A run's directory: its files' names, who may write into it, and what is read from it.

config.json                   the settings, with the bucket lengths that were chosen; written before the first step
metrics.jsonl                 one JSON object per log line
tensorboard/                  the same as curves
profile/                      a trace of some steps, where one was asked for
checkpoints/                  see checkpoint.py
unreadable_checkpoints/       damaged ones, moved aside rather than deleted
lock                          held by the process that trains here
summary.json                  once finished: steps, speed, memory, best validation
eval_test.json, eval_test.npz        an evaluation's metrics; every user's rank and first answers
imported.json                 where the weights of an imported run come from
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.config import Config, May
from rastp_jax.errors import InputError
from rastp_jax.runtime import buckets, files, processes, recorded_config
from rastp_jax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Restored:
  """Parameters for evaluation, like the target, and the step they were saved at."""

  params: Any
  step: int


def runs_below(path: pathlib.Path) -> list[pathlib.Path]:
  """Workdirs of runs in a directory, or one level deeper."""
  return sorted({config.parent for depth in ("*", "*/*") for config in path.glob(f"{depth}/config.json")})


def find_run(path: str | os.PathLike) -> pathlib.Path:
  """The run in a directory, or the only one below it; the directory itself where there is none.

  Raises:
    InputError: there are several below it; the sentence names them.
  """
  path = files.check_path(path)
  below = [] if (path / "config.json").exists() else runs_below(path)
  if len(below) > 1:
    raise InputError(f"{path} holds {len(below)} runs: give one of them, {', '.join(map(str, below))}.")
  return below[0] if below else path


class Workdir:
  """The directory of one run. Nothing is read or made before a method is called.

  Args:
    path: of the directory.

  Raises:
    InputError: no directory can have that name.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = files.check_path(path)
    place = buckets.remote(self.path) or self.path  # where Orbax writes
    self.config = self.path / "config.json"
    self.log = self.path / "metrics.jsonl"
    self.tensorboard = self.path / "tensorboard"
    self.profile = self.path / "profile"
    self.checkpoints = place / "checkpoints"
    self.unreadable_checkpoints = place / "unreadable_checkpoints"
    self.lock = self.path / "lock"
    self.summary = self.path / "summary.json"
    self.imported = self.path / "imported.json"

  @property
  def files_of_training(self) -> tuple[pathlib.Path, ...]:
    """The files that no other command may write."""
    return self.config, self.summary, self.log, self.lock, self.imported

  def __str__(self) -> str:
    return buckets.shown(self.path)

  def evaluation(self, split: str) -> pathlib.Path:
    """The metrics of an evaluation on "test" or "validation"."""
    return self.path / f"eval_{split}.json"

  def read_config(self) -> Config:
    """The settings the run was trained with.

    Raises:
      InputError: there is no config.json, or it cannot be read.
    """
    if not self.config.exists():
      below = runs_below(self.path)
      hint = (
        f"give one of the runs below it: {', '.join(map(str, below))}." if below else "give the --workdir of a run."
      )
      raise InputError(f"{self} holds no training run (there is no {self.config}): {hint}")
    advice = "put back a copy of it, or use another --workdir"
    config = recorded_config.read(self.config, advice)
    if config.model.dtype == "auto":
      raise InputError(
        f"{self.config} cannot be read (model.dtype is auto, and a run records what it computes in): {advice}."
      )
    return config

  def begun(self) -> Config | None:
    """`read_config`, or None where nothing has been trained yet."""
    return self.read_config() if self.config.exists() else None

  def read_summary(self) -> dict[str, Any] | None:
    """The summary of a finished run; None while the run goes on.

    Raises:
      InputError: it cannot be read.
    """
    if not self.summary.exists():
      return None
    advice = "put back a copy of it, or remove it and run the training again, which writes it"
    values = files.read_json(self.summary, advice)
    for name in ("steps", "samples", "seconds", "samples_per_second", "parameters", "step_bytes", "devices"):
      # A version that measured less wrote fewer of them.
      if not isinstance(values.get(name, 0), int | float) or isinstance(values.get(name), bool):
        raise InputError(f"{self.summary} cannot be read ({name} is not a number): {advice}.")
    return values

  def read_log(self) -> dict[str, np.ndarray]:
    """The log as columns.

    Returns:
      For every name that occurs in it, float64 (lines,), NaN in lines without it.

    Raises:
      InputError: there is no log, or a line of it cannot be read.
    """
    try:
      lines = [files.parse_json(line) for line in self.log.read_bytes().splitlines()]
      names = sorted({name for line in lines for name in line})
      return {name: np.asarray([line.get(name, np.nan) for line in lines], np.float64) for name in names}
    except OSError as error:
      raise InputError(
        f"{self.log} cannot be read ({error.strerror}): give the --workdir of a training run."
      ) from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
      raise InputError(
        f"{self.log} is damaged ({error}): remove the line, or resume the run, which mends it."
      ) from error

  @contextlib.contextmanager
  def claim(
    self,
    config: Config,
    lengths: tuple[int, ...],
    fingerprints: Mapping[str, str],
    imported: Mapping[str, str] | None = None,
  ) -> Iterator[Checkpoints]:
    """Claims the directory for this run: yields its checkpoints, and ends when everything is on disk.

    Everything that can be wrong with it is found before anything in it is changed; then config.json is written. With
    several processes all of them claim it, on a file system they share, and call the same methods.

    Args:
      config: the run's settings.
      lengths: the bucket lengths that the run uses; config.json records them.
      fingerprints: what identifies the run's data, by name, like {"semantic IDs": "3f…"}.
      imported: of a new run that begins with given weights, which the caller saves first of all: where they come from.

    Raises:
      InputError: the directory holds a run with another config or other data, or one whose imported weights are
        missing, is in use, or cannot be written; inside, if a log can no longer be written.
    """
    recorded = dataclasses.replace(config, data=dataclasses.replace(config.data, bucket_lengths=tuple(lengths)))
    with contextlib.ExitStack() as stack:
      with processes.raise_on_all(), self._claim_errors():
        self._check_kinds()
        if buckets.remote(self.path) is None:  # of which the copy may be older than the checkpoints
          self._check_config(config, recorded)
        self.path.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
          stack.enter_context(files.directory_lock(self.path, self.lock.name))
          buckets.copy_again(self.path)  # who held it may have written until now
          self._check_config(config, recorded)
      with self._claim_errors():
        checkpoints = Checkpoints(
          self.checkpoints,
          self.unreadable_checkpoints,
          keep=config.train.keep_checkpoints,
          origin={"fingerprints": dict(fingerprints), "config": config_lib.to_dict(recorded)},
        )
      with processes.raise_on_all(), self._claim_errors():
        found = list(checkpoints.metadata())
        if imported is None and not found:
          self._check_not_imported()
        for _, saved in found:
          if not isinstance(saved, Exception):
            self._check_fingerprints(saved.fingerprints, fingerprints)
        if jax.process_index() == 0:
          if imported is not None:  # goes first: what is left of an import that is killed is known as one
            files.write_json(self.imported, imported)
          files.write_atomic(self.config, config_lib.to_json(recorded) + "\n")
      stack.enter_context(checkpoints)
      stack.enter_context(self._log_errors())
      yield checkpoints

  def restore_params(self, target: Any, fingerprints: Mapping[str, str] | None = None) -> Restored:
    """Restores the best checkpoint's parameters (the latest's in a run without validation), and nothing else.

    The run may be finished or still running.

    Args:
      target: pytree of `jax.ShapeDtypeStruct`s; their shardings decide where the parameters go, and their types what
        they are rounded to.
      fingerprints: of the data that they will be used with; see `claim`.

    Raises:
      InputError: there is no checkpoint, it cannot be read, or it was trained on other data.
    """
    if not self.checkpoints.is_dir():
      raise InputError(f"{self} holds no checkpoint yet: train there first, or wait for its first one.")
    with Checkpoints(self.checkpoints, self.unreadable_checkpoints, keep=None) as checkpoints:
      for step, saved in checkpoints.metadata():
        if isinstance(saved, Exception):
          reason = files.first_line(saved)
          warnings.warn(f"The checkpoint of step {step} cannot be read ({reason}) and is skipped.", stacklevel=2)
          continue
        self._check_fingerprints(saved.fingerprints, fingerprints or {})
        best = saved.progress.best.best_step
        # That of process 0 for all: a training that goes on may just have saved another.
        step = int(processes.allgather_text(str(step if best is None else best))[0])
        return Restored(checkpoints.restore_params(step, target), step)
    raise InputError(f"{self} holds no checkpoint that can be read: train there first, or wait for its first one.")

  def check_room(self, target: Any) -> None:
    """Raises InputError unless a checkpoint with arrays of these shapes fits on the disk."""
    if buckets.remote(self.path) is not None:
      return
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    free = shutil.disk_usage(self.path).free
    if free < needed:
      raise InputError(
        f"{self} has room for {free / 1e6:,.1f} MB, less than the {needed / 1e6:,.1f} MB of one checkpoint: make room "
        "there, or choose another --workdir."
      )

  def _check_kinds(self) -> None:
    """Raises InputError where a directory has the name of one of the run's files, or the other way round."""
    for path in self.files_of_training:
      if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file: move it away, or train in another --workdir.")
    for path in (self.checkpoints, self.unreadable_checkpoints, self.tensorboard, self.profile):
      if path.exists() and not path.is_dir():
        raise InputError(f"{path} is not a directory: move it away, or train in another --workdir.")

  def _check_config(self, config: Config, recorded: Config) -> None:
    """Raises InputError if the directory holds a run that a run with these settings would not continue.

    Args:
      config: as the user gave it.
      recorded: with the bucket lengths in use, so that lengths that were left open equal those that were chosen.
    """
    logs = any(path.exists() and path.stat().st_size for path in (self.log, self.summary))
    # In a bucket, a directory is there once something is in it.
    if logs and buckets.remote(self.path) is None and not self.checkpoints.exists():
      raise InputError(
        f"{self} holds the logs of a run whose {self.checkpoints.name} are missing: put them back, or train in another "
        "--workdir."
      )
    if not self.config.exists():
      if self.checkpoints.exists() and any(self.checkpoints.iterdir()):
        raise InputError(f"{self} holds checkpoints but no config.json to compare with: use another --workdir.")
      return
    free = config_lib.differing_settings(May.RESUME) | ({"train.length"} if config.train.length_is_free() else set())
    before = self.read_config()
    # Lengths that a hand-written config.json leaves open are those that the data give.
    now = config_lib.flat(recorded if before.data.bucket_lengths else config)
    for name, was in config_lib.flat(before).items():
      if was != now[name] and name not in free:
        raise InputError(
          f"{self} holds a run with config.{name}={was!r}, not {now[name]!r}: resume it with its own value "
          f"(--config={self}/{self.config.name} has all of them), or train in another --workdir."
        )

  def _check_not_imported(self) -> None:
    """Raises InputError where a run without checkpoints would not begin with random weights."""
    if self.imported.exists():
      raise InputError(
        f"{self} holds {self.imported.name} but no checkpoint with the imported weights: put its "
        f"{self.checkpoints.name} back, or import them into another --workdir."
      )

  def _check_fingerprints(self, trained: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name, value in now.items():
      before = trained.get(name)
      if before != value:
        raise InputError(
          f"{self} was trained with other {name} (fingerprint {str(before)[:12]}, now {value[:12]}): put the old ones "
          "back, or train in another --workdir."
        )

  @contextlib.contextmanager
  def _claim_errors(self) -> Iterator[None]:
    """A directory that cannot be written is refused with a sentence, before training."""
    try:
      yield
    except OSError as error:
      raise InputError(
        f"The workdir {self} cannot be written ({error.strerror}): choose another --workdir, or make room there."
      ) from error

  @contextlib.contextmanager
  def _log_errors(self) -> Iterator[None]:
    """Logs that can no longer be written end the run with a sentence; checkpoints have one of their own."""
    try:
      yield
    except OSError as error:
      place = pathlib.Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
      ours = place is not None and place.resolve().is_relative_to(self.path.resolve())
      if not ours and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise
      raise InputError(
        f"{place or self} cannot be written ({error.strerror}): make room there, or see to it that this process may "
        "write, and run the same command again, which goes on from the last checkpoint."
      ) from error
