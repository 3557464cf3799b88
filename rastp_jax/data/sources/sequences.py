"""A directory of id sequences with an items file, the form in which papers share their data."""

import functools
import hashlib
import pathlib
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rastp_jax.config import DataConfig
from rastp_jax.data import vectors as item_vectors
from rastp_jax.data.items import Item
from rastp_jax.data.sources import raw_files
from rastp_jax.data.sources.source import RawData
from rastp_jax.errors import InputError

_BLANKS = re.compile(r"[ \t\r]+")  # `str.split` also splits at characters that may be part of an id
_INTEGER = re.compile(r"-?[0-9]{1,18}")  # `int` also takes 1_0, which is not an id


class SequencesDirectory:
  """A directory with `sequences.txt`, `items.jsonl` (either may be gzipped) and perhaps `embeddings.npy`.

  sequences.txt: one user per line, `user_id item_id item_id …`, item ids from 1, in time order. items.jsonl: one item
  per line, `item_id`, and as far as known `asin`, `title`, `brand`, `categories` (a list of paths, each a list of
  names). embeddings.npy: row k = item id k + 1.

  Users are in the order of their lines, items in the order of their ids.

  Args:
    raw_dir: the directory.

  Raises:
    InputError: one of the two files is missing, or there both plain and gzipped.
  """

  settings: Mapping[str, Any] = {}

  def __init__(self, raw_dir: str):
    root = pathlib.Path(raw_dir)
    self.where = str(root)
    self._embeddings = root / "embeddings.npy"
    self._sequences = _only(root, "sequences.txt")
    self._items = _only(root, "items.jsonl")

  def fingerprint(self) -> str:
    """sha256 over both files' unpacked contents."""
    return hashlib.sha256(raw_files.digest(self._sequences) + raw_files.digest(self._items)).hexdigest()

  def read(self) -> RawData:
    """Reads both files.

    Raises:
      InputError: a line is empty, is not a JSON object or has fields of the wrong type; an item id has no row or two;
        the items' ids are not 1, 2, …; or a user has two lines.
    """
    num_items = len(self._catalogue)
    line_of: dict[str, int] = {}
    items, offsets = raw_files.flatten(self._histories(num_items, line_of))
    return RawData(pa.array(line_of, pa.large_string()), items, offsets, self._catalogue, num_items)

  def embeddings(self, num_items: int) -> np.ndarray | None:
    return item_vectors.load_embeddings(self._embeddings, num_items) if self._embeddings.exists() else None

  def _histories(self, num_items: int, line_of: dict[str, int]) -> Iterator[list[int]]:
    """Yields each user's item rows, and adds the number of the user's line to `line_of`."""
    for number, line in raw_files.lines(self._sequences):
      user, *ids = _BLANKS.split(line.strip(" \t\r"))
      place = f"{self._sequences} line {number}"
      if not user:
        raise InputError(f"{place} is empty: expected a user id and item ids; remove the line or copy the file again.")
      if user in line_of:
        raise InputError(f"{place} gives user {user!r} again, after line {line_of[user]}: expected one line per user.")
      line_of[user] = number
      wrong = next((text for text in ids if not _INTEGER.fullmatch(text)), None)
      if wrong is not None:
        raise InputError(
          f"{place} has the item id {wrong[:80]!r}, expected integers from 1 to {num_items}: the file is damaged or of "
          "another format; copy it again."
        )
      rows = [int(text) - 1 for text in ids]
      if rows and not 0 <= min(rows) <= max(rows) < num_items:
        wrong = next(row + 1 for row in rows if not 0 <= row < num_items)
        raise InputError(
          f"{place} has the item id {wrong}, which has no row in {self._items} (ids 1 to {num_items}): use the two "
          "files of one dataset."
        )
      yield rows

  @functools.cached_property
  def _catalogue(self) -> list[Item]:
    found: dict[int, Item] = {}
    for number, line in raw_files.lines(self._items):
      place = f"{self._items} line {number}"
      try:
        row = raw_files.json_value(line)
        item_id, item = _parse_item(row)
      except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
          f"{place} cannot be read as an item ({type(error).__name__}: {error}): expected a JSON object with an "
          "integer item_id and, as far as known, asin, title, brand and categories; copy the file again."
        ) from None
      if item_id in found:
        raise InputError(f"{place} gives item id {item_id} a second time: expected one line per item.")
      found[item_id] = item
    if not found:
      raise InputError(f"{self._items} holds no items: copy the file again.")
    if max(found) != len(found) or min(found) != 1:
      missing = next(i for i in range(1, len(found) + 1) if i not in found)
      raise InputError(
        f"{self._items} has {len(found)} items but none with item id {missing}: expected the ids 1 to {len(found)}, "
        "each once; copy the file again."
      )
    return [found[item_id] for item_id in sorted(found)]


def _parse_item(row: dict[str, Any]) -> tuple[int, Item]:
  item_id = row["item_id"]
  if type(item_id) is not int:
    raise TypeError(f"item_id is {reprlib.repr(item_id)}")
  texts = raw_files.text_fields(row, ("asin", "title", "brand"))
  categories = raw_files.category_paths(row.get("categories"))
  return item_id, Item(str(item_id), texts["asin"], texts["title"], texts["brand"], categories)


def _only(root: pathlib.Path, name: str) -> pathlib.Path:
  found = raw_files.find(root, name)
  if len(found) != 1:
    what = "both" if found else "neither"
    raise InputError(f"{root} holds {what} {name} {'and' if found else 'nor'} {name}.gz: expected exactly one of them.")
  return found[0]


class Sequences:
  """The form of these files in a directory."""

  def find(self, root: pathlib.Path, category: str | None) -> list[pathlib.Path]:
    del category
    return raw_files.find(root, "sequences.txt")

  def open(self, root: pathlib.Path, found: list[pathlib.Path], config: DataConfig) -> SequencesDirectory:
    del found, config
    return SequencesDirectory(str(root))

  def wanted(self, category: str | None) -> str:
    del category
    return "sequences.txt and items.jsonl"
