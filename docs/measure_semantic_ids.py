"""Measures time and memory of codes for a large catalogue: python -m docs.measure_semantic_ids FILE.json

The item vectors are generated (float16, clusters within clusters) into a temporary .npy, which is memory-mapped as a
user's would be. FILE.json gets the command, seconds of wall clock and of CPU a stage, and the peak of resident memory.
"""

import argparse
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

from rastp_jax import files
from rastp_jax.config import QUANTIZERS, SemanticIdsConfig
from rastp_jax.semantic_ids import embeddings, health, making, methods

_ROWS = 50_000  # generated at a time


def generate(path: pathlib.Path, items: int, features: int) -> None:
  """Writes unit vectors around 2,000 centres, each with smaller ones around it."""
  rng = np.random.default_rng(0)
  large = rng.normal(size=(2_000, features)).astype(np.float32)
  small = rng.normal(size=(500, features)).astype(np.float32)
  vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(items, features))
  for start in range(0, items, _ROWS):
    rows = min(_ROWS, items - start)
    centres = large[rng.integers(0, len(large), rows)] + 0.6 * small[rng.integers(0, len(small), rows)]
    points = centres + 0.4 * rng.standard_normal((rows, features), np.float32)
    vectors[start : start + rows] = points / np.linalg.norm(points, axis=1, keepdims=True)
  vectors.flush()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("output", help="JSON file for the figures")
  parser.add_argument("--items", type=int, default=1_000_000)
  parser.add_argument("--features", type=int, default=384)
  parser.add_argument("--method", choices=QUANTIZERS, default="residual_kmeans")
  parser.add_argument("--collisions", choices=("extra_level", "reassign"), default="extra_level")
  arguments = parser.parse_args()
  settings = SemanticIdsConfig(method=arguments.method, collisions=arguments.collisions)
  seconds, cpu_seconds = {}, {}

  def timed(stage, function):
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    seconds[stage], cpu_seconds[stage] = round(time.perf_counter() - wall, 1), round(time.process_time() - cpu, 1)
    print(f"{stage}: {seconds[stage]} s, {cpu_seconds[stage]} s of CPU", flush=True)
    return result

  with tempfile.TemporaryDirectory() as root:
    path = pathlib.Path(root) / "embeddings.npy"
    generate(path, arguments.items, arguments.features)
    vectors = timed("check", lambda: embeddings.load_embeddings(path, arguments.items))
    quantizer = timed("fit", lambda: methods.METHODS[settings.method].fit(vectors, settings))
    ids = timed("encode", lambda: making.resolve(quantizer, vectors, settings, {}))
    figures = timed("health", lambda: health.measure(ids))
  print(health.describe(figures))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
  result = {
    "command": " ".join(["python -m docs.measure_semantic_ids", *sys.argv[1:]]),
    "items": arguments.items,
    "features": arguments.features,
    "codes": f"{settings.levels} x {settings.width}",
    "cores": os.cpu_count(),
    "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    "cpu_seconds": {**cpu_seconds, "total": round(sum(cpu_seconds.values()), 1)},
    "peak_memory_gb": round(peak, 2),
    "colliding_percent": round(figures["colliding_percent"], 2),
    "entropy": figures["entropy"],
  }
  print(f"{result['seconds']['total']} s in all, {result['peak_memory_gb']} GB")
  files.write_json(arguments.output, result)


if __name__ == "__main__":
  main()
