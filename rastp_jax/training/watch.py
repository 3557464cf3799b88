"""What people look at besides the log lines: which places pruning keeps, and a trace of some steps."""

import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from rastp_jax.config import Config
from rastp_jax.data.batches import evaluation_batches
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.model import pruning
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.progress import say

_USERS = 256  # enough for a histogram, few enough to cost nothing beside a validation


def make_kept_places(
  graph: nnx.GraphDef, config: Config, histories: Histories, semantic_ids: SemanticIds
) -> Callable[[Any], np.ndarray] | None:
  """A function from parameters (a full copy on every device) to places kept in a few validation users' histories.

  Places are counted back from the newest real token, which is 0. None where the longest histories are not pruned.
  """
  *_, longest = evaluation_batches(histories, semantic_ids, config.data, "validation", batch_size=_USERS, users=_USERS)
  history = longest["history"][longest["user"] >= 0]
  per_item = history.shape[2] + config.model.separator
  if not pruning.budgets(config.pruning, history.shape[1] * per_item):
    return None
  lengths = (history[:, :, 0] >= 0).sum(1) * per_item

  @jax.jit
  def encode(params, history):
    tokens = nnx.merge(graph, params).encode(history)
    return tokens.positions, tokens.mask

  def kept_places(params: Any) -> np.ndarray:
    positions, mask = jax.device_get(encode(params, history))
    return (lengths[:, None] - 1 - positions)[mask]

  return kept_places


class Trace:
  """Leaves a jax.profiler trace of the steps `first` to `last` (counted from 1) in workdir/profile."""

  def __init__(self, workdir: str | os.PathLike, steps: tuple[int, int] | None):
    self._directory = pathlib.Path(workdir) / "profile"
    self._steps, self._running = steps, False

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
      say(f"A trace is in {self._directory}: look at it with TensorBoard's profile plugin or xprof.")


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
