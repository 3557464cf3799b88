"""Item text, and vectors made from it."""

import collections
import dataclasses
import difflib
import io
import os
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from rastp_jax.data.items import EXTRA, Item
from rastp_jax.errors import InputError
from rastp_jax.runtime import files
from rastp_jax.runtime.files import first_line

_MISSING = ("", "Unknown")


def check_template(template: str, extra: Sequence[str] = ()) -> None:
  """Raises InputError unless the template only names what items have, like "{title} by {brand}".

  Known are the fields of `Item`, those in `items.EXTRA`, and `extra`: config.data.extra_columns.
  """
  known = [field.name for field in dataclasses.fields(Item) if field.name != "extra"]
  known += [name for name in dict.fromkeys((*EXTRA, *extra)) if name not in known]
  try:
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
  except ValueError as error:
    raise _unreadable(template, error) from error
  if not fields:
    raise InputError(
      f"config.semantic_ids.text_template={template!r} names no field, so that all items would read the same: use "
      f"some of {', '.join(f'{{{name}}}' for name in known)}."
    )
  for name in fields:
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      hint = f"did you mean {{{close[0]}}}?" if close else f"the fields are {', '.join(known)}"
      hint += "" if close else ", and the columns of the items file that config.data.extra_columns names."
      raise InputError(f"config.semantic_ids.text_template={template!r} has the unknown field {{{name}}}: {hint}")
  try:
    item_text(Item("x", "x", "x", "x", ("x",), dict.fromkeys(known, "x")), template)
  except Exception as error:  # what a format or conversion raises, like that of {price:.2f}: values are text
    raise _unreadable(template, error) from error


def _unreadable(template: str, error: Exception) -> InputError:
  return InputError(
    f"config.semantic_ids.text_template={template!r} cannot be read ({error}): write fields in braces, like "
    "'{title} by {brand}'."
  )


def item_text(item: Item, template: str) -> str:
  """The sentence that gets embedded, like "Title: Soap; Brand: Acme; Categories: Beauty > Bath, Gifts".

  Args:
    item: where the values come from; several categories are joined by commas.
    template: text with fields of `Item`, or names in its `extra`, in braces. It is split into parts at "; ", and a part
      without a known field is left out.
  """
  values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.name != "extra"}
  values = {**item.extra, **values}
  values["categories"] = ", ".join(item.categories)
  values = collections.defaultdict(str, {name: "" if value in _MISSING else value for name, value in values.items()})
  parts = []
  for part in template.split("; "):
    fields = [name for _, name, _, _ in string.Formatter().parse(part) if name is not None]
    if not fields or any(values[name] for name in fields):
      parts.append(part.format_map(values))
  return "; ".join(parts)


def sentence_transformer(texts: Sequence[str], model: str) -> np.ndarray:
  """Embeds texts by a sentence-transformers model.

  Args:
    texts: one per item.
    model: a name on the model hub, or the directory of a saved model.

  Returns:
    float32 (len(texts), features), unit length.

  Raises:
    InputError: the package is not installed, or there is no such model.
  """
  try:
    # Imported here: an optional extra that pulls in PyTorch.
    from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(
      "semantic_ids.embeddings='sentence_transformers' needs the package sentence-transformers: install it by `pip "
      "install 'rastp_jax[text]'` (in a clone: `pip install '.[text]'`), or use semantic_ids.embeddings='tfidf_svd'."
    ) from error
  try:
    encoder = SentenceTransformer(model)
  except Exception as error:  # the hub, transformers and torch each raise their own kinds
    raise InputError(
      f"The text model {model!r} cannot be loaded ({first_line(error)}): give config.semantic_ids.text_model the name "
      "of a sentence-transformers model or the directory of a saved one."
    ) from error
  vectors = encoder.encode(list(texts), convert_to_numpy=True, normalize_embeddings=True)
  return np.asarray(vectors, np.float32)


def model2vec(texts: Sequence[str], model: str) -> np.ndarray:
  """Embeds texts by a static model: means of its tokens' vectors, without PyTorch (Model2Vec, MinishLab 2024).

  Args:
    texts: one per item.
    model: a name on the model hub, or the directory of a saved model.

  Returns:
    float32 (len(texts), features), unit length; a text without a token that the model knows gets the mean direction.

  Raises:
    InputError: the package is not installed, there is no such model, or it knows no token of any text.
  """
  try:
    from model2vec import StaticModel  # an optional extra
  except ImportError as error:
    raise InputError(
      "semantic_ids.embeddings='model2vec' needs the package model2vec: install it by `pip install "
      "'rastp_jax[light-text]'` (in a clone: `pip install '.[light-text]'`), or use "
      "semantic_ids.embeddings='tfidf_svd'."
    ) from error
  try:
    encoder = StaticModel.from_pretrained(model)
  except Exception as error:  # the hub, tokenizers and safetensors each raise their own kinds
    raise InputError(
      f"The text model {model!r} cannot be loaded ({first_line(error)}): give config.semantic_ids.text_model the name "
      "of a model2vec model or the directory of a saved one."
    ) from error
  vectors = np.asarray(encoder.encode(list(texts), use_multiprocessing=False), np.float32)
  if not vectors.any():
    raise InputError(
      f"The text model {model!r} knows no word of the {len(texts)} items' text: use a model of its language, or "
      "semantic_ids.embeddings='tfidf_svd'."
    )
  return _unit_length(vectors, vectors.mean(0))


