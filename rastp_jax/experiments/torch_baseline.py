"""The published model in PyTorch and ours, timed in turns on one machine.

    pip install torch
    python -m rastp_jax.experiment torch_baseline --config=configs/beauty.py --output=docs/results/torch_cpu.json

Both are of the paper's size (13.1 M parameters, widths of 256). Each runs in a process of its own, which waits while
the other one is timed. Both are timed in float32, as published, and with matrix products in bfloat16 (PyTorch:
autocast). PyTorch's is `torch_model.py`, checked against numbers of the published code before anything is timed,
with Adam and its dropout as published, on full histories (padding costs it the same). Ours trains on the same padding,
and with its length buckets on Beauty's real lengths under the published sampling; it answers all Beauty users, again in
buckets. Beauty must be prepared (`python -m rastp_jax.prepare`).
"""

import importlib.util
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from absl import flags

from rastp_jax import config as config_lib
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.experiments.speed.decoding_speed import DecodingSpeed
from rastp_jax.experiments.speed.training_speed import TrainingSpeed
from rastp_jax.experiments.speed.variants import PADDED_ITEMS, make_variants
from rastp_jax.runtime import cli, files, sharding
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training import runs

_CONFIG = cli.define_config_flag()
_OUTPUT = flags.DEFINE_string("output", "docs/results/torch_cpu.json", "JSON file for the result.")
_TURNS = flags.DEFINE_integer("turns", 7, "How often each side is timed.", lower_bound=1)
_GOLDEN = flags.DEFINE_string("golden", "tests/golden/small_trained.npz", "Numbers of the published code.")

DTYPES = ("float32", "bfloat16")
BATCH, USERS = 64, 32  # samples per step; users per batch of PyTorch's generation
TRAINED = ("padded_dense", "padded_pruned", "bucketed_dense", "bucketed_pruned")
# what is compared -> (ours, PyTorch's)
COMPARED = {
  "training, padded, dense": ("padded_dense", "padded_dense"),
  "training, padded, dense, both without dropout on attention": ("padded_dense", "padded_dense_attention_dropout_off"),
  "training, padded, pruned": ("padded_pruned", "padded_pruned"),
  "training, dense, ours on real lengths": ("bucketed_dense", "padded_dense"),
  "training, pruned, ours on real lengths": ("bucketed_pruned", "padded_pruned"),
  "generation, pruned, ours on real lengths": ("generation_pruned", "generation_pruned"),
  "generation, pruned, ours on real lengths and only items": ("generation_pruned_constrained", "generation_pruned"),
}


def ours(connection: Connection, config: Config, histories: Histories, semantic_ids: SemanticIds) -> None:
  """Times our training and decoding at each message of `connection`; answers the last one with rates per second."""
  lengths = bucket_lengths(config.data, histories)
  mesh, speeds = sharding.make_mesh(config.mesh), {}
  for dtype in DTYPES:
    in_dtype = config_lib.with_values(config, [("model.dtype", dtype)])
    variants = make_variants(in_dtype, lengths)
    speeds[dtype] = (
      TrainingSpeed({name: variants[name] for name in TRAINED}, histories, semantic_ids, mesh, BATCH),
      DecodingSpeed(in_dtype, histories, semantic_ids, mesh, ()),
    )
  connection.send({})
  while connection.recv() == "turn":
    for training, decoding in speeds.values():
      training.run(1)
      decoding.run(1)
    connection.send({})
  rates = {}
  for dtype, (training, decoding) in speeds.items():
    tables = decoding.results()["tables"]
    rates[dtype] = {name: found["samples_per_second"] for name, found in training.results().items()}
    rates[dtype]["generation_pruned"] = tables["unconstrained"]["users_per_second"]
    rates[dtype]["generation_pruned_constrained"] = tables["constrained"]["users_per_second"]
  connection.send(rates)


