"""Times training steps: every batch shape of every variant in random turns, so that drifting speed changes no ratio."""

import dataclasses
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rastp_jax.batches.batches import training_iterator
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.reduction.schedule import budgets
from rastp_jax.runtime import sharding
from rastp_jax.runtime.xla import device_bytes, device_flops, device_traffic, written_flops
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.setup import make_setup

# Peak of dense bfloat16 arithmetic in FLOP/s and memory bandwidth in bytes/s, by JAX's name of the device (data sheets,
# without sparsity, largest memory).
PEAKS = {
  "NVIDIA A100": (312e12, 2.04e12),
  "NVIDIA H100": (989e12, 3.35e12),
  "NVIDIA H200": (989e12, 4.8e12),
  "TPU v4": (275e12, 1.23e12),
  "TPU v5 lite": (197e12, 0.82e12),
  "TPU v5p": (459e12, 2.77e12),
  "TPU v6 lite": (918e12, 1.64e12),
}
_SHORTEST = 0.2  # seconds of a timed block: faster steps are repeated inside it


@dataclasses.dataclass
class _Step:
  """A compiled step, a batch of its shape, and its timings. Variants whose programs are equal share it."""

  program: jax.stages.Compiled
  batch: Mapping[str, jax.Array]
  compile_seconds: float
  flops: float | None  # of a device; None where the backend does not tell
  traffic: float | None  # bytes of a device; None on GPUs, where XLA does not see what products read and write
  calls: int = 1  # in a timed block
  seconds: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Shape:
  """One batch shape of a variant: how often an epoch has it, and its step."""

  items: int
  rows: int
  batches: int
  step: _Step

  @property
  def median(self) -> float:
    return float(np.median(self.step.seconds))


def costs(lowered: jax.stages.Lowered, program: jax.stages.Compiled, mesh: Mesh) -> tuple[float | None, float | None]:
  """Floating-point operations and bytes of one device, in one call, where XLA tells them."""
  if mesh.devices.flat[0].platform == "gpu":
    flops = written_flops(lowered)
    return None if flops is None else flops / mesh.size, None
  return device_flops(program), device_traffic(program)


def _sum(weighted: Iterable[tuple[int, float | None]]) -> float | None:
  """The sum of numbers times values; None if a value is."""
  total = 0.0
  for number, value in weighted:
    if value is None:
      return None
    total += number * value
  return total


