"""A log of interactions and a table of items become histories: numbered ids, time order, repeats, k-core.

All in arrays, without a Python object per interaction: 50 million interactions take under 3 GB at the peak
(docs/results/prepare_50m.json).
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rastp_jax.config import DataConfig, Makes, settings_of
from rastp_jax.config.fields import facts_of
from rastp_jax.data import splits
from rastp_jax.data.items import EXTRA, Item
from rastp_jax.data.sources import columns as columns_lib
from rastp_jax.data.sources import raw_files
from rastp_jax.data.sources.columns import Columns
from rastp_jax.data.sources.ids import Numbers, cleaned, text_of
from rastp_jax.data.sources.log import Log
from rastp_jax.data.sources.source import RawData
from rastp_jax.data.sources.tables import SUFFIXES, Table
from rastp_jax.errors import InputError

_LOT = 4 << 20  # rows whose ids are numbered at a time
# Fingerprints hash the names of settings as well. Under these former names they stay what they were, so that datasets
# that were prepared before a setting was renamed are found again.
_HASHED_AS = {"k_core": "core"}
# The settings that every fingerprint has; younger ones enter it only where they differ from their default.
_ALWAYS = (
  "user_column",
  "item_column",
  "time_column",
  "title_column",
  "brand_column",
  "categories_column",
  "k_core",
  "min_length",
  "repeats",
)


def settings_of_rows(config: DataConfig) -> dict[str, Any]:
  """The settings that the rows depend on, but for the split, as JSON values."""
  values = {}
  for field in settings_of(DataConfig):
    value = getattr(config, field.name)
    makes_rows = Makes.ROWS in facts_of(field).makes and field.name not in splits.SETTINGS
    if makes_rows and (field.name in _ALWAYS or value != field.default):
      values[field.name] = list(value) if isinstance(value, tuple) else value
  return values


def read_log(table: Table, user: str, item: str, time: str) -> Log:
  """Reads the columns of an interactions file; without a time column, the order of the file counts.

  Raises:
    InputError: the file is damaged, has no rows, or a row lacks a value.
  """
  users, items = Numbers(), Numbers()
  parts: tuple[list[np.ndarray], ...] = ([], [], [])
  rows = 0
  for batches in _gathered(table, user, item, time):
    whole = pa.concat_tables(batches, promote_options="permissive")
    parts[0].append(users.of(whole.column(user).combine_chunks()))
    parts[1].append(items.of(whole.column(item).combine_chunks()))
    parts[2].append(whole.column(time).to_numpy() if time else np.arange(rows, rows + len(whole)))
    rows += len(whole)
  if not parts[0]:
    raise InputError(f"{table.path} holds no interactions, only column names: write the file again.")
  for name, numbers, part in ((user, users, parts[0]), (item, items, parts[1])):
    becomes = numbers.clean()
    if pc.index(numbers.ids, "").as_py() >= 0:  # pyright: ignore[reportAttributeAccessIssue]
      raise InputError(f"{table.path} has rows whose {name} is only blanks: give them one or remove these rows.")
    if becomes is not None:
      part[:] = [becomes[some] for some in part]
  joined = []
  for part in parts:
    joined.append(np.concatenate(part))
    part.clear()  # or all of it would be held twice
  user_column, item_column, time_column = joined
  return Log(user_column, item_column, time_column, users.ids, items.ids)


def _gathered(table: Table, user: str, item: str, time: str) -> Iterator[list[pa.Table]]:
  """Groups of batches: a look-up takes time in proportion to all known ids, hence rows are collected."""
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


class InteractionFiles:
  """One table of interactions and, if there is one, a table of items.

  Interactions: one row per interaction, with columns for user, item and perhaps time. Items: one row per item, with its
  id, and text columns. docs/your_data.md says which users, items and interactions are kept, and in which order.

  Args:
    where: what messages call the source.
    config: names of the columns, and the filters.
    interactions: the table.
    items: the table, or None.
    asked: the config as the user gave it, if `config` has other columns.

  Raises:
    InputError: a column is missing.
  """

  def __init__(
    self, where: str, config: DataConfig, interactions: Table, items: Table | None, asked: DataConfig | None = None
  ):
    self.where = where
    self._config = config
    self._interactions, self._items = interactions, items
    self._columns: Columns = columns_lib.interaction_columns(interactions, config)
    self._item_id = columns_lib.item_id_column(items, config, self._columns) if items is not None else ""
    self.settings = settings_of_rows(asked or config)

  def fingerprint(self) -> str:
    """sha256 over the settings and all files' unpacked contents.

    Raises:
      InputError: two files of interactions have equal contents.
    """
    hashed = {_HASHED_AS.get(name, name): value for name, value in self.settings.items()}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    known: dict[bytes, pathlib.Path] = {}
    for table in filter(None, (self._interactions, self._items)):
      for path in table.paths:
        contents = raw_files.digest(path)
        other = known.setdefault(contents, path) if table is self._interactions and table.has_rows(path) else path
        if other != path:
          raise InputError(
            f"{other} and {path} have equal contents: every interaction would count twice; expected each part of the "
            "log once; move one of them away, or join them into one file if they are meant to be equal."
          )
        digest.update(contents)
    return digest.hexdigest()

  def read(self) -> RawData:
    """Reads all files.

    Raises:
      InputError: a file is damaged, a row lacks its user, item or time, or nothing is left.
    """
    c, by_time = self._config, self._config.split == "time"
    log = read_log(self._interactions, self._columns.user, self._columns.item, self._columns.time)
    log.notes += [
      *self._interactions.notes,
      *(self._items.notes if self._items is not None else ()),
      *self._columns.notes,
    ]
    log.doubt()
    log.sort(c.repeats, keep_times=by_time)
    log.k_core(max(c.k_core, c.min_length), c.k_core, consecutive=c.repeats == "consecutive")
    if not len(log.users):
      raise InputError(
        f"{self.where} has no users left of {len(log.user_ids)}: with config.data.k_core={c.k_core} and "
        f"config.data.min_length={c.min_length}, every user and item needs more interactions than the file has; lower "
        "them or give more data."
      )
    user_ids, items, offsets, item_ids = log.histories()
    counts, notes, times = log.counts, log.notes, log.times if by_time else None
    del log
    catalogue, file_rows, num_file_rows = self._catalogue(item_ids, counts)
    return RawData(
      user_ids,
      items,
      offsets,
      catalogue,
      len(catalogue),
      counts,
      notes,
      times,
      file_rows=file_rows,
      num_file_rows=num_file_rows,
    )

  def embeddings(self, num_items: int) -> None:
    del num_items  # items are numbered only here; vectors of a file follow the order of the items file, or have ids

  def _catalogue(self, item_ids: pa.Array, counts: dict[str, int]) -> tuple[list[Item], np.ndarray, int]:
    """The items in row order, each one's row in the items file, and the number of that file's rows."""
    row_of = {item_id: row for row, item_id in enumerate(item_ids.to_pylist())}
    items: list[Item | None] = [None] * len(row_of)
    file_rows = [-1] * len(row_of)
    seen: set[str] = set()
    with_interactions = len(row_of)
    again = number = 0
    for number, (place, row) in enumerate(self._items.rows() if self._items is not None else (), start=1):
      try:
        item_id = text_of(row.get(self._item_id))
      except ValueError as error:
        raise InputError(
          f"{place} has a value of {self._item_id!r} that cannot be an id ({error}): write the file again."
        ) from None
      if item_id is None:
        raise InputError(f"{place} has no {self._item_id}: give it one or remove the row.")
      item_id = item_id if item_id in row_of else cleaned(item_id)
      if item_id in seen:
        again += 1
        continue
      seen.add(item_id)
      if item_id not in row_of and self._config.keep_all_items:
        row_of[item_id] = len(items)
        items.append(None)
        file_rows.append(-1)
      if item_id in row_of:
        try:
          items[row_of[item_id]] = self._item(item_id, row)
        except TypeError as error:
          raise InputError(
            f"{place} cannot be read as an item ({str(error)[:200]}): expected text as title and brand, and text, a "
            "list of names or a list of such lists as categories."
          ) from None
        file_rows[row_of[item_id]] = number - 1
    without = items.count(None)
    if self._items is not None and without == with_interactions and seen:
      raise InputError(
        f"None of the {with_interactions} items of {self._interactions.path} has a row in {self._items.path}: ids "
        f"there look like {next(iter(seen))!r}, and here like {next(iter(row_of))!r}; expected the same ids, or no "
        "items file."
      )
    if self._items is not None:
      counts["items without a row in the items file"] = without
    counts["rows of the items file with the id of an earlier row left out"] = again
    if self._config.keep_all_items:
      counts["items without interactions kept (cold items)"] = len(items) - with_interactions
    counts["rows of the items file without interactions left"] = (
      0 if self._config.keep_all_items else len(seen) - (len(items) - without)
    )
    found = [item or Item(item_id=item_id) for item, item_id in zip(items, row_of, strict=True)]
    return found, np.array(file_rows, np.int64), number

  def _item(self, item_id: str, row: dict[str, Any]) -> Item:
    """The item of a row; raises TypeError where a column is of the wrong type."""
    c = self._config
    title, brand, categories = (row.get(name) for name in (c.title_column, c.brand_column, c.categories_column))
    texts = raw_files.text_fields({"title": title, "brand": brand}, ("title", "brand"))
    extra = {name: raw_files.as_text(row[name]) for name in (*EXTRA, *c.extra_columns) if row.get(name) is not None}
    return Item(
      item_id=item_id,
      **texts,
      categories=raw_files.any_categories(categories),
      extra={name: text for name, text in extra.items() if text},
    )


class InteractionsDirectory:
  """The form of the user's own files: interactions.csv, .jsonl, .parquet …, or a single .inter file (RecBole)."""

  def find(self, root: pathlib.Path, category: str | None) -> list[pathlib.Path]:
    del category
    own = raw_files.tables(root, "interactions", SUFFIXES)
    return [group[0] for group in own] or raw_files.glob(root, "*.inter")

  def open(self, root: pathlib.Path, found: list[pathlib.Path], config: DataConfig) -> InteractionFiles:
    del found
    interactions = _one(root, "interactions") or _one_atomic(root, ".inter")
    items = _one(root, "items") or _one_atomic(root, ".item")
    assert interactions is not None
    log, catalogue = tables_of(interactions, items, config)
    read = columns_lib.with_text_columns(catalogue, config) if catalogue is not None else config
    return InteractionFiles(str(root), read, log, catalogue, config)

  def wanted(self, category: str | None) -> str:
    del category
    return "interactions.csv, .jsonl or .parquet"


