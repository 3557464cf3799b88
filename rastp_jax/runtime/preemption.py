"""Requests to stop: SIGINT, SIGTERM and preemption.

Commands call `listen` before their other imports, so this file imports little.
"""

import atexit
import contextlib
import os
import signal
from collections.abc import Iterator

from rastp_jax.errors import EXIT_RESUME

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen() -> None:
  """From now on, SIGTERM and SIGINT end this process at once with `EXIT_RESUME`, except inside of `StopRequests`.

  For a command that has nothing to save outside of it. Does nothing outside the main thread.
  """
  with contextlib.suppress(ValueError):
    for number in _SIGNALS:
      signal.signal(number, _exit)
    atexit.register(_ignore)  # Python would take our handlers away before the process ends


def _exit(number: int, _) -> None:
  os.write(2, f"\n{signal.Signals(number).name}: stopped; the same command goes on.\n".encode())
  os._exit(EXIT_RESUME)


def _ignore() -> None:
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)


class Interrupted(BaseException):
  """Raised by a signal inside `StopRequests.interrupting`."""


class StopRequests:
  """While this context is open, SIGTERM and SIGINT request a stop instead of ending the process.

  However often they come, what is being saved is saved; SIGQUIT (Ctrl-\\) or SIGKILL end the process at once.

  With several processes, a signal to any of them stops all: JAX's preemption service, which listens to SIGTERM in each
  of them, makes them agree on the step to stop after.
  """

  def __enter__(self) -> "StopRequests":
    import jax  # see above

    self._received: int | None = None
    self._interrupts = False
    self._alone = jax.process_count() == 1
    self._before = {}
    with contextlib.suppress(ValueError):  # handlers can only be set in the main thread
      for number in _SIGNALS if self._alone else (signal.SIGINT,):
        self._before[number] = signal.signal(number, self._take)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def reason(self, steps: range) -> str:
    """Why to stop after these steps, or "". Every process must ask after every dispatch, about the steps in it."""
    if self._alone:
      return f"stopped by {signal.Signals(self._received).name}" if self._received else ""
    from jax.experimental import multihost_utils

    # The processes agree on a step, which is in the same dispatch for all of them.
    reached = any(multihost_utils.reached_preemption_sync_point(step) for step in steps)
    return "stopped by a signal to one of its processes" if reached else ""

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """Inside, a signal raises `Interrupted` at once, as does one that has come: for long work that can be repeated.

    Without effect with several processes: they could no longer go on together.
    """
    try:
      self._interrupts = self._alone
      if self._alone and self._received is not None:
        raise Interrupted
      yield
    finally:
      self._interrupts = False

  def _take(self, number: int, _) -> None:
    # Not by `print`: the signal may have come in the middle of one.
    if self._received is not None:
      os.write(2, b"\nstill saving; Ctrl-\\ ends it at once.\n")
      return
    self._received = number
    os.write(2, f"\n{signal.Signals(number).name}: saving, then stopping ...\n".encode())
    if not self._alone:
      os.kill(os.getpid(), signal.SIGTERM)
    if self._interrupts:
      self._interrupts = False  # once: what it raises must not be interrupted
      raise Interrupted
