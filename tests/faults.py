"""Kills training with SIGKILL at random moments, starts it again, and compares with a run that was left alone.

    PYTHONPATH=. python tests/faults.py --runs=20 --output=docs/results/kill_resume.json

Every run is killed several times, each time after a random delay from its first step or its first new checkpoint on,
so that some kills hit saving. It has to end with every loss equal bit for bit, and with an equal final evaluation; with
one process, and with two that are killed together or singly (the other one then has to end by itself).
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from tiny_run import log, losses, start

from rastp_jax import files

_RUNS = flags.DEFINE_integer("runs", 20, "How many runs to kill.")
_KILLS = flags.DEFINE_integer("kills", 2, "How often each.")
_PAIRS = flags.DEFINE_integer("pairs", 6, "How many of the runs have two processes.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the counts as JSON.")

STEPS = 120
ARGUMENTS = (
  f"--set=train__length={STEPS} steps",
  "--set=train__log_every=1 steps",
  "--set=train__checkpoint_every=3 steps",
  "--set=train__eval_every=40 steps",
)
WAIT = 1800  # seconds, for any start on a busy machine


def main(_) -> None:
  counts = {"runs": 0, "processes_killed": 0, "restarts": 0, "killed_while_saving": 0, "losses_compared": 0}
  seeds = []
  with tempfile.TemporaryDirectory() as place:
    place = pathlib.Path(place)
    references = {number: _left_alone(place, number) for number in ((1, 2) if _PAIRS.value else (1,))}
    for index in range(_RUNS.value):
      processes = 2 if index >= _RUNS.value - _PAIRS.value else 1
      seeds.append(_SEED.value * 1000 + index)
      workdir = place / f"run{index}"
      kills, saving = _run_and_kill(workdir, place / "cache", processes, random.Random(seeds[-1]))
      counts["runs"] += 1
      counts["processes_killed"] += kills
      counts["killed_while_saving"] += saving
      counts["restarts"] += _KILLS.value
      counts["losses_compared"] += _compare(workdir, references[processes])
      print(f"run {index} ({processes} processes): equal; so far {counts}", flush=True)
  if _OUTPUT.value:
    command = " ".join(["PYTHONPATH=. python", *sys.argv])
    setting = {"steps_a_run": STEPS, "runs_of_two_processes": _PAIRS.value, "kills_a_run": _KILLS.value}
    files.write_json(_OUTPUT.value, {"command": command, **setting, **counts, "all_equal": True, "seeds": seeds})


def _left_alone(place: pathlib.Path, processes: int) -> pathlib.Path:
  workdir = place / f"alone{processes}"
  running = start(workdir, place / "cache", processes=processes, arguments=ARGUMENTS)
  _wait(running, workdir)
  return workdir


def _wait(running: list[subprocess.Popen], workdir: pathlib.Path) -> None:
  """Fails unless all processes end with 0; leaves none behind."""
  try:
    assert [process.wait(WAIT) for process in running] == [0] * len(running), log(workdir).read_text()
  finally:
    for process in running:
      process.kill()


def _run_and_kill(workdir: pathlib.Path, cache: pathlib.Path, processes: int, moments: random.Random):
  """Returns how many processes were killed, and how many kills left a half-written checkpoint."""
  killed = saving = 0
  for _ in range(_KILLS.value):
    running = start(workdir, cache, processes=processes, arguments=ARGUMENTS)
    before = _newest(workdir)
    deadline = time.monotonic() + WAIT
    while _newest(workdir) <= before and any(process.poll() is None for process in running):
      assert time.monotonic() < deadline
      time.sleep(0.002)
    time.sleep(moments.uniform(0.0, 0.6))
    victims = running if moments.random() < 0.5 else [moments.choice(running)]
    for victim in victims:
      killed += victim.poll() is None
      victim.kill()
    saving += any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
    for process in running:
      process.wait(WAIT)  # a process that lost its fellow ends by itself
  running = start(workdir, cache, processes=processes, arguments=ARGUMENTS)
  _wait(running, workdir)
  return killed, saving


def _newest(workdir: pathlib.Path) -> int:
  return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def _compare(workdir: pathlib.Path, reference: pathlib.Path) -> int:
  """Fails unless all losses and the final figures are equal; returns how many losses there are."""
  ours, theirs = losses(workdir), losses(reference)
  assert list(ours) == list(range(1, STEPS + 1)), sorted(ours)
  assert ours == theirs, {step: (ours[step], theirs[step]) for step in ours if ours[step] != theirs[step]}
  final, expected = (json.loads((place / "final.json").read_text()) for place in (workdir, reference))
  final.pop("users_per_second"), expected.pop("users_per_second")
  assert final == expected, (final, expected)
  return len(ours)


if __name__ == "__main__":
  app.run(main)
