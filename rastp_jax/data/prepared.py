"""Prepared datasets: histories and items as two tables under a data directory, and what is known about them.

Every dataset is a config of two TFDS builders: `ReviewHistories` (one row per user) and `ReviewItems` (one row per
item). `preparation.prepare` writes them.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.data import datasets, tfds_tables
from rastp_jax.data.items import Item
from rastp_jax.data.splits import MIN_ITEMS
from rastp_jax.data.tfds_tables import ReviewHistories, ReviewItems
from rastp_jax.errors import InputError
from rastp_jax.runtime import buckets, files

_DEFAULTS = config_lib.DataConfig()
# What `prepare` records of a table, and which of it every version did.
_FACTS: dict[str, Any] = {
  "fingerprint": str,
  "num_users": int,
  "num_items": int,
  "num_interactions": int,
  "dropped_users": int,
  "settings": dict,
  "counts": dict,
  "notes": list,
  "longest": list,
  "evaluated": int | None,
  "items_file_rows": int | None,
}
_ALWAYS = ("fingerprint", "num_users", "num_items", "num_interactions", "dropped_users")


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A dataset that is ready under a data directory.

  Attributes:
    dataset: its name.
    histories_dir: directory of the histories table.
    items_dir: directory of the item table.
    fingerprint: identifies the source it was made from.
    num_users: users kept.
    num_items: items in the catalogue.
    num_interactions: items in all histories together.
    dropped_users: users left out because they had fewer than `MIN_ITEMS` items.
    settings: the settings of config.data that its rows depend on, by field name.
    counts: how many irregular rows its source found, see `RawData`.
    notes: what its source recognised and what is doubtful, in sentences.
    longest: the user with the longest history, and its items.
    evaluated: users, the first ones, that have held-out items; None: all.
    items_file_rows: rows of the items file that a bare .npy follows; 0 where there is no such file; None where rows
      follow the catalogue.
    reused: True when `preparation.prepare` found it there.
  """

  dataset: str
  histories_dir: str
  items_dir: str
  fingerprint: str
  num_users: int
  num_items: int
  num_interactions: int
  dropped_users: int
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()
  longest: Sequence[Any] = ()
  evaluated: int | None = None
  items_file_rows: int | None = None
  reused: bool = True

  def describe(self) -> str:
    """Sizes, and counts of what was found in the raw files, a line each."""
    sizes = (
      f"{self.num_users} users, {self.num_items} items, {self.num_interactions} interactions; "
      f"{self.dropped_users} users with fewer than {MIN_ITEMS} items left out"
    )
    lines = [f"  {count} {what}" for what, count in self.counts.items() if count]
    if self.longest:
      lines.insert(0, f"  the longest history, of user {self.longest[0]!r}, has {self.longest[1]} items")
    return "\n".join([sizes, *lines, *(f"  {note}" for note in self.notes)])

  def way_out(self) -> str:
    """What to do, in words, where other rows are wanted than these."""
    parts = [self.items_dir]
    codes = pathlib.Path(self.histories_dir).parents[2] / "semantic_ids" / f"{self.dataset}.npz"
    if codes.exists():
      parts.append(f"its semantic IDs {codes}")
    return (
      "choose another config.data.dataset or config.data.data_dir; or remove it and " + " and ".join(parts) + ", after "
      "which runs trained on it can no longer be used"
    )

  def histories(self) -> tuple[np.ndarray, np.ndarray]:
    """All users' items end to end, int32 (interactions,), and where each begins, offsets int64 (users + 1,).

    Raises:
      InputError: they cannot be read.
    """
    path = pathlib.Path(self.histories_dir) / tfds_tables.ARRAYS
    items, offsets = tfds_tables.read_arrays(path) if path.exists() else self.histories_of_table()
    shown = (len(items), len(offsets)) == (self.num_interactions, self.num_users + 1)
    if not shown or offsets[-1] != len(items) or (len(items) and not 0 <= items.min() <= items.max() < self.num_items):
      raise tfds_tables.unreadable(self.histories_dir, "its histories are not those that its metadata.json tells of")
    return items, offsets

  def histories_of_table(self) -> tuple[np.ndarray, np.ndarray]:
    """The same, unchecked, from the table: earlier versions wrote no arrays."""
    try:
      items, offsets = np.empty(self.num_interactions, np.int32), np.zeros(self.num_users + 1, np.int64)
    except (MemoryError, ValueError) as error:
      raise tfds_tables.unreadable(self.histories_dir, f"{self.num_interactions} interactions: {error}") from error
    for user, row in enumerate(tfds_tables.read_rows(self.histories_dir, self.num_users)):
      offsets[user + 1] = stop = offsets[user] + len(row["items"])
      if stop > len(items):
        break
      items[offsets[user] : stop] = row["items"]
    return items, offsets

  @property
  def user_ids(self) -> "UserIds":
    """The source's user ids, in the order of `histories`."""
    return UserIds(self.histories_dir, self.num_users, range(self.num_users))

  @functools.cached_property
  def items(self) -> list[Item]:
    """The catalogue, row = item; read when it is first asked for."""
    return list(self.iterate_items())

  def iterate_items(self) -> Iterator[Item]:
    """Yields the catalogue, row = item, without reading more of it than is asked for."""
    for row in tfds_tables.read_rows(self.items_dir, self.num_items):
      try:
        extra = files.parse_json(row["extra"].decode() or "{}") if "extra" in row else {}
      except ValueError as error:
        raise tfds_tables.unreadable(self.items_dir, error) from error
      yield Item(
        **{name: row[name].decode() for name in ("item_id", "asin", "title", "brand")},
        categories=tuple(path.decode() for path in row["categories"]),
        extra=extra,
      )

  @functools.cached_property
  def file_rows(self) -> np.ndarray | None:
    """Each item's row in the items file, int64 (num_items,), -1 where it has none; None: the row of the catalogue.

    Raises:
      InputError: it was prepared by a version that did not record them.
    """
    if self.items_file_rows is None and "user_column" not in self.settings:
      return None
    rows = tfds_tables.read_rows(self.items_dir, self.num_items)
    if self.items_file_rows is None:
      raise InputError(
        f"{self.items_dir} was prepared by an earlier version, which did not record the order of the items file: give "
        "an .npz with an array ids beside the embeddings, or remove it and its histories and prepare again."
      )
    return np.array([int(row["file_row"]) for row in rows], np.int64)

  @functools.cached_property
  def item_ids(self) -> list[str]:
    """The source's ids, row = item."""
    return [item.item_id for item in self.items]


