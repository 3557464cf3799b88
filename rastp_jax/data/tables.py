"""CSV, JSONL and Parquet files as batches of columns; memory does not grow with the file."""

import contextlib
import csv
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from rastp_jax.data import sources
from rastp_jax.errors import InputError

SUFFIXES = (".csv", ".jsonl", ".parquet")  # the first two also with .gz behind
_BLOCK = 16 << 20  # bytes of text parsed at a time
_ROWS = 1 << 20  # Parquet rows read at a time

# What a timestamp may be, tried in this order on a file's first row.
_TIMES = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
_EXPECTED_TIME = "a number (seconds, milliseconds, …) or an ISO date like 2014-07-23 or 2014-07-23T10:00:00Z"


class Table:
  """One file of rows, read by column name. Row numbers in messages count from 1, without a CSV file's header.

  Args:
    path: a file whose name ends in one of `SUFFIXES`.

  Raises:
    InputError: the file is empty or damaged.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._kind = next(suffix for suffix in SUFFIXES if path.name.removesuffix(".gz").endswith(suffix))
    self.columns, self._first = self._peek()

  def require(self, setting: str, column: str) -> None:
    """Raises InputError, naming the config.data field, unless the file has the column."""
    if column not in self.columns:
      raise InputError(
        f"{self.path} has no column {column!r}: its columns are {', '.join(self.columns)}; set config.data.{setting} "
        "to the right one."
      )

  def batches(self, ids: Sequence[str], time: str) -> Iterator[pa.RecordBatch]:
    """Yields the columns: ids as large_string, never null or empty, and time as a number.

    The time column comes as int64 or float64, whichever the file's first row holds; dates as int64 microseconds.

    Raises:
      InputError: the file is torn, a row lacks a value, or a timestamp is of another kind than the first.
    """
    time_type = self._time_type(time)
    quoted = self._kind == ".jsonl" and isinstance(self._first.get(time), str)
    types = {name: self._id_type(name) for name in ids} | {time: pa.string() if quoted else time_type}
    rows = 0
    for batch in self._raw_batches(types):
      columns = [self._ids(batch.column(name), name, rows) for name in ids]
      columns.append(self._times(batch.column(time), time, time_type, rows))
      yield pa.record_batch(columns, [*ids, time])
      rows += batch.num_rows

  def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place for messages, one row's values by column), for tables whose rows are looked at one by one."""
    number = 0
    for batch in self._raw_batches(None):
      for row in batch if isinstance(batch, list) else batch.to_pylist():
        number += 1
        yield f"{self.path} row {number}", row

  def _peek(self) -> tuple[list[str], dict[str, Any]]:
    """Column names, and the first row's values where reading the file does not tell their types."""
    if self._kind == ".parquet":
      return self._parquet().schema_arrow.names, {}
    if self._kind == ".jsonl":
      number, line = next(sources.lines(self.path), (1, ""))
      row = self._json(number, line) if line else {}
      self._expect_content(row)
      return list(row), row
    with sources.unpacked(self.path, "Opening") as file:
      # What is no UTF-8 further down is found, with its line, when it is read.
      reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline=""))
      try:
        header, first = next(reader, []), next(reader, [])
      except csv.Error as error:
        raise InputError(f"{self.path} is no CSV file ({error}): write it again in that form.") from None
    if any("\ufffd" in name for name in header):
      raise InputError(f"{self.path} has column names that are no UTF-8 text: write the file again in UTF-8.")
    self._expect_content(header)
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
      raise InputError(f"{self.path} has two columns named {twice!r}: rename one of them.")
    return header, dict(zip(header, first, strict=False))

  def _expect_content(self, found) -> None:
    if not found:
      raise InputError(f"{self.path} is empty: expected rows with named columns; write the file again.")

  def _raw_batches(self, types: dict[str, pa.DataType] | None) -> Iterator[Any]:
    """Batches of the columns in `types`; with None, of all columns as they are (CSV: all text)."""
    read = {".csv": self._csv_batches, ".jsonl": self._json_batches, ".parquet": self._parquet_batches}[self._kind]
    try:
      yield from read(types)
    except (pa.ArrowException, OSError) as error:
      raise InputError(f"{self.path} {_say(str(error))}") from None

  def _csv_batches(self, types):
    types = types or dict.fromkeys(self.columns, pa.string())
    with self._native() as (file, advance):
      reader = pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK, use_threads=False),  # with threads, errors lack the row
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=list(types)),
      )
      for batch in reader:
        yield batch
        advance()

  def _json_batches(self, types):
    if types is None:
      yield from ([self._json(number, line)] for number, line in sources.lines(self.path))
      return
    rows, rest, block = 0, b"", b"more"
    with self._native() as (file, advance):
      while block:
        block = file.read(_BLOCK)
        cut = block.rfind(b"\n") + 1 if block else None
        # Only whole lines are parsed; what follows the last one waits for the next block.
        text, rest = (rest + block[:cut], block[cut:]) if cut is None or cut else (b"", rest + block)
        if text and not text.isspace():
          for batch in self._parse_json(text, types, rows).to_batches():
            rows += batch.num_rows
            yield batch
        advance()

  @contextlib.contextmanager
  def _native(self) -> Iterator[tuple[pa.NativeFile, Callable[[], Any]]]:
    """The file, unzipped, as Arrow reads it by itself, and what brings the progress bar up to date.

    Arrow reads ahead in threads of its own: one that still held a Python file when Python ends would abort it.
    """
    with (
      sources.progress(self.path.stat().st_size, f"Reading {self.path.name}", "B") as bar,
      pa.OSFile(str(self.path)) as raw,
      pa.CompressedInputStream(raw, "gzip") if self.path.suffix == ".gz" else contextlib.nullcontext(raw) as file,
    ):
      yield file, lambda: bar.update(raw.tell() - bar.n)

  def _parse_json(self, text: bytes, types, rows: int) -> pa.Table:
    try:
      return pa.json.read_json(
        pa.BufferReader(_native_copy(text)),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pa.json.ParseOptions(
          explicit_schema=pa.schema(types.items()), unexpected_field_behavior="ignore"
        ),
      )
    except pa.ArrowInvalid as error:
      inside = re.search(r" in row (\d+)$", str(error))
      if inside is None:
        raise
      what = str(error)[: inside.start()].removeprefix("JSON parse error: ")
      raise InputError(
        f"{self.path} line {rows + int(inside[1]) + 1} cannot be read ({what}): expected one JSON object a line, each "
        "column of one type; write the file again or remove the line."
      ) from None

  def _parquet_batches(self, types):
    file = self._parquet()
    with sources.progress(file.metadata.num_rows, f"Reading {self.path.name}", " rows") as bar:
      for batch in file.iter_batches(_ROWS, columns=None if types is None else list(types)):
        yield batch
        bar.update(batch.num_rows)

  def _parquet(self) -> pa.parquet.ParquetFile:
    try:
      return pa.parquet.ParquetFile(self.path)
    except (pa.ArrowException, OSError) as error:
      raise InputError(f"{self.path} is no readable Parquet file ({error}): write or copy it again.") from None

  def _json(self, number: int, line: str) -> dict[str, Any]:
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      row = error
    if not isinstance(row, dict):
      what = row if isinstance(row, Exception) else f"a {type(row).__name__}"
      raise InputError(
        f"{self.path} line {number} cannot be read ({what}): expected one JSON object a line; write the file again or "
        "remove the line."
      )
    return row

  def _id_type(self, name: str) -> pa.DataType:
    # JSON tells text from numbers, and a column of one cannot be read as the other; CSV ids stay text ("007").
    whole = isinstance(self._first.get(name), int) and self._kind == ".jsonl"
    return pa.int64() if whole else pa.string()

  def _time_type(self, name: str) -> pa.DataType:
    if self._kind == ".parquet":
      found = self._parquet().schema_arrow.field(name).type
      if pa.types.is_integer(found) or pa.types.is_floating(found):
        return pa.float64() if pa.types.is_floating(found) else pa.int64()
      if pa.types.is_timestamp(found):
        return found
      if pa.types.is_date(found):
        return pa.timestamp("us")
      if not (pa.types.is_string(found) or pa.types.is_large_string(found)):
        raise InputError(f"{self.path} has {found} values in its column {name!r}: expected {_EXPECTED_TIME}.")
      first = next(self._parquet().iter_batches(1, columns=[name]), None)
      value = first.column(0)[0].as_py() if first is not None else ""
    else:
      value = self._first.get(name, "")
    if value == "" and self._kind != ".jsonl":  # no rows, or a gap that reading will find
      return pa.int64()
    if not isinstance(value, bool):
      for time_type in _TIMES:
        # A JSON number is no date, however small.
        if isinstance(value, str) or not pa.types.is_timestamp(time_type):
          try:
            pa.scalar(value, pa.string() if isinstance(value, str) else None).cast(time_type)
            return time_type
          except (pa.ArrowException, TypeError):
            continue
    raise InputError(f"{self.path} row 1 has the {name} {value!r}: expected {_EXPECTED_TIME}.")

  def _ids(self, column: pa.Array, name: str, rows: int) -> pa.Array:
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
      raise InputError(
        f"{self.path} has {column.type} values in its column {name!r}: expected text or whole numbers as ids."
      )
    column = column.cast(pa.large_string())
    missing = pc.index(pc.fill_null(pc.equal(pc.binary_length(column), 0), True), True).as_py()
    if missing >= 0:
      raise InputError(f"{self.path} row {rows + missing + 1} has no {name}: give it one or remove the row.")
    return column

  def _times(self, column: pa.Array, name: str, time_type: pa.DataType, rows: int) -> pa.Array:
    try:
      column = column.cast(time_type)
    except pa.ArrowException as error:
      raise InputError(f"{self.path} has a {name} that cannot be read ({error}): expected {_EXPECTED_TIME}.") from None
    missing = pc.fill_null(pc.is_nan(column), True) if pa.types.is_floating(column.type) else pc.is_null(column)
    first = pc.index(missing, True).as_py()
    if first >= 0:
      raise InputError(f"{self.path} row {rows + first + 1} has no {name}: give it one or remove the row.")
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


def _native_copy(text: bytes) -> pa.Buffer:
  copy = pa.BufferOutputStream()
  copy.write(text)
  return copy.getvalue()


def _say(arrow: str) -> str:
  """What Arrow's own message about a CSV file means to its owner."""
  value = re.search(r"Row #(\d+): CSV conversion error to (\w+).*: (invalid .*)", arrow)
  if value:
    kind = "UTF-8 text" if value[2] == "string" else f"a value like those above it ({value[2]})"
    return f"line {value[1]} cannot be read ({value[3]}): expected {kind}; correct the line or write the file again."
  width = re.search(r"Row #(\d+): (Expected \d+ columns, got \d+)", arrow)
  if width:
    return f"line {width[1]} is torn: {width[2][0].lower()}{width[2][1:]}; correct the line or write the file again."
  first_line = " ".join(arrow.split())
  return f"cannot be read ({first_line}): write the file again."
