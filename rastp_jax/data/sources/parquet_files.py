"""Parquet files, in bounded memory."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rastp_jax.data.sources.json_files import unlisted, unnested
from rastp_jax.errors import InputError
from rastp_jax.runtime import terminal

_ROWS = 1 << 20  # rows read at a time
_DAMAGED = (pa.ArrowException, OSError, ValueError, OverflowError)  # text that is not UTF-8, times that no clock has


class ParquetFile:
  """One Parquet file; lists of objects and lists of plain values are read as in `JsonFile`.

  Raises:
    InputError: the file is damaged.
  """

  headerless = False
  separator = ""
  first_line = ""

  def __init__(self, path: pathlib.Path, holds_items: Callable[[Sequence[str]], bool]):
    self.path = path
    self.notes: list[str] = []
    self.num_rows: int = self._open().metadata.num_rows
    self.schema = self._open().schema_arrow
    twice = next((name for name in self.schema.names if self.schema.names.count(name) > 1), None)
    if twice is not None:
      raise InputError(f"{path} has two columns named {twice!r}: rename one of them.")
    lists = [field for field in self.schema if _is_list(field.type)]
    objects = {field.name: [inner.name for inner in field.type.value_type] for field in lists if _holds_objects(field)}
    self.nested = next((name for name, inner in objects.items() if holds_items(inner)), None)
    self.lists = [field.name for field in lists if field.name not in objects]
    self.columns = list(self.schema.names)
    if self.nested:
      inside = self.schema.field(self.nested).type.value_type
      self.columns += [inside.field(place).name for place in range(inside.num_fields)]
    self.first: dict[str, Any] = {}

  def type_of(self, name: str) -> pa.DataType:
    """Of a column's values; of lists and dictionaries, of the values in them."""
    if name in self.schema.names:
      kind = self.schema.field(name).type
      kind = kind.value_type if name in self.lists else kind
    else:
      kind = next(field.type for field in self.schema.field(self.nested).type.value_type if field.name == name)
    return kind.value_type if pa.types.is_dictionary(kind) else kind

  def batches(self, types: dict[str, pa.DataType] | None, time: str = "") -> Iterator[tuple[int, pa.Table]]:
    """Yields (number of the first row, columns as they are)."""
    del time
    file, row = self._open(), 1
    names = None if types is None else list(types)
    nested = self.nested if names and any(name not in self.schema.names for name in names) else None
    lists = [name for name in names or () if name in self.lists]
    asked = names if not nested else [name for name in names or () if name in self.schema.names] + [nested]
    with terminal.bar(file.metadata.num_rows, f"Reading {self.path.name}", " rows") as bar:
      try:
        for batch in file.iter_batches(_ROWS, columns=asked):
          table = pa.Table.from_batches([batch])
          if nested:
            table = unnested(table, nested, names or [])
          yield row, unlisted(table, lists, f"{self.path}, from row {row} on,") if lists else table
          row += batch.num_rows
          bar.update(batch.num_rows)
      except _DAMAGED as error:
        what = " ".join(str(error).split())
        raise InputError(f"{self.path} cannot be read ({what}): write the file again.") from None

  def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number, values by column)."""
    for first, table in self.batches(None):
      try:
        rows = table.to_pylist()
      except _DAMAGED as error:
        raise InputError(f"{self.path} has values that cannot be read ({error}): write the file again.") from None
      yield from enumerate(rows, start=first)

  def _open(self) -> pq.ParquetFile:
    try:
      return pq.ParquetFile(self.path)
    except _DAMAGED as error:
      what = " ".join(str(error).split())
      raise InputError(f"{self.path} is not a readable Parquet file ({what}): write or copy it again.") from None


def _is_list(kind: pa.DataType) -> bool:
  return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _holds_objects(field: pa.Field) -> bool:
  return pa.types.is_struct(field.type.value_type)
