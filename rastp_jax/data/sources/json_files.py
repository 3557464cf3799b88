"""JSONL files, one object per line, in bounded memory; also sessions with their events inside."""

import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from rastp_jax.data.sources import raw_files
from rastp_jax.errors import InputError

_BLOCK = 16 << 20  # bytes of text parsed at a time
_PEEK = 1 << 12  # bytes looked at to recognise the form
_SAMPLE = 100  # rows looked at to know columns and types
# Perhaps a null where a row should be: Arrow takes it for one, and then reads memory that is not its own.
_NULL_ROW = re.compile(rb"(?:^|\})\s*null", re.MULTILINE)


class JsonFile:
  """One JSONL file, perhaps gzipped.

  Attributes:
    columns: the first rows' names; with events inside, those of the first event as well.
    nested: name of the column that holds a list of events (objects), or None.
    lists: names of the columns that hold lists of plain values.
    first: the first value of each column, of the first event included, and of a list of plain values the first one.
    notes: none.

  Raises:
    InputError: the file is empty or damaged.
  """

  headerless = False
  separator = ""

  def __init__(self, path: pathlib.Path, holds_items: Callable[[Sequence[str]], bool]):
    self.path = path
    self.notes: list[str] = []
    self.first_line = ""
    with raw_files.unpacked(path, "Opening") as file:
      head = file.read(_PEEK)
    raw_files.refuse_other_forms(head, path)
    if _is_array_of_objects(head):
      raise InputError(
        f"{path} is one JSON array: write one object per line, for example by `jq -c '.[]' {path.name} > new.jsonl`."
      )
    row: dict[str, Any] = {}  # what the first rows hold; the very first may have gaps
    for _, values in itertools.islice(self.rows(), _SAMPLE):
      row |= {name: value for name, value in values.items() if row.get(name) in (None, [])}
    if not row:
      raise InputError(f"{path} is empty: expected rows with named columns; write the file again.")
    self.first: dict[str, Any] = dict(row)
    objects = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    self.nested = next((name for name in objects if holds_items(list(row[name][0]))), None)
    self.lists = [name for name, value in row.items() if isinstance(value, list) and name not in objects]
    self.first |= {name: row[name][0] if row[name] else "" for name in self.lists}
    self._flat = list(row)
    if self.nested:
      self.first |= row[self.nested][0]
    self.columns = list(self.first)

  def batches(self, types: dict[str, pa.DataType] | None, time: str = "") -> Iterator[tuple[int, pa.Table]]:
    """Yields (number of the first line, columns); columns that hold several types come as text."""
    del time
    assert types is not None  # rows of all columns are read one by one: see `rows`
    nested = self.nested if any(name not in self._flat for name in types) else None
    lists = [name for name in types if name in self.lists]
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
          yield line, self._parsed(line, text, types, nested, lists)
        line += text.count(b"\n")
        advance()

  def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, values by column)."""
    for number, line in raw_files.lines(self.path):
      if line.strip():
        yield number, self._row(number, line)

  def _parsed(
    self, line: int, text: bytes, types: dict[str, pa.DataType], nested: str | None, lists: list[str]
  ) -> pa.Table:
    if b"null" in text and _NULL_ROW.search(text):
      return self._parsed_slowly(line, text, types, nested, lists)
    schema = {name: kind for name, kind in types.items() if nested is None or name in self._flat}
    schema |= {name: pa.list_(types[name]) for name in lists}
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
      return self._parsed_slowly(line, text, types, nested, lists)
    if lists:
      return unlisted(table.select(list(types)), lists, f"{self.path}, from line {line} on,")
    return unnested(table, nested, list(types)) if nested else table.select(list(types))

  def _parsed_slowly(
    self, line: int, text: bytes, types: dict[str, pa.DataType], nested: str | None, lists: list[str]
  ) -> pa.Table:
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
      if lists:
        events = self._events(number, row, lists)
      if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise InputError(
          f"{self.path} line {number} cannot be read: expected a list of objects in {nested!r}, as in the lines above "
          "it; write the file again or remove the line."
        )
      for event in events:
        for name, column in columns.items():
          column.append(self._text(number, name, {**row, **event}.get(name)))
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})

  def _events(self, number: int, row: dict[str, Any], lists: list[str]) -> list[dict[str, Any]]:
    """Rows of a line whose values are lists."""
    values = [row.get(name) or [] for name in lists]
    if not all(isinstance(one, list) and len(one) == len(values[0]) for one in values):
      raise InputError(_unequal(f"{self.path} line {number}", lists))
    return [dict(zip(lists, event, strict=True)) for event in zip(*values, strict=True)]

  def _text(self, number: int, name: str, value: Any) -> str | None:
    if isinstance(value, list | dict | bool):
      raise InputError(
        f"{self.path} line {number} has the {name} {str(value)[:80]}: expected one value, text or a number, as in the "
        "first line."
      )
    return value if value is None or isinstance(value, str) else str(value)

  def _row(self, number: int, line: str) -> dict[str, Any]:
    row: Any
    try:
      row = raw_files.json_value(line)
    except ValueError as error:
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


def unlisted(table: pa.Table, lists: list[str], where: str) -> pa.Table:
  """One row per value of a table whose rows hold lists of values; several lists of a row belong together.

  Raises:
    InputError: lists of one row differ in length.
  """
  first, *others = (table.column(name).combine_chunks() for name in lists)
  length = pc.list_value_length(first)  # pyright: ignore[reportAttributeAccessIssue]
  if not all(pc.list_value_length(one).equals(length) for one in others):  # pyright: ignore[reportAttributeAccessIssue]
    raise InputError(_unequal(where, lists))
  parents = pc.list_parent_indices(first)  # pyright: ignore[reportAttributeAccessIssue]
  return pa.table(
    {
      name: table.column(name).combine_chunks().flatten() if name in lists else table.column(name).take(parents)
      for name in table.column_names
    }
  )


def _unequal(where: str, lists: list[str]) -> str:
  names = " and ".join(map(repr, lists))
  return f"{where} does not hold lists of one length in {names}: expected an entry per interaction."


def _is_array_of_objects(head: bytes) -> bool:
  """Whether a text is one JSON array, of a row per element, rather than lines of JSON."""
  text = head.decode("utf-8-sig", errors="replace").lstrip()
  if not text.startswith("["):
    return False
  try:
    first = raw_files.json_value(text.partition("\n")[0])
  except ValueError:  # it goes on in the next line, or behind what was looked at
    return True
  return bool(first) and isinstance(first[0], dict)
