"""Collaborative item vectors: items that users take one after the other are close together."""

import numpy as np

# Items up to this many steps apart in a history count as taken together; nearer ones count more (1 / steps).
_WINDOW = 3


def cooccurrence_vectors(
  history: np.ndarray, first: np.ndarray, stop: np.ndarray, num_items: int, dims: int, seed: int
) -> np.ndarray:
  """Factorises the positive pointwise mutual information of neighbouring items (Levy and Goldberg, 2014).

  Args:
    history: item rows, users end to end.
    first: each user's first position that may be used.
    stop: each user's position after the last that may be used.
    num_items: items of the catalogue.
    dims: features wanted.
    seed: of the randomised SVD.

  Returns:
    float32 (num_items, width(num_items, dims)), unit length; zeros for items without a neighbour.
  """
  import scipy.sparse
  from sklearn.decomposition import TruncatedSVD  # takes a second to import

  if num_items < 2:  # nothing to be taken together with
    return np.zeros((num_items, width(num_items, dims)), np.float32)
  user = np.repeat(np.arange(len(first)), np.maximum(stop - first, 0))
  place = np.concatenate([np.arange(a, b) for a, b in zip(first, stop, strict=True)] or [np.zeros(0, np.int64)])
  pairs, weights = [], []
  for steps in range(1, _WINDOW + 1):
    together = user[steps:] == user[:-steps]
    left, right = history[place[:-steps]][together], history[place[steps:]][together]
    pairs += [(left, right), (right, left)]
    weights += [np.full(len(left), 1.0 / steps)] * 2
  rows, columns = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
  counts = scipy.sparse.coo_matrix((np.concatenate(weights), (rows, columns)), shape=(num_items, num_items)).tocsr()
  counts = counts - scipy.sparse.diags(counts.diagonal())  # an item taken twice says nothing about other items
  totals = np.asarray(counts.sum(axis=1)).ravel()
  information = counts.tocoo()
  kept = information.data > 0
  row, column, value = information.row[kept], information.col[kept], information.data[kept]
  value = np.log(value * totals.sum() / (totals[row] * totals[column]))
  positive = value > 0
  matrix = scipy.sparse.coo_matrix((value[positive], (row[positive], column[positive])), shape=counts.shape).tocsr()
  svd = TruncatedSVD(width(num_items, dims), random_state=seed)
  with np.errstate(invalid="ignore"):  # of the share of a variance of zero, which nobody reads
    vectors = svd.fit_transform(matrix) / np.sqrt(np.maximum(svd.singular_values_, 1e-12))  # symmetric: U sqrt(S)
  return _unit(vectors).astype(np.float32)


def width(num_items: int, dims: int) -> int:
  """Features of `cooccurrence_vectors`: fewer than `dims` where there are few items, at least one."""
  return max(min(dims, num_items - 1), 1)


def join(content: np.ndarray, together: np.ndarray, weight: float) -> np.ndarray:
  """Vectors whose inner product is (1 - weight) x that of `content` + weight x that of `together`.

  Args:
    content: (n_items, features); scaled to unit length.
    together: (n_items, dims), `cooccurrence_vectors`, of unit length or zero.
    weight: 0 to 1.
  """
  content = _unit(np.asarray(content, np.float32))
  return np.concatenate([np.sqrt(1 - weight) * content, np.sqrt(weight) * together], axis=1).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  return np.where(lengths > 1e-9, vectors / np.maximum(lengths, 1e-9), 0.0)
