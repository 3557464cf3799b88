"""A trained model as a directory of plain files that runs without rastp_jax.

export.json               history lengths, beams and platforms of the programs; the run's settings
decode_N_items.jax        answers histories of up to N items (`jax.export`): weights, tables, item rows -> item rows,
                          log-probabilities; any number of users, on CPU, GPU and TPU
model.safetensors         weights, float32
tables.safetensors        what decoding knows of the items: codes (items, levels), row = item; the same as the table
                          that constrains decoding to items; neighbours, where counts are mixed in
items.jsonl               item ids, ASINs and titles, row = item
SHA256SUMS                checksums of the files above, which load.py checks
load.py                   reads all this with jax and numpy only
flatbuffers/              the package that `jax.export` reads its files with; `pip install jax` does not install it
README.md                 the model card
"""

import dataclasses
import hashlib
import importlib.resources
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from safetensors.numpy import save

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.data import histories as histories_lib
from rastp_jax.data.items import Item
from rastp_jax.evaluation import results
from rastp_jax.generation.decode import ItemTables, answer, item_tables
from rastp_jax.model.interface import GenerativeModel
from rastp_jax.runtime import files, target
from rastp_jax.serving import exported_model, model_card
from rastp_jax.training import runs
from rastp_jax.training.runs import SavedModel
from rastp_jax.training.workdir import Workdir

PLATFORMS = ("cpu", "cuda", "tpu")


def export_workdir(workdir: str | os.PathLike, directory: str | os.PathLike, overrides: Sequence[str] = ()) -> None:
  """Exports a run's best checkpoint; the model card shows its metrics on the test split if it was evaluated.

  Args:
    workdir: of the run.
    directory: the export; see `write`.
    overrides: see `runs.load_model`.

  Raises:
    InputError: as `runs.load_model` and `write`.
  """
  saved = runs.load_model(workdir, overrides)
  items = histories_lib.load_items(saved.config.data.data_dir, saved.config.data.dataset)
  evaluation = Workdir(workdir).evaluation("test")
  metrics = results.read_metrics(evaluation, str(workdir)) if evaluation.exists() else None
  write(directory, saved, items, metrics)


def write(
  directory: str | os.PathLike, saved: SavedModel, items: Sequence[Item], metrics: Mapping[str, Any] | None
) -> None:
  """Exports a trained model; it recommends what `Recommender` does with the same settings.

  Args:
    directory: the export; it must be new or empty, and is written whole or not at all.
    saved: the model. Its `eval` settings give the number of beams; beams are always items.
    items: its catalogue, row = item.
    metrics: of an evaluation on the test split, for the model card, if there is one.

  Raises:
    InputError: the directory is not empty, or cannot be written.
  """
  weights = flat_weights(saved.model)
  config = saved.config
  tables, unflatten = flat_tables(item_tables(saved.semantic_ids, saved.histories, config))
  decode = make_exportable_decode(saved.model, unflatten, config)
  with files.new_directory(directory) as out:
    programs = {}
    for length in saved.lengths:
      programs[length] = f"decode_{length}_items.jax"
      exported = export_decode(decode, weights, tables, length)
      files.write_atomic(out / programs[length], bytes(exported.serialize()))
    info = {
      "programs": programs,
      "max_items": config.data.max_items,
      "beam_width": config.eval.beam_width,
      "exclude_history": config.eval.exclude_history,
      "platforms": PLATFORMS,
      "jax": jax.__version__,
      "step": saved.step,
      "parameters": sum(value.size for value in weights.values()),
      "dataset_fingerprint": saved.histories.fingerprint,
      "semantic_ids_fingerprint": saved.semantic_ids.fingerprint,
      "semantic_ids": dict(saved.semantic_ids.provenance),
      "config": config_lib.to_dict(config),
    }
    files.write_json(out / "export.json", info)
    metadata = {"format": "np", "model": "rastp_jax", "step": str(saved.step)}
    files.write_atomic(out / "model.safetensors", save(weights, metadata))
    files.write_atomic(out / "tables.safetensors", save(tables))
    with files.open_atomic(out / "items.jsonl") as file:
      for item in items:
        line = {"item_id": item.item_id, "asin": item.asin, "title": item.title}
        file.write(json.dumps(line).encode() + b"\n")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}
    files.write_atomic(out / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    shutil.copyfile(exported_model.__file__, out / "load.py")
    package = importlib.resources.files("flatbuffers")
    shutil.copytree(str(package), out / "flatbuffers", ignore=shutil.ignore_patterns("__pycache__"))
    files.write_atomic(out / "README.md", model_card.render(info, saved, metrics))


def flat_weights(model: GenerativeModel) -> dict[str, np.ndarray]:
  """Parameters under dotted names, like "encoder_blocks.0.attention.q.kernel"."""
  return {
    ".".join(map(str, path)): np.asarray(param[...]) for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }


def make_exportable_decode(
  model: GenerativeModel, unflatten: Callable[[Mapping[str, jax.Array]], ItemTables], config: Config
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Decoding as a function of arrays and dicts of arrays only: an exported program takes nothing else.

  Returns:
    (weights, tables, history (B, N)) -> item rows (B, W), log-probabilities (B, W).
  """
  graph, state = nnx.split(model, nnx.Param)
  paths = [path for path, _ in nnx.to_flat_state(state)]
  settings = dataclasses.replace(config.eval, constrained=True)

  def decode(weights, tables, history):
    params = nnx.traversals.unflatten_mapping({path: weights[".".join(map(str, path))] for path in paths})
    merged = nnx.merge(graph, params)
    answers = answer(merged, unflatten(tables), history, settings, config.counts)
    return answers.items, answers.log_probs

  return decode


def export_decode(decode: Callable, weights, tables, items: int) -> export.Exported:
  """Lowers `make_exportable_decode`'s function for all platforms, any number of users, histories of `items` items."""
  shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  (users,) = export.symbolic_shape("users")
  history = jax.ShapeDtypeStruct((users, items), jnp.int32)
  with target.tracing_as("cpu"):  # whose forms run everywhere
    return export.export(jax.jit(decode), platforms=PLATFORMS)(shapes(weights), shapes(tables), history)


def flat_tables(
  tables: ItemTables,
) -> tuple[dict[str, np.ndarray], Callable[[Mapping[str, jax.Array]], ItemTables]]:
  """The tables as named arrays, like "transitions.starts.0", and a function from these back to the tables."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(tables)
  names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
  arrays = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
  return arrays, lambda named: jax.tree.unflatten(structure, [named[name] for name in names])
