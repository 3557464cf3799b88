"""A trained model as a directory of plain files that runs without this program.

export.json               what the programs take: history lengths, beams, platforms; the run's settings
decode_N_items.jax        the decoding of histories of up to N items (`jax.export`): weights, transitions, history
                          codes -> beams; any number of users, on CPU, GPU and TPU
model.safetensors         weights, float32
semantic_ids.safetensors  codes (items, levels), row = item
transitions.safetensors   the same codes as the table decoding walks along
items.jsonl               item ids, ASINs and titles, row = item
load.py                   reads all this with jax and numpy alone
flatbuffers/              a package that `jax.export` reads its files with, and that `pip install jax` leaves out
README.md                 the model card
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from safetensors.numpy import save

from rastp_jax import files, loading
from rastp_jax.data import histories as histories_lib
from rastp_jax.loading import SavedModel
from rastp_jax.model.beam_search import beam_search
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.semantic_ids.embeddings import Item
from rastp_jax.semantic_ids.trie import Transitions, build_transitions
from rastp_jax.serving import exported_model, model_card

PLATFORMS = ("cpu", "cuda", "tpu")


def export_workdir(workdir: str | os.PathLike, directory: str | os.PathLike, overrides: Sequence[str] = ()) -> None:
  """Exports a run's best checkpoint; its eval_test.json, if there, goes into the model card.

  Args:
    workdir: of the run.
    directory: the export; see `write`.
    overrides: see `loading.load_model`.

  Raises:
    InputError: as `loading.load_model` and `write`.
  """
  saved = loading.load_model(workdir, overrides)
  items = histories_lib.load_items(saved.config.data.data_dir, saved.config.data.dataset)
  figures = pathlib.Path(workdir) / "eval_test.json"
  write(directory, saved, items, json.loads(figures.read_text()) if figures.exists() else None)


def write(
  directory: str | os.PathLike, saved: SavedModel, items: Sequence[Item], figures: Mapping[str, Any] | None
) -> None:
  """Exports a trained model; answers are those of `Recommender` with the same settings.

  Args:
    directory: the export; made, whole or not at all.
    saved: the model. Its `eval` settings give the number of beams; beams are always items.
    items: its catalogue, row = item.
    figures: the run's eval_test.json for the model card, if there is one.

  Raises:
    InputError: the directory holds something already, or cannot be written.
  """
  weights = flat_weights(saved.model)
  transitions, unflatten = _flat_transitions(saved.semantic_ids.codes)
  config = saved.config
  decode = make_decode(saved.model, unflatten, config.eval.beam_width, renormalize=config.eval.renormalize)
  with files.new_directory(directory) as out:
    programs = {}
    for length in config.data.bucket_items:
      programs[length] = f"decode_{length}_items.jax"
      exported = export_decode(decode, weights, transitions, length, saved.semantic_ids.depth)
      files.write_whole(out / programs[length], exported.serialize())
    info = {
      "programs": programs,
      "max_items": config.data.max_items,
      "beam_width": config.eval.beam_width,
      "platforms": PLATFORMS,
      "jax": jax.__version__,
      "step": saved.step,
      "parameters": sum(value.size for value in weights.values()),
      "dataset_fingerprint": saved.histories.fingerprint,
      "semantic_ids_fingerprint": saved.semantic_ids.fingerprint,
      "semantic_ids": dict(saved.semantic_ids.provenance),
      "config": dataclasses.asdict(config),
    }
    files.write_json(out / "export.json", info)
    metadata = {"format": "np", "model": "rastp_jax", "step": str(saved.step)}
    files.write_whole(out / "model.safetensors", save(weights, metadata))
    codes = np.ascontiguousarray(saved.semantic_ids.codes, np.int32)
    files.write_whole(out / "semantic_ids.safetensors", save({"codes": codes}))
    files.write_whole(out / "transitions.safetensors", save(transitions))
    with files.open_whole(out / "items.jsonl") as file:
      for item in items:
        line = {"item_id": item.item_id, "asin": item.asin, "title": item.title}
        file.write(json.dumps(line).encode() + b"\n")
    shutil.copyfile(exported_model.__file__, out / "load.py")
    package = importlib.util.find_spec("flatbuffers").submodule_search_locations[0]
    shutil.copytree(package, out / "flatbuffers", ignore=shutil.ignore_patterns("__pycache__"))
    files.write_whole(out / "README.md", model_card.render(info, saved, figures))


def flat_weights(model: EncoderDecoder) -> dict[str, np.ndarray]:
  """Parameters under dotted names, like "encoder_blocks.0.attention.q.kernel"."""
  return {
    ".".join(map(str, path)): np.asarray(param[...]) for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }


def make_decode(
  model: EncoderDecoder,
  unflatten: Callable[[Mapping[str, jax.Array]], Transitions],
  width: int,
  *,
  renormalize: bool,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Decoding as a function of nothing but arrays and dicts of them, which is all that a program can be given later.

  Returns:
    (weights, transitions, history (B, N, C)) -> codes (B, W, C), log-probabilities (B, W).
  """
  graph, state = nnx.split(model, nnx.Param)
  paths = [path for path, _ in nnx.to_flat_state(state)]

  def decode(weights, transitions, history):
    params = nnx.traversals.unflatten_mapping({path: weights[".".join(map(str, path))] for path in paths})
    merged = nnx.merge(graph, params)
    beams = beam_search(merged, merged.encode(history), unflatten(transitions), width, renormalize=renormalize)
    return beams.codes, beams.log_probs

  return decode


def export_decode(decode: Callable, weights, transitions, items: int, depth: int) -> export.Exported:
  """Lowers `make_decode`'s function for all platforms, with any number of users and histories of `items` items."""
  shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  (users,) = export.symbolic_shape("users")
  history = jax.ShapeDtypeStruct((users, items, depth), jnp.int32)
  return export.export(jax.jit(decode), platforms=PLATFORMS)(shapes(weights), shapes(transitions), history)


def _flat_transitions(codes: np.ndarray):
  """The table as named arrays, and the way back, whatever arrays the table consists of."""
  leaves, structure = jax.tree.flatten(build_transitions(codes))
  names = [f"table_{place}" for place in range(len(leaves))]
  arrays = {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}
  return arrays, lambda named: jax.tree.unflatten(structure, [named[name] for name in names])
