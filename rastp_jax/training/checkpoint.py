"""Checkpoints. The only file that imports Orbax.

    checkpoints/STEP/params       parameters: all that evaluation reads
    checkpoints/STEP/rest         step, optimizer state, random key, sums of the open log interval
    checkpoints/STEP/progress     JSON: `SavedProgress`, config, fingerprints of the data, checksums of the arrays, and
                                  one of all that; scalars that have changed since the arrays were saved

Orbax writes a checkpoint under a temporary name and renames it when it is whole, so a killed process leaves either all
of it or none, and older checkpoints are only deleted after that. Where a run that was stopped after a step does what
was due then, and saves the step again, only the file of its progress is replaced, whole as well. Checksums find
whatever the disk did to the files.
Nothing here is a pickle: arrays, JSON, no code.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rastp_jax.errors import InputError
from rastp_jax.runtime import buckets, files, processes
from rastp_jax.training import checksums
from rastp_jax.training.plan import SavedProgress

_CHECKSUM = "checksum"  # in a progress file, of all else in it
_PROGRESS_FILE = "metadata"


class _UnreadableError(Exception):
  """A checkpoint cannot be read, and why."""


class Metadata(NamedTuple):
  """What a checkpoint says besides its arrays."""

  progress: SavedProgress
  fingerprints: Mapping[str, str]  # of the data it was trained on, by name
  checksums: Mapping[str, int] | None  # of the arrays, by path; None: saved by a version that took none
  scalars: Mapping[str, int | float]  # by path: those that have changed since the arrays were saved


def parse_metadata(values: Mapping[str, Any], step: int) -> Metadata:
  """Reads the JSON that `Checkpoints.save` writes beside the arrays of a step.

  Raises:
    AttributeError, KeyError, TypeError, ValueError: it is damaged, or of another step.
  """
  said = {name: value for name, value in values.items() if name != _CHECKSUM}
  progress = SavedProgress.from_json(said)
  fingerprints, sums, scalars = said["fingerprints"], said.get("checksums"), said.get("scalars", {})
  typed = all(isinstance(value, str) for value in fingerprints.values())
  typed &= all(isinstance(value, int | float) for value in scalars.values())
  typed &= sums is None or all(isinstance(value, int) for value in sums.values())
  # Versions before 0.2 wrote none.
  if not typed or values.get(_CHECKSUM, _checksum(said)) != _checksum(said):
    raise ValueError("its progress file is damaged")
  if progress.step != step:
    raise ValueError(f"its progress file is of step {progress.step}")
  return Metadata(progress, fingerprints, sums, scalars)


def _checksum(said: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Checkpoints:
  """A run's checkpoints: the latest few and the best one. A context, which ends when everything is on disk.

  With several processes all of them make one, on a file system they share, and call the same methods.

  Args:
    directory: holds the checkpoints; may be in a bucket.
    unreadable: takes the ones that cannot be read.
    keep: how many of the latest; None: only to read, beside a run that may still be going on.
    origin: JSON values that every checkpoint carries: "fingerprints" of the data, by name, and the "config".
  """

  def __init__(
    self,
    directory: pathlib.Path | epath.Path,
    unreadable: pathlib.Path | epath.Path,
    *,
    keep: int | None,
    origin: Mapping[str, Any] = {},
  ):
    self._directory, self._unreadable = (
      path.absolute() if isinstance(path, pathlib.Path) else path for path in (directory, unreadable)
    )
    self._origin = origin
    self._last: int | None = None
    self._keep = _LatestAndBest(keep or 0)
    writing = {} if keep is None else {"preservation_policy": self._keep, "cleanup_tmp_directories": True}
    self._handlers = {
      "params": ocp.StandardCheckpointHandler(),
      "rest": ocp.StandardCheckpointHandler(),
      "progress": ocp.JsonCheckpointHandler(_PROGRESS_FILE),
    }
    self._manager = ocp.CheckpointManager(
      self._directory, options=ocp.CheckpointManagerOptions(**writing), item_handlers=self._handlers
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if error is None:
      self.wait()
      self._manager.close()
    elif jax.process_count() == 1:  # otherwise the others may be gone, and there is nobody to wait for
      with contextlib.suppress(Exception):  # what went wrong first is what counts
        self._manager.close()

  def wait(self) -> None:
    """Returns once the checkpoint that is being written is on disk.

    Raises:
      InputError: it does not fit there.
    """
    with self._writing(self._last):
      self._manager.wait_until_finished()

  def metadata(self) -> Iterator[tuple[int, Metadata | Exception]]:
    """Every checkpoint's step, the latest first, and what it says or what went wrong reading that."""
    for step in sorted(self._manager.all_steps(), reverse=True):
      yield step, self._read_metadata(step)

  def restore(self, target: Mapping[str, Any]) -> tuple[dict[str, Any], SavedProgress] | None:
    """Restores the latest checkpoint that can be read, onto whatever mesh the target names.

    Args:
      target: pytree {"params": ..., "rest": ...} of `jax.ShapeDtypeStruct`s with shardings.

    Returns:
      (pytree like `target`, how far the run had come), or None without checkpoints.

    Raises:
      InputError: there are checkpoints, and none can be read.
    """
    torn = {}
    for step, found in self.metadata():
      try:
        arrays, said = self._read_arrays(step, target, found)
      except _UnreadableError as error:
        torn[step] = str(error)
        continue
      for bad, error in torn.items():
        self._set_aside(bad, error, used=step)
      self._keep.best_step, self._last = said.progress.best.best_step, step
      return _with_scalars(arrays, said.scalars), said.progress
    if torn:
      step, error = next(iter(torn.items()))
      raise InputError(
        f"None of the {len(torn)} checkpoints in {self._directory} can be read (step {step}: {error}): put back a copy "
        "of them, or train in another --workdir."
      )
    return None

  def restore_params(self, step: int, target: Any) -> Any:
    """The parameters of a checkpoint, and nothing else of it.

    Args:
      step: its number.
      target: pytree of `jax.ShapeDtypeStruct`s with shardings and types.

    Raises:
      InputError: they cannot be read.
    """
    # Training saves float32 parameters; checksums are of these.
    saved = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding), target)
    try:
      arrays, _ = self._read_arrays(step, {"params": saved}, self._read_metadata(step))
    except _UnreadableError as error:
      raise InputError(
        f"The best checkpoint in {self._directory}, of step {step}, cannot be read ({error}): put back a copy of it, "
        "or train again."
      ) from error
    return jax.tree.map(lambda value, like: value.astype(like.dtype), arrays["params"], target)

  def _read_arrays(
    self, step: int, target: Mapping[str, Any], found: Metadata | Exception
  ) -> tuple[dict[str, Any], Metadata]:
    """The arrays of a checkpoint, verified, and what else it says.

    Raises:
      _UnreadableError: one of the processes cannot read it; in all of them.
    """
    arrays, error = {}, ""
    try:
      if isinstance(found, Exception):
        raise found
      self._check_shapes(step, target["params"])
      arrays = {name: self._read(step, name, ocp.args.StandardRestore(tree)) for name, tree in target.items()}
    except Exception as caught:  # a damaged file shows as whatever the reader underneath happens to raise
      error = files.first_line(caught)
    # Before the checksums, which all processes take together.
    errors = [text for text in processes.allgather_text(error) if text]
    if errors or isinstance(found, Exception):
      raise _UnreadableError(errors[0])
    try:
      checksums.verify(arrays, found.checksums)
    except ValueError as caught:
      raise _UnreadableError(files.first_line(caught)) from caught
    return arrays, found

  def _check_shapes(self, step: int, target: Any) -> None:
    """Raises ValueError unless the parameters of a checkpoint have the shapes of the target.

    Orbax finds that too, but prints a traceback per array before.
    """
    stored = self._manager.item_metadata(step)["params"]
    if stored is None:  # damaged, which reading it tells
      return
    shapes, expected = (
      {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}
      for leaves in map(jax.tree_util.tree_leaves_with_path, (stored.tree, target))
    )
    different = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if different:
      name = different[0]
      raise ValueError(
        f"{name} has the shape {shapes.get(name)}, but {expected.get(name)} by the settings of config.json"
      )

  def save(self, step: int, tree: Mapping[str, Any], progress: SavedProgress) -> None:
    """Starts writing a checkpoint; returns once the arrays are copied, while files are still being written.

    The step that was saved or restored last can be saved again, if only scalars have changed since.

    Args:
      step: its number.
      tree: {"params": ..., "rest": ...}.
      progress: how far the run has come; its best step's checkpoint is kept besides the latest ones.

    Raises:
      InputError: this checkpoint or the one before, which was still being written, does not fit on the disk.
    """
    self.wait()
    # Orbax would make it again, without the files beside it. In a bucket it is there once something is in it.
    if isinstance(self._directory, pathlib.Path) and not self._directory.is_dir():
      raise InputError(
        f"{self._directory} is gone (it was removed or moved during training): put it back and run the same command "
        "again, or train in another --workdir."
      )
    self._keep.best_step = progress.best.best_step
    said = {**progress.to_json(), **self._origin, "checksums": checksums.take(tree)}
    if step == self._last:
      if jax.process_index() == 0:
        self._replace_progress(step, tree, said)
      processes.allgather_text("")  # nobody reads before it is there
      return
    items = {name: ocp.args.StandardSave(value) for name, value in tree.items()}
    metadata = ocp.args.JsonSave({**said, _CHECKSUM: _checksum(said)})
    with self._writing(step):
      written = self._manager.save(step, args=ocp.args.Composite(**items, progress=metadata))
    if not written:
      raise RuntimeError(f"Orbax left out the checkpoint of step {step}, of {self._manager.all_steps()}")
    self._last = step

  def _replace_progress(self, step: int, tree: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Saves a step again without its arrays: a crash leaves what was said before, or what is said now."""
    before = self._read_metadata(step)
    if isinstance(before, Exception):
      raise before
    leaves = {checksums.name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for name, value in (before.checksums or {}).items():
      if leaves[name].ndim and value != said["checksums"][name]:
        raise ValueError(f"step {step} is saved already, with other values of {name}")
    scalars = {name: leaf.item() for name, leaf in leaves.items() if not leaf.ndim}
    said = {**said, "checksums": before.checksums, "scalars": scalars}
    with self._writing(step):
      path = self._directory / str(step) / "progress" / _PROGRESS_FILE
      files.write_atomic(path, json.dumps({**said, _CHECKSUM: _checksum(said)}))

  @contextlib.contextmanager
  def _writing(self, step: int | None) -> Iterator[None]:
    """Whatever the libraries underneath raise when a disk is full becomes a sentence."""
    try:
      yield
    except Exception as error:
      if jax.process_count() > 1:
        raise  # another process may be gone: see processes.abort_if_peer_lost
      if not isinstance(self._directory, pathlib.Path):
        raise  # a bucket has room, and may answer at the next start
      full = os.strerror(errno.ENOSPC)
      reason = full if full in str(error) else files.first_line(error)
      with contextlib.suppress(OSError):  # it may be gone
        reason += f"; {shutil.disk_usage(self._directory.parent).free / 1e6:,.1f} MB are free there"
      raise InputError(
        f"The checkpoint of step {step} could not be written in {self._directory.parent} ({reason}): make room and run "
        "the same command again, which goes on from the checkpoint before."
      ) from error

  def _read(self, step: int, name: str, args: Any) -> Any:
    """A part of a checkpoint. The manager would wait for the other processes, of which one may have failed to read."""
    return self._handlers[name].restore(epath.Path(self._directory) / str(step) / name, args=args)

  def _read_metadata(self, step: int) -> Metadata | Exception:
    try:
      return parse_metadata(self._read(step, "progress", ocp.args.JsonRestore()), step)
    except Exception as error:
      return error

  def _set_aside(self, step: int, error: str, used: int) -> None:
    if jax.process_index() == 0:
      aside = self._unreadable
      warnings.warn(
        f"The checkpoint of step {step} cannot be read ({error}); going on from step {used}. It is now in {aside}.",
        stacklevel=3,
      )
      aside.mkdir(exist_ok=True)
      taken = {path.name for path in aside.iterdir()} if aside.exists() else set()  # in a bucket it is not there yet
      names = (f"{step}" if not number else f"{step}_{number}" for number in range(len(taken) + 1))
      buckets.move(self._directory / str(step), aside / next(name for name in names if name not in taken))
    processes.allgather_text("")  # nobody looks before the directory is gone
    self._manager.reload()


def _with_scalars(tree: Any, scalars: Mapping[str, int | float]) -> Any:
  """The arrays with these scalars, by path, in place of their own."""

  def placed(path: Any, leaf: jax.Array) -> jax.Array:
    name = checksums.name(path)
    if name not in scalars:
      return leaf
    value = np.asarray(scalars[name], leaf.dtype)
    return jax.make_array_from_callback((), leaf.sharding, lambda _: value)

  return jax.tree_util.tree_map_with_path(placed, tree)


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
  """Keeps the latest `count` checkpoints and the one of `best_step`."""

  def __init__(self, count: int):
    self.count = count
    self.best_step: int | None = None

  def should_preserve(self, checkpoints, *, context):
    latest = {info.step for info in checkpoints[-self.count :]}
    return [info.step in latest or info.step == self.best_step for info in checkpoints]
