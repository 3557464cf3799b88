"""From items to codes on disk: embeddings, quantizer, collisions, health, and the files of all that."""

import contextlib
import dataclasses
import hashlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rastp_jax.config import Config, Makes, SemanticIdsConfig, settings_of
from rastp_jax.config.fields import facts_of
from rastp_jax.data import histories as histories_lib
from rastp_jax.data import vectors as item_vectors
from rastp_jax.data.prepared import Prepared
from rastp_jax.data.sources.source import Source
from rastp_jax.errors import InputError
from rastp_jax.runtime import files
from rastp_jax.semantic_ids import codes, collaborative, collisions, embeddings, health, health_plot, import_codes
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.quantizers import registry
from rastp_jax.semantic_ids.quantizers.base import Quantizer, sample

# Rows that the reconstruction error is measured on; their mean is exact to three digits.
_ERROR_SAMPLE = 65_536
_CREATED_BY = "rastp_jax.prepare"
_OWN = "own codes"
WITHOUT_TEXT = "none: no item has a text"


@dataclasses.dataclass(frozen=True, eq=False)
class CodesOnDisk:
  """A dataset's codes and their files.

  Attributes:
    semantic_ids: the table.
    metrics: its health, as `health.measure` returns it.
    path: the table's file; `health.json`, `health.png`, for learned codes `codebooks.npz`, and for those made by
      tfidf_svd `text.npz` are beside it.
    reused: True when that file was there already.
  """

  semantic_ids: SemanticIds
  metrics: Mapping[str, Any]
  path: pathlib.Path
  reused: bool


@dataclasses.dataclass(frozen=True, eq=False)
class NewCodes:
  """Codes in memory.

  Attributes:
    semantic_ids: the table.
    quantizer: the method with its codebooks; None for codes of a file.
    errors: share of the vectors' variance that each level leaves; None where the method rebuilds nothing.
    notes: how items were matched with a file's rows, in sentences.
    advice: what is wrong with what the codes were made from, in sentences.
    text: what tfidf_svd learned; None where it was not used.
  """

  semantic_ids: SemanticIds
  quantizer: Quantizer | None = None
  errors: Sequence[float] | None = None
  notes: Sequence[str] = ()
  advice: Sequence[str] = ()
  text: embeddings.TextSpace | None = None


class Inputs(Protocol):
  """What codes are made from, found but not worked on yet."""

  @property
  def provenance(self) -> Mapping[str, Any]:
    """Everything that determines the codes, as far as it is known: JSON values that their file records."""
    ...

  def make(self, settings: SemanticIdsConfig, dataset: Prepared) -> NewCodes:
    """Makes the codes; raises InputError where that is not possible."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class CodesOfFile:
  """The user's own codes, learned elsewhere."""

  provenance: Mapping[str, Any]
  path: str

  def make(self, settings: SemanticIdsConfig, dataset: Prepared) -> NewCodes:
    notes: list[str] = []
    order = item_vectors.Order.of(dataset) if not self.path.endswith(".npz") else item_vectors.Order(None, 0)
    read = import_codes.read(self.path, dataset.item_ids, order, settings, self.provenance, notes)
    return NewCodes(read, notes=notes)


@dataclasses.dataclass(frozen=True, eq=False)
class ItemVectors:
  """Vectors of a file or of the source: (items, features) floats, row = item; and how they were matched with items."""

  provenance: Mapping[str, Any]
  vectors: np.ndarray
  notes: Sequence[str] = ()

  def make(self, settings: SemanticIdsConfig, dataset: Prepared) -> NewCodes:
    made = _learn(self.vectors, settings, dataset, self.provenance)
    advice = _advice_on_content(self.vectors, settings, dataset)
    return dataclasses.replace(made, notes=self.notes, advice=advice)


@dataclasses.dataclass(frozen=True, eq=False)
class HistoriesOnly:
  """What users take together, where no item has a text; and nothing at all where the method needs nothing."""

  provenance: Mapping[str, Any]

  def make(self, settings: SemanticIdsConfig, dataset: Prepared) -> NewCodes:
    return _learn(None, settings, dataset, self.provenance)


