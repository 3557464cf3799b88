"""Stops, damages and overloads runs, and compares with what undisturbed ones give.

    python -m rastp_jax.experiment faults --runs=30 --output=docs/results/kill_resume.json
    python -m rastp_jax.experiment faults --runs=20 --signal=TERM --times=3 --output=docs/results/stop_resume.json
    python -m rastp_jax.experiment faults --runs=5 --pairs=0 --kills=5 --runs_dir=gs://BUCKET/faults
    python -m rastp_jax.experiment faults --runs=0 --mutations=500 --histories=200000 --output=docs/results/faults.json

Runs: each gets a signal several times, after a random delay from its first new checkpoint on, so that some kills
interrupt a save. In the end every loss must be equal bit for bit, and the final evaluation too. Some runs have two
processes, of which one or both are hit; the other one must then end by itself. After SIGTERM, however often it comes,
every process must save and exit with the code that asks for a restart. In a bucket, what is kept on this machine is
forgotten between two starts, as where a run goes on elsewhere.

Mutations: a finished workdir is damaged from a seed (`mutations.py`) and resumed. It must restore exactly what was
saved, the latest or an earlier checkpoint, or end in a sentence.

Histories: as many are answered as `recommend` does, and the process's memory is read on the way.
"""

import dataclasses
import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time
from typing import Any

import jax
from absl import flags
from etils import epath
from flax import nnx

from rastp_jax.data.items import Item
from rastp_jax.errors import EXIT_RESUME
from rastp_jax.experiments import mutations, results
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.experiments.tiny_run import log, losses, start
from rastp_jax.model.factory import make_model
from rastp_jax.runtime import files, sharding
from rastp_jax.serving import recommendation_files
from rastp_jax.serving.recommender import Recommender
from rastp_jax.training import trainer
from rastp_jax.training.runs import SavedModel
from rastp_jax.training.setup import make_setup
from rastp_jax.training.workdir import Workdir

_RUNS = flags.DEFINE_integer("runs", 20, "How many runs to stop.")
_KILLS = flags.DEFINE_integer("kills", 2, "How often each of them is hit.")
_SIGNAL = flags.DEFINE_enum("signal", "KILL", ("KILL", "TERM"), "The signal: SIGKILL or SIGTERM.")
_PAIRS = flags.DEFINE_integer("pairs", 6, "How many of the runs have two processes.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random delays.")
_TIMES = flags.DEFINE_integer("times", 1, "How often a signal comes, a moment apart.")
_RUNS_DIR = flags.DEFINE_string("runs_dir", "", "gs://BUCKET/DIRECTORY for the runs. Default: a local folder.")
_MUTATIONS = flags.DEFINE_integer("mutations", 0, "How many damaged workdirs to resume.")
_HISTORIES = flags.DEFINE_integer("histories", 0, "How many histories to answer while memory is watched.")
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
  if _RUNS_DIR.value:
    files.check_writable(_RUNS_DIR.value)
  outcome = {}
  if _MUTATIONS.value:
    outcome["mutations"] = _mutations(range(_SEED.value, _SEED.value + _MUTATIONS.value))
  if _HISTORIES.value:
    outcome["recommend_memory"] = _memory(_HISTORIES.value)
  if _RUNS.value:
    outcome |= _runs()
  if _OUTPUT.value:
    results.write_result(_OUTPUT.value, outcome)


