"""Commands of the program that an experiment runs, one after the other or several side by side."""

import concurrent.futures
import contextlib
import dataclasses
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from rastp_jax.errors import InputError
from rastp_jax.runtime import cli

AT_ONCE = "Trainings that run side by side: for a GPU that one small model leaves idle, under NVIDIA's MPS."  # a flag


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
  """
  running: list[subprocess.Popen] = []
  with _ending_with_us(running):
    _run(command, running, titled=False)


def run_all(chains: Sequence[Sequence[RunCommand]], at_once: int = 1) -> None:
  """Runs what is not finished: each chain's commands one after the other, `at_once` chains side by side.

  Side by side, each line of output begins with its command's title. After a failure no command is begun, and those
  that run come to their end.

  Raises:
    InputError: as `run_command`, of the first command that failed.
  """
  running: list[subprocess.Popen] = []
  failed: list[RunCommand] = []

  def run(chain: Sequence[RunCommand]) -> None:
    for command in chain:
      if failed:
        return
      print(f"== {command.progress}", flush=True)
      try:
        if not command.finished:
          _run(command, running, titled=at_once > 1)
      except InputError:
        failed.append(command)
        raise

  with _ending_with_us(running), concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    for future in [pool.submit(run, chain) for chain in chains]:
      future.result()


def _run(command: RunCommand, running: list[subprocess.Popen], *, titled: bool) -> None:
  """Runs a command, which is among `running` meanwhile; with its title before each line, or as it comes."""
  arguments, pipe = [sys.executable, "-m", *command.arguments], subprocess.PIPE
  stdout, stderr = (pipe, subprocess.STDOUT) if titled else (None, pipe)
  with subprocess.Popen(arguments, stdout=stdout, stderr=stderr, text=True) as process:
    running.append(process)
    last = ""
    for line in process.stdout or process.stderr or ():
      if titled:
        print(f"{command.title}: {line}", end="", flush=True)
      else:
        sys.stderr.write(line)
      last = line.strip() or last
  running.remove(process)
  if process.returncode < 0:
    raise InputError(f"{command.title} was stopped by {signal.Signals(-process.returncode).name}: {_go_on()}.")
  if process.returncode:
    reason = last.removeprefix("error: ").rstrip(".")
    way = f"put that right, then {_go_on()}"
    raise InputError(f"{command.title} failed with exit code {process.returncode} ({reason}): {way}.")


@contextlib.contextmanager
def _ending_with_us(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
  """Hands SIGTERM on, or the processes would outlive this one. Ctrl-C reaches them by the terminal."""

  def end(*_) -> None:
    for process in processes:
      process.terminate()

  before = signal.signal(signal.SIGTERM, end)
  try:
    yield
  except KeyboardInterrupt:
    for process in list(processes):
      process.wait()
    raise InputError(f"Interrupted: {_go_on()}.") from None
  finally:
    signal.signal(signal.SIGTERM, before)


def _go_on() -> str:
  return f"go on where it stopped by `{cli.command_line()}`"