@dataclasses.dataclass(frozen=True, eq=False)
class ItemTexts:
  """The items' text, to be embedded by "tfidf_svd" or one of `embeddings.TEXT_MODELS`."""

  provenance: Mapping[str, Any]
  embedding: str

  def make(self, settings: SemanticIdsConfig, dataset: Prepared) -> NewCodes:
    if not needs_content(settings):
      return _learn(None, settings, dataset, self.provenance)
    texts = [embeddings.item_text(item, settings.text_template) for item in dataset.items]
    if self.embedding in embeddings.TEXT_MODELS:
      vectors, space = embeddings.TEXT_MODELS[self.embedding](texts, settings.text_model), None
    else:
      vectors, space = embeddings.tfidf_svd(texts, settings.text_dims, settings.seed)
    return dataclasses.replace(_learn(vectors, settings, dataset, self.provenance), text=space)


@dataclasses.dataclass(frozen=True, eq=False)
class UnknownVectors:
  """The source decides about the vectors, and its files are not given: `provenance` says nothing about embeddings."""

  provenance: Mapping[str, Any]

  def make(self, settings: SemanticIdsConfig, dataset: Prepared) -> NewCodes:
    if not needs_content(settings):
      return _learn(None, settings, dataset, self.provenance)
    raise InputError(
      f"There are no semantic IDs of {dataset.dataset!r} yet: give --raw_dir, the directory it was prepared from, or "
      "set config.semantic_ids.embeddings to a file, tfidf_svd, sentence_transformers or model2vec."
    )


def beside(path: pathlib.Path, kind: str) -> pathlib.Path:
  """The file of that kind ("health.json", "health.png", "codebooks.npz", "text.npz") that belongs to a code table."""
  return path.with_name(f"{path.stem}.{kind}")


def check(config: Config, codes_file: str | None = None) -> None:
  """Raises InputError for mistakes that can be found before any file is written."""
  s = config.semantic_ids
  embeddings.check_template(s.text_template, config.data.extra_columns)
  for path, where in ((codes_file, "--codes"), (_embeddings_file(s), "config.semantic_ids.embeddings")):
    if path is not None and not files.check_path(path).is_file():
      raise InputError(f"There is no file {path}: {where} must name one.")


