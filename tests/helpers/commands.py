"""The commands, as a user runs them, but each in the fork of a process that has imported what they need.

Importing takes a command one to four seconds of a core, more than most of them work for a test. How a process starts
from nothing is tested where that matters: tests/test_machine.py, tests/test_packaging.py, tests/test_faults.py.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO
from unittest import mock

from tests.helpers import compiling

ROOT = pathlib.Path(__file__).parents[2]
_TIMEOUT = 600  # seconds
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.helpers.preloaded"])


def command(*arguments, cwd=ROOT) -> tuple[int, str, str]:
  """Runs `python -m` with these arguments; returns exit code, stdout, stderr."""
  with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiling.FLAGS}
    running = Forked([sys.executable, "-m", *map(str, arguments)], {**os.environ, **flags}, out, err, cwd)
    try:
      code = running.wait(_TIMEOUT)
    finally:
      running.kill()
    return code, *(file.seek(0) or file.read() for file in (out, err))


class Forked:
  """What `subprocess.Popen` is, as far as the tests need it, for `[python, "-m", module, *arguments]`."""

  def __init__(
    self, command: Sequence[str], env: Mapping[str, str], stdout: IO, stderr: IO | int = subprocess.STDOUT, cwd=ROOT
  ):
    environment = {**env, "PYTHONPATH": str(ROOT)}
    with mock.patch.dict(os.environ, environment):
      multiprocessing.forkserver.ensure_running()
    outputs = [stdout.fileno(), stdout.fileno() if isinstance(stderr, int) else stderr.fileno()]
    outputs = [multiprocessing.reduction.DupFd(output) for output in outputs]
    self._process = _forks.Process(target=_run, args=(list(command), environment, outputs, str(cwd)))
    self._process.start()

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
      os.kill(self._process.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)


def _run(command: list[str], environment: dict[str, str], outputs: list, cwd: str) -> None:
  for descriptor, output in zip((1, 2), outputs, strict=True):
    os.dup2(output.detach(), descriptor)
  os.environ.clear()
  os.environ.update(environment)
  os.chdir(cwd)
  sys.path.insert(0, cwd)
  sys.orig_argv = command
  _, _, module, *sys.argv[1:] = command
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  finally:
    atexit._run_exitfuncs()
