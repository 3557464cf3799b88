"""From a config to its data, and from a workdir to a model that is ready to use."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from rastp_jax import config as config_lib
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import Config, May
from rastp_jax.config.fields import unknown
from rastp_jax.data import histories as histories_lib
from rastp_jax.data import prepared
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.model.interface import GenerativeModel
from rastp_jax.runtime import processes, sharding, terminal
from rastp_jax.semantic_ids import codes
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.step import abstract_model
from rastp_jax.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A trained model and everything it needs to answer.

  Attributes:
    config: the run's settings, with the overrides in force.
    histories: the prepared dataset.
    semantic_ids: its items' codes.
    lengths: of the buckets that histories are read in, in items.
    mesh: devices that hold a full copy of the model each.
    model: with the parameters of the best checkpoint, replicated over the mesh.
    step: at which they were saved.
  """

  config: Config
  histories: Histories
  semantic_ids: SemanticIds
  lengths: tuple[int, ...]
  mesh: Mesh
  model: GenerativeModel
  step: int


def load_data(config: Config, *, begun: bool = False) -> tuple[Histories, SemanticIds]:
  """Reads the prepared dataset and its semantic IDs, in every process of the run.

  Args:
    config: all settings, which must be those that the data were made with.
    begun: whether a run goes on, which is bound to its data: what its settings say of them is a warning then.

  Raises:
    InputError: in one of the processes they are missing, damaged, do not belong together or were made with other
      settings, or its settings or data are not those of the others; all of them raise it, and the sentence says what
      to do.
  """
  # What only training needs: importing it would make every answer wait.
  from rastp_jax.data.sources import detect
  from rastp_jax.semantic_ids import pipeline

  histories, semantic_ids = _read_data(config)
  with processes.raise_on_all():
    try:
      detect.check_prepared(prepared.open_prepared(config.data.data_dir, config.data.dataset), config.data)
      pipeline.check_made_with(codes.semantic_ids_path(config), semantic_ids, config.semantic_ids)
    except InputError as error:
      if not begun:
        raise
      terminal.say(f"WARNING: {error}")
  return histories, semantic_ids


def _read_data(config: Config) -> tuple[Histories, SemanticIds]:
  """`load_data` for a run, whose weights know their data by its fingerprints: with any settings."""
  with processes.raise_on_all():
    histories = histories_lib.load(config.data.data_dir, config.data.dataset)
    semantic_ids = codes.load(
      codes.semantic_ids_path(config),
      dataset=config.data.dataset,
      fingerprint=histories.fingerprint,
      num_items=histories.num_items,
    )
  check_same(config, histories, semantic_ids)
  return histories, semantic_ids


def fingerprints(histories: Histories, semantic_ids: SemanticIds) -> dict[str, str]:
  """What identifies a run's data, by name."""
  return {"semantic IDs": semantic_ids.fingerprint, "dataset": histories.fingerprint}


def check_same(config: Config, histories: Histories, semantic_ids: SemanticIds) -> None:
  """Raises InputError in all processes if one of them has other settings or data than process 0."""
  free = config_lib.differing_settings(May.HOST)
  settings = {f"config.{name}": value for name, value in config_lib.flat(config).items() if name not in free}
  processes.check_same({**settings, **fingerprints(histories, semantic_ids)})


def load_model(workdir: str | os.PathLike, overrides: Sequence[str] = ()) -> SavedModel:
  """Restores a workdir's best checkpoint.

  Args:
    workdir: of a training run, finished or still running.
    overrides: "SECTION.FIELD=VALUE" settings that differ from the run's, within `config.overridable`.

  Raises:
    InputError: no run there, no readable checkpoint, other data than it was trained on, or an override that is unknown
      or would change the trained weights' meaning.
  """
  run = Workdir(workdir)
  trained = run.read_config()
  config = override(trained, overrides)
  histories, semantic_ids = _read_data(config)
  mesh = sharding.make_mesh()
  graph, wanted = abstract_model(config, semantic_ids, mesh)
  _, there = abstract_model(trained, semantic_ids, mesh)
  missing = set(config_lib.flatten(wanted)) - set(config_lib.flatten(there))
  if missing:
    raise InputError(
      f"reduction.method={config.reduction.method!r} has weights of its own ({sorted(missing)[0]}), which the run in "
      f"{workdir} with reduction.method={trained.reduction.method!r} did not train: train with that method, or "
      "override with one without weights."
    )
  restored = run.restore_params(there, fingerprints(histories, semantic_ids))
  params = _those_in(wanted, restored.params)
  return SavedModel(
    config=config,
    histories=histories,
    semantic_ids=semantic_ids,
    lengths=bucket_lengths(config.data, histories),
    mesh=mesh,
    model=nnx.merge(graph, params),
    step=restored.step,
  )


def _those_in(wanted: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters of the names that are wanted, at any depth: a reduction can leave out stages that have some."""
  return {
    name: _those_in(inner, params[name]) if isinstance(inner, Mapping) else params[name]
    for name, inner in wanted.items()
  }


def on_this_host(saved: SavedModel) -> SavedModel:
  """The same on this process's devices alone, so that it answers without the other processes."""
  if jax.process_count() == 1:
    return saved
  mesh = sharding.make_mesh(devices=jax.local_devices())
  graph, params = nnx.split(saved.model)
  own = jax.tree.map(lambda leaf: jax.device_put(leaf.addressable_data(0), sharding.replicated(mesh)), params)
  return dataclasses.replace(saved, mesh=mesh, model=nnx.merge(graph, own))


def override(config: Config, overrides: Sequence[str]) -> Config:
  """The config with "SECTION.FIELD=VALUE" settings replaced and checked; former names are understood.

  Raises:
    InputError: a setting is unknown, its value makes no sense, or it may not differ from the run's.
  """
  allowed = config_lib.differing_settings(May.DECODE)
  known = config_lib.all_settings()
  assignments = []
  for text in overrides:
    name, value = config_lib.read_assignment(text, "--override", "eval.beam_width=50")
    for current in config_lib.current_names(name):
      if current not in known:
        raise InputError(unknown(current, list(known)))
      if current not in allowed:
        raise InputError(
          f"--override={text!r} would change what the weights were trained for: only {config_lib.overridable()} may "
          "differ from the run."
        )
    assignments.append((name, value))
  return config_lib.with_values(config, assignments)
