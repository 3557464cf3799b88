"""Item text, and the vectors it turns into."""

import dataclasses
import difflib
import hashlib
import os
import string
from collections.abc import Sequence

import numpy as np

from rastp_jax.errors import InputError

_MISSING = ("", "Unknown")
_ROWS = 8192  # of a memory-mapped file looked at at a time


@dataclasses.dataclass(frozen=True)
class Item:
  """What the catalogue says about one item; text that is not known is empty.

  Attributes:
    item_id: the source's own id.
    asin: Amazon's product number.
    title: product title.
    brand: maker.
    categories: category paths, most specific last, like "Beauty > Makeup > Nails".
  """

  item_id: str
  asin: str = ""
  title: str = ""
  brand: str = ""
  categories: tuple[str, ...] = ()


def check_template(template: str) -> None:
  """Raises InputError unless the template only names fields of `Item`, like "{title} by {brand}"."""
  known = [field.name for field in dataclasses.fields(Item)]
  try:
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
  except ValueError as error:
    raise InputError(
      f"config.semantic_ids.text_template={template!r} cannot be read ({error}): write fields in braces, like "
      "'{title} by {brand}'."
    ) from None
  if not fields:
    raise InputError(
      f"config.semantic_ids.text_template={template!r} names no field, so that all items would read the same: use "
      f"some of {', '.join(f'{{{name}}}' for name in known)}."
    )
  for name in fields:
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      hint = f"did you mean {{{close[0]}}}?" if close else f"the fields are {', '.join(known)}."
      raise InputError(f"config.semantic_ids.text_template={template!r} has the unknown field {{{name}}}: {hint}")


def item_text(item: Item, template: str) -> str:
  """The sentence that gets embedded, like "Title: Soap; Brand: Acme; Categories: Beauty > Bath, Gifts".

  Args:
    item: where the values come from; several categories are joined by commas.
    template: text with fields of `Item` in braces. It falls into parts at "; ", and a part none of whose fields is
      known is left out.
  """
  values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
  values["categories"] = ", ".join(item.categories)
  values = {name: "" if value in _MISSING else value for name, value in values.items()}
  parts = []
  for part in template.split("; "):
    fields = [name for _, name, _, _ in string.Formatter().parse(part) if name is not None]
    if not fields or any(values[name] for name in fields):
      parts.append(part.format(**values))
  return "; ".join(parts)


def load_embeddings(path: str | os.PathLike, num_items: int, item_ids: Sequence[str] | None = None) -> np.ndarray:
  """Reads item vectors of any float type.

  Args:
    path: a .npy, row = item, which is memory-mapped; or an .npz with the vectors as `embeddings` and, if rows are not
      in the order of the catalogue or more than those of its items, the items' ids as `ids`.
    num_items: rows wanted.
    item_ids: the catalogue's ids, row = item, to match `ids` with.

  Returns:
    (num_items, features) of the file's float type, row = item.

  Raises:
    InputError: not a readable float matrix with a row an item, or a row holds NaN or infinity, or only zeros.
  """
  try:
    raw = np.load(path, mmap_mode="r", allow_pickle=False)
    ids = None
    if not isinstance(raw, np.ndarray):
      with raw as archive:
        ids = archive.get("ids")
        raw = archive["embeddings"]
  except Exception as error:  # numpy raises many kinds on a torn file
    raise InputError(
      f"{path} cannot be read as item embeddings ({type(error).__name__}: {error}): expected a .npy array, or an .npz "
      "with an array named embeddings; copy it again, or have embeddings made from the item text."
    ) from error
  if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.floating):
    raise InputError(
      f"{path} holds type {raw.dtype} and shape {raw.shape}: expected floats of shape ({num_items}, features), one row "
      "an item."
    )
  if ids is not None:
    raw = _in_order(path, raw, ids, item_ids)
  if raw.shape[0] != num_items:
    raise InputError(
      f"{path} has {raw.shape[0]} rows, expected {num_items}, one an item: use the embeddings that belong to this "
      "dataset's items file, or have embeddings made from the item text."
    )
  _check_rows(path, raw, item_ids)
  return raw


