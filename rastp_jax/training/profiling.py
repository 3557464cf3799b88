"""What people look at besides the log lines: which tokens a reduction keeps, and a trace of some steps."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from rastp_jax.batches.batches import evaluation_batches, what_is_read, with_codes
from rastp_jax.errors import InputError
from rastp_jax.reduction.survival import SURVIVED, dropped_at
from rastp_jax.runtime import buckets, terminal
from rastp_jax.training.setup import Setup

_USERS = 256  # enough for a histogram, few enough to cost nothing beside a validation


def make_kept_positions(setup: Setup) -> Callable[[Any], np.ndarray] | None:
  """A function from parameters (a full copy on every device) to the tokens that survive in some validation users' rows.

  It returns their positions, counted back from each row's newest real token, which is 0. A token that was merged into
  another one survives. None where the longest histories are not reduced.
  """
  *_, longest = evaluation_batches(
    setup.histories, setup.config.data, "validation", lengths=setup.lengths, batch_size=_USERS, users=_USERS
  )
  table = what_is_read(setup.semantic_ids, setup.config.model)
  history = with_codes(longest, table)["history"][longest["user"] >= 0]

  def encode(params, history):
    return nnx.merge(setup.graph, params).encode_stages(history)[1]

  if not jax.eval_shape(encode, setup.shapes.params, history):
    return None

  @jax.jit
  def survival(params, history):
    stages = encode(params, history)
    real = stages[0].before.mask
    return dropped_at(real, stages) == SURVIVED, real.sum(axis=1)

  def kept_positions(params: Any) -> np.ndarray:
    survived, lengths = jax.device_get(survival(params, history))
    return (lengths[:, None] - 1 - np.arange(survived.shape[1]))[survived]

  return kept_positions


class Trace:
  """Leaves a jax.profiler trace of the steps `first` to `last` (counted from 1) in a directory."""

  def __init__(self, directory: pathlib.Path, steps: tuple[int, int] | None):
    self._directory, self._steps, self._running = directory, steps, False

  def at(self, step: int, state: Any) -> None:
    """Starts or stops between two steps: `step` are done, and `state` is theirs."""
    if self._steps is None:
      return
    first, last = self._steps
    if not self._running and first - 1 <= step < last:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self._directory))
      self._running = True
    elif self._running and step >= last:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    if self._running:
      jax.profiler.stop_trace()
      self._steps, self._running = None, False
      buckets.upload(self._directory)
      shown = buckets.shown(self._directory)
      terminal.say(f"A trace is in {shown}: look at it with TensorBoard's profile plugin or xprof.")


def parse_steps(text: str | None) -> tuple[int, int] | None:
  """Reads '100:110', the first and the last step of a trace.

  Raises:
    InputError: it is something else.
  """
  if text is None:
    return None
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise InputError(f"--profile_steps={text} cannot be read: expected FIRST:LAST, two step numbers like 100:110.")
  return int(match[1]), int(match[2])
