"""CSV, JSONL and Parquet files, one or several, as batches of columns in bounded memory."""

import pathlib
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rastp_jax.data.sources import raw_files, times
from rastp_jax.data.sources.csv_files import CsvFile
from rastp_jax.data.sources.json_files import JsonFile
from rastp_jax.data.sources.parquet_files import ParquetFile
from rastp_jax.errors import InputError

CSV = (".csv", ".tsv", ".txt", ".dat", ".inter", ".item", ".data")
JSONL = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
SUFFIXES = (*CSV, *JSONL, *PARQUET)  # text also with .gz behind


class Table:
  """Rows of one file or of several of the same columns, read by column name. Row numbers in messages count from 1.

  Args:
    paths: files of one form, in order.
    names: the columns' names in order, of CSV files without a header.
    separator: between a CSV file's values; "" to recognise it.
    time_format: how times are written, in the form of `strptime`; "" for numbers and ISO dates.
    fits: how many of the columns that are looked for a header has; decides between separators.
    holds_items: whether objects with these names are events, so that a list of them holds interactions.

  Attributes:
    path: what messages call the table.
    columns: names.
    lists: names of the columns whose rows hold several values.
    notes: what was recognised, in sentences.

  Raises:
    InputError: a file is empty or damaged, or has other columns than the first.
  """

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    names: Sequence[str] = (),
    separator: str = "",
    time_format: str = "",
    fits: Callable[[Sequence[str]], int] = lambda _: 0,
    holds_items: Callable[[Sequence[str]], bool] = lambda _: False,
  ):
    self.paths, self._time_format = list(paths), time_format
    raw_files.check_parts(paths)
    filled = [path for path in paths if not raw_files.is_empty(path)] or list(paths)  # Spark writes empty parts
    self._parts = [_open(path, names, separator, fits, holds_items) for path in filled]
    # The types of the columns of a Parquet file without rows may be those of nothing.
    self._filled = [part for part in self._parts if not isinstance(part, ParquetFile) or part.num_rows]
    first = self._parts[0]
    self.path, self.columns = first.path, first.columns
    self.headerless, self.first_line, self.separator = first.headerless, first.first_line, first.separator
    self.lists = first.lists
    self.notes = list(first.notes)
    if len(self._parts) > 1:
      self.notes.append(f"{len(self._parts)} files, from {filled[0].name} to {filled[-1].name}, are read as one")
    for part in self._parts[1:]:
      if sorted(part.columns) != sorted(self.columns):
        raise InputError(
          f"{part.path} has the columns {', '.join(part.columns)}, and {self.path} has {', '.join(self.columns)}: "
          "expected the parts of one table; move the others away."
        )

  def has_rows(self, path: pathlib.Path) -> bool:
    """Whether one of the files has more than column names."""
    part = next((part for part in self._filled if part.path == path), None)
    return part is not None and (isinstance(part, ParquetFile) or bool(part.first))

  def batches(self, ids: Sequence[str], time: str) -> Iterator[pa.Table]:
    """Yields the columns: ids as large_string, never null or empty, and time (if it is not "") as a number.

    The time column comes as int64 or float64; dates as int64, in Parquet's unit (of several, the finest) or else in
    microseconds.

    Raises:
      InputError: a file is damaged, a row lacks a value, or a timestamp is of another kind than the first.
    """
    rows = 0
    kind: pa.DataType | None = None
    for part in self._filled:
      if time and kind is None:
        kind = self._time_type(part, time)
      types = {name: _id_type(part, name) for name in ids}
      if time:
        quoted = isinstance(part, JsonFile) and isinstance(part.first.get(time), str)
        types[time] = pa.string() if quoted or kind is None else kind
      for line, table in part.batches(types, time):
        if not table.num_rows:
          continue
        columns = [self._ids(part, _whole(table.column(name)), name, rows) for name in ids]
        if time:
          column = _whole(table.column(time))
          kind = self._type_of_first(part, column, time) if kind is None else kind
          columns.append(self._times(part, column, time, kind, rows, line))
        yield pa.table(columns, names=[*ids, *([time] if time else [])])
        rows += table.num_rows

  def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (the row's name in messages, its values by column), for tables whose rows are read one by one."""
    for part in self._parts:
      if isinstance(part, CsvFile):
        number = 0
        for _, table in part.batches(None):
          for row in table.to_pylist():
            number += 1
            yield f"{part.path} row {number}", row
      else:
        for number, row in part.rows():
          yield f"{part.path} row {number}", row

  def _time_type(self, part, name: str) -> pa.DataType | None:
    """What times are read as, by the type or the first value in a part; None where only its rows tell."""
    if isinstance(part, ParquetFile):
      found = part.type_of(name)
      if times.is_number(found):
        return pa.int64()
      if times.is_date(found):
        return self._in_one_unit(found, name)
      if not times.is_text(found):
        raise InputError(f"{part.path} has {found} values in its column {name!r}: expected {times.EXPECTED}.")
      return None
    value = part.first.get(name, "")
    if value == "" and not isinstance(part, JsonFile):  # no rows, or a gap
      return None
    return self._type_of(part, value, name)

  def _type_of_first(self, part, column: pa.Array, name: str) -> pa.DataType:
    """What times are read as, by the first of all rows, as text."""
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    value = _text(part, column, name)[0].as_py()
    if value is None or not value.strip():
      raise InputError(f"{part.path} row 1 has no {name}: give it one or remove the row.")
    return self._type_of(part, value, name)

  def _type_of(self, part, value: Any, name: str) -> pa.DataType:
    kind = times.type_of(value, self._time_format)
    if kind is None:
      raise InputError(f"{part.path} row 1 has the {name} {reprlib.repr(value)}: expected {times.EXPECTED}.")
    return self._in_one_unit(kind, name) if pa.types.is_timestamp(kind) else kind

  def _in_one_unit(self, kind: pa.DataType, name: str) -> pa.DataType:
    """The type of dates in the finest unit that a part has: all parts are then alike, and none loses digits."""
    types = [part.type_of(name) if isinstance(part, ParquetFile) else kind for part in self._filled]
    units = {one.unit if pa.types.is_timestamp(one) else "us" for one in types}
    return pa.timestamp(max(units, key=("s", "ms", "us", "ns").index), getattr(kind, "tz", None))

  def _ids(self, part, column: pa.Array, name: str, rows: int) -> pa.Array:
    if pa.types.is_dictionary(column.type):
      column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
      column = self._whole_numbers(part, column, name)
    if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type) or pa.types.is_boolean(column.type):
      raise InputError(
        f"{part.path} has {column.type} values in its column {name!r}: expected text or whole numbers as ids."
      )
    column = _text(part, column, name)
    empty = pc.equal(pc.binary_length(column), 0)  # pyright: ignore[reportAttributeAccessIssue]
    missing = pc.index(pc.fill_null(empty, True), True).as_py()
    if missing >= 0:
      raise InputError(f"{part.path} row {rows + missing + 1} has no {name}: give it one or remove the row.")
    return column

  def _whole_numbers(self, part, column: pa.Array, name: str) -> pa.Array:
    values = column.to_numpy(zero_copy_only=False)
    known = np.isfinite(values)
    exact = 2.0 ** (np.finfo(values.dtype).nmant + 1)  # larger whole numbers may have lost digits
    if (values[known] != np.floor(values[known])).any() or (np.abs(values[known]) >= exact).any():
      raise InputError(
        f"{part.path} has {column.type} values in its column {name!r} that are not whole numbers, or too large for "
        "that type to hold all of their digits: expected text or whole numbers as ids."
      )
    return pa.array(np.where(known, values, 0).astype(np.int64), mask=~known)

  def _times(self, part, column: pa.Array, name: str, kind, rows: int, line: int) -> pa.Array:
    if pa.types.is_dictionary(column.type):
      column = column.dictionary_decode()
    if times.is_text(column.type):
      column = _text(part, column, name)
    elif not (times.is_date(column.type) if times.is_date(kind) else times.is_number(column.type)):
      raise InputError(
        f"{part.path} has {column.type} values in its column {name!r}, but the files before it have {kind}: expected "
        "one type; write the file again."
      )
    try:
      written, column = column, times.numbers(column, kind, self._time_format)
    except times.Wrong as wrong:
      expected = f"a value like those above it in {name!r}, {times.EXPECTED}"
      if self._time_format:
        expected = f"a time of the form {self._time_format!r} (config.data.time_format) in {name!r}"
      raise InputError(
        f"{part.path} line {line + wrong.place} cannot be read (invalid value {reprlib.repr(wrong.value)}): expected "
        f"{expected}; correct the line or write the file again."
      ) from None
    except times.TooFar as error:
      raise InputError(
        f"{part.path} has a {name} that does not fit into {kind}, the finest unit of all files ({error}): correct it "
        "or write all files in microseconds."
      ) from None
    except pa.ArrowException as error:
      raise InputError(f"{part.path} has a {name} that cannot be read ({error}): expected {times.EXPECTED}.") from None
    missing = pc.is_null(column, nan_is_null=True)  # pyright: ignore[reportAttributeAccessIssue]
    if pa.types.is_floating(column.type):
      missing = pc.or_(missing, pc.is_inf(column).fill_null(True))  # pyright: ignore[reportAttributeAccessIssue]
    first = pc.index(missing, True).as_py()
    if first >= 0:
      raise InputError(f"{part.path} row {rows + first + 1} has no {name}: give it one or remove the row.")
    if len(column) and times.are_rounded(written, column, part.first.get(name)):
      note = f"WARNING: {part.path.name} has rounded times in its column {name!r}: write them again with all digits"
      self.notes += [note] if note not in self.notes else []
    if times.are_cut(written, kind):
      note = (
        f"WARNING: {part.path.name} has times with nanoseconds in its column {name!r}, which are cut to microseconds: "
        "write them as numbers of nanoseconds if their order needs these"
      )
      self.notes += [note] if note not in self.notes else []
    return column


