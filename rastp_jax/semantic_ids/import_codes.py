"""Codes that were learned elsewhere: .npy tables, LETTER-style index.json, and files of this program."""

import dataclasses
import os
import pathlib
import re
import reprlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rastp_jax.config import SemanticIdsConfig
from rastp_jax.data.sources.ids import cleaned
from rastp_jax.data.vectors import Order, open_arrays
from rastp_jax.errors import InputError
from rastp_jax.runtime import files
from rastp_jax.semantic_ids import codes, collisions
from rastp_jax.semantic_ids.codes import SemanticIds

_TOKEN = re.compile(r"<([a-z])_([0-9]{1,9})>")
_INSTEAD = "give index.json, which names the items"
_FORMATS = ".npy (items x levels, or levels x items), .json (item id -> codes) or .npz (written by rastp_jax.prepare)"


def read(
  path: str | os.PathLike,
  item_ids: Sequence[str],
  order: Order,
  settings: SemanticIdsConfig,
  provenance: Mapping[str, Any],
  notes: list[str],
) -> SemanticIds:
  """Reads and checks the user's own codes.

  They stay as they are where no two items are equal; otherwise settings.collisions="extra_level" appends a code that
  tells equal ones apart. A last level that only counts items whose other codes are equal does not count as learned.

  Args:
    path: a .npy of integers, (rows, levels) with rows in `order`, or (levels, rows) as GRID writes them; a .json as
      LETTER writes it, {"item id": ["<a_12>", "<b_3>", …]}; or an .npz written by `SemanticIds.save`.
    item_ids: the catalogue, row = item.
    order: whose order rows without ids are in.
    settings: `collisions`; and `codebook_size`: codes must be below it, or below the number of items.
    notes: gets a sentence on how items were matched and how many were left out.
    provenance: of the result; an .npz must have been made for its `dataset` and `dataset_fingerprint`.

  Raises:
    InputError: the file cannot be read, does not cover each item once, holds codes that cannot be, or equal ones that
      settings.collisions="reassign" could only move with codebooks.
  """
  path = files.check_path(path)
  if path.suffix == ".npz":
    ids = codes.load(
      path,
      dataset=provenance["dataset"],
      fingerprint=provenance["dataset_fingerprint"],
      num_items=len(item_ids),
    )
    return dataclasses.replace(ids, provenance=dict(provenance))
  if path.suffix not in (".npy", ".json"):
    raise InputError(f"{path} is not of a known kind: give --codes a {_FORMATS}.")
  if path.suffix == ".npy":
    table = _read_npy(path, item_ids, order, notes)
  else:
    table = _read_index(path, item_ids, order, notes)
  most = max(settings.codebook_size, len(item_ids))
  outside = (table < 0) | (table >= most)
  if outside.any():
    row, level = np.argwhere(outside)[0]
    raise InputError(
      f"{path} gives item {item_ids[row]!r} the code {table[row, level]} at level {level}, expected 0 to {most - 1}: "
      "count each level's codes from 0, without offsets or padding."
    )
  table = table.astype(np.int32)
  widths = tuple(int(top) + 1 for top in table.max(0))
  counted = collisions.is_disambiguated(table)
  _, sizes, grouped, first = collisions.group_rows(table)
  if sizes.max() == 1:
    return SemanticIds(table, widths, dict(provenance), table[:, :-1] if counted else table)
  if settings.collisions == "reassign":
    one, other = grouped[first[sizes.argmax()] :][:2]
    raise InputError(
      f"{path} gives items {item_ids[one]!r} and {item_ids[other]!r} the same codes {table[one].tolist()} "
      f"({int(sizes[sizes > 1].sum())} such items), and only the codebooks they came from could tell which free codes "
      "are near: use semantic_ids.collisions='extra_level'."
    )
  unique = collisions.disambiguate(table)
  return SemanticIds(unique, (*widths, int(unique[:, -1].max()) + 1), dict(provenance), table)


