"""Times generation: constrained and not, and against the size of the catalogue."""

import concurrent.futures
import dataclasses
import math
import multiprocessing
import pathlib
import resource
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rastp_jax.batches.batches import evaluation_batches
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.generation.decode import item_tables, make_decode
from rastp_jax.generation.trie import build_transitions
from rastp_jax.model.factory import make_model
from rastp_jax.runtime import sharding
from rastp_jax.semantic_ids.codes import SemanticIds


def generated_codes(items: int, widths: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
  """Codes of a generated catalogue.

  Args:
    items: number of items.
    widths: of all levels but the last; their codes are drawn uniformly, the last one tells equal ones apart.
    seed: of the random draws.

  Returns:
    int32 (items, len(widths) + 1), sorted.
  """
  keys = np.sort(np.random.default_rng(seed).integers(0, math.prod(widths), items))
  last = np.arange(items) - np.searchsorted(keys, keys)  # index in its group
  columns = np.unravel_index(keys, widths)
  return np.stack([*columns, last], axis=1).astype(np.int32)


def cost_of_transitions(items: int, widths: tuple[int, ...]) -> dict[str, float]:
  """Seconds to build the transition table of a generated catalogue, and peak memory of a process that does only that.

  The memory includes the codes themselves and the imported libraries.
  """
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
    return pool.submit(_build_in_child, items, widths).result()


def _build_in_child(items: int, widths: tuple[int, ...]) -> dict[str, float]:
  codes = generated_codes(items, widths)
  start = time.perf_counter()
  jax.block_until_ready(jax.tree.leaves(build_transitions(codes)))
  seconds = time.perf_counter() - start
  return {"seconds": seconds, "peak_gb": _peak_bytes() / 1e9}


def _peak_bytes() -> int:
  """Most memory this process has held since it started."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():  # getrusage would count what the parent held when it started this process
    (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class DecodingSpeed:
  """Decodes the test users' histories in batches of every bucket's length, with several transition tables.

  Args:
    config: model, reduction, buckets, beam width, batch size.
    histories, semantic_ids: the data.
    mesh: devices that share the users.
    catalogues: sizes of generated catalogues to constrain to, besides the real one and none.
  """

  def __init__(
    self, config: Config, histories: Histories, semantic_ids: SemanticIds, mesh: Mesh, catalogues: tuple[int, ...]
  ):
    codes = {f"{items} items": generated_codes(items, semantic_ids.widths[:-1]) for items in catalogues}
    codes = {"constrained": semantic_ids.codes, **codes}
    # One model for all tables, so that only they differ: each level as wide as its widest.
    widths = tuple(np.max([table.max(axis=0) + 1 for table in codes.values()], axis=0).tolist())
    num_items = max(len(table) for table in codes.values())
    model = make_model(config, widths, num_items=num_items, rngs=nnx.Rngs(config.train.seed))
    place = sharding.replicated(mesh)
    graph, params = nnx.split(model)
    params = jax.device_put(params, place)
    tables = {name: item_tables(SemanticIds(table, widths), histories, config) for name, table in codes.items()}
    self._tables = jax.device_put({"unconstrained": tables["constrained"], **tables}, place)
    settings = {name: dataclasses.replace(config.eval, constrained=name != "unconstrained") for name in self._tables}
    decode = {name: make_decode(mesh, one, config.counts) for name, one in settings.items()}
    rows = sharding.round_up(config.eval.batch_size, mesh.size)
    lengths = bucket_lengths(config.data, histories)
    self._batches, self._counts, self._users = {}, {}, histories.num_users
    for batch in evaluation_batches(histories, config.data, "test", lengths=lengths, batch_size=rows):
      items = batch["history"].shape[1]
      self._counts[items] = self._counts.get(items, 0) + 1
      if items not in self._batches:
        self._batches[items] = sharding.place_rows(batch["history"], mesh)
    self._call = lambda name, history: decode[name](graph, params, self._tables[name], history)
    self._beam_width, self._rows = config.eval.beam_width, rows
    self._seconds = {(name, items): [] for name in self._tables for items in self._batches}

  def run(self, repeats: int) -> None:
    """Times every table on every bucket `repeats` times in turn, after one untimed call each."""
    for repeat in range(repeats + 1):
      for items, history in self._batches.items():
        for name in self._tables:
          start = time.perf_counter()
          jax.block_until_ready(self._call(name, history))
          if repeat:
            self._seconds[name, items].append(time.perf_counter() - start)

  def results(self) -> Mapping[str, Any]:
    """Each table's users per second over all test users, and the seconds behind them."""
    result = {"beam_width": self._beam_width, "batch_size": self._rows, "tables": {}}
    for name, table in self._tables.items():
      seconds = sum(count * float(np.median(self._seconds[name, items])) for items, count in self._counts.items())
      result["tables"][name] = {
        "users_per_second": self._users / seconds,
        "branches": None if name == "unconstrained" else list(table.transitions.branches),
        "seconds": {str(items): self._seconds[name, items] for items in self._batches},
      }
    return result
