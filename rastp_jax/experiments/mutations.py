"""Damage to a workdir, from a seed, and what resuming makes of it: for `faults.py` and the tests."""

import contextlib
import pathlib
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rastp_jax.errors import InputError
from rastp_jax.training.plan import SavedProgress
from rastp_jax.training.setup import Setup
from rastp_jax.training.workdir import Workdir

KINDS = ("flip", "truncate", "delete", "swap", "rename")
# What may come of one: the latest state; an earlier one, with a warning; no state, in one sentence.
OUTCOMES = ("latest", "earlier", "sentence")

State = tuple[Mapping[str, Any], SavedProgress]


def saved_states(setup: Setup, workdir: pathlib.Path) -> dict[int, State]:
  """Every checkpoint of a whole workdir by its step, the arrays on the host."""
  states = {}
  with _copy(workdir) as copy:
    while True:
      restored = _restore(setup, copy)
      if restored is None:
        return states
      step = restored[1].step
      states[step] = restored
      shutil.rmtree(_checkpoints(copy) / str(step))


def mutate(workdir: pathlib.Path, seed: int) -> str:
  """Damages one place of a workdir, mostly in the latest checkpoint; returns what was done to what."""
  draw = random.Random(seed)
  checkpoints = _checkpoints(workdir)
  latest = checkpoints / str(max(int(path.name) for path in checkpoints.iterdir()))
  inside = draw.choice((latest, latest, latest, checkpoints, workdir))
  entries = sorted(path for path in inside.rglob("*") if path.name != "lock")
  files = [path for path in entries if path.is_file()]
  kind = draw.choice(KINDS)
  # Directories can be deleted, swapped and renamed like files.
  path = draw.choice(files if kind in ("flip", "truncate") else entries)
  said = f"{kind} {path.relative_to(workdir)}"
  if kind == "flip":
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 4, 64)) if content else 0):
      content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
  elif kind == "truncate":
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) + 1)])
  elif kind == "delete":
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  elif kind == "swap":
    alike = [one for one in entries if one.is_dir() == path.is_dir() and not _nested(one, path)]
    other = draw.choice(alike or [path])
    said += f" with {other.relative_to(workdir)}"
    if other != path:
      aside = workdir / ".swapped"
      path.rename(aside)
      other.rename(path)
      aside.rename(other)
  else:
    name = draw.choice([*(one.name for one in entries), f"{path.name}x", "7", "1000", "tmp"])
    said += f" to {name}"
    if not path.with_name(name).exists():
      path.rename(path.with_name(name))
  return said


def outcome(setup: Setup, workdir: pathlib.Path, states: Mapping[int, State]) -> str:
  """What resuming in a damaged workdir comes to, one of `OUTCOMES`.

  Raises:
    AssertionError: it restored something that was never saved.
    Exception: whatever else escaped instead of a sentence.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      restored = _restore(setup, workdir)
    except InputError:
      return "sentence"
  if restored is None:
    raise AssertionError("a run with checkpoints would have started over")
  arrays, progress = restored
  expected, as_saved = states[progress.step]
  assert progress == as_saved, (progress, as_saved)
  jax.tree.map(np.testing.assert_array_equal, arrays, expected)
  return "latest" if progress.step == max(states) else "earlier"


def damage(setup: Setup, workdir: pathlib.Path, states: Mapping[int, State], seed: int) -> tuple[str, str]:
  """Damages a copy of a workdir; returns what was done, and `outcome`."""
  with _copy(workdir) as copy:
    said = mutate(copy, seed)
    try:
      return said, outcome(setup, copy, states)
    except Exception as error:
      raise AssertionError(f"seed {seed}, {said}") from error


def _restore(setup: Setup, workdir: pathlib.Path) -> State | None:
  """As training does before its first step."""
  with Workdir(workdir).claim(setup.config, setup.lengths, setup.fingerprints) as checkpoints:
    restored = checkpoints.restore(setup.saved_shapes)
  return None if restored is None else (jax.tree.map(np.asarray, restored[0]), restored[1])


def _checkpoints(workdir: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(Workdir(workdir).checkpoints)


def _nested(one: pathlib.Path, other: pathlib.Path) -> bool:
  return one.is_relative_to(other) or other.is_relative_to(one)


@contextlib.contextmanager
def _copy(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
  copy = workdir.with_name(f"{workdir.name}.copy")
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(workdir, copy)
  try:
    yield copy
  finally:
    shutil.rmtree(copy, ignore_errors=True)
