"""Checkpoints and the identity of a workdir. The only file that imports Orbax.

    workdir/config.json                   what was trained, written before the first step
    workdir/checkpoints/STEP/params       parameters: all that evaluation reads
    workdir/checkpoints/STEP/rest         step, optimizer state, random key, sums of the open log interval
    workdir/checkpoints/STEP/progress     JSON: data position, best so far, patience, seconds, config, fingerprints,
                                          checksums of the arrays
    workdir/unreadable_checkpoints/STEP   damaged ones, moved aside rather than deleted
    workdir/lock                          held by the process that trains here

Orbax writes a checkpoint under a temporary name and renames it when it is whole, so a killed process leaves either all
of it or none, and older checkpoints are only deleted after that. Checksums find whatever the disk did to the files.
Nothing here is a pickle: arrays, JSON, no code.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rastp_jax import config as config_lib
from rastp_jax import files, hosts
from rastp_jax.config import Config, Duration
from rastp_jax.errors import InputError
from rastp_jax.training import checksums

# A run may be resumed with other values of these: they move files, change what is looked at, or when to stop, but not
# what a step computes. Everything else must stay. `train.length` joins them when the learning rate does not depend on
# it (constant schedule, warm-up not in percent).
MAY_DIFFER = (
  "data.data_dir",
  "data.workers",
  "train.log_every",
  "train.eval_every",
  "train.patience",
  "train.checkpoint_every",
  "train.keep_checkpoints",
  "train.max_nonfinite_steps",
  "mesh.data",
  "mesh.fsdp",
  "mesh.tensor",
  "eval.beam_width",
  "eval.batch_size",
  "eval.constrained",
  "eval.renormalize",
  "eval.ks",
)


class Checkpoints:
  """A workdir's checkpoints: the latest few and the best one. A context, which ends when everything is on disk.

  Opening one claims the workdir for this run; everything that can be wrong with it is found before anything in it is
  changed. With several processes all of them open it, on a file system they share, and call the same methods.
  """

  def __init__(self, workdir: str | os.PathLike, config: Config, fingerprints: Mapping[str, str]):
    """Checks that the workdir belongs to this run (or to none) and to no other process, then writes its config.json.

    Args:
      workdir: made if it does not exist.
      config: the run's settings.
      fingerprints: what identifies the run's data, by name, like {"semantic IDs": "3f…"}.

    Raises:
      InputError: the workdir holds a run with another config or other data, is in use, or cannot be written.
    """
    self._workdir = pathlib.Path(workdir).absolute()
    self._config = config
    self._fingerprints = dict(fingerprints)
    self._last: int | None = None
    with contextlib.ExitStack() as stack:
      with hosts.together(), _disk_errors(self._workdir):
        _check_config(self._workdir, config)
        self._workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
          stack.enter_context(_lock(self._workdir))
      with _disk_errors(self._workdir):
        self._keep = _LatestAndBest(config.train.keep_checkpoints)
        self._manager = _open(self._workdir, preservation_policy=self._keep, cleanup_tmp_directories=True)
      with hosts.together(), _disk_errors(self._workdir):
        for step in self._steps():
          progress = self._read_progress(step)
          if not isinstance(progress, Exception):
            _check_fingerprints(self._workdir, progress, self._fingerprints)
        if jax.process_index() == 0:
          files.write_whole(self._workdir / "config.json", config_lib.to_json(config) + "\n")
      self._lock = stack.pop_all()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, traceback) -> None:
    with self._lock:
      if error is None:
        with self._writing(self._last):
          self._manager.wait_until_finished()
        self._manager.close()
      elif jax.process_count() == 1:  # otherwise the others may be gone, and there is nobody to wait for
        with contextlib.suppress(Exception):  # what went wrong first is what counts
          self._manager.close()

  def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
    """Restores the latest checkpoint that can be read, onto whatever mesh the target names.

    Args:
      target: pytree {"params": ..., "rest": ...} of `jax.ShapeDtypeStruct`s with shardings.

    Returns:
      (pytree like `target`, progress dict), or None in a workdir without checkpoints.

    Raises:
      InputError: there are checkpoints, and none can be read; or there is no room for another one.
    """
    with hosts.together():
      _check_room(self._workdir, target)
    torn = {}
    for step in self._steps():
      try:
        progress = self._read_progress(step)
        if isinstance(progress, Exception):
          raise progress
        restored = self._manager.restore(
          step, args=ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in target.items()})
        )
        restored = dict(restored.items())
        checksums.verify(restored, progress.get("checksums"))
        error = ""
      except Exception as caught:  # a damaged file shows as whatever the reader underneath happens to raise
        error = _first_line(caught) or "unreadable"
      errors = [text for text in hosts.exchange(error) if text]
      if errors:
        torn[step] = errors[0]
        continue
      for bad, error in torn.items():
        self._set_aside(bad, error, used=step)
      self._keep.best_step, self._last = progress["best_step"], step
      return restored, progress
    if torn:
      step, error = next(iter(torn.items()))
      raise InputError(
        f"None of the {len(torn)} checkpoints in {self._workdir / 'checkpoints'} can be read (step {step}: {error}): "
        "put back a copy of them, or train in another --workdir."
      )
    return None

  def save(self, step: int, tree: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """Starts writing a checkpoint; returns once the arrays are copied, while files are still being written.

    Args:
      step: its number.
      tree: {"params": ..., "rest": ...}.
      progress: JSON values; "best_step" (int or None) names the checkpoint to keep besides the latest ones.

    Raises:
      InputError: this checkpoint or the one before, which was still being written, does not fit on the disk.
    """
    with self._writing(self._last):
      self._manager.wait_until_finished()
    self._keep.best_step = progress["best_step"]
    progress = {
      **progress,
      "fingerprints": self._fingerprints,
      "config": dataclasses.asdict(self._config),
      "checksums": checksums.take(tree),
    }
    items = {name: ocp.args.StandardSave(value) for name, value in tree.items()}
    with self._writing(step):
      self._manager.save(step, args=ocp.args.Composite(**items, progress=ocp.args.JsonSave(progress)))
    self._last = step

  @contextlib.contextmanager
  def _writing(self, step: int | None) -> Iterator[None]:
    """Whatever the libraries underneath raise when a disk is full becomes a sentence."""
    try:
      yield
    except Exception as error:
      if jax.process_count() > 1:
        raise  # another process may be gone: see hosts.leave_if_lost
      room, full = shutil.disk_usage(self._workdir).free, os.strerror(errno.ENOSPC)
      reason = full if full in str(error) else _first_line(error)
      raise InputError(
        f"The checkpoint of step {step} could not be written in {self._workdir} ({reason}; "
        f"{room / 1e6:,.1f} MB are free there): make room and run the same command again, which goes on from the "
        "checkpoint before."
      ) from error

  def _steps(self) -> list[int]:
    return sorted(self._manager.all_steps(), reverse=True)

  def _read_progress(self, step: int) -> dict[str, Any] | Exception:
    return _read_progress(self._manager, step)

  def _set_aside(self, step: int, error: str, used: int) -> None:
    if jax.process_index() == 0:
      aside = self._workdir / "unreadable_checkpoints"
      warnings.warn(
        f"The checkpoint of step {step} cannot be read ({error}); going on from step {used}. It is now in {aside}.",
        stacklevel=3,
      )
      aside.mkdir(exist_ok=True)
      number = sum(1 for _ in aside.iterdir())
      (self._workdir / "checkpoints" / str(step)).rename(aside / (f"{step}" if not number else f"{step}_{number}"))
    hosts.exchange("")  # nobody looks before the directory is gone
    self._manager.reload()


@dataclasses.dataclass(frozen=True)
class Restored:
  """Parameters for evaluation: `params` like the target, and the step they were saved at."""

  params: Any
  step: int
  progress: dict[str, Any]


def read_config(workdir: str | os.PathLike) -> Config:
  """The settings a workdir was trained with.

  Raises:
    InputError: there is no config.json, or it cannot be read.
  """
  path = pathlib.Path(workdir) / "config.json"
  if not path.exists():
    raise InputError(f"{workdir} holds no training run (there is no {path}): give the --workdir of a run.")
  try:
    return config_lib.from_json(path.read_text())
  except (InputError, ValueError, OSError) as error:
    raise InputError(
      f"{path} cannot be read ({_first_line(error)}): put back a copy of it, or use another --workdir."
    ) from error


def restore_params(workdir: str | os.PathLike, target: Any, fingerprints: Mapping[str, str] | None = None) -> Restored:
  """Restores the best checkpoint's parameters (the latest's in a run without validation), and nothing else.

  Args:
    workdir: of a training run, finished or still running.
    target: pytree of `jax.ShapeDtypeStruct`s; their shardings decide where the parameters go, and their types what they
      are rounded to.
    fingerprints: of the data that they will be used with; see `Checkpoints`.

  Raises:
    InputError: there is no checkpoint, it cannot be read, or it was trained on other data.
  """
  directory = pathlib.Path(workdir).absolute() / "checkpoints"
  if not directory.is_dir():
    raise InputError(f"{workdir} holds no checkpoint yet: train there first, or wait for its first one.")
  manager = _open(directory.parent)
  try:
    for step in sorted(manager.all_steps(), reverse=True):
      progress = _read_progress(manager, step)
      if isinstance(progress, Exception):
        warnings.warn(
          f"The checkpoint of step {step} cannot be read ({_first_line(progress)}) and is skipped.", stacklevel=2
        )
        continue
      _check_fingerprints(workdir, progress, fingerprints or {})
      best = progress["best_step"] if progress["best_step"] is not None else step
      try:
        restored = manager.restore(best, args=ocp.args.Composite(params=ocp.args.StandardRestore(_as_saved(target))))
        of_best = _read_progress(manager, best)
        if isinstance(of_best, Exception):
          raise of_best
        checksums.verify({"params": restored["params"]}, of_best.get("checksums"))
      except Exception as error:  # see Checkpoints.restore
        raise InputError(
          f"The best checkpoint in {directory}, of step {best}, cannot be read ({_first_line(error)}): put back a copy "
          "of it, or train again."
        ) from error
      params = jax.tree.map(lambda value, like: value.astype(like.dtype), restored["params"], target)
      return Restored(params, best, progress)
  finally:
    manager.close()
  raise InputError(f"{workdir} holds no checkpoint that can be read: train there first, or wait for its first one.")


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
  """Keeps the latest `count` checkpoints and the one of `best_step`."""

  def __init__(self, count: int):
    self.count = count
    self.best_step: int | None = None

  def should_preserve(self, checkpoints, *, context):
    latest = {info.step for info in checkpoints[-self.count :]}
    return [info.step in latest or info.step == self.best_step for info in checkpoints]


def _open(workdir: pathlib.Path, **options) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    workdir / "checkpoints",
    options=ocp.CheckpointManagerOptions(**options),
    item_handlers={
      "params": ocp.StandardCheckpointHandler(),
      "rest": ocp.StandardCheckpointHandler(),
      "progress": ocp.JsonCheckpointHandler(),
    },
  )


def _read_progress(manager: ocp.CheckpointManager, step: int) -> dict[str, Any] | Exception:
  """The progress item, or what went wrong reading it: callers decide whether that is fatal."""
  try:
    progress = manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
    # The best step names a directory: anything but a number could lead out of this one.
    return progress if isinstance(progress["best_step"], int | None) else ValueError("its progress file is damaged")
  except Exception as error:
    return error


def _as_saved(target: Any) -> Any:
  """Training saves float32 parameters; checksums are of these."""
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding), target)


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the workdir until the context or the process ends, however it ends: a lock that is left over is no lock.

  Raises:
    InputError: another process holds it.
  """
  with (workdir / "lock").open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      try:
        owner = "process {pid} on {host}".format(**json.loads(file.read()))
      except (ValueError, KeyError):  # it may be writing that right now
        owner = "another process"
      raise InputError(
        f"{workdir} is in use by {owner}: wait until it ends, stop it, or train in another --workdir."
      ) from None
    except OSError as error:  # a network file system without locks
      warnings.warn(f"{workdir} cannot be locked ({error.strerror}): start no second run there.", stacklevel=2)
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    file.flush()
    yield


