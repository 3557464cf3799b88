"""JSONL files, one object per line, in bounded memory; also sessions with their events inside."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from rastp_jax.data.sources import raw_files
from rastp_jax.errors import InputError

_BLOCK = 16 << 20  # bytes of text parsed at a time


class JsonFile:
  """One JSONL file, perhaps gzipped.

  Attributes:
    columns: the first row's names; with events inside, those of the first event as well.
    nested: name of the column that holds a list of events (objects, or plain item ids), or None.
    first: the first row, by column, its first event included.
    notes: none.

  Raises:
    InputError: the file is empty or damaged.
  """

  headerless = False
  separator = ""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.notes: list[str] = []
    self.first_line = ""
    number, line = next(((number, line) for number, line in raw_files.lines(path) if line.strip()), (1, ""))
    row = self._row(number, line) if line else {}
    if not row:
      raise InputError(f"{path} is empty: expected rows with named columns; write the file again.")
    self.first: dict[str, Any] = dict(row)
    self.nested = next(
      (name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)), None
    )
    self._flat = list(row)
    if self.nested:
      self.first |= row[self.nested][0]
    self.columns = list(self.first)

  def batches(self, types: dict[str, pa.DataType] | None, time: str = "") -> Iterator[tuple[int, pa.Table]]:
    """Yields (number of the first line, columns); columns that hold several types come as text."""
    del time
    assert types is not None  # rows of all columns are read one by one: see `rows`
    nested = self.nested if any(name not in self._flat for name in types) else None
    rest, line, block = b"", 1, b"more"
    with raw_files.native(self.path) as (file, advance):
      while block:
        block = file.read(_BLOCK)
        if line == 1 and not rest:
          block = block.removeprefix(b"\xef\xbb\xbf")
        cut = block.rfind(b"\n") + 1 if block else None
        # Only whole lines are parsed; the rest is joined to the next block.
        text, rest = (rest + block[:cut], block[cut:]) if cut is None or cut else (b"", rest + block)
        if text and not text.isspace():
          yield line, self._parsed(line, text, types, nested)
        line += text.count(b"\n")
        advance()

  def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, values by column)."""
    for number, line in raw_files.lines(self.path):
      if line.strip():
        yield number, self._row(number, line)

  def _parsed(self, line: int, text: bytes, types: dict[str, pa.DataType], nested: str | None) -> pa.Table:
    schema = {name: kind for name, kind in types.items() if nested is None or name in self._flat}
    if nested:
      schema[nested] = pa.list_(pa.struct([(name, kind) for name, kind in types.items() if name not in self._flat]))
    try:
      table = pa_json.read_json(
        pa.BufferReader(raw_files.native_copy(text)),
        read_options=pa_json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pa_json.ParseOptions(
          explicit_schema=pa.schema(schema.items()), unexpected_field_behavior="ignore"
        ),
      )
    except pa.ArrowInvalid:  # a damaged line, or a column of several types
      return self._parsed_slowly(line, text, types, nested)
    return unnested(table, nested, list(types)) if nested else table.select(list(types))

  def _parsed_slowly(self, line: int, text: bytes, types: dict[str, pa.DataType], nested: str | None) -> pa.Table:
    columns: dict[str, list[str | None]] = {name: [] for name in types}
    for number, one in enumerate(text.split(b"\n"), start=line):
      if not one.strip():
        continue
      try:
        row = self._row(number, one.decode())
      except UnicodeDecodeError as error:
        raise InputError(
          f"{self.path} line {number} is not UTF-8 text ({error.reason}): copy the file again."
        ) from None
      events = row.get(nested) or [] if nested else [{}]
      if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise InputError(
          f"{self.path} line {number} cannot be read: expected a list of objects in {nested!r}, as in the lines above "
          "it; write the file again or remove the line."
        )
      for event in events:
        for name, column in columns.items():
          column.append(_text({**row, **event}.get(name)))
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})

  def _row(self, number: int, line: str) -> dict[str, Any]:
    row: Any
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      row = error
    if not isinstance(row, dict):
      what = row if isinstance(row, Exception) else f"a {type(row).__name__}"
      raise InputError(
        f"{self.path} line {number} cannot be read ({what}): expected one JSON object per line; write the file again "
        "or remove the line."
      )
    return row


def unnested(table: pa.Table, nested: str, names: list[str]) -> pa.Table:
  """One row per event of a table whose rows hold lists of events."""
  lists = table.column(nested).combine_chunks()
  events = lists.flatten()
  parents = pc.list_parent_indices(lists)  # pyright: ignore[reportAttributeAccessIssue]
  inside = {events.type.field(k).name: events.field(k) for k in range(events.type.num_fields)}
  return pa.table({name: inside[name] if name in inside else table.column(name).take(parents) for name in names})


def _text(value: Any) -> str | None:
  return value if value is None or isinstance(value, str) else str(value)
