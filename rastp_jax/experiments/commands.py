"""Commands of the program that an experiment runs, one after the other or several side by side."""

import concurrent.futures
import dataclasses
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from rastp_jax.errors import EXIT_RESUME, InputError, StoppedError
from rastp_jax.runtime import cli

AT_ONCE = "Trainings that run side by side: for a GPU that one small model leaves idle, under NVIDIA's MPS."  # a flag
# How commands end that SIGTERM or Ctrl-C has stopped: training, others, and what was still loading.
_STOPPED = (EXIT_RESUME, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class RunCommand:
  """One command, run in a process of its own.

  Attributes:
    title: what it does.
    arguments: of `python -m`.
    finished: whether its result exists already.
  """

  title: str
  arguments: tuple[str, ...]
  finished: bool = False

  @property
  def text(self) -> str:
    return shlex.join(["python", "-m", *self.arguments])

  @property
  def progress(self) -> str:
    """What to print before it runs, or instead."""
    return self.title + (", done before" if self.finished else f"\n   {self.text}")


def run_command(command: RunCommand) -> None:
  """Runs a command, whose output goes where ours goes.

  Raises:
    InputError: it failed; the sentence has the last line that the process wrote, and how to go on.
    StoppedError: SIGTERM or Ctrl-C has stopped it or us.
  """
  with _Processes() as processes:
    processes.run(command, titled=False)


def run_all(chains: Sequence[Sequence[RunCommand]], at_once: int = 1) -> None:
  """Runs what is not finished: each chain's commands one after the other, `at_once` chains side by side.

  Side by side, each line of output begins with its command's title. After a failure no command is begun, and those
  that run come to their end.

  Raises:
    InputError, StoppedError: as `run_command`, of the first command that failed or was stopped.
  """
  ended_early: list[RunCommand] = []

  def run(chain: Sequence[RunCommand]) -> None:
    for command in chain:
      if ended_early:
        return
      try:
        print(f"== {command.progress}", flush=True)
        if not command.finished:
          processes.run(command, titled=at_once > 1)
      except (InputError, StoppedError):
        ended_early.append(command)
        raise

  with _Processes() as processes, concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    for future in [pool.submit(run, chain) for chain in chains]:
      future.result()


class _Processes:
  """The processes that run. While this context is open, SIGTERM is handed on to them, and no more are begun after it.

  Nor are they after Ctrl-C, which reaches them by the terminal.
  """

  def __init__(self):
    self._running: list[subprocess.Popen] = []
    self._stopped = False

  def __enter__(self) -> "_Processes":
    self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in self._before.items():
      if handler != signal.SIG_IGN:  # as in the background of a script
        signal.signal(number, self._stop)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _stop(self, number: int, _) -> None:
    self._stopped = True
    if number == signal.SIGTERM:
      for process in list(self._running):
        process.terminate()

  def run(self, command: RunCommand, *, titled: bool) -> None:
    """Runs a command to its end; its output with its title before each line, or as it comes."""
    arguments, pipe = [sys.executable, "-m", *command.arguments], subprocess.PIPE
    stdout, stderr = (pipe, subprocess.STDOUT) if titled else (None, pipe)
    if self._stopped:
      raise StoppedError(f"Stopped before {command.title}: {_go_on()}.")
    with subprocess.Popen(arguments, stdout=stdout, stderr=stderr, text=True) as process:
      self._running.append(process)
      if self._stopped:  # in between
        process.terminate()
      last = ""
      for line in process.stdout or process.stderr or ():
        if titled:
          print(f"{command.title}: {line}", end="", flush=True)
        else:
          sys.stderr.write(line)
        last = line.strip() or last
    self._running.remove(process)
    code = process.returncode
    if code in _STOPPED:
      raise StoppedError(f"{command.title} was stopped: {_go_on()}.")
    if code < 0:
      raise InputError(f"{command.title} was ended by {signal.Signals(-code).name}: {_go_on()}.")
    if code:
      reason = last.removeprefix("error: ").rstrip(".")
      way = f"put that right, then {_go_on()}"
      raise InputError(f"{command.title} failed with exit code {code} ({reason}): {way}.")


def _go_on() -> str:
  return f"go on where it stopped by `{cli.command_line()}`"
