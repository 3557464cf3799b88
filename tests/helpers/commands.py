"""The commands, as a user runs them, but each in the fork of a process that has imported what they need.

Importing takes a command one to four seconds of a core, more than most of them work for a test. Environment variables
that libraries read while they are imported are those of the first command. A process that starts from nothing and ends
by itself is what `started` runs.
"""

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any
from unittest import mock

import numpy as np

from tests.helpers import compiling

ROOT = pathlib.Path(__file__).parents[2]
_TIMEOUT = 600  # seconds
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.helpers.preloaded"])


def command(*arguments, cwd=ROOT) -> tuple[int, str, str]:
  """Runs `python -m` with these arguments; returns exit code, stdout, stderr."""
  return _run(Forked, arguments, cwd)


def started(*arguments, cwd=ROOT) -> tuple[int, str, str]:
  """`command` in a process of its own from the first import to the end of the interpreter."""
  return _run(subprocess.Popen, arguments, cwd)


def _run(popen: Callable[..., Any], arguments: Sequence, cwd) -> tuple[int, str, str]:
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiling.FLAGS}
  with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
    said = lambda: [file.seek(0) or file.read() for file in (out, err)]
    running = popen([sys.executable, "-m", *map(str, arguments)], env=environment, stdout=out, stderr=err, cwd=cwd)
    try:
      return running.wait(_TIMEOUT), *said()
    except subprocess.TimeoutExpired as late:
      raise AssertionError(f"{arguments} still ran after {_TIMEOUT} seconds and had said {said()}") from late
    finally:
      running.kill()


@functools.cache
def _start_server() -> None:
  flags = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiling.FLAGS}
  with mock.patch.dict(os.environ, flags):
    multiprocessing.forkserver.ensure_running()


class Forked:
  """What `subprocess.Popen` is, as far as the tests need it, for `[python, "-m", module, *arguments]`."""

  def __init__(
    self, command: Sequence[str], env: Mapping[str, str], stdout: IO, stderr: IO | int = subprocess.STDOUT, cwd=ROOT
  ):
    _start_server()
    outputs = [stdout.fileno(), stdout.fileno() if isinstance(stderr, int) else stderr.fileno()]
    outputs = [multiprocessing.reduction.DupFd(output) for output in outputs]
    self._process = _forks.Process(target=_work, args=(list(command), dict(env), outputs, str(cwd)))
    self._process.start()
    atexit.register(self.kill)  # else a test that forgets it would keep the tests from ending

  def poll(self) -> int | None:
    return self._process.exitcode

  def wait(self, timeout: float) -> int:
    self._process.join(timeout)
    code = self.poll()
    if code is None:
      raise subprocess.TimeoutExpired("the fork", timeout)
    return code

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(self._process.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)


def _work(command: list[str], environment: dict[str, str], outputs: list, cwd: str) -> None:
  """What a fork does in place of its server."""
  assert "rastp_jax.training.trainer" in sys.modules, "tests/helpers/preloaded.py was not imported"
  for descriptor, output in zip((1, 2), outputs, strict=True):
    os.dup2(output.detach(), descriptor)
  os.environ.clear()
  os.environ.update(environment)
  os.chdir(cwd)
  np.random.seed()  # else all forks would draw the same
  sys.path.insert(0, cwd)
  sys.orig_argv = command
  _, _, module, *sys.argv[1:] = command
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  finally:
    threading._shutdown()  # in the order of an interpreter that ends
    atexit._run_exitfuncs()