def pytorch(connection: Connection, config: Config, golden: str) -> None:
  """The same for the published model."""
  import torch

  from rastp_jax.experiments import torch_model

  torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(config.train.seed)
  checks = {
    f"difference from the published code, {'pruned' if pruned else 'dense'}": torch_model.largest_difference(
      golden, pruned=pruned
    )
    for pruned in (False, True)
  }
  model = config.model
  sizes = {
    "d_model": model.d_model,
    "num_heads": model.num_heads,
    "d_kv": model.head_dim,
    "d_ff": model.d_ff,
    "num_layers": model.encoder_blocks,
    "mlp_layers": model.mlp_hidden_layers,
    "dropout": model.dropout,
    "num_hierarchies": config.semantic_ids.levels + 1,
    "num_embeddings_per_hierarchy": config.semantic_ids.codebook_size,
    "relative_attention_num_buckets": model.relative_buckets,
    "relative_attention_max_distance": model.relative_max_distance,
    "layer_norm_eps": model.norm_eps,
    "prune_layer_index": config.reduction.after_block[0],
    "keep_ratio": config.reduction.keep_ratio[0],
  }
  make = lambda pruned: torch_model.PublishedModel(sizes, pruned=pruned)
  codes = lambda *shape: torch.randint(0, config.semantic_ids.codebook_size, shape)
  history, target = codes(BATCH, PADDED_ITEMS, sizes["num_hierarchies"]), codes(BATCH, sizes["num_hierarchies"])

  def training(network) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-4)

    def step(cast):
      optimizer.zero_grad()
      with cast:
        loss = network.loss(history, target)
      loss.backward()
      optimizer.step()

    return step

  answering = make(True).eval()

  def generating(cast):
    with cast:
      answering.generate(history[:USERS], config.eval.beam_width)

  plain = make(False)
  for module in plain.modules():
    if isinstance(module, torch_model.Attention):
      module.dropout = 0.0
  work = {
    "padded_dense": (BATCH, training(make(False))),
    "padded_pruned": (BATCH, training(make(True))),
    "padded_dense_attention_dropout_off": (BATCH, training(plain)),
    "generation_pruned": (USERS, generating),
  }
  square = {dtype: torch.randn(2048, 2048, dtype=getattr(torch, dtype)) for dtype in DTYPES}  # what the cores can do
  calls = {(dtype, name): (number, call) for dtype in DTYPES for name, (number, call) in work.items()}
  calls |= {
    (dtype, "matmul_gflop"): (2 * 2048**3 / 1e9, lambda _, matrix=matrix: matrix @ matrix)
    for dtype, matrix in square.items()
  }
  seconds = {key: [] for key in calls}
  connection.send({"torch": torch.__version__, "parameters": sum(p.numel() for p in plain.parameters()), **checks})
  while connection.recv() == "turn":
    for (dtype, name), (_, call) in calls.items():
      cast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
      call(cast)  # the caches belong to the other one
      start = time.perf_counter()
      call(cast)
      seconds[dtype, name].append(time.perf_counter() - start)
    connection.send({})
  rates = {dtype: {} for dtype in DTYPES}
  for (dtype, name), (number, _) in calls.items():
    rates[dtype][name] = number / statistics.median(seconds[dtype, name])
  connection.send(rates)


def main() -> None:
  if importlib.util.find_spec("torch") is None:
    raise InputError("PyTorch is not installed: pip install torch.")
  files.check_writable(_OUTPUT.value)
  if not pathlib.Path(_GOLDEN.value).is_file():
    raise InputError(f"There is no file {_GOLDEN.value}: run this in the project's directory, or give --golden.")
  config = cli.load_config(_CONFIG.value)
  work = {pytorch: (config, _GOLDEN.value), ours: (config, *runs.load_data(config))}
  context = multiprocessing.get_context("spawn")
  sides, about = {}, {}
  for target, arguments in work.items():
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    about |= here.recv()
    sides[target.__name__] = here, process
  for turn in range(_TURNS.value):
    for connection, _ in sides.values():
      connection.send("turn")
      connection.recv()
    print(f"turn {turn + 1} of {_TURNS.value}", flush=True)
  rates = {}
  for name, (connection, process) in sides.items():
    connection.send("end")
    rates[name] = connection.recv()
    process.join()
  compared = {
    name: {
      f"{side} {dtype}": rates[side][dtype][key]
      for side, key in (("pytorch", theirs), ("ours", own))
      for dtype in DTYPES
    }
    for name, (own, theirs) in COMPARED.items()
  }
  result = {
    "turns": _TURNS.value,
    **about,
    "compared": compared,
    "samples_or_users_per_second": rates,
    "config": config_lib.to_dict(config),
  }
  results.write_result(_OUTPUT.value, result)
  for name, sides_rates in compared.items():
    print(f"{name:60}", "  ".join(f"{side} {rate:.1f}" for side, rate in sides_rates.items()))
