"""Any file of interactions becomes histories: ids to numbers, time order, repeats, k-core; arrays all the way.

No Python object is made per interaction: 50 million of them take under 3 GB at the peak
(docs/results/prepare_50m.json).
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rastp_jax.config import DataConfig
from rastp_jax.data import sources
from rastp_jax.data.sources import RawData
from rastp_jax.data.tables import SUFFIXES, Table
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids.embeddings import Item

INTERACTION_FILES = tuple(f"interactions{suffix}" for suffix in SUFFIXES)
ITEM_FILES = tuple(f"items{suffix}" for suffix in SUFFIXES)
_LOT = 4 << 20  # rows whose ids are numbered at a time
_SETTINGS = tuple(f.name for f in dataclasses.fields(DataConfig) if f.name.endswith("_column"))
_SETTINGS += ("core", "min_length", "repeats")


@dataclasses.dataclass(eq=False)
class Log:
  """Interactions as they come, and the steps that turn them into histories. Each step replaces the arrays it changes.

  Attributes:
    users: int32 (n,), numbers into `user_ids`.
    items: int32 (n,), numbers into `item_ids`.
    times: int64 or float64 (n,).
    user_ids: large_string, in the order of first appearance.
    item_ids: large_string, in the order of first appearance.
    counts: what the steps met, see `RawData.counts`.
  """

  users: np.ndarray
  items: np.ndarray
  times: np.ndarray
  user_ids: pa.Array
  item_ids: pa.Array
  counts: dict[str, int] = dataclasses.field(default_factory=dict)

  def sort(self, repeats: str) -> None:
    """Orders by user, then time, then place in the file, and drops repeated interactions.

    Args:
      repeats: "keep" drops what has user, item and time of an earlier row; "first" what has its user and item.
    """
    self.counts["interactions read"] = len(self.users)
    order = np.lexsort((self.times, self.users))  # stable
    self.times, self.users, self.items = self.times[order], self.users[order], self.items[order]
    del order
    tied = _tied(self.users, self.times)
    # Comparing needs some 30 bytes a row, so only rows that can repeat anything are looked at.
    where = np.flatnonzero(tied) if repeats == "keep" else np.arange(len(tied))
    alike = (self.users, self.times) if repeats == "keep" else (self.users,)
    again = where[_again([self.items[where], *(column[where] for column in alike)])]
    self.counts["repeated interactions left out"] = len(again)
    if len(again):
      keep = np.ones(len(tied), bool)
      keep[again] = False
      self.users, self.items, self.times = self.users[keep], self.items[keep], self.times[keep]
      tied = _tied(self.users, self.times)
    self.counts["interactions at the same time as another of their user (file order decides)"] = int(tied.sum())
    self.times = self.times[:0].copy()  # the order has all that was in them

  def k_core(self, min_user: int, min_item: int) -> None:
    """Drops users with fewer than min_user interactions and items with fewer than min_item, until none is left."""
    users, items = len(self.user_ids), len(self.item_ids)
    kept = len(self.users)
    while True:
      enough = np.bincount(self.users, minlength=users) >= min_user
      keep = enough[self.users]
      enough = np.bincount(self.items, minlength=items) >= min_item
      keep &= enough[self.items]
      if keep.all():
        break
      self.users, self.items = self.users[keep], self.items[keep]
    self.counts["interactions left out by data.core and data.min_length"] = kept - len(self.users)

  def histories(self) -> tuple[pa.Array, np.ndarray, np.ndarray, pa.Array]:
    """User ids, items and offsets (see `RawData`), and item ids, of the users and items that are left.

    Both keep the order of their first appearance in the file.
    """
    lengths = np.bincount(self.users, minlength=len(self.user_ids))
    present = np.bincount(self.items, minlength=len(self.item_ids)) > 0
    rows = (np.cumsum(present, dtype=np.int32) - 1)[self.items] if len(self.items) else self.items
    self.counts["users left out"] = int(np.count_nonzero(lengths == 0))
    self.counts["items left out"] = int(np.count_nonzero(~present))
    user_ids, item_ids = self.user_ids.filter(pa.array(lengths > 0)), self.item_ids.filter(pa.array(present))
    return user_ids, rows, np.concatenate([[0], np.cumsum(lengths[lengths > 0])]), item_ids


def _tied(users: np.ndarray, times: np.ndarray) -> np.ndarray:
  """Marks sorted rows that share user and time with a neighbour, bool (n,)."""
  tied = np.zeros(len(users), bool)
  tied[1:] = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
  tied[:-1] |= tied[1:]
  return tied


def _again(columns: list[np.ndarray]) -> np.ndarray:
  """Numbers of the rows that equal an earlier row in all columns."""
  order = np.lexsort(columns)  # stable: among equals the first stays first
  same = np.ones(max(len(order) - 1, 0), bool)
  for column in columns:
    same &= column[order[1:]] == column[order[:-1]]
  return order[1:][same]


class _Numbers:
  """Numbers ids from 0 in the order of first appearance."""

  def __init__(self):
    self.ids = pa.array([], pa.large_string())

  def of(self, column: pa.Array) -> np.ndarray:
    """int32 numbers of a column's ids, new ones appended."""
    encoded = column.dictionary_encode()
    known = pc.index_in(encoded.dictionary, value_set=self.ids)
    new = pc.is_null(known)
    numbers = known.fill_null(0).to_numpy(zero_copy_only=False)
    is_new = new.to_numpy(zero_copy_only=False)
    numbers = np.where(is_new, len(self.ids) + np.cumsum(is_new) - 1, numbers).astype(np.int32)
    self.ids = pa.concat_arrays([self.ids, encoded.dictionary.filter(new)])
    return numbers[encoded.indices.to_numpy()]


