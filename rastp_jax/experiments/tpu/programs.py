"""The programs of a config, compiled for TPUs that are not there, and what the compiler says about them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rastp_jax.batches.batches import what_is_read
from rastp_jax.config import Config
from rastp_jax.experiments.speed.decoding_speed import generated_codes
from rastp_jax.experiments.tpu.program_text import read_traffic
from rastp_jax.experiments.tpu.topology import chip_of
from rastp_jax.generation.decode import ItemTables, make_decode
from rastp_jax.generation.trie import build_transitions
from rastp_jax.runtime import sharding
from rastp_jax.runtime.xla import device_bytes, device_flops, device_traffic
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.optimizer import make_optimizer
from rastp_jax.training.setup import loss_parts
from rastp_jax.training.step import abstract_model, make_state, make_train_step, placed

_MOVERS = 10
# What kernels may take of a chip's fast memory (VMEM, 128 MiB), so much that no array finds room there between them.
_NO_ARRAYS_IN_VMEM: Any = {"xla_tpu_scoped_vmem_limit_kib": "130000"}


def training_step(config: Config, widths: tuple[int, ...], mesh: Mesh, items: int, rows: int) -> jax.stages.Lowered:
  """The training step on histories of one length.

  Args:
    config: all settings; the schedule's end plays no part.
    widths: codes of each level.
    mesh: of the devices that are compiled for.
    items: of each history.
    rows: on all devices together.
  """
  semantic_ids = SemanticIds(np.zeros((1, len(widths)), np.int32), widths)
  graph, params = abstract_model(config, semantic_ids, mesh)
  optimizer = make_optimizer(dataclasses.replace(config.train, schedule="constant"), None)
  read = what_is_read(semantic_ids, config.model).shape[1]
  parts = loss_parts(graph, params, items, read)
  state = jax.eval_shape(lambda params: make_state(params, optimizer, config.train.seed, parts), params)
  by_rows = NamedSharding(mesh, PartitionSpec(None, sharding.ROWS))
  batch = {
    "history": jax.ShapeDtypeStruct((1, rows, items, read), jnp.int32, sharding=by_rows),
    "target": jax.ShapeDtypeStruct((1, rows, read), jnp.int32, sharding=by_rows),
    "weight": jax.ShapeDtypeStruct((1, rows), jnp.float32, sharding=by_rows),
  }
  return make_train_step(graph, optimizer, mesh).lower(placed(state, mesh), batch)


def decode_step(
  config: Config, widths: tuple[int, ...], mesh: Mesh, items: int, rows: int, catalogue: int
) -> jax.stages.Lowered:
  """Beam search for histories of one length, held to a generated catalogue of some size.

  Args:
    config: all settings; no counts are mixed in.
    widths: codes of each learned level; one more tells equal items apart.
    mesh: of the devices that are compiled for.
    items: of each history.
    rows: on all devices together.
    catalogue: number of items.
  """
  mesh = sharding.whole_batch_mesh(mesh)
  everywhere = sharding.replicated(mesh)
  codes = generated_codes(catalogue, widths)
  semantic_ids = SemanticIds(codes, (*widths, int(codes[:, -1].max()) + 1))
  graph, params = abstract_model(config, semantic_ids, mesh)
  read = jnp.asarray(what_is_read(semantic_ids, config.model))
  tables = ItemTables(read, jnp.asarray(codes), build_transitions(codes), None)
  struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
  history = jax.ShapeDtypeStruct((rows, items), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec("data")))
  decode = make_decode(mesh, config.eval, config.counts)
  return decode.lower(graph, nnx.State(params), jax.tree.map(struct, tables), history)


def judged(lowered: jax.stages.Lowered, device: Any, rows_per_chip: int, *, vmem: bool = True) -> dict[str, Any]:
  """Compiles, and says what the program costs on one chip.

  Args:
    lowered: the program.
    device: one of those it is compiled for.
    rows_per_chip: that it computes.
    vmem: whether arrays may lie in VMEM between kernels. Where they may not, nothing is copied between the memories,
      and what the cost analysis counts is HBM traffic.

  Returns:
    rows_per_chip, compile_seconds, memory_bytes and temporary_bytes of a chip, flops, bytes_accessed (the compiler's
    cost analysis, which counts VMEM too), hbm_bytes, seconds (arithmetic, memory, and kernels: by the compiler's
    estimates), bound_by, collectives, host_transfers, movers: the lines of source that move most.
  """
  start = time.perf_counter()
  program = lowered.compile(compiler_options=None if vmem else _NO_ARRAYS_IN_VMEM)
  seconds = time.perf_counter() - start
  chip, traffic, memory = chip_of(device), read_traffic(program.as_text() or ""), program.memory_analysis()
  times = {"arithmetic": device_flops(program) / chip.flops, "memory": traffic.hbm_bytes / chip.bandwidth}
  return {
    "rows_per_chip": rows_per_chip,
    "compile_seconds": round(seconds, 1),
    "memory_bytes": device_bytes(program),
    "temporary_bytes": memory.temp_size_in_bytes if memory else 0,
    "chip_memory_bytes": chip.memory,
    "flops": device_flops(program),
    "bytes_accessed": device_traffic(program),
    "hbm_bytes": traffic.hbm_bytes,
    "seconds": {**times, "kernels": traffic.cycles / chip.clock},
    "bound_by": max(times, key=lambda bound: times[bound]),
    "without_estimate": traffic.without_estimate,
    "collectives": traffic.collectives,
    "host_transfers": traffic.host_transfers,
    "movers": dict(list(traffic.by_source.items())[:_MOVERS]),
  }


def largest_rows(lower: Callable[[int], jax.stages.Lowered], first: dict[str, Any]) -> dict[str, float] | None:
  """The largest number of rows per chip that the compiler finds memory for, to within a tenth.

  Args:
    lower: rows per chip -> the program.
    first: what `judged` said of some number of rows.

  Returns:
    rows_per_chip and its memory_bytes; None if even the first is too many.
  """
  fixed = first["memory_bytes"] - first["temporary_bytes"]
  rows = int((first["chip_memory_bytes"] - fixed) / first["temporary_bytes"] * first["rows_per_chip"])
  while rows >= first["rows_per_chip"]:
    rows = rows // 8 * 8
    try:
      return {"rows_per_chip": rows, "memory_bytes": device_bytes(lower(rows).compile())}
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      rows = int(0.92 * rows)
  return None
