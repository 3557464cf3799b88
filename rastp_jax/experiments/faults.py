"""Stops training at random moments, starts it again, and compares with an uninterrupted run.

    python -m rastp_jax.experiment faults --runs=20 --output=docs/results/kill_resume.json
    python -m rastp_jax.experiment faults --runs=10 --signal=TERM --output=docs/results/stop_resume.json

Every run gets a signal several times, each time after a random delay from its first new checkpoint on, so that some
kills interrupt a save. In the end every loss must be equal bit for bit, and the final evaluation too. Some runs have
two processes, of which one or both are hit; the other one must then end by itself. After SIGTERM every process must
save and exit with the code that asks for a restart.
"""

import json
import pathlib
import random
import signal
import subprocess
import tempfile
import time

from absl import flags

from rastp_jax.errors import EXIT_RESUME
from rastp_jax.experiments import results
from rastp_jax.experiments.tiny_run import log, losses, start

_RUNS = flags.DEFINE_integer("runs", 20, "How many runs to stop.")
_KILLS = flags.DEFINE_integer("kills", 2, "How often each of them is hit.")
_SIGNAL = flags.DEFINE_enum("signal", "KILL", ("KILL", "TERM"), "The signal: SIGKILL or SIGTERM.")
_PAIRS = flags.DEFINE_integer("pairs", 6, "How many of the runs have two processes.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random delays.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the counts. Default: print only.")

STEPS = 120
ARGUMENTS = (
  f"--set=train__length={STEPS} steps",
  "--set=train__log_every=1 steps",
  "--set=train__checkpoint_every=3 steps",
  "--set=train__eval_every=40 steps",
)
WAIT = 1800  # seconds, for any start on a busy machine


def main() -> None:
  counts = {"runs": 0, "processes_hit": 0, "restarts": 0, "hit_while_saving": 0, "losses_compared": 0}
  slowest = 0.0
  seeds = []
  with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    references = {number: _uninterrupted(directory, number) for number in ((1, 2) if _PAIRS.value else (1,))}
    for index in range(_RUNS.value):
      processes = 2 if index >= _RUNS.value - _PAIRS.value else 1
      seeds.append(_SEED.value * 1000 + index)
      workdir = directory / f"run{index}"
      hits, saving, seconds = _run_and_hit(workdir, directory / "cache", processes, random.Random(seeds[-1]))
      slowest = max(slowest, seconds)
      counts["runs"] += 1
      counts["processes_hit"] += hits
      counts["hit_while_saving"] += saving
      counts["restarts"] += _KILLS.value
      counts["losses_compared"] += _compare(workdir, references[processes])
      print(f"run {index} ({processes} processes): equal; so far {counts}, slowest exit {slowest:.1f} s", flush=True)
  if _OUTPUT.value:
    setting = {
      "signal": _SIGNAL.value,
      "steps_per_run": STEPS,
      "runs_of_two_processes": _PAIRS.value,
      "signals_per_run": _KILLS.value,
    }
    outcome = {**counts, "all_equal": True, "slowest_exit_seconds": round(slowest, 2), "seeds": seeds}
    results.write_result(_OUTPUT.value, {**setting, **outcome})


def _uninterrupted(directory: pathlib.Path, processes: int) -> pathlib.Path:
  workdir = directory / f"uninterrupted{processes}"
  running = start(workdir, directory / "cache", processes=processes, arguments=ARGUMENTS)
  _wait(running, workdir)
  return workdir


def _wait(running: list[subprocess.Popen], workdir: pathlib.Path) -> None:
  """Fails unless all processes end with 0; leaves none behind."""
  try:
    assert [process.wait(WAIT) for process in running] == [0] * len(running), log(workdir).read_text()
  finally:
    for process in running:
      process.kill()


def _run_and_hit(workdir: pathlib.Path, cache: pathlib.Path, processes: int, moments: random.Random):
  """Returns how many processes were hit, how many left a half-written checkpoint, and the slowest exit in s."""
  hits, saving, slowest = 0, 0, 0.0
  number = signal.Signals[f"SIG{_SIGNAL.value}"]
  for _ in range(_KILLS.value):
    running = start(workdir, cache, processes=processes, arguments=ARGUMENTS)
    before = _newest(workdir)
    deadline = time.monotonic() + WAIT
    while _newest(workdir) <= before and any(process.poll() is None for process in running):
      assert time.monotonic() < deadline
      time.sleep(0.002)
    time.sleep(moments.uniform(0.0, 0.6))
    victims = running if moments.random() < 0.5 else [moments.choice(running)]
    finished = any(process.poll() is not None for process in running)
    begin = time.monotonic()
    for victim in victims:
      hits += victim.poll() is None
      victim.send_signal(number)
    if number == signal.SIGKILL:
      saving += any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
    codes = [process.wait(WAIT) for process in running]  # a process that lost the other one ends by itself
    slowest = max(slowest, time.monotonic() - begin)
    assert number == signal.SIGKILL or finished or set(codes) <= {EXIT_RESUME, 0}, (codes, log(workdir).read_text())
  running = start(workdir, cache, processes=processes, arguments=ARGUMENTS)
  _wait(running, workdir)
  return hits, saving, slowest


def _newest(workdir: pathlib.Path) -> int:
  return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def _compare(workdir: pathlib.Path, reference: pathlib.Path) -> int:
  """Fails unless all losses and the final metrics are equal; returns how many losses there are."""
  ours, theirs = losses(workdir), losses(reference)
  assert list(ours) == list(range(1, STEPS + 1)), sorted(ours)
  assert ours == theirs, {step: (ours[step], theirs[step]) for step in ours if ours[step] != theirs[step]}
  final, expected = (json.loads((run / "final.json").read_text()) for run in (workdir, reference))
  for metrics in (final, expected):
    del metrics["users_per_second"]  # time is not reproducible
  assert final == expected, (final, expected)
  return len(ours)
