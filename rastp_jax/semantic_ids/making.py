"""From items to codes on disk: embeddings, quantizer, collisions, health, and the files of all that."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rastp_jax import files
from rastp_jax.config import Config, SemanticIdsConfig
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import codes, collaborative, collisions, embeddings, health, health_plot, methods, own_codes
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.embeddings import Item
from rastp_jax.semantic_ids.quantizer import Quantizer, sample

# Rows that the reconstruction error is measured on: a mean over so many is exact to three digits.
_ERROR_SAMPLE = 65_536
_CREATED_BY = "rastp_jax.prepare"
_OWN = "own codes"
_METHOD_FIELDS = {
  "residual_kmeans": ("normalize_residuals",),
  "residual_vq": ("normalize_residuals", "train_steps", "train_batch"),
  "rqvae": ("train_steps", "train_batch", "rqvae_hidden", "rqvae_latent", "rqvae_learning_rate", "rqvae_commitment"),
  "random": (),
}
_TEXT_FIELDS = {"tfidf_svd": ("text_template",), "sentence_transformers": ("text_template", "text_model")}


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
  """The dataset that codes are made for.

  Attributes:
    dataset: its name.
    fingerprint: identifies the source it was prepared from.
    num_items: rows of the item table.
    read_items: reads that table, row = item.
    read_histories: reads all users' items end to end, (interactions,), and (first, stop) a user: the positions that may
      be learned from, held-out items left out.
    source_open: whether the raw files are at hand, so that `source_embeddings` tells something.
    source_embeddings: the source's own item vectors, (num_items, features), or None if it has none.
  """

  dataset: str
  fingerprint: str
  num_items: int
  read_items: Callable[[], Sequence[Item]]
  read_histories: Callable[[], tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]
  source_open: bool = False
  source_embeddings: np.ndarray | None = None

  @functools.cached_property
  def items(self) -> Sequence[Item]:
    return self.read_items()

  @functools.cached_property
  def item_ids(self) -> list[str]:
    return [item.item_id for item in self.items]


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
  """Codes that lie ready.

  Attributes:
    semantic_ids: the table.
    figures: its health, `health.measure`'s values.
    path: the table's file; `health.json`, `health.png` and (for learned codes) `codebooks.npz` stand beside it.
    reused: True when that file was there already.
  """

  semantic_ids: SemanticIds
  figures: Mapping[str, Any]
  path: pathlib.Path
  reused: bool


def beside(path: pathlib.Path, kind: str) -> pathlib.Path:
  """The file of that kind ("health.json", "health.png", "codebooks.npz") that belongs to a code table's file."""
  return path.with_name(f"{path.stem}.{kind}")


def check(config: Config, codes_file: str | None = None) -> None:
  """Raises InputError for what can be told to be wrong before any file is made."""
  s = config.semantic_ids
  embeddings.check_template(s.text_template)
  for path, where in ((codes_file, "--codes"), (_embeddings_file(s), "config.semantic_ids.embeddings")):
    if path is not None and not pathlib.Path(path).is_file():
      raise InputError(f"There is no file {path}: {where} must name one.")


