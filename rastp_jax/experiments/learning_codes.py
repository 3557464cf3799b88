"""Time and memory of learning the codes of a large catalogue.

    python -m rastp_jax.experiment learning_codes --output=docs/results/semantic_ids_1m.json

The item vectors are generated (float16, clusters within clusters) into a temporary .npy file, which is memory-mapped as
a user's would be. Measured are seconds of wall clock and of CPU per stage, and the peak of resident memory.
"""

import pathlib
import resource
import tempfile
import time

import numpy as np
from absl import flags

from rastp_jax.config import SemanticIdsConfig
from rastp_jax.data import vectors as item_vectors
from rastp_jax.experiments import results
from rastp_jax.runtime import files
from rastp_jax.semantic_ids import health, pipeline
from rastp_jax.semantic_ids.quantizers.registry import QUANTIZERS

_ITEMS = flags.DEFINE_integer("items", 1_000_000, "Items of the catalogue.", lower_bound=1)
_FEATURES = flags.DEFINE_integer("features", 384, "Features of each vector.", lower_bound=1)
_METHOD = flags.DEFINE_enum("method", "residual_kmeans", list(QUANTIZERS), "How codes are learned.")
_COLLISIONS = flags.DEFINE_enum("collisions", "extra_level", ("extra_level", "reassign"), "How they become unique.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")

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
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  settings = SemanticIdsConfig(method=_METHOD.value, collisions=_COLLISIONS.value)
  seconds, cpu_seconds = {}, {}

  def timed(stage, function):
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    seconds[stage], cpu_seconds[stage] = round(time.perf_counter() - wall, 1), round(time.process_time() - cpu, 1)
    print(f"{stage}: {seconds[stage]} s, {cpu_seconds[stage]} s of CPU", flush=True)
    return result

  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "embeddings.npy"
    generate(path, _ITEMS.value, _FEATURES.value)
    vectors = timed("check", lambda: item_vectors.load_embeddings(path, _ITEMS.value))
    quantizer = timed("fit", lambda: QUANTIZERS[settings.method].fit(vectors, settings))
    ids = timed("encode", lambda: pipeline.resolve(quantizer, vectors, settings, {}))
    found = timed("health", lambda: health.measure(ids))
  print(health.describe(found))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
  result = {
    "items": _ITEMS.value,
    "features": _FEATURES.value,
    "method": settings.method,
    "codes": f"{settings.levels} x {settings.codebook_size}",
    "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    "cpu_seconds": {**cpu_seconds, "total": round(sum(cpu_seconds.values()), 1)},
    "peak_memory_gb": round(peak, 2),
    "colliding_percent": round(found["colliding_percent"], 2),
    "entropy": found["entropy"],
  }
  print(f"{result['seconds']['total']} s in all, {result['peak_memory_gb']} GB")
  if _OUTPUT.value:
    results.write_result(_OUTPUT.value, result)
