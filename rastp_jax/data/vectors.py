"""Item vectors of a file, and their fingerprint."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.npyio import NpzFile

from rastp_jax.data.prepared import Prepared
from rastp_jax.data.sources.ids import cleaned, text_of
from rastp_jax.errors import InputError
from rastp_jax.runtime import files

_ROWS = 8192  # rows of a memory-mapped file that are checked at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """Which row of a file without ids belongs to which item.

  Attributes:
    rows: int64 (num_items,), the file's row of each item, -1 where it has none; None: row = row of the catalogue.
    length: rows that such a file has; 0 where there is no order that its author could know.
  """

  rows: np.ndarray | None
  length: int

  @classmethod
  def of(cls, dataset: Prepared) -> "Order":
    """The order of the dataset's items file, or of the catalogue where sources number the items themselves."""
    rows = dataset.file_rows
    return cls(rows, dataset.num_items if rows is None else dataset.items_file_rows or 0)

  def check(self, path, rows: int, item_ids: Sequence[str], instead: str) -> None:
    """Raises InputError unless a file of that many rows gives one to each item; `instead` says how ids are given."""
    if not self.length:
      raise InputError(
        f"{path} does not say which row is which item, and there is no items file whose order its rows could follow: "
        f"{instead}, or give an items file with its items in that order."
      )
    if rows != self.length:
      what = "one per item" if self.rows is None else "one per row of the items file"
      raise InputError(
        f"{path} has {rows} rows, expected {self.length}, {what}: use the file that belongs to this dataset's items, "
        f"or {instead}."
      )
    if self.rows is not None and (self.rows < 0).any():
      without = np.flatnonzero(self.rows < 0)
      raise InputError(
        f"{path} has rows in the order of the items file, which has none for {len(without)} of the {len(item_ids)} "
        f"items, the first of them item {item_ids[without[0]]!r}: {instead}."
      )

  def take(self, table: np.ndarray) -> np.ndarray:
    """A file's rows in the order of the catalogue."""
    if self.rows is None or (len(self.rows) == len(table) and np.array_equal(self.rows, np.arange(len(table)))):
      return table
    return table[self.rows]


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike) -> Iterator[np.ndarray | NpzFile]:
  """The array of a .npy, memory-mapped, or the archive of an .npz; numpy raises many kinds where a file is torn."""
  with open(path, "rb") as file:  # numpy leaves a file open that turns out not to be a whole .npz
    archive = file.read(2) == b"PK"
    file.seek(0)
    if not archive:
      yield np.load(path, mmap_mode="r", allow_pickle=False)
      return
    with np.load(file, allow_pickle=False) as found:
      yield found


def load_embeddings(
  path: str | os.PathLike, num_items: int, item_ids: Sequence[str] | None = None, order: Order | None = None
) -> np.ndarray:
  """Reads item vectors of any float type.

  Args:
    path: a .npy, which is memory-mapped; or an .npz with the vectors as `embeddings` and perhaps the items' ids as
      `ids`. With ids, rows are matched by them, and rows of other items are left out.
    num_items: rows wanted.
    item_ids: the catalogue's ids, row = item, to match `ids` with.
    order: whose order rows without ids are in; None: the catalogue's.

  Returns:
    (num_items, features) of the file's float type, row = item.

  Raises:
    InputError: not a readable float matrix with one row per item, or a row holds NaN or infinity, or only zeros.
  """
  others: list[str] = []
  try:
    with open_arrays(path) as raw:
      ids = None
      if not isinstance(raw, np.ndarray):
        others = [name for name in raw.files if name != "embeddings"]
        ids, raw = raw.get("ids"), raw["embeddings"]
  except Exception as error:  # see `open_arrays`
    raise InputError(
      f"{path} cannot be read as item embeddings ({type(error).__name__}: {files.first_line(error)}): expected a .npy "
      "array, or an .npz with an array named embeddings; copy it again, or have embeddings made from the item text."
    ) from error
  if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.floating):
    raise InputError(
      f"{path} holds type {raw.dtype} and shape {raw.shape}: expected floats of shape ({num_items}, features), one row "
      "per item."
    )
  misnamed = next((name for name in others if "id" in name.lower()), None)
  if ids is None and misnamed is not None:
    raise InputError(f"{path} has an array {misnamed!r}, but none named ids, by which rows are matched: name it so.")
  if ids is not None:
    raw = _in_order(path, raw, ids, item_ids)
  elif order is not None:
    order.check(path, len(raw), item_ids or (), "give an .npz with the vectors as embeddings and the items' ids as ids")
    raw = order.take(raw)
  if raw.shape[0] != num_items:
    raise InputError(
      f"{path} has {raw.shape[0]} rows, expected {num_items}, one per item: use the embeddings that belong to this "
      "dataset's items file, or have embeddings made from the item text."
    )
  _check_rows(path, raw, item_ids)
  return raw


def has_ids(path: str | os.PathLike) -> bool:
  """Whether an .npz names its rows; False where it cannot be read, which `load_embeddings` then says."""
  try:
    with open_arrays(path) as found:
      return not isinstance(found, np.ndarray) and "ids" in found
  except Exception:  # see `open_arrays`
    return False


def num_rows(path: str | os.PathLike) -> int:
  """Rows of a file that `load_embeddings` has read."""
  with open_arrays(path) as found:
    return len(found) if isinstance(found, np.ndarray) else len(found["embeddings"])


def _in_order(path, vectors: np.ndarray, ids: np.ndarray, item_ids: Sequence[str] | None) -> np.ndarray:
  """The vectors in the order of item_ids; InputError unless each of these has exactly one row."""
  if item_ids is None:
    raise InputError(
      f"{path} names its rows by ids, which this source of embeddings cannot match: give it as "
      "config.semantic_ids.embeddings instead."
    )
  if ids.ndim != 1 or len(ids) != len(vectors):
    raise InputError(f"{path} has ids of shape {ids.shape} for {len(vectors)} rows: expected one id per row.")
  try:
    names = [text_of(name) or "" for name in ids.tolist()]
  except ValueError as error:
    raise InputError(f"{path} has an id that cannot be one ({error}): write ids as text or whole numbers.") from None
  row_of = {name: row for row, name in enumerate(names)}
  if any(name not in row_of for name in item_ids):  # text of whole numbers, with a fraction
    row_of = {cleaned(name): row for row, name in enumerate(names)}
  if len(row_of) != len(ids):
    raise InputError(f"{path} names {len(ids) - len(row_of)} ids more than once: expected one row per item.")
  missing = [name for name in item_ids if name not in row_of]
  if missing:
    raise InputError(
      f"{path} has no row for {len(missing)} of the {len(item_ids)} items, the first of them item {missing[0]!r} (its "
      f"own ids look like {next(iter(names), '')!r}): use embeddings of this dataset, under its item ids."
    )
  rows = np.array([row_of[name] for name in item_ids], np.int64)
  return vectors if np.array_equal(rows, np.arange(len(vectors))) else vectors[rows]


def _check_rows(path, vectors: np.ndarray, item_ids: Sequence[str] | None) -> None:
  """Raises InputError where a row is not finite or only zeros; reads a part of the rows at a time."""
  bad: dict[str, list[int]] = {"NaN or infinity": [], "only zeros": []}
  for start in range(0, len(vectors), _ROWS):
    with np.errstate(over="ignore"):
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
