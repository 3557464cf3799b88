"""What single levers do to the time of a training step.

    python -m docs.measure_levers --config=configs/beauty.py:cpu --output=docs/results/levers.json

Each lever is undone (or tried) in a process of its own, because most of them are settled when a process starts. All
processes stay, and rest while another one's step is timed; a lever's figure is the median over turns of its step time
over that of the shipped program in the same turn. The shipped program takes part twice: how far the second one is from
1 says what the noise is. The step is the benchmark's padded, pruned one: 96 samples of 30 items. Needs about
1.5 GB for each process; where that is too much, as for a larger model, name the levers to measure (`--lever`). Beauty
has to be prepared (`python -m rastp_jax.prepare --config=configs/beauty.py:cpu --raw_dir=DIR`).
"""

import contextlib
import ctypes
import os
import random
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from absl import flags

if any(argument.endswith("glibc keeps freed memory") for argument in sys.argv):  # before anything starts threads
  libc = ctypes.CDLL("libc.so.6")
  for option, value in ((-4, 0), (-1, -1), (-8, 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX in malloc.h
    libc.mallopt(option, value)

from rastp_jax import cli, files, loading, sharding
from rastp_jax.benchmarking.training_speed import TrainingSpeed
from rastp_jax.benchmarking.variants import make_variants
from rastp_jax.data.buckets import with_bucket_items
from rastp_jax.errors import InputError
from rastp_jax.model import layers, products
from rastp_jax.training import optimizer

_CONFIG = cli.define_config_flag()
_OUTPUT = flags.DEFINE_string("output", "docs/results/levers.json", "JSON file for the figures.")
_TURNS = flags.DEFINE_integer("turns", 31, "How often each lever is measured.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 96, "Samples a step.")
_LEVER = flags.DEFINE_multi_string("lever", None, "Measure only levers with this in their names; may be repeated.")
_MEASURE = flags.DEFINE_string("measure", None, "Measure this one, a step for each line read; what the turns start.")

SHIPPED = "as shipped"
# name -> (environment, settings of the config)
LEVERS: Mapping[str, tuple[Mapping[str, str], Sequence[str]]] = {
  SHIPPED: ({}, ()),
  "as shipped, once more": ({}, ()),
  "undone: one device a core (one device, threads inside)": (
    {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
    (),
  ),
  "undone: products of model/products.py (JAX's own gradients)": ({}, ()),
  "undone: clipping fused, its norm at hand (optax.clip_by_global_norm)": ({}, ()),
  "undone: dropout masks by hashing (jax.random.bernoulli)": ({}, ()),
  "undone: dropout at all": ({}, ("model.dropout=0.0", "model.mlp_dropout=0.0")),
  "undone: no separator tokens": ({}, ("model.separator=True",)),
  "tried: bfloat16": ({}, ("model.dtype=bfloat16",)),
  "tried: bfloat16 (JAX's own gradients)": ({}, ("model.dtype=bfloat16",)),
  "tried: attention dropout, as published": ({}, ("model.attention_dropout=0.15",)),
  "tried: glibc keeps freed memory": ({}, ()),
  "tried: huge pages": ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, ()),
  "tried: 512-bit vectors": ({"XLA_FLAGS": "--xla_cpu_prefer_vector_width=512"}, ()),
  "tried: oneDNN": ({"XLA_FLAGS": "--xla_cpu_use_onednn=true"}, ()),
  "tried: XNNPACK": ({"XLA_FLAGS": "--xla_cpu_use_xnnpack=true"}, ()),
}


def measure() -> None:
  """Compiles, then takes a step for each line of standard input and prints its seconds, the first one unasked."""
  config = cli.load_config(_CONFIG.value)
  histories, semantic_ids = loading.load_data(config)
  config = with_bucket_items(config, histories)
  variant = {"step": make_variants(config)["padded_pruned"]}
  speed = TrainingSpeed(variant, histories, semantic_ids, sharding.make_mesh(config.mesh), _BATCH.value)
  while True:
    speed.run(1)
    (shape,) = speed.figures()["step"]["shapes"]
    print(shape["seconds"][-1], flush=True)
    if not sys.stdin.readline():
      return


def undo(name: str) -> None:
  """Takes back what is settled by our own code."""
  if "clipping fused" in name:
    optimizer._clip_by_global_norm = optax.clip_by_global_norm
  if "dropout masks by hashing" in name:
    layers.Dropout.__call__ = _bernoulli
  if "JAX's own gradients" in name:
    products.matmul = lambda a, b: a @ b.astype(a.dtype)
    products.matmul_transposed = lambda a, b: jnp.einsum("...mk,...nk->...mn", a, b, preferred_element_type=jnp.float32)
    products.add_to_each = lambda x, shared: x + shared.astype(x.dtype)


def _bernoulli(dropout, x, rate):
  if dropout._words is None or rate == 0.0:
    return x
  dropout._calls += 1
  key = jax.random.wrap_key_data(dropout._words + jnp.uint32(dropout._calls), impl="threefry2x32")
  return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)


def start(name: str) -> subprocess.Popen | None:
  """The process that measures a lever, when it has compiled; None if it cannot here (its stderr says why)."""
  added, settings = LEVERS[name]
  command = [sys.executable, "-m", "docs.measure_levers", f"--measure={name}", f"--batch_size={_BATCH.value}"]
  command += [a for a in sys.argv[1:] if a.startswith("--config")]
  command += [f"--config.{setting}" for setting in settings]
  environment = {**os.environ, **added}
  environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {added.get('XLA_FLAGS', '')}".strip()
  process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  ready = bool(process.stdout.readline())
  print(f"{name}: {'ready' if ready else 'does not run here'}", flush=True)
  return process if ready else None


def chosen() -> list[str]:
  """The levers to measure, the shipped program and its double among them."""
  wanted = _LEVER.value or [""]
  if unknown := [part for part in wanted if not any(part in name for name in LEVERS)]:
    raise InputError(f"--lever={unknown[0]} is in no lever's name: {'; '.join(LEVERS)}.")
  return [name for name in LEVERS if name.startswith(SHIPPED) or any(part in name for part in wanted)]


def next_step(name: str, process: subprocess.Popen) -> float:
  """Seconds of a step of this process."""
  with contextlib.suppress(BrokenPipeError):
    print(file=process.stdin, flush=True)
  if not (line := process.stdout.readline()):
    raise InputError(f"The process of {name!r} has ended, perhaps for want of memory: measure fewer at once (--lever).")
  return float(line)


def take_turns(names: Sequence[str]) -> None:
  processes = {name: process for name in names if (process := start(name))}
  seconds = {name: [] for name in processes}
  for turn in range(_TURNS.value):
    for name in random.sample(list(processes), len(processes)):
      seconds[name].append(next_step(name, processes[name]))
    print(f"turn {turn + 1} of {_TURNS.value}: {seconds[SHIPPED][-1]:.3f} s a step as shipped", flush=True)
  for process in processes.values():
    process.communicate()
  relative = {
    name: statistics.median(a / b for a, b in zip(found, seconds[SHIPPED], strict=True))
    for name, found in seconds.items()
  }
  result = {
    "command": shlex.join(["python", *sys.orig_argv[1:]]),
    "jax": jax.__version__,
    "cores": os.cpu_count(),
    "step_time_relative_to_shipped": {name: round(ratio, 3) for name, ratio in relative.items()},
    "seconds_a_step": seconds,
  }
  files.write_json(_OUTPUT.value, result)
  for name, ratio in relative.items():
    print(f"{name:60} {ratio:.2f}")


def main() -> None:
  if _MEASURE.value:
    measure()
  else:
    files.check_writable(_OUTPUT.value)
    names = chosen()
    loading.load_data(cli.load_config(_CONFIG.value))  # refuses here what every process would refuse
    take_turns(names)


if __name__ == "__main__":
  undo(next((a.partition("=")[2] for a in sys.argv if a.startswith("--measure=")), SHIPPED))
  cli.run(main)
