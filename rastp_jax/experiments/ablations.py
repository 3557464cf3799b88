"""What single choices do to the time of a training step.

    python -m rastp_jax.experiment ablations --config=configs/beauty.py:cpu,rastp --output=docs/results/ablations.json

Each choice is undone (or another one tried) by settings or by the environment, in a process of its own, because most of
them are fixed when a process starts. All processes stay, and wait while another one's step is timed. The result is the
median over turns of a process's step time divided by that of the shipped program in the same turn. The shipped program
takes part twice: how far the second one is from 1 shows the noise. The step is the benchmark's padded, pruned one: 96
samples of 30 items. Each process needs about 1.5 GB; where that is too much, as for a larger model, name the ablations
to measure (--only). The dataset must be prepared (`python -m rastp_jax.prepare --config=configs/beauty.py:cpu`).
"""

import contextlib
import dataclasses
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.experiments.speed.training_speed import TrainingSpeed
from rastp_jax.experiments.speed.variants import make_variants
from rastp_jax.runtime import cli, files, sharding, text_tables
from rastp_jax.training import runs

_CONFIG = cli.define_config_flag()
_OUTPUT = flags.DEFINE_string("output", "docs/results/ablations.json", "JSON file for the result.")
_TURNS = flags.DEFINE_integer("turns", 31, "How often each ablation is measured.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 96, "Samples per step.", lower_bound=1)
_ONLY = flags.DEFINE_multi_string("only", None, "Measure only ablations with this in their names; may be repeated.")
_MEASURE = flags.DEFINE_bool("measure", False, "Measure this process: a step for each line read. The turns set this.")

SHIPPED = "as shipped"


@dataclasses.dataclass(frozen=True)
class Ablation:
  """What differs from the shipped program: environment variables, and settings like "model.dropout=0.0"."""

  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  settings: Sequence[str] = ()


_KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615:glibc.malloc.arena_max=1"
ABLATIONS: Mapping[str, Ablation] = {
  SHIPPED: Ablation(),
  "as shipped, once more": Ablation(),
  "undone: one device per core (one device, threads inside)": Ablation(
    {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
  ),
  "undone: dropout": Ablation(settings=("model.dropout=0.0", "model.mlp_dropout=0.0")),
  "undone: no separator tokens": Ablation(settings=("model.separator=True",)),
  "tried: bfloat16": Ablation(settings=("model.dtype=bfloat16",)),
  "tried: attention dropout, as published": Ablation(settings=("model.attention_dropout=0.15",)),
  "tried: glibc keeps freed memory": Ablation({"GLIBC_TUNABLES": _KEEP_MEMORY}),
  "tried: huge pages": Ablation({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
  "tried: 512-bit vectors": Ablation({"XLA_FLAGS": "--xla_cpu_prefer_vector_width=512"}),
  "tried: oneDNN": Ablation({"XLA_FLAGS": "--xla_cpu_use_onednn=true"}),
  "tried: XNNPACK": Ablation({"XLA_FLAGS": "--xla_cpu_use_xnnpack=true"}),
}


def measure() -> None:
  """Compiles, then takes a step for each line of standard input and prints its seconds; the first one unasked."""
  config = cli.load_config(_CONFIG.value)
  histories, semantic_ids = runs.load_data(config)
  variant = {"step": make_variants(config, bucket_lengths(config.data, histories))["padded_pruned"]}
  speed = TrainingSpeed(variant, histories, semantic_ids, sharding.make_mesh(config.mesh), _BATCH.value)
  while True:
    speed.run(1)
    (shape,) = speed.results()["step"]["shapes"]
    print(shape["seconds"][-1], flush=True)
    if not sys.stdin.readline():
      return


def start(name: str) -> subprocess.Popen | None:
  """The process that measures an ablation, once it has compiled; None if it cannot run here (its stderr says why)."""
  ablation = ABLATIONS[name]
  command = [sys.executable, "-m", "rastp_jax.experiment", "ablations", "--measure", f"--batch_size={_BATCH.value}"]
  command += [argument for argument in sys.argv[1:] if argument.startswith("--config")]
  command += [f"--config.{setting}" for setting in ablation.settings]
  environment = {**os.environ, **ablation.environment}
  xla_flags = os.environ.get("XLA_FLAGS", ""), ablation.environment.get("XLA_FLAGS", "")
  environment["XLA_FLAGS"] = " ".join(filter(None, xla_flags))
  process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  ready = bool(_answer(process))
  print(f"{name}: {'ready' if ready else 'does not run here'}", flush=True)
  return process if ready else None


def chosen() -> list[str]:
  """The ablations to measure, with the shipped program twice."""
  wanted = _ONLY.value or [""]
  if unknown := [part for part in wanted if not any(part in name for name in ABLATIONS)]:
    raise InputError(f"--only={unknown[0]} is in the name of none of the ablations: {'; '.join(ABLATIONS)}.")
  return [name for name in ABLATIONS if name.startswith(SHIPPED) or any(part in name for part in wanted)]


def next_step(name: str, process: subprocess.Popen) -> float:
  """Seconds of a step of this process."""
  with contextlib.suppress(BrokenPipeError):
    print(file=process.stdin, flush=True)
  if not (line := _answer(process)):
    raise InputError(f"The process of {name!r} has ended, perhaps for want of memory: measure fewer at once (--only).")
  return float(line)


def _answer(process: subprocess.Popen) -> str:
  """The next line it prints; "" if it has ended."""
  assert process.stdout is not None  # a pipe
  return process.stdout.readline()


def take_turns(names: Sequence[str]) -> dict[str, list[float]]:
  """Seconds per step of each ablation that runs here, one for each turn."""
  processes = {name: process for name in names if (process := start(name))}
  if SHIPPED not in processes:
    raise InputError("The shipped program does not run here: see what its process said above.")
  seconds = {name: [] for name in processes}
  for turn in range(_TURNS.value):
    for name in random.sample(list(processes), len(processes)):
      seconds[name].append(next_step(name, processes[name]))
    print(f"turn {turn + 1} of {_TURNS.value}: {seconds[SHIPPED][-1]:.3f} s per step as shipped", flush=True)
  for process in processes.values():
    process.communicate()
  return seconds


def main() -> None:
  if _MEASURE.value:
    measure()
    return
  files.check_writable(_OUTPUT.value)
  names = chosen()
  runs.load_data(cli.load_config(_CONFIG.value))  # refuses here what every process would refuse
  seconds = take_turns(names)
  relative = {
    name: round(statistics.median(a / b for a, b in zip(found, seconds[SHIPPED], strict=True)), 3)
    for name, found in seconds.items()
  }
  result = {"turns": _TURNS.value, "step_time_relative_to_shipped": relative, "seconds_per_step": seconds}
  results.write_result(_OUTPUT.value, result)
  print(text_tables.align([["", "step time"], *([name, f"{ratio:.2f}"] for name, ratio in relative.items())]))