def _open(
  path: pathlib.Path, names: Sequence[str], separator: str, fits, holds_items
) -> CsvFile | JsonFile | ParquetFile:
  suffix = path.name.removesuffix(".gz")
  if suffix.endswith(JSONL):
    return JsonFile(path, holds_items)
  return ParquetFile(path, holds_items) if suffix.endswith(PARQUET) else CsvFile(path, names, separator, fits)


def _text(part, column: pa.Array, name: str) -> pa.Array:
  """A column as large_string; raises InputError where it is not UTF-8, which Arrow does not look at in Parquet."""
  try:
    text = column.cast(pa.large_string())
    text.validate(full=True)
    return text
  except pa.ArrowException as error:
    what = " ".join(str(error).split())
    raise InputError(
      f"{part.path} has values in its column {name!r} that are not text ({what[:200]}): expected text in UTF-8 or "
      "whole numbers; write the file again."
    ) from None


def _whole(column: pa.ChunkedArray) -> pa.Array:
  return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _id_type(part, name: str) -> pa.DataType:
  # In JSON, text and numbers differ, and a column of one cannot be read as the other; CSV ids stay text ("007").
  if isinstance(part, JsonFile):
    value = part.first.get(name)
    return pa.int64() if isinstance(value, int) else pa.float64() if isinstance(value, float) else pa.string()
  return pa.string()