def read_log(table: Table, user: str, item: str, time: str) -> Log:
  """Reads the three columns of an interactions file.

  Raises:
    InputError: the file is damaged, has no rows, or a row lacks a value.
  """
  users, items = _Numbers(), _Numbers()
  parts: tuple[list[np.ndarray], ...] = ([], [], [])
  for batches in _gathered(table, user, item, time):
    whole = pa.Table.from_batches(batches)
    parts[0].append(users.of(whole.column(user).combine_chunks()))
    parts[1].append(items.of(whole.column(item).combine_chunks()))
    parts[2].append(whole.column(time).to_numpy())
  if not parts[0]:
    raise InputError(f"{table.path} holds no interactions, only column names: write the file again.")
  joined = []
  for part in parts:
    joined.append(np.concatenate(part))
    part.clear()  # or all of it would be held twice
  return Log(*joined, users.ids, items.ids)


def _gathered(table: Table, user: str, item: str, time: str) -> Iterator[list[pa.RecordBatch]]:
  """Batches in lots: finding a lot's ids among those known costs as much as knowing them."""
  lot, rows = [], 0
  for batch in table.batches([user, item], time):
    if batch.num_rows:
      lot.append(batch)
      rows += batch.num_rows
    if rows >= _LOT:
      yield lot
      lot, rows = [], 0
  if lot:
    yield lot


class InteractionsDirectory:
  """A directory with one file of interactions and, if there is one, a file of items.

  interactions.csv, .jsonl or .parquet: one row an interaction, with columns for user, item and time. items.csv, .jsonl
  or .parquet: one row an item, with its id under the same column name, and text columns. Text files may be gzipped.
  Which users, items and interactions are left, and in which order, is told in docs/your_data.md.

  Args:
    raw_dir: the directory.
    config: names of the columns, and the filters.

  Raises:
    InputError: the interactions file lies there twice, is empty, or a column is missing.
  """

  def __init__(self, raw_dir: str, config: DataConfig):
    self.where = raw_dir
    self._config = config
    self._interactions = self._table(INTERACTION_FILES)
    self._items = self._table(ITEM_FILES)
    for name in ("user_column", "item_column", "time_column"):
      self._interactions.require(name, getattr(config, name))
    if self._items is not None:
      self._items.require("item_column", config.item_column)
    self.settings = {name: getattr(config, name) for name in _SETTINGS}

  def fingerprint(self) -> str:
    digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
    for table in filter(None, (self._interactions, self._items)):
      digest.update(sources.digest(table.path))
    return digest.hexdigest()

  def read(self) -> RawData:
    """Reads both files.

    Raises:
      InputError: a file is damaged, a row lacks its user, item or time, an item has two rows, or nothing is left.
    """
    c = self._config
    log = read_log(self._interactions, c.user_column, c.item_column, c.time_column)
    log.sort(c.repeats)
    log.k_core(max(c.core, c.min_length), c.core)
    if not len(log.users):
      raise InputError(
        f"{self.where} has no users left of {len(log.user_ids)}: with config.data.core={c.core} and "
        f"config.data.min_length={c.min_length}, every user and item needs more interactions than the file has; lower "
        "them or give more data."
      )
    user_ids, items, offsets, item_ids = log.histories()
    counts, num_items = log.counts, len(item_ids)
    del log
    catalogue = self._catalogue(item_ids, counts)
    return RawData(user_ids, items, offsets, catalogue, num_items, counts)

  def embeddings(self, num_items: int) -> None:
    del num_items  # numbered only now, so no file can know the order

  def _catalogue(self, item_ids: pa.Array, counts: dict[str, int]) -> list[Item]:
    row_of = {item_id: row for row, item_id in enumerate(item_ids.to_pylist())}
    items: list[Item | None] = [None] * len(row_of)
    seen: set[str] = set()
    for place, row in self._items.rows() if self._items is not None else ():
      item_id = row.get(self._config.item_column)
      if item_id is None or item_id == "":
        raise InputError(f"{place} has no {self._config.item_column}: give it one or remove the row.")
      item_id = str(item_id)
      if item_id in seen:
        raise InputError(f"{place} gives item {item_id!r} a second time: expected one row an item.")
      seen.add(item_id)
      if item_id in row_of:
        items[row_of[item_id]] = self._item(place, item_id, row)
    counts["items without a row in the items file"] = items.count(None)
    counts["rows of the items file without interactions left"] = len(seen) - (len(items) - items.count(None))
    return [item or Item(item_id=item_id) for item, item_id in zip(items, row_of, strict=True)]

  def _item(self, place: str, item_id: str, row: dict[str, Any]) -> Item:
    c = self._config
    title, brand, categories = (row.get(name) for name in (c.title_column, c.brand_column, c.categories_column))
    try:
      if isinstance(categories, str):
        categories = (categories,) if categories else ()
      elif categories and all(isinstance(name, str) for name in categories):
        categories = (" > ".join(categories),)
      else:
        categories = sources.category_paths(categories)
      texts = sources.text_fields({"title": title, "brand": brand}, ("title", "brand"))
      return Item(item_id=item_id, **texts, categories=categories)
    except TypeError as error:
      raise InputError(
        f"{place} cannot be read as an item ({error}): expected text in {c.title_column!r} and {c.brand_column!r}, and "
        f"text, a list of names or a list of such lists in {c.categories_column!r}."
      ) from None

  def _table(self, names: tuple[str, ...]) -> Table | None:
    found = sources.find(pathlib.Path(self.where), *names)
    if len(found) > 1:
      raise InputError(
        f"{self.where} holds {found[0].name} and {found[1].name}: expected one of them; move the other away."
      )
    return Table(found[0]) if found else None