# Texts and config.semantic_ids.text_model -> vectors, by what config.semantic_ids.embeddings names.
TEXT_MODELS: Mapping[str, Callable[[Sequence[str], str], np.ndarray]] = {
  "sentence_transformers": sentence_transformer,
  "model2vec": model2vec,
}


@dataclasses.dataclass(frozen=True, eq=False)
class TextSpace:
  """What `tfidf_svd` learned from a catalogue's texts: embeds other texts in the same space.

  Attributes:
    words: the words and word pairs that count, in the order in which the catalogue's texts have them.
    idf: float32 (len(words),), how rare each is.
    components: float32 (features, len(words)), the axes of the truncated SVD.
    mean: float32 (features,), which a text without any of the words gets.
  """

  words: Sequence[str]
  idf: np.ndarray
  components: np.ndarray
  mean: np.ndarray

  def embed(self, texts: Sequence[str]) -> np.ndarray:
    """float32 (len(texts), features), unit length; a text of the catalogue gets the very vector it had there."""
    if not texts:
      return np.zeros((0, len(self.mean)), np.float32)
    vectorizer = _vectorizer(vocabulary=self.words)
    vectorizer.idf_ = self.idf
    return _unit_length(np.asarray(vectorizer.transform(texts) @ self.components.T), self.mean)

  def save(self, path: str | os.PathLike) -> None:
    """Writes one .npz, whole or not at all."""
    buffer = io.BytesIO()
    words = np.array("\n".join(self.words))  # no word holds a line break
    np.savez_compressed(buffer, words=words, idf=self.idf, components=self.components, mean=self.mean)
    files.write_atomic(path, buffer.getvalue())

  @classmethod
  def load(cls, path: str | os.PathLike) -> Self:
    """Reads a file written by `save`.

    Raises:
      InputError: the file is missing or torn, or its arrays do not fit together.
    """
    try:
      with files.open_npz(path) as file:
        words = str(file["words"]).split("\n")
        idf, components, mean = arrays = [file[name] for name in ("idf", "components", "mean")]
      shapes = idf.shape, components.shape, mean.shape
      if shapes != ((len(words),), (mean.size, len(words)), (mean.size,)) or len(set(words)) < len(words):
        raise ValueError(f"{len(words)} words with arrays of shapes {shapes}")
      if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays):
        raise ValueError("not all of its numbers are finite floats")
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on a torn file
      raise InputError(
        f"{path} cannot be read as the words of a catalogue ({type(error).__name__}: {first_line(error)}): expected "
        "the .text.npz that `python -m rastp_jax.prepare` writes beside codes made by tfidf_svd; remove the codes and "
        "prepare them again."
      ) from error
    return cls(words, idf, components, mean)


def tfidf_svd(texts: Sequence[str], dims: int, seed: int) -> tuple[np.ndarray, TextSpace]:
  """Embeds texts by TF-IDF over words and word pairs, reduced by a truncated SVD (latent semantic analysis).

  Args:
    texts: one per item.
    dims: features wanted; there are fewer when the texts have fewer distinct words or there are fewer texts.
    seed: of the randomised SVD.

  Returns:
    float32 (len(texts), dims), unit length, where a text without any usable word gets the mean direction; and the space
    they lie in. Texts that have a single word between them are all alike.

  Raises:
    InputError: no text holds a single word.
  """
  # Imported here: it takes a second, and only catalogues without embeddings.npy need it.
  from sklearn.decomposition import TruncatedSVD

  frequent = 2 if len(texts) > 1000 else 1  # words of a single item cannot say what items have in common
  vectorizer = _vectorizer(min_df=frequent, max_features=50_000)
  try:
    weights = vectorizer.fit_transform(texts)
  except ValueError as error:
    raise InputError(
      f"The text of the {len(texts)} items holds no words to make embeddings from: give titles or categories in the "
      "items file, or embeddings (config.semantic_ids.embeddings)."
    ) from error
  if weights.shape[1] == 1:  # the SVD needs two; a single word is an axis already
    vectors, components = weights.toarray(), np.ones((1, 1), np.float32)
  else:
    svd: Any = TruncatedSVD(max(min(dims, min(weights.shape) - 1), 1), random_state=seed)
    with np.errstate(invalid="ignore"):  # of the share of a variance of zero, which nobody reads
      vectors = svd.fit_transform(weights)
    components = svd.components_
  mean = vectors.mean(0)
  # scikit-learn numbers the words alphabetically, but each row of `weights` has them as they were first met, which is
  # the order of the dictionary: in this order, `TextSpace.embed` adds up the same numbers in the same order.
  columns = list(vectorizer.vocabulary_.values())
  space = TextSpace(list(vectorizer.vocabulary_), vectorizer.idf_[columns], components[:, columns], mean)
  return _unit_length(vectors, mean), space


def _vectorizer(**settings) -> Any:  # scikit-learn has no types, and what is guessed from its code is wrong
  """TF-IDF of words and word pairs, in float32."""
  from sklearn.feature_extraction.text import TfidfVectorizer

  return TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), dtype=np.float32, **settings)  # pyright: ignore[reportArgumentType]


def _unit_length(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
  """Rows over their length, in float32; rows of zeros take the direction of `mean`."""
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  vectors = np.where(lengths > 1e-6, vectors, mean)
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