def _mutations(seeds: range) -> dict[str, Any]:
  """Counts what comes of damaged workdirs; fails at the first that is restored wrong or ends in anything else."""
  logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells about damage in its own words
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  setup = make_setup(make_config(), *make_data(), mesh=mesh)
  counts: dict[str, dict[str, int]] = {kind: dict.fromkeys(map(str, mutations.OUTCOMES), 0) for kind in mutations.KINDS}
  begin = time.monotonic()
  with tempfile.TemporaryDirectory() as directory:
    workdir = pathlib.Path(directory) / "run"
    trainer.train(setup, Workdir(workdir))
    states = mutations.saved_states(setup, workdir)
    for seed in seeds:
      said, outcome = mutations.damage(setup, workdir, states, seed)
      counts[said.partition(" ")[0]][outcome] += 1
    files_in_it = sum(path.is_file() for path in workdir.rglob("*"))
  total = {outcome: sum(count[outcome] for count in counts.values()) for outcome in mutations.OUTCOMES}
  print(f"{len(seeds)} mutations: {total}", flush=True)
  seconds = round(time.monotonic() - begin, 1)
  return {
    "seeds": [seeds[0], seeds[-1]],
    "files": files_in_it,
    "seconds": seconds,
    "outcomes": total,
    "by_kind": counts,
  }


