"""Commands that experiments run: one after the other, side by side, and what is said when one fails or is stopped."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rastp_jax.errors import EXIT_RESUME, InputError
from rastp_jax.experiments.commands import RunCommand, run_all, run_command

ROOT = pathlib.Path(__file__).parent.parent
MEET = """\
import pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
until = time.monotonic() + 60
while not other.exists():
  if time.monotonic() > until:
    sys.exit("error: nobody came")
  time.sleep(0.05)
print("met")
"""


@pytest.fixture
def meet(tmp_path, monkeypatch):
  """`python -m meet A B` writes the file A and waits for the file B."""
  (tmp_path / "meet.py").write_text(MEET)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  return lambda title, mine, other: RunCommand(title, ("meet", str(tmp_path / mine), str(tmp_path / other)))


def test_a_failing_process_is_quoted_with_the_way_to_go_on(capfd):
  with pytest.raises(
    InputError, match=r"Evaluating x failed with exit code 2 \(--workdir is missing.*put that right, then go on"
  ):
    run_command(RunCommand("Evaluating x", ("rastp_jax.evaluate",)))
  assert "error: --workdir is missing" in capfd.readouterr().err


def test_chains_run_side_by_side_and_each_in_order(meet, capsys):
  """The first commands of both chains wait for each other; the second of a chain needs what its first has written."""
  first = [meet("one", "a", "b"), meet("then", "c", "a")]
  run_all([first, [meet("other", "b", "a")]], at_once=2)
  said = capsys.readouterr().out
  assert all(f"{title}: met" in said for title in ("one", "then", "other"))
  assert said.index("one: met") < said.index("== then")


@pytest.mark.parametrize("at_once", [1, 2])
def test_after_a_failure_nothing_is_begun(meet, capsys, at_once):
  failing, never = RunCommand("Reading", ("json.tool", "no such file")), meet("never", "a", "a")
  with pytest.raises(InputError, match=r"Reading failed with exit code .*put that right, then go on"):
    run_all([[failing, never]], at_once)
  assert "never" not in capsys.readouterr().out


def test_what_is_finished_is_only_named(meet, capsys):
  done = RunCommand("Training x", ("no.such.module",), finished=True)
  run_all([[done, meet("next", "a", "a")]], at_once=2)
  said = capsys.readouterr().out
  assert "== Training x, done before" in said and "next: met" in said


CHAIN = """\
import signal
from rastp_jax.experiments.commands import RunCommand, run_all
from rastp_jax.runtime import cli

def main():
  signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, also in the background of a script
  commands = {commands!r}
  run_all([[RunCommand(title, arguments) for title, arguments in commands]])

cli.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_chains_stop_what_runs_begin_nothing_and_say_how_to_go_on(meet, tmp_path, number):
  """SIGTERM to the process alone, Ctrl-C to its whole group, as a terminal has it; 75 as training has it."""
  commands = [(each.title, each.arguments) for each in (meet("waiting", "here", "never"), meet("never", "x", "x"))]
  program, pipe = CHAIN.format(commands=commands), subprocess.PIPE
  with subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=ROOT,
    stdout=pipe,
    stderr=pipe,
    text=True,
    start_new_session=True,
    env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
  ) as process:
    try:
      until = time.monotonic() + 60
      while not (tmp_path / "here").exists() and time.monotonic() < until:
        time.sleep(0.05)
      (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
      out, said = process.communicate(timeout=60)
    finally:
      process.kill()
  assert process.returncode == EXIT_RESUME, said
  assert "\nwaiting was stopped: go on where it stopped by `python -c" in said
  assert "== waiting" in out and "== never" not in out and not (tmp_path / "x").exists()


WRITE = """\
import os, signal, time
from rastp_jax.runtime import cli, files

def main():
  signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, also in the background of a script
  os.chdir({place!r})
  with files.open_atomic("recs.jsonl"), files.new_directory("exported"):
    print("writing", flush=True)
    time.sleep(60)

cli.run(main)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)])
def test_a_command_that_is_stopped_leaves_nothing_half_written(tmp_path, number, code):
  command, pipe = [sys.executable, "-c", WRITE.format(place=str(tmp_path))], subprocess.PIPE
  with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
    try:
      assert process.stdout is not None and process.stdout.readline() == "writing\n"
      assert len(list(tmp_path.iterdir())) == 2
      process.send_signal(number)
      _, said = process.communicate(timeout=60)
    finally:
      process.kill()
  assert (process.returncode, said.strip()) == (code, f"{number.name}: stopped.")
  assert not list(tmp_path.iterdir())
