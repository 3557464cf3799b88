"""Tiny training runs on one device, and what is read of them."""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from rastp_jax.batches.batches import Batch
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.runtime import sharding
from rastp_jax.training import step, trainer
from rastp_jax.training.setup import Setup, make_setup
from rastp_jax.training.workdir import Restored, Workdir


def one_device() -> jax.sharding.Mesh:
  return sharding.make_mesh(devices=jax.devices()[:1])


def setup_of(*, mesh=None, data_seed=0, validates=False, **changes) -> Setup:
  """The setup of a tiny run, the same one for the same arguments, so that it compiles once; changes as for
  `make_config`.
  """
  return _setup_of(jax.jit, mesh or one_device(), data_seed, validates, tuple(sorted(changes.items())))


@functools.cache
def _setup_of(jit, mesh, data_seed, validates, changes) -> Setup:
  """With `jit` an argument: a test that compiles in its own way gets setups of its own."""
  del jit
  return make_setup(make_config(**dict(changes)), *make_data(data_seed), mesh=mesh, validates=validates)


def run(workdir, evaluate=None, *, batches=None, profile_steps=None, **changes) -> trainer.TrainResult:
  """A tiny run.

  Args:
    workdir: of the run.
    evaluate: see `trainer.train`.
    batches: (the setup's stacked batches, the first one's number) -> the batches to train on instead.
    profile_steps: see `trainer.train`.
    **changes: of the setup.
  """
  setup = setup_of(validates=evaluate is not None, **changes)
  replaced = None if batches is None else lambda start: batches(setup.stacked_batches(start), start)
  return trainer.train(setup, Workdir(workdir), evaluate, batches=replaced, profile_steps=profile_steps)


def numbered(batches: Iterator[Batch], start: int) -> Iterator[tuple[int, Batch]]:
  """Stacked batches with the number of the first batch in each."""
  for batch in batches:
    yield start, batch
    start += len(batch["weight"])


class Died(Exception):
  pass


def die_at(number: int) -> Callable[[Iterator[Batch], int], Iterator[Batch]]:
  """Batches that end in `Died` when batch `number` is asked for."""

  def batches(upcoming: Iterator[Batch], start: int) -> Iterator[Batch]:
    for at, batch in numbered(upcoming, start):
      if at >= number:
        raise Died
      yield batch

  return batches


def logged(workdir: pathlib.Path, field: str = "loss") -> dict[int, float]:
  """step -> field, checking on the way that no step is logged twice and that they rise."""
  lines = [json.loads(line) for line in Workdir(workdir).log.read_text().splitlines()]
  steps = [line["step"] for line in lines]
  assert steps == sorted(set(steps))
  assert all({"step", "epoch", "loss", "samples_per_second", "learning_rate", "seconds"} <= set(line) for line in lines)
  return {line["step"]: line[field] for line in lines}


def saved_params(workdir: pathlib.Path) -> Restored:
  """The best checkpoint's parameters."""
  _, semantic_ids = make_data()
  _, target = step.abstract_model(Workdir(workdir).read_config(), semantic_ids, one_device())
  return Workdir(workdir).restore_params(target)


def newest(workdir: pathlib.Path) -> int:
  """The latest checkpoint's step; 0 without one."""
  names = (path.name for path in Workdir(workdir).checkpoints.glob("*"))
  return max((int(name) for name in names if name.isdigit()), default=0)


def assert_equal(left, right) -> None:
  jax.tree.map(np.testing.assert_array_equal, left, right)


def count_compilations(function: str) -> Callable[[], int]:
  """A counter of the programs XLA was asked for from now on under this name."""
  names = []
  event = "/jax/core/compile/backend_compile_duration"
  listener = lambda name, _, **details: names.append(details.get("fun_name")) if name == event else None  # noqa: E731
  jax.monitoring.register_event_duration_secs_listener(listener)
  return lambda: names.count(function)


def single_batches(setup: Setup, start: int) -> Iterator[Batch]:
  """A setup's batches from `start` on, one per dispatch."""
  for number in itertools.count(start):
    yield {name: value[None] for name, value in setup.batches[number].items()}
