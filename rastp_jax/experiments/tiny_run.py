"""A tiny training run as a process of its own, for tests of what happens between and to processes.

    python -m rastp_jax.experiments.tiny_run --workdir=DIR [--set=train__length="50 steps"] [--coordinator_address=…]

At the end it writes final.json: the test metrics of the best checkpoint.
"""

from rastp_jax.runtime import preemption

if __name__ == "__main__":
  preemption.listen()  # as in train.py

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from flax import nnx

from rastp_jax.errors import EXIT_RESUME
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.runtime import cli, files, processes, sharding
from rastp_jax.training import runs, step, trainer
from rastp_jax.training.setup import make_setup
from rastp_jax.training.workdir import Workdir

cli.define_host_flags()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_SET = flags.DEFINE_multi_string("set", [], "SECTION__FIELD=VALUE of the tiny config, the value as JSON or a word.")
_SEED = flags.DEFINE_integer("data_seed", 0, "Of the semantic IDs.")


def main() -> int:
  with processes.raise_on_all():
    config = make_config(**dict(_read(text) for text in _SET.value))
    histories, semantic_ids = make_data(_SEED.value)
  runs.check_same(config, histories, semantic_ids)
  setup = make_setup(config, histories, semantic_ids, validates=True)
  mesh = sharding.whole_batch_mesh(setup.mesh)
  evaluator = Evaluator(config, histories, semantic_ids, mesh)
  workdir = Workdir(cli.require(_WORKDIR, "runs/tiny"))
  result = trainer.train(setup, workdir, lambda model: evaluator.evaluate(model, "validation"))
  if result.interrupted:
    return EXIT_RESUME
  graph, target = step.abstract_model(config, semantic_ids, mesh)
  best = workdir.restore_params(target)
  metrics = evaluator.evaluate(nnx.merge(graph, best.params), "test")
  if jax.process_index() == 0:
    files.write_json(workdir.path / "final.json", {**metrics, "step": best.step})
  return 0


def _read(text: str):
  name, _, value = text.partition("=")
  try:
    return name, json.loads(value)
  except ValueError:
    return name, value


def start(
  workdir: pathlib.Path,
  cache: pathlib.Path,
  *,
  processes: int = 1,
  devices: int = 1,
  arguments: Sequence[str] = (),
  xla_flags: str = "",
  module: str = "experiments.tiny_run",
  popen: Callable[..., Any] = subprocess.Popen,
) -> list[Any]:
  """Starts a run's processes, on `devices` fake devices each.

  Args:
    workdir: of the run; their output goes to workdir-PROCESS.log beside it.
    cache: keeps compiled programs between runs.
    processes: how many.
    devices: of each.
    arguments: further flags; a list [of process 0, of process 1, ...] of lists gives each its own.
    xla_flags: further XLA_FLAGS, that settle how the runs compile.
    module: another one to start, without --workdir; `workdir` names its log.
    popen: starts a process like `subprocess.Popen`.

  Returns:
    What `popen` returns, for each process.
  """
  environment = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {xla_flags}",
    "JAX_PLATFORMS": "cpu",
    "NPROC": "16",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
  }
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  command = [
    sys.executable,
    "-m",
    f"rastp_jax.{module}",
    f"--compilation_cache={cache}",
    *([f"--workdir={workdir}"] if module == "experiments.tiny_run" else []),
  ]
  together = []
  if processes > 1:
    with socket.socket() as free:
      free.bind(("localhost", 0))
      together = [f"--coordinator_address=localhost:{free.getsockname()[1]}", f"--num_processes={processes}"]
  started = []
  for index in range(processes):
    own = arguments[index] if arguments and not isinstance(arguments[0], str) else arguments
    mine = [*command, *together, *([f"--process_id={index}"] if together else []), *own]
    with log(workdir, index).open("a") as output:
      started.append(popen(mine, env=environment, stdout=output, stderr=subprocess.STDOUT))
  return started


def log(workdir: pathlib.Path, process: int = 0) -> pathlib.Path:
  return workdir.parent / f"{workdir.name}-{process}.log"


def losses(workdir: epath.Path | pathlib.Path) -> dict[int, float]:
  """step -> loss of every log line."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: line["loss"] for line in lines}


if __name__ == "__main__":
  cli.run(main)