def make_or_find(config: Config, catalogue: Catalogue, codes_file: str | None = None) -> Made:
  """Makes the semantic IDs of a dataset, or finds them made.

  Args:
    config: `semantic_ids` and data.data_dir matter.
    catalogue: the dataset.
    codes_file: codes of the user's own, which are checked and used instead of learning any.

  Raises:
    InputError: embeddings or codes cannot be used, or what is there was made from other files or with other settings.
      Nothing is overwritten, and nothing is left half written.
  """
  path = codes.semantic_ids_path(config)
  wanted = Inputs.open(config.semantic_ids, catalogue, codes_file)
  if path.exists():
    ids = codes.load(path, dataset=catalogue.dataset, fingerprint=catalogue.fingerprint, num_items=catalogue.num_items)
    _check_same(path, ids.provenance, wanted.provenance)
    return Made(ids, _stored_figures(path, ids, catalogue), path, reused=True)
  _check_writable(path.parent)
  ids, quantizer, errors = make(config.semantic_ids, catalogue, wanted)
  figures = measure(ids, catalogue, errors)
  # The table comes last: where it is, all is.
  codebooks = beside(path, "codebooks.npz")
  if quantizer is None:
    codebooks.unlink(missing_ok=True)  # of codes that were removed
  else:
    _write(quantizer.save, codebooks)
  _write_health(path, ids, figures)
  _write(ids.save, path)
  return Made(ids, figures, path, reused=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
  """What codes are made from, found but not worked on yet.

  Attributes:
    provenance: all that determines the codes; without embeddings where these are not known.
    vectors: item vectors as a file or the source has them; None if they are made from text.
    codes_file: codes of the user's own.
    known: False when the embeddings are the source's and the source is not at hand.
  """

  provenance: Mapping[str, Any]
  vectors: np.ndarray | None = None
  codes_file: str | None = None
  known: bool = True

  @classmethod
  def open(cls, settings: SemanticIdsConfig, catalogue: Catalogue, codes_file: str | None = None) -> "Inputs":
    """Finds the embeddings that the settings ask for, or the codes of the user's own, and what they are."""
    about = {
      "dataset": catalogue.dataset,
      "dataset_fingerprint": catalogue.fingerprint,
      "created_by": _CREATED_BY,
      "collisions": settings.collisions,
    }
    if codes_file is not None:
      digest = hashlib.sha256(pathlib.Path(codes_file).read_bytes()).hexdigest()
      return cls({**about, "method": _OWN, "codes_sha256": digest}, codes_file=codes_file)
    names = ("method", "seed", "levels", "width", *_METHOD_FIELDS[settings.method])
    about |= {name: _json(getattr(settings, name)) for name in names}
    about["behaviour"] = settings.behaviour
    if settings.behaviour:
      about["behaviour_dims"] = settings.behaviour_dims
    file = _embeddings_file(settings)
    if file is not None:
      vectors, what = embeddings.load_embeddings(file, catalogue.num_items, catalogue.item_ids), "embeddings of a file"
    elif settings.embeddings == "auto" and not catalogue.source_open:
      return cls(about, known=False)
    elif settings.embeddings == "auto" and catalogue.source_embeddings is not None:
      vectors, what = catalogue.source_embeddings, "embeddings of the source"
    else:  # made from the text, which the dataset's fingerprint covers
      kind = "tfidf_svd" if settings.embeddings == "auto" else settings.embeddings
      what = f"tfidf_svd of {settings.text_dims} dimensions" if kind == "tfidf_svd" else kind
      about |= {name: getattr(settings, name) for name in _TEXT_FIELDS[kind]}
      return cls({**about, "embeddings": what, "embeddings_sha256": catalogue.fingerprint})
    return cls({**about, "embeddings": what, "embeddings_sha256": embeddings.fingerprint(vectors)}, vectors)

  def embed(self, settings: SemanticIdsConfig, catalogue: Catalogue) -> np.ndarray:
    """Item vectors: those found, or made from the items' text; joined with behaviour where that has a weight."""
    content = self._content(settings, catalogue)
    if not settings.behaviour:
      return content
    history, spans = catalogue.read_histories()
    behaviour = collaborative.cooccurrence_vectors(
      history, *spans, catalogue.num_items, settings.behaviour_dims, settings.seed
    )
    return collaborative.join(content, behaviour, settings.behaviour)

  def _content(self, settings: SemanticIdsConfig, catalogue: Catalogue) -> np.ndarray:
    if self.vectors is not None:
      return self.vectors
    texts = [embeddings.item_text(item, settings.text_template) for item in catalogue.items]
    if settings.embeddings == "sentence_transformers":
      return embeddings.sentence_transformer(texts, settings.text_model)
    return embeddings.tfidf_svd(texts, settings.text_dims, settings.seed)


def make(
  settings: SemanticIdsConfig, catalogue: Catalogue, inputs: Inputs
) -> tuple[SemanticIds, Quantizer | None, list[float] | None]:
  """Makes codes in memory.

  Returns:
    the table; and for learned codes the quantizer, and the share of the vectors' variance that each level leaves (None
    if the method rebuilds nothing).
  """
  if inputs.codes_file is not None:
    return own_codes.read(inputs.codes_file, catalogue.item_ids, settings, inputs.provenance), None, None
  if not inputs.known:
    raise InputError(
      f"There are no semantic IDs of {catalogue.dataset!r} yet: give --raw_dir, the directory it was prepared from, or "
      "set config.semantic_ids.embeddings to a file, tfidf_svd or sentence_transformers."
    )
  vectors = inputs.embed(settings, catalogue)
  quantizer = methods.METHODS[settings.method].fit(vectors, settings)
  return resolve(quantizer, vectors, settings, inputs.provenance), quantizer, _errors(quantizer, vectors)


def resolve(
  quantizer: Quantizer, vectors: np.ndarray, settings: SemanticIdsConfig, provenance: Mapping[str, Any]
) -> SemanticIds:
  """The unique codes of all vectors, by settings.collisions."""
  learned = quantizer.encode(vectors)
  if settings.collisions == "extra_level":
    return SemanticIds.from_learned(learned, settings.width, provenance)
  unique = collisions.reassign(learned, settings.width, lambda rows: quantizer.last_costs(vectors[rows]))
  return SemanticIds(unique, (settings.width,) * settings.levels, dict(provenance), learned)


def measure(ids: SemanticIds, catalogue: Catalogue, errors: Sequence[float] | None = None) -> dict[str, Any]:
  """The health of a table, against all that is known of the dataset."""
  return health.measure(ids, health.Evidence(catalogue.items, *catalogue.read_histories(), errors))


def _errors(quantizer: Quantizer, vectors: np.ndarray) -> list[float] | None:
  some = sample(vectors, _ERROR_SAMPLE, seed=0)
  left = quantizer.squared_errors(some)
  if left is None:
    return None
  variance = max(float(((some - some.mean(0)) ** 2).sum(1).mean()), 1e-12)
  return [float(error) for error in left.mean(0) / variance]


def _stored_figures(path: pathlib.Path, ids: SemanticIds, catalogue: Catalogue) -> Mapping[str, Any]:
  """The figures written with these codes; measured again (but for the quantizer's) and written where there are none."""
  with contextlib.suppress(OSError, ValueError):
    figures = json.loads(beside(path, "health.json").read_text())
    if figures["identity"] == ids.fingerprint and beside(path, "health.png").exists():
      return figures
  figures = measure(ids, catalogue)
  _write_health(path, ids, figures)
  return figures


def _write_health(path: pathlib.Path, ids: SemanticIds, figures: Mapping[str, Any]) -> None:
  title = f"Semantic IDs of {ids.provenance.get('dataset')}, {ids.provenance.get('method')}"
  _write(lambda place: files.write_whole(place, health_plot.draw(ids, figures, title)), beside(path, "health.png"))
  _write(lambda place: files.write_json(place, figures), beside(path, "health.json"))


def _embeddings_file(settings: SemanticIdsConfig) -> str | None:
  return settings.embeddings if settings.embeddings.endswith((".npy", ".npz")) else None


def _json(value):
  return list(value) if isinstance(value, tuple) else value


def _check_same(path: pathlib.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  defaults = dataclasses.asdict(SemanticIdsConfig())  # of settings younger than the file
  own = ", or give --codes again to go on with your own" if stored.get("method") == _OWN != wanted["method"] else ""
  for name, value in wanted.items():
    before = stored.get(name, _json(defaults.get(name)))
    if before != value:
      raise InputError(
        f"{path} was made with {name}={before!r}, but now {name}={value!r} is asked for: remove the file to make the "
        f"codes again, or choose another config.data.data_dir{own}."
      )


def _check_writable(directory: pathlib.Path) -> None:
  def write(place: pathlib.Path):
    place.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=place).close()

  _write(write, directory)


def _write(write: Callable[[pathlib.Path], Any], path: pathlib.Path) -> None:
  try:
    write(path)
  except OSError as error:
    raise InputError(
      f"{path} cannot be written ({error.strerror or error}): make room there, or choose another config.data.data_dir."
    ) from error