def _memory(histories: int) -> dict[str, Any]:
  """Resident memory in MB after every tenth of the histories, while `recommend` answers them with a tiny model."""
  config, (data, semantic_ids) = make_config(), make_data()
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model = make_model(config, semantic_ids.widths, num_items=data.num_items, rngs=nnx.Rngs(0))
  items = [Item(str(row), f"B{row}", f"Title {row}") for row in range(data.num_items)]
  recommender = Recommender(SavedModel(config, data, semantic_ids, (6,), mesh, model, 0), items)
  draw, used = random.Random(0), []

  def lines():
    for number in range(histories):
      if number % (histories // 10) == 0:
        used.append(_resident_mb())
      yield number, [str(draw.randrange(data.num_items)) for _ in range(draw.randrange(1, 30))]
    used.append(_resident_mb())

  with tempfile.TemporaryDirectory() as directory:
    answers = lambda asked: recommender.stream(asked, 10)
    summary = recommendation_files.write_recommendations(pathlib.Path(directory) / "recs.jsonl", lines(), answers)
  print(f"{summary.describe()}; resident: {used} MB", flush=True)
  return {"histories": summary.users, "seconds": round(summary.seconds, 1), "resident_mb": used}


def _resident_mb() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _runs() -> dict[str, Any]:
  """Stops runs, starts them again, and compares."""
  counts = {"runs": 0, "processes_hit": 0, "restarts": 0, "hit_while_saving": 0, "losses_compared": 0}
  slowest = 0.0
  seeds = []
  with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    references = {number: _uninterrupted(directory, number) for number in ((1, 2) if _PAIRS.value else (1,))}
    for index in range(_RUNS.value):
      processes = 2 if index >= _RUNS.value - _PAIRS.value else 1
      seeds.append(_SEED.value * 1000 + index)
      run = _Run(directory, f"run{index}", _RUNS_DIR.value)
      hits, saving, seconds = _run_and_hit(run, processes, random.Random(seeds[-1]))
      slowest = max(slowest, seconds)
      counts["runs"] += 1
      counts["processes_hit"] += hits
      counts["hit_while_saving"] += saving
      counts["restarts"] += _KILLS.value
      counts["losses_compared"] += _compare(run, references[processes])
      print(f"run {index} ({processes} processes): equal; so far {counts}, slowest exit {slowest:.1f} s", flush=True)
  setting = {
    "signal": _SIGNAL.value,
    "times_each": _TIMES.value,
    "steps_per_run": STEPS,
    "runs_of_two_processes": _PAIRS.value,
    "signals_per_run": _KILLS.value,
  }
  return {**setting, **counts, "all_equal": True, "slowest_exit_seconds": round(slowest, 2), "seeds": seeds}


@dataclasses.dataclass(frozen=True)
class _Run:
  """A run that is started several times.

  Attributes:
    directory: of this machine, for the processes' output and compiled programs.
    name: of the run.
    bucket: gs://BUCKET/DIRECTORY that the workdir is in; "": in `directory`.
  """

  directory: pathlib.Path
  name: str
  bucket: str = ""

  @property
  def local(self) -> pathlib.Path:
    """Names the processes' output, and is the workdir where there is no bucket."""
    return self.directory / self.name

  @property
  def workdir(self) -> epath.Path:
    return epath.Path(f"{self.bucket}/{self.name}" if self.bucket else self.local)

  def start(self, processes: int) -> list[subprocess.Popen]:
    arguments = [*ARGUMENTS, f"--workdir={self.workdir}"]  # the last of two counts
    return start(self.local, self.directory / "cache", processes=processes, arguments=arguments)

  def saves(self) -> list[epath.Path]:
    """Of the checkpoints' folder, whole ones and others."""
    folder = self.workdir / "checkpoints"
    return list(folder.iterdir()) if folder.exists() else []

  def newest(self) -> int:
    return max((int(path.name) for path in self.saves() if path.name.isdigit()), default=0)

  def half_saved(self) -> bool:
    """Whether a save was interrupted: on a disk it has another name until it is whole, in a bucket it lacks a mark."""
    if self.bucket:
      return any(not (path / "commit_success.txt").exists() for path in self.saves())
    return any("tmp" in path.name for path in self.saves())

  def final(self) -> dict[str, Any]:
    """The last evaluation, without what is not reproducible."""
    metrics = json.loads((self.workdir / "final.json").read_text())
    return {name: value for name, value in metrics.items() if name != "users_per_second"}

  def wait(self, running: list[subprocess.Popen]) -> None:
    """Fails unless all processes end with 0; leaves none behind."""
    try:
      assert [process.wait(WAIT) for process in running] == [0] * len(running), log(self.local).read_text()
    finally:
      for process in running:
        process.kill()


def _uninterrupted(directory: pathlib.Path, processes: int) -> _Run:
  """The run that nothing disturbs, always on this machine."""
  run = _Run(directory, f"uninterrupted{processes}")
  run.wait(run.start(processes))
  return run


def _run_and_hit(run: _Run, processes: int, moments: random.Random) -> tuple[int, int, float]:
  """Returns how many processes were hit, how many left a half-written checkpoint, and the slowest exit in s."""
  hits, saving, slowest = 0, 0, 0.0
  number = signal.Signals[f"SIG{_SIGNAL.value}"]
  for _ in range(_KILLS.value):
    before = run.newest()
    running = run.start(processes)
    deadline = time.monotonic() + WAIT
    while run.newest() <= before and any(process.poll() is None for process in running):
      assert time.monotonic() < deadline
      time.sleep(0.1 if run.bucket else 0.002)
    time.sleep(moments.uniform(0.0, 0.6))
    victims = running if moments.random() < 0.5 else [moments.choice(running)]
    finished = any(process.poll() is not None for process in running)
    begin = time.monotonic()
    for victim in victims:
      hits += victim.poll() is None
      victim.send_signal(number)
    for _ in range(_TIMES.value - 1):
      time.sleep(moments.uniform(0.0, 0.3))
      for victim in victims:
        victim.send_signal(number)
    if number == signal.SIGKILL:
      saving += run.half_saved()
    codes = [process.wait(WAIT) for process in running]  # a process that lost the other one ends by itself
    slowest = max(slowest, time.monotonic() - begin)
    assert number == signal.SIGKILL or finished or set(codes) <= {EXIT_RESUME, 0}, (codes, log(run.local).read_text())
  run.wait(run.start(processes))
  return hits, saving, slowest


def _compare(run: _Run, reference: _Run) -> int:
  """Fails unless all losses and the final metrics are equal; returns how many losses there are."""
  ours, theirs = losses(run.workdir), losses(reference.workdir)
  assert list(ours) == list(range(1, STEPS + 1)), sorted(ours)
  assert ours == theirs, {step: (ours[step], theirs[step]) for step in ours if ours[step] != theirs[step]}
  assert run.final() == reference.final(), (run.final(), reference.final())
  return len(ours)