def tables_of(
  interactions: Sequence[pathlib.Path], items: Sequence[pathlib.Path] | None, config: DataConfig
) -> tuple[Table, Table | None]:
  """Opens the tables of interactions and items.

  Raises:
    InputError: data.time_format cannot be used, or see `Table`.
  """
  if "%Z" in config.time_format.replace("%%", ""):
    raise InputError(
      f"config.data.time_format={config.time_format!r} has %Z, but names of zones like CET are not read: write times "
      "with offsets like +01:00 and use %z, or leave the zone out where all times have the same."
    )
  log = Table(
    interactions,
    config.columns,
    config.separator,
    config.time_format,
    fits=lambda header: columns_lib.fits(header, config),
    holds_items=lambda names: columns_lib.fits(names, config, ("item_column",)) > 0,
  )
  if not items:
    return log, None
  return log, Table(items, config.item_file_columns, fits=lambda header: columns_lib.fits_items(header, config))


def _one(root: pathlib.Path, stem: str) -> list[pathlib.Path] | None:
  found = raw_files.tables(root, stem, SUFFIXES)
  if len(found) > 1:
    one, other = (group[0].relative_to(root) for group in found[:2])
    if pathlib.Path(f"{one}.gz") == other:
      raise InputError(f"{root} holds {one} and {other}: expected one of them; move the other away.")
    way = raw_files.names_of_parts(stem, one.parts[0])
    raise InputError(f"{root} holds {one} and {other}, which are not read as one: {way}; or move one of them away.")
  if found:  # codes of items, prepare --codes, are JSON
    raw_files.check_alone(root, stem, [one for one in SUFFIXES if stem != "items" or one != ".json"], found[0])
  return found[0] if found else None


def _one_atomic(root: pathlib.Path, suffix: str) -> list[pathlib.Path] | None:
  found = raw_files.glob(root, f"*{suffix}")
  if len(found) > 1:
    one, other = (path.name for path in found[:2])
    way = raw_files.names_of_parts("interactions" if suffix == ".inter" else "items", one)
    raise InputError(f"{root} holds {one} and {other}, which are not read as one: {way}; or move one of them away.")
  return found or None