def _in_order(path, vectors: np.ndarray, ids: np.ndarray, item_ids: Sequence[str] | None) -> np.ndarray:
  """The vectors in the order of item_ids; InputError unless each of these has exactly one row."""
  if item_ids is None:
    raise InputError(
      f"{path} names its rows by ids, which this source of embeddings cannot match: give it as "
      "config.semantic_ids.embeddings instead."
    )
  if ids.ndim != 1 or len(ids) != len(vectors):
    raise InputError(f"{path} has ids of shape {ids.shape} for {len(vectors)} rows: expected one id a row.")
  place = {str(name): row for row, name in enumerate(ids.tolist())}
  if len(place) != len(ids):
    raise InputError(f"{path} names {len(ids) - len(place)} ids more than once: expected one row an item.")
  missing = [name for name in item_ids if name not in place]
  if missing:
    raise InputError(
      f"{path} has no row for {len(missing)} of the {len(item_ids)} items, the first of them item {missing[0]!r} (its "
      f"own ids look like {str(ids[0])!r}): use embeddings of this dataset, under its item ids."
    )
  rows = np.array([place[name] for name in item_ids], np.int64)
  return vectors if np.array_equal(rows, np.arange(len(vectors))) else vectors[rows]


def _check_rows(path, vectors: np.ndarray, item_ids: Sequence[str] | None) -> None:
  """Raises InputError where a row is not finite or only zeros; reads a part of the rows at a time."""
  bad: dict[str, list[int]] = {"NaN or infinity": [], "only zeros": []}
  for start in range(0, len(vectors), _ROWS):
    part = np.asarray(vectors[start : start + _ROWS], np.float32)
    bad["NaN or infinity"] += (start + np.flatnonzero(~np.isfinite(part).all(1))).tolist()
    bad["only zeros"] += (start + np.flatnonzero(~part.any(1))).tolist()
  for what, rows in bad.items():
    if rows:
      name = f"item {item_ids[rows[0]]!r}; " if item_ids is not None else ""
      raise InputError(
        f"{path} has {what} in row {rows[0]} ({name}{len(rows)} such rows), expected finite vectors that are not all "
        "zero: make the embeddings of these items again, or have them made from the item text."
      )


def fingerprint(vectors: np.ndarray) -> str:
  """sha256 over the vectors as float32; reads a part of the rows at a time."""
  digest = hashlib.sha256()
  for start in range(0, len(vectors), _ROWS):
    digest.update(np.ascontiguousarray(vectors[start : start + _ROWS], "<f4").tobytes())
  return digest.hexdigest()


def sentence_transformer(texts: Sequence[str], model: str) -> np.ndarray:
  """Embeds texts by a sentence-transformers model.

  Args:
    texts: one an item.
    model: a name on the model hub, or the directory of a saved model.

  Returns:
    float32 (len(texts), features), unit length.

  Raises:
    InputError: the package is not installed, or there is no such model.
  """
  try:
    # Imported here: an optional extra that pulls in PyTorch.
    from sentence_transformers import SentenceTransformer
  except ImportError as error:
    raise InputError(
      "semantic_ids.embeddings='sentence_transformers' needs the package sentence-transformers: install it by `pip "
      "install 'rastp_jax[text]'` (in a clone: `pip install '.[text]'`), or use semantic_ids.embeddings='tfidf_svd'."
    ) from error
  try:
    encoder = SentenceTransformer(model)
  except Exception as error:  # the hub, transformers and torch each raise their own kinds
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(
      f"The text model {model!r} cannot be loaded ({reason}): give config.semantic_ids.text_model the name of a "
      "sentence-transformers model or the directory of a saved one."
    ) from error
  vectors = encoder.encode(list(texts), convert_to_numpy=True, normalize_embeddings=True)
  return np.asarray(vectors, np.float32)


def tfidf_svd(texts: Sequence[str], dims: int, seed: int) -> np.ndarray:
  """Embeds texts by TF-IDF over words and word pairs, reduced by a truncated SVD (latent semantic analysis).

  Args:
    texts: one an item.
    dims: features wanted; fewer come back when the texts hold fewer distinct words or there are fewer texts.
    seed: of the randomised SVD.

  Returns:
    float32 (len(texts), dims), unit length; a text without any usable word gets the mean direction.

  Raises:
    InputError: no text holds a single word.
  """
  # Imported here: it takes a second, and only catalogues without embeddings.npy need it.
  from sklearn.decomposition import TruncatedSVD
  from sklearn.feature_extraction.text import TfidfVectorizer

  frequent = 2 if len(texts) > 1000 else 1  # words of a single item cannot say what items have in common
  vectorizer = TfidfVectorizer(
    sublinear_tf=True, ngram_range=(1, 2), min_df=frequent, max_features=50_000, dtype=np.float32
  )
  try:
    weights = vectorizer.fit_transform(texts)
  except ValueError as error:
    raise InputError(
      f"The text of the {len(texts)} items holds no words to make embeddings from: give titles or categories in the "
      "items file, or embeddings (config.semantic_ids.embeddings)."
    ) from error
  dims = min(dims, min(weights.shape) - 1)
  vectors = TruncatedSVD(max(dims, 1), random_state=seed).fit_transform(weights)
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  vectors = np.where(lengths > 1e-6, vectors, vectors.mean(0))
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