class TrainingSpeed:
  """Compiles the variants' steps, then times them.

  All variants share one state: reductions and batch shapes have no parameters.

  Args:
    variants: settings under their names, equal in model and optimizer.
    histories, semantic_ids: the data.
    mesh: devices that share each batch.
    batch_size: samples per step, on average.
  """

  def __init__(
    self,
    variants: Mapping[str, Config],
    histories: Histories,
    semantic_ids: SemanticIds,
    mesh: Mesh,
    batch_size: int,
  ):
    self._mesh = mesh
    self._setups = {
      name: make_setup(_constant_rate(config), histories, semantic_ids, mesh=mesh, batch_size=batch_size)
      for name, config in variants.items()
    }
    first = next(iter(self._setups.values()))
    self._state = first.fresh_state()
    layout = nnx.merge(first.graph, first.shapes.params).layout
    self._item_length = layout.item_length
    self._shapes: dict[str, list[_Shape]] = {}
    self._steps: dict[Any, _Step] = {}
    self._random = random.Random(first.config.train.seed)
    for name, setup in self._setups.items():
      self._shapes[name] = []
      for bucket in (bucket for bucket in setup.batches.buckets if bucket.batches):
        length = bucket.items * layout.item_length
        reduces = budgets(setup.config.reduction, length, layout)
        key = bucket.items, bucket.rows, setup.config.reduction if reduces else None
        if key not in self._steps:
          batches = (setup.batches[step] for step in range(setup.batches.steps_per_epoch))
          placed = self._place(next(b for b in batches if b["history"].shape[:2] == (bucket.rows, bucket.items)))
          start = time.perf_counter()
          lowered = setup.train_steps[0].lower(self._state, placed)
          program = lowered.compile()
          seconds = time.perf_counter() - start
          self._steps[key] = _Step(program, placed, seconds, *costs(lowered, program, mesh))
          shape = f"{bucket.rows} histories of up to {bucket.items} items"
          done = f"{name}: compiled for {shape} in {self._steps[key].compile_seconds:.1f} s"
          print(done, file=sys.stderr, flush=True)  # stdout is for what was measured
        self._shapes[name].append(_Shape(bucket.items, bucket.rows, bucket.batches, self._steps[key]))

  def run(self, repeats: int) -> None:
    """Times every step `repeats` times, each time in another random order, after one untimed call each."""
    steps = list(self._steps.values())
    for step in steps:
      step.calls = max(1, round(_SHORTEST / self._seconds([step], 1)))
    for _ in range(repeats):
      for step in self._random.sample(steps, len(steps)):
        step.seconds.append(self._seconds([step], step.calls))

  def _seconds(self, steps: Sequence[_Step], calls: int) -> float:
    """Time of a call of all steps, each on its own batch."""
    start = time.perf_counter()
    for _ in range(calls):
      for step in steps:
        self._state = step.program(self._state, step.batch)
    jax.block_until_ready(self._state)
    return (time.perf_counter() - start) / calls

  def results(self) -> dict[str, dict[str, Any]]:
    """Each variant's speed and cost over an epoch: medians of step times, weighted by how often each shape occurs."""
    return {name: self._results(name) for name in self._setups}

  def _results(self, name: str) -> dict[str, Any]:
    setup, shapes = self._setups[name], self._shapes[name]
    starts, ends = setup.batches.epoch_samples(0)
    longest = setup.lengths[-1]
    real = int(np.minimum(ends - 1 - starts, longest).sum()) * self._item_length
    positions = sum(s.batches * s.rows * s.items for s in shapes) * self._item_length
    steps = sum(s.batches for s in shapes)
    seconds = sum(s.batches * s.median for s in shapes)
    flops = _sum((s.batches, s.step.flops) for s in shapes)
    traffic = _sum((s.batches, s.step.traffic) for s in shapes)
    peaks = next((p for kind, p in PEAKS.items() if jax.devices()[0].device_kind.startswith(kind)), None)
    arithmetic = flops / peaks[0] if peaks and flops is not None else None
    memory = traffic / peaks[1] if peaks and traffic is not None else None
    return {
      "samples_per_second": len(starts) / seconds,
      "real_tokens_per_second": real / seconds,
      "milliseconds_a_step": 1e3 * seconds / steps,
      "samples_a_step": len(starts) / steps,
      "padding_share": 1 - real / positions,
      "flops_a_sample": None if flops is None else flops * self._mesh.size / len(starts),
      "bytes_a_sample": None if traffic is None else traffic * self._mesh.size / len(starts),
      "flops_utilization": None if arithmetic is None else arithmetic / seconds,
      "roofline_share": None if arithmetic is None or memory is None else max(arithmetic, memory) / seconds,
      "bound_by": None if arithmetic is None or memory is None else ("memory" if memory > arithmetic else "arithmetic"),
      "peak_bytes": max(device_bytes(s.step.program) for s in shapes),
      "compile_seconds": sum(s.step.compile_seconds for s in shapes),
      "shapes": [
        {"items": s.items, "rows": s.rows, "batches_an_epoch": s.batches, "seconds": s.step.seconds} for s in shapes
      ],
    }

  def live_and_constant(self, name: str, steps: int, repeats: int) -> dict[str, Any]:
    """Times a variant's steps on batches that are made and placed meanwhile, against the same shapes on ready batches.

    A few steps of each kind take turns. The input pipeline begins the live ones with no batch made ahead.

    Returns:
      live_vs_constant_batch (median over repeats of the ratio of times), batches_per_second that the input pipeline
      makes when nothing else computes, compiles (programs that an epoch's batches need).
    """
    source, ready = self._setups[name].batches, {s.step.batch["history"].shape: s.step for s in self._shapes[name]}
    batches = training_iterator(source)
    ratios = []
    for _ in range(repeats):
      _use_up(batches)
      taken = []
      start = time.perf_counter()
      for _ in range(steps):
        placed = sharding.place_batch(next(batches), self._mesh, row_axis=1)
        taken.append(ready[placed["history"].shape])
        self._state = taken[-1].program(self._state, placed)
      jax.block_until_ready(self._state)
      live = time.perf_counter() - start
      ratios.append(live / self._seconds(taken, 1))
    _use_up(batches)
    start, number = time.perf_counter(), 64
    for _ in range(number):
      next(batches)
    return {
      "variant": name,
      "live_vs_constant_batch": float(np.median(ratios)),
      "ratios": ratios,
      "batches_per_second": number / (time.perf_counter() - start),
      "compiles": len({id(ready[1, *source[step]["history"].shape]) for step in range(source.steps_per_epoch)}),
      "buckets": len(source.buckets),
    }

  def _place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return sharding.place_batch({key: value[None] for key, value in batch.items()}, self._mesh, row_axis=1)


def _constant_rate(config: Config) -> Config:
  """The benchmark has no end that a learning rate could fall towards, and its batches come one by one."""
  train = dataclasses.replace(config.train, schedule="constant", steps_per_dispatch=1)
  return dataclasses.replace(config, train=train)


def _use_up(batches: Iterator) -> None:
  """Takes the batches that were made ahead."""
  for _ in range(8):  # what `training_iterator` holds ready
    next(batches)


def fastest_batch_size(make: Any, sizes: Sequence[int], repeats: int) -> tuple[int, list[dict[str, float]]]:
  """Tries rising batch sizes of a variant as long as samples per second grow by more than 3 %.

  Args:
    make: batch size -> `TrainingSpeed` of the one variant to be swept.
    sizes: to try, rising.
    repeats: timings of each.

  Returns:
    The fastest size, and what each one reached.
  """
  tried = []
  for size in sizes:
    speed = make(size)
    speed.run(repeats)
    (found,) = speed.results().values()
    tried.append({"batch_size": size, "samples_per_second": found["samples_per_second"]})
    if len(tried) > 1 and found["samples_per_second"] < 1.03 * tried[-2]["samples_per_second"]:
      break
  return int(max(tried, key=lambda one: one["samples_per_second"])["batch_size"]), tried
