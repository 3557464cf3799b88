"""Item text, and the vectors it turns into."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from rastp_jax.errors import InputError

_MISSING = ("", "Unknown")


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


def item_text(item: Item) -> str:
  """The sentence that gets embedded: "Title: …; Brand: …; Categories: a > b > c", without what is not known."""
  parts = {"Title": item.title, "Brand": item.brand, "Categories": ", ".join(item.categories)}
  return "; ".join(f"{name}: {text}" for name, text in parts.items() if text not in _MISSING)


def load_embeddings(path: str | os.PathLike, num_items: int) -> np.ndarray:
  """Reads item vectors from a .npy of any float type, row = item.

  Returns:
    float32 (num_items, features).

  Raises:
    InputError: not a readable float matrix of num_items rows, or a row holds NaN or infinity, or only zeros.
  """
  try:
    raw = np.load(path, allow_pickle=False)
  except Exception as error:  # numpy raises many kinds on a torn file
    raise InputError(
      f"{path} cannot be read as a .npy array ({type(error).__name__}: {error}): copy it again, or remove it to have "
      "embeddings made from the item text."
    ) from error
  if not isinstance(raw, np.ndarray) or raw.ndim != 2 or not np.issubdtype(raw.dtype, np.floating):
    found = f"type {raw.dtype} and shape {raw.shape}" if isinstance(raw, np.ndarray) else "an archive of arrays"
    raise InputError(f"{path} holds {found}: expected floats of shape ({num_items}, features), one row an item.")
  if raw.shape[0] != num_items:
    raise InputError(
      f"{path} has {raw.shape[0]} rows, expected {num_items}, one an item: use the embeddings that belong to this "
      "dataset's items file, or remove it to have embeddings made from the item text."
    )
  vectors = raw.astype(np.float32)
  for bad, what in ((~np.isfinite(vectors).all(1), "NaN or infinity"), (~vectors.any(1), "only zeros")):
    if bad.any():
      row = int(bad.argmax())
      raise InputError(
        f"{path} has {what} in row {row} (item id {row + 1}; {int(bad.sum())} such rows), expected finite vectors that "
        "are not all zero: make the embeddings of these items again, or remove the file to have them made from text."
      )
  return vectors


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
      "items file, or an embeddings.npy beside it."
    ) from error
  dims = min(dims, min(weights.shape) - 1)
  vectors = TruncatedSVD(max(dims, 1), random_state=seed).fit_transform(weights)
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  vectors = np.where(lengths > 1e-6, vectors, vectors.mean(0))
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