def _read_npy(path: pathlib.Path, item_ids: Sequence[str], order: Order, notes: list[str]) -> np.ndarray:
  num_items = order.length
  try:
    with open_arrays(path) as table:
      if not isinstance(table, np.ndarray):
        raise ValueError("it is an archive of arrays")
  except Exception as error:  # see `open_arrays`
    raise InputError(f"{path} cannot be read as a .npy array ({files.first_line(error)}): copy it again.") from error
  if table.ndim != 2 or not np.issubdtype(table.dtype, np.integer):
    raise InputError(
      f"{path} holds type {table.dtype} and shape {table.shape}: expected integers of shape ({num_items}, levels) or "
      f"(levels, {num_items})."
    )
  if not num_items:
    order.check(path, len(table), item_ids, _INSTEAD)
  if table.shape == (num_items, num_items):
    raise InputError(
      f"{path} has shape {table.shape} for {num_items} items, which may be items x levels or levels x items: give it "
      "as index.json, which names the items."
    )
  if num_items not in table.shape:
    raise InputError(
      f"{path} has shape {table.shape}, in which no side is the dataset's {num_items} "
      f"{'items' if order.rows is None else 'rows of the items file'}: expected ({num_items}, levels) or (levels, "
      f"{num_items}), the codes of every item of this dataset; or {_INSTEAD}."
    )
  table = table if table.shape[0] == num_items else table.T
  if not table.shape[1]:
    raise InputError(f"{path} has no levels: expected at least one code per item.")
  order.check(path, len(table), item_ids, _INSTEAD)
  if order.rows is not None:
    notes.append(f"codes of {path.name} are taken by the order of the items file{_others(num_items - len(item_ids))}")
  return order.take(table)


def _read_index(path: pathlib.Path, item_ids: Sequence[str], order: Order, notes: list[str]) -> np.ndarray:
  index = files.read_json(path, 'expected {"item id": ["<a_12>", "<b_3>"]}; copy it again')
  if not index:
    raise InputError(f'{path} names no items: expected {{"item id": ["<a_12>", "<b_3>"]}}.')
  keys = _keys(path, index, item_ids, order, notes)
  rows: list[list[int]] = []
  for item_id, key in zip(item_ids, keys, strict=True):
    tokens = index[key] if isinstance(index[key], list) else [index[key]]
    found = [_TOKEN.fullmatch(token) if isinstance(token, str) else None for token in tokens]
    depth = len(rows[0]) if rows else len(tokens)
    matches = [match for match in found if match is not None]
    # <a_…> is level 0, <b_…> level 1 and so on.
    letters = "".join(match[1] for match in matches)
    if not found or len(matches) < len(found) or letters != string.ascii_lowercase[:depth]:
      raise InputError(
        f"{path} gives item {item_id!r} the codes {reprlib.repr(index[key])}: expected {depth or 'some'} like "
        '["<a_12>", "<b_3>"], one per level, the same number for each item.'
      )
    rows.append([int(match[2]) for match in matches])
  return np.array(rows, np.int64)


def _keys(
  path: pathlib.Path, index: dict[str, Any], item_ids: Sequence[str], order: Order, notes: list[str]
) -> Sequence[str]:
  """The index's key of each item: its id, or (where ids cannot be meant) its row counted from 0, as LETTER does.

  Keys are rows only if they are exactly 0, 1, … to the last row of the order, and not every item's id is among them.
  """
  if all(item_id in index for item_id in item_ids):
    like_rows = set(index) == {str(row) for row in range(len(index))} and list(item_ids) != sorted(index, key=int)
    if len(index) > len(item_ids) or like_rows:
      doubt = ", although its keys could be rows counted from 0" if like_rows else ""
      notes.append(f"codes of {path.name} are taken by item id{doubt}{_others(len(index) - len(item_ids))}")
    return item_ids
  by_clean_id = {cleaned(key): key for key in index}
  if len(by_clean_id) == len(index) and all(item_id in by_clean_id for item_id in item_ids):
    return [by_clean_id[item_id] for item_id in item_ids]
  missing = [name for name in item_ids if name not in index]
  if order.length and set(index) == {str(row) for row in range(order.length)}:
    order.check(path, len(index), item_ids, "name the items by their ids")
    rows = np.arange(len(item_ids)) if order.rows is None else order.rows
    whose = "dataset's items" if order.rows is None else "rows of the items file"
    notes.append(
      f"codes of {path.name} are taken by row: its keys are exactly 0 to {order.length - 1}, the {whose} counted from "
      f"0, and {len(missing)} of the {len(item_ids)} item ids are not among them"
      f"{_others(order.length - len(item_ids))}"
    )
    return [str(row) for row in rows.tolist()]
  strange = set(index).difference(item_ids)
  more = f", and has {len(strange)} that are not items, like {min(strange)!r}" if strange else ""
  raise InputError(
    f"{path} misses {len(missing)} of the {len(item_ids)} items, like {missing[0]!r}{more}: expected the codes of this "
    "dataset's items, under their ids."
  )


def _others(number: int) -> str:
  return f"; {number} that are not items of this dataset are left out" if number else ""