class UserIds(Sequence[str]):
  """Users' ids, read from the table each time they are asked for: training needs none, and a billion would not fit.

  Args:
    directory: of the histories' table.
    num_rows: the table's rows.
    rows: those that these are.
  """

  def __init__(self, directory: str, num_rows: int, rows: range):
    self._directory, self._num_rows, self._rows = directory, num_rows, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __iter__(self) -> Iterator[str]:
    for row in tfds_tables.read_rows(self._directory, self._num_rows, self._rows):
      yield row["user_id"].decode()

  @overload
  def __getitem__(self, index: int) -> str: ...
  @overload
  def __getitem__(self, index: slice) -> "UserIds": ...
  def __getitem__(self, index):
    if isinstance(index, slice):
      return UserIds(self._directory, self._num_rows, self._rows[index])
    row = self._rows[index]
    return next(iter(UserIds(self._directory, self._num_rows, range(row, row + 1))))


def find_prepared(data_dir: str, dataset: str) -> Prepared | None:
  """The prepared dataset, or None where it is not complete.

  Raises:
    InputError: its two tables do not belong together.
  """
  histories, items = (tfds_tables.place(table, data_dir, dataset) for table in (ReviewHistories, ReviewItems))
  if not (histories.exists() and items.exists()):
    return None
  facts, of_items = _facts(histories), _facts(items)
  if of_items["fingerprint"] != facts["fingerprint"]:
    raise InputError(f"{histories} and {items} were prepared from different files: remove both and prepare again.")
  facts["settings"] = _with_current_names(facts.get("settings", {}))
  return Prepared(dataset=dataset, histories_dir=str(histories), items_dir=str(items), **facts)


def _facts(directory: pathlib.Path) -> dict[str, Any]:
  """What `prepare` wrote about a table.

  Raises:
    InputError: the file is missing, damaged, or of another version.
  """
  path = directory / tfds_tables.METADATA
  again = f"remove {directory} and run `python -m rastp_jax.prepare` again"
  facts = files.read_json(path, again)
  for name, value in facts.items():
    wrong = _FACTS.get(name) is None or not isinstance(value, _FACTS[name]) or isinstance(value, bool)
    if wrong or (isinstance(value, int) and not 0 <= value < 2**62):
      raise InputError(f"{path} cannot be read ({name!r} is not what this version writes there): {again}.")
  missing = [name for name in _ALWAYS if name not in facts]
  if missing:
    raise InputError(f"{path} cannot be read (it lacks {missing[0]!r}): {again}.")
  return facts


def open_prepared(data_dir: str, dataset: str) -> Prepared:
  """Finds a prepared dataset.

  Raises:
    InputError: it is not there (the sentence names the command that makes it), or its tables do not belong together.
  """
  found = find_prepared(data_dir, dataset)
  if found is None:
    where = data_dir if buckets.is_url(data_dir) else os.path.abspath(data_dir)
    raw_dir = "" if datasets.named(dataset).source else " and --raw_dir=DIR"
    raise InputError(
      f"Dataset {dataset!r} is not prepared under {where}: run `python -m rastp_jax.prepare` with the same "
      f"--config{raw_dir}, or say by --config.data.data_dir=DIR, or --override=data.data_dir=DIR for a trained run, "
      f"where it is{datasets.hint(dataset)}"
    )
  return found


def check_settings(found: Prepared, settings: Mapping[str, Any]) -> None:
  """Raises InputError where a prepared dataset was made with other settings; the sentence names the first."""
  for name in sorted({*found.settings, *settings}):
    default = getattr(_DEFAULTS, name, None)  # datasets are silent about settings that have it
    default = list(default) if isinstance(default, tuple) else default
    made_with, wanted = found.settings.get(name, default), settings.get(name, default)
    if made_with != wanted:
      raise InputError(
        f"{found.histories_dir} was prepared with data.{name}={made_with!r}, but now data.{name}={wanted!r} is asked "
        f"for: {found.way_out()}."
      )


def _with_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings as a dataset recorded them, under today's names."""
  current = {now: value for name, value in settings.items() for now in config_lib.current_names(f"data.{name}")}
  return {name.removeprefix("data."): value for name, value in current.items()}
