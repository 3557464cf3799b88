"""From a config to its data, and from a workdir to a model that is ready to use."""

import ast
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence

from flax import nnx
from jax.sharding import Mesh

from rastp_jax import config as config_lib
from rastp_jax import hosts, sharding
from rastp_jax.config import Config
from rastp_jax.data import histories as histories_lib
from rastp_jax.data.amazon_reviews import Prepared
from rastp_jax.data.histories import Histories
from rastp_jax.data.sources import Source
from rastp_jax.errors import InputError
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.semantic_ids import codes
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.making import Catalogue
from rastp_jax.training import checkpoint
from rastp_jax.training.step import abstract_model

OVERRIDABLE = (
  "eval",
  "pruning",
  "data.data_dir",
  "data.bucket_items",
)  # what decoding may change about a trained model


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A trained model and everything it needs to answer.

  Attributes:
    config: the run's settings, with the overrides in force.
    model: with the parameters of the best checkpoint, replicated over the mesh.
    step: at which they were saved.
  """

  config: Config
  histories: Histories
  semantic_ids: SemanticIds
  mesh: Mesh
  model: EncoderDecoder
  step: int


def load_data(config: Config) -> tuple[Histories, SemanticIds]:
  """Reads the prepared dataset and its semantic IDs, in every process of the run.

  Raises:
    InputError: in one of the processes they are missing, damaged or do not belong together, or its settings or data
      are not those of the others; all of them raise it, and the sentence says what to run.
  """
  with hosts.together():
    histories = histories_lib.load(config.data.data_dir, config.data.dataset)
    semantic_ids = codes.load(
      codes.semantic_ids_path(config),
      dataset=config.data.dataset,
      fingerprint=histories.fingerprint,
      num_items=histories.num_items,
    )
  check_same(config, histories, semantic_ids)
  return histories, semantic_ids


def catalogue(config: Config, dataset: Prepared, source: Source | None = None) -> Catalogue:
  """A prepared dataset as that which semantic IDs are made for; `source` where its raw files are at hand."""

  def training_region():
    histories = histories_lib.load(config.data.data_dir, config.data.dataset)
    return histories.items, histories.training_spans()

  return Catalogue(
    dataset=config.data.dataset,
    fingerprint=dataset.fingerprint,
    num_items=dataset.num_items,
    read_items=dataset.items,
    read_histories=training_region,
    source_open=source is not None,
    source_embeddings=None if source is None else source.embeddings(dataset.num_items),
  )


def check_same(config: Config, histories: Histories, semantic_ids: SemanticIds) -> None:
  """Raises InputError in all processes if one of them has other settings or data than process 0."""
  fingerprints = {"semantic IDs": semantic_ids.fingerprint, "dataset": histories.fingerprint}
  hosts.check_same({**config_lib.flat(config, without=("data.data_dir",)), **fingerprints})


def load_model(workdir: str | os.PathLike, overrides: Sequence[str] = ()) -> SavedModel:
  """Restores a workdir's best checkpoint.

  Args:
    workdir: of a training run, finished or still running.
    overrides: "SECTION.FIELD=VALUE" settings that differ from the run's, within `OVERRIDABLE`.

  Raises:
    InputError: no run there, no readable checkpoint, other data than it was trained on, or an override that is unknown
      or would change the trained weights' meaning.
  """
  config = override(checkpoint.read_config(workdir), overrides)
  histories, semantic_ids = load_data(config)
  mesh = sharding.make_mesh()
  graph, target = abstract_model(config, semantic_ids.widths, mesh)
  fingerprints = {"semantic IDs": semantic_ids.fingerprint, "dataset": histories.fingerprint}
  restored = checkpoint.restore_params(pathlib.Path(workdir), target, fingerprints)
  return SavedModel(config, histories, semantic_ids, mesh, nnx.merge(graph, restored.params), restored.step)


def override(config: Config, overrides: Sequence[str]) -> Config:
  """The config with "SECTION.FIELD=VALUE" settings replaced and checked."""
  values = dataclasses.asdict(config)
  for text in overrides:
    name, equals, value = text.partition("=")
    section, _, field = name.partition(".")
    if not equals or not field:
      raise InputError(f"--override={text!r} cannot be read: expected SECTION.FIELD=VALUE, like eval.beam_width=50.")
    if name not in OVERRIDABLE and section not in OVERRIDABLE:
      raise InputError(
        f"--override={text!r} would change what the weights were trained for: only {', '.join(OVERRIDABLE)} may differ "
        "from the run."
      )
    with contextlib.suppress(ValueError, SyntaxError):  # a bare word is a string
      value = ast.literal_eval(value)
    values[section][field] = value
  return config_lib.from_config_dict(values)