def learn_or_load(
  config: Config, dataset: Prepared, source: Source | None = None, codes_file: str | None = None
) -> CodesOnDisk:
  """Makes the semantic IDs of a dataset, or loads them where they are made already.

  Args:
    config: `semantic_ids` and data.data_dir matter.
    dataset: the prepared dataset.
    source: where it was prepared from, if its files are at hand: it may have embeddings.
    codes_file: the user's own codes, which are checked and used instead of learned ones.

  Raises:
    InputError: embeddings or codes cannot be used, or the codes there were made from other files or with other
      settings. Nothing is overwritten, and nothing is left half written.
  """
  path = codes.semantic_ids_path(config)
  settings = config.semantic_ids.sized(dataset.num_items)
  wanted = find_inputs(settings, dataset, source, codes_file)
  if path.exists():
    ids = codes.load(path, dataset=dataset.dataset, fingerprint=dataset.fingerprint, num_items=dataset.num_items)
    _check_same(path, ids.provenance, wanted.provenance)
    return CodesOnDisk(ids, _stored_metrics(path, ids, dataset), path, reused=True)
  with _writing(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()
  new = wanted.make(settings, dataset)
  metrics = measure(new.semantic_ids, dataset, new.errors)
  metrics["advice"] = [*metrics["advice"], *new.advice]
  metrics["notes"] = list(new.notes)
  for kind, learned in (("codebooks.npz", new.quantizer), ("text.npz", new.text)):
    with _writing(beside(path, kind)) as file:
      if learned is None:
        file.unlink(missing_ok=True)  # of codes that were removed
      else:
        learned.save(file)
  _write_health(path, new.semantic_ids, metrics)
  with _writing(path):  # the table comes last: its presence marks the set as complete
    new.semantic_ids.save(path)
  return CodesOnDisk(new.semantic_ids, metrics, path, reused=False)


def find_inputs(
  settings: SemanticIdsConfig, dataset: Prepared, source: Source | None = None, codes_file: str | None = None
) -> Inputs:
  """Finds the vectors that the settings ask for, or the user's own codes, and where they come from."""
  known: dict[str, Any] = {
    "dataset": dataset.dataset,
    "dataset_fingerprint": dataset.fingerprint,
    "created_by": _CREATED_BY,
    "collisions": settings.collisions,
  }
  if codes_file is not None:
    digest = hashlib.sha256(files.check_path(codes_file).read_bytes()).hexdigest()
    return CodesOfFile({**known, "method": _OWN, "codes_sha256": digest}, codes_file)
  known |= _learned_with(settings)
  file = _embeddings_file(settings)
  if file is not None:
    return _vectors_of_file(file, known, dataset)
  text = settings.embeddings
  if text == "auto":
    own = source.embeddings(dataset.num_items) if source is not None else None
    if own is not None:
      return _item_vectors(known, "embeddings of the source", own)
    # Sources of one table of interactions have no vectors of their own, so that it need not be at hand.
    if source is None and dataset.items_file_rows is None:
      return UnknownVectors(known)
    if not any(embeddings.item_text(item, settings.text_template) for item in dataset.iterate_items()):
      if "collaborative_dims" not in known:
        known["collaborative_dims"] = settings.collaborative_dims
      return HistoriesOnly({**known, "embeddings": WITHOUT_TEXT, "embeddings_sha256": dataset.fingerprint})
    text = "tfidf_svd"
  known["text_template"] = settings.text_template
  if text in embeddings.TEXT_MODELS:
    known["text_model"], what = settings.text_model, text
  else:
    what = f"tfidf_svd of {settings.text_dims} dimensions"
  # The dataset's fingerprint covers the text.
  return ItemTexts({**known, "embeddings": what, "embeddings_sha256": dataset.fingerprint}, text)


def resolve(
  quantizer: Quantizer, vectors: np.ndarray, settings: SemanticIdsConfig, provenance: Mapping[str, Any]
) -> SemanticIds:
  """The unique codes of all vectors, by settings.collisions."""
  learned, widths = quantizer.encode(vectors), quantizer.widths
  if settings.collisions == "extra_level":
    return SemanticIds.from_learned(learned, widths, provenance)
  unique = collisions.reassign(learned, widths[-1], lambda rows: quantizer.last_costs(vectors[rows]))
  return SemanticIds(unique, widths, dict(provenance), learned)


def measure(ids: SemanticIds, dataset: Prepared, errors: Sequence[float] | None = None) -> dict[str, Any]:
  """The health of a table, measured against the dataset's items and histories."""
  histories = histories_lib.read(dataset)
  return health.measure(ids, health.HealthInputs(dataset.items, histories.items, histories.training_spans(), errors))


def _item_vectors(known: Mapping[str, Any], what: str, vectors: np.ndarray) -> ItemVectors:
  return ItemVectors({**known, "embeddings": what, "embeddings_sha256": item_vectors.fingerprint(vectors)}, vectors)


def _vectors_of_file(file: str, known: Mapping[str, Any], dataset: Prepared) -> ItemVectors:
  """Vectors by id, or, from a file without ids, by the order of the items file."""
  by_id = file.endswith(".npz") and item_vectors.has_ids(file)
  order = item_vectors.Order.of(dataset) if not by_id else None
  vectors = item_vectors.load_embeddings(file, dataset.num_items, dataset.item_ids, order)
  made = _item_vectors(known, "embeddings of a file", vectors)
  others = item_vectors.num_rows(file) - dataset.num_items
  how = "item id" if by_id else "the order of the items file" if order and order.rows is not None else ""
  more = f"; {others} that are not items of this dataset are left out" if others else ""
  return dataclasses.replace(made, notes=[f"rows of {pathlib.Path(file).name} are taken by {how}{more}"] if how else [])


def needs_content(settings: SemanticIdsConfig) -> bool:
  """Whether codes depend on text or vectors of the items at all."""
  return settings.method != "random" and settings.collaborative_weight < 1


def _advice_on_content(vectors: np.ndarray, settings: SemanticIdsConfig, dataset: Prepared) -> list[str]:
  """What is wrong with vectors alone, which joining them with what users take together would hide."""
  if not 0 < settings.collaborative_weight < 1 or settings.method == "random":
    return []
  clusters = max(2, min(settings.codebook_size, dataset.num_items // 4))
  quick = SemanticIdsConfig(levels=1, codebook_size=clusters, seed=settings.seed)
  learned = registry.QUANTIZERS[quick.method].fit(vectors, quick).encode(vectors)
  alone = measure(SemanticIds.from_learned(learned, clusters, {}), dataset)
  if not alone["uninformative"]:
    return []
  return [
    "The embeddings ALONE say almost nothing about the items: similar items are hardly nearer to each other than any "
    "two; what users take together hides that in the numbers above; check that their rows are in the order of "
    "the items."
  ]


def _learn(
  vectors: np.ndarray | None, settings: SemanticIdsConfig, dataset: Prepared, provenance: Mapping[str, Any]
) -> NewCodes:
  """Codes of the vectors, joined with what users take together where that has a weight; with None, of that alone."""
  weight = settings.collaborative_weight
  if vectors is None:
    vectors, weight = np.zeros((dataset.num_items, 1), np.float32), 1.0
  if weight and settings.method != "random":
    histories = histories_lib.read(dataset)
    together = collaborative.cooccurrence_vectors(
      histories.items,
      *histories.training_spans(),
      dataset.num_items,
      settings.collaborative_dims,
      settings.seed,
    )
    vectors = collaborative.join(vectors, together, weight)
  quantizer = registry.QUANTIZERS[settings.method].fit(vectors, settings)
  return NewCodes(resolve(quantizer, vectors, settings, provenance), quantizer, _errors(quantizer, vectors))


def _errors(quantizer: Quantizer, vectors: np.ndarray) -> list[float] | None:
  some = sample(vectors, _ERROR_SAMPLE, seed=0)
  left = quantizer.squared_errors(some)
  if left is None:
    return None
  variance = max(float(((some - some.mean(0)) ** 2).sum(1).mean()), 1e-12)
  return [float(error) for error in left.mean(0) / variance]


def _learned_with(settings: SemanticIdsConfig) -> dict[str, Any]:
  """The settings that learned codes depend on, the method's own ones under its name, like "rqvae.latent"."""
  names = [field.name for field in settings_of(SemanticIdsConfig) if Makes.CODES in facts_of(field).makes]
  if settings.collaborative_weight:
    names.append("collaborative_dims")
  values = {name: _json(getattr(settings, name)) for name in names}
  options = registry.QUANTIZERS[settings.method].options
  if options is not None:
    own = dataclasses.asdict(settings.of(options))
    values |= {f"{settings.method}.{name}": _json(value) for name, value in own.items()}
  return values


def _stored_metrics(path: pathlib.Path, ids: SemanticIds, dataset: Prepared) -> Mapping[str, Any]:
  """The metrics written with these codes; where there are none, measured and written again, without the errors."""
  with contextlib.suppress(Exception):  # whatever a damaged file raises where it is used: it is written again
    metrics = files.read_json(beside(path, "health.json"), "remove it")
    if metrics["identity"] == ids.fingerprint and beside(path, "health.png").exists():
      health.describe(metrics)
      return metrics
  metrics = measure(ids, dataset)
  _write_health(path, ids, metrics)
  return metrics


def _write_health(path: pathlib.Path, ids: SemanticIds, metrics: Mapping[str, Any]) -> None:
  title = f"Semantic IDs of {ids.provenance.get('dataset')}, {ids.provenance.get('method')}"
  with _writing(beside(path, "health.png")) as picture:
    files.write_atomic(picture, health_plot.draw(ids, metrics, title))
  with _writing(beside(path, "health.json")) as report:
    files.write_json(report, metrics)


def _embeddings_file(settings: SemanticIdsConfig) -> str | None:
  return settings.embeddings if settings.embeddings.endswith((".npy", ".npz")) else None


def _json(value):
  return list(value) if isinstance(value, tuple) else value


def check_made_with(path: pathlib.Path, ids: SemanticIds, settings: SemanticIdsConfig) -> None:
  """Raises InputError where codes were made with other settings than these; vectors of a file are not looked at."""
  stored = ids.provenance
  if "method" in stored:
    own = stored["method"] == _OWN
    made = {"method": _OWN} if own else _learned_with(settings.sized(ids.num_items))
    _check_same(path, stored, {**made, "collisions": settings.collisions})


def _check_same(path: pathlib.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  own = ", or give --codes again to go on with your own" if stored.get("method") == _OWN != wanted["method"] else ""
  younger = _defaults(wanted["method"])
  for name, value in wanted.items():
    before = stored.get(name, younger.get(name))
    if before != value:
      raise InputError(
        f"{path} was made with {name}={before!r}, but now {name}={value!r} is asked for: choose another "
        "config.data.dataset or config.data.data_dir, or remove the file to make the codes again, after which runs "
        f"trained on them can no longer be used{own}."
      )


def _defaults(method: str) -> Mapping[str, Any]:
  """The default of every setting that provenance may record: files that are older than a setting were made with it."""
  values = {field.name: _json(field.default) for field in settings_of(SemanticIdsConfig)}
  return values if method == _OWN else {**values, **_learned_with(SemanticIdsConfig(method=method))}


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Turns an OSError while a path is written to into a sentence."""
  try:
    yield path
  except OSError as error:
    raise InputError(
      f"{path} cannot be written ({error.strerror or error}): make room there, or choose another config.data.data_dir."
    ) from error