def _check_room(workdir: pathlib.Path, target: Any) -> None:
  needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
  free = shutil.disk_usage(workdir).free
  if free < needed:
    raise InputError(
      f"{workdir} has room for {free / 1e6:,.1f} MB, less than the {needed / 1e6:,.1f} MB of one checkpoint: make room "
      "there, or choose another --workdir."
    )


@contextlib.contextmanager
def _disk_errors(workdir: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise InputError(
      f"The workdir {workdir} cannot be written ({error.strerror}): choose another --workdir, or make room there."
    ) from error


def _check_config(workdir: pathlib.Path, config: Config) -> None:
  if not (workdir / "config.json").exists():
    if (workdir / "checkpoints").exists() and any((workdir / "checkpoints").iterdir()):
      raise InputError(f"{workdir} holds checkpoints but no config.json to compare with: use another --workdir.")
    return
  before = dataclasses.asdict(read_config(workdir))
  for section, values in dataclasses.asdict(config).items():
    for name, value in values.items():
      field = f"{section}.{name}"
      if before[section][name] != value and field not in MAY_DIFFER and not _length_is_free(field, config):
        raise InputError(
          f"{workdir} holds a run with config.{field}={before[section][name]!r}, not {value!r}: resume it with its own "
          "value, or train in another --workdir."
        )


def _length_is_free(field: str, config: Config) -> bool:
  warmup = Duration.parse(config.train.warmup, "train.warmup")
  return field == "train.length" and config.train.schedule == "constant" and warmup.unit != "percent"


def _check_fingerprints(workdir, progress: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
  for name, value in fingerprints.items():
    trained = progress["fingerprints"].get(name)
    if trained != value:
      raise InputError(
        f"{workdir} was trained with other {name} (fingerprint {str(trained)[:12]}, now {value[:12]}): put the old "
        "ones "
        "back, or train in another --workdir."
      )


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
