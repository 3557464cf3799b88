"""CSV files and what goes by that name: separators, headers and quotation marks, in bounded memory."""

import csv
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from rastp_jax.data.sources import quotes, raw_files
from rastp_jax.errors import InputError

_BLOCK = 16 << 20  # bytes of text parsed at a time
_LONGEST = 64 << 20  # bytes of a value that does not end, after which no end is expected
_PEEK = 1 << 20  # bytes looked at to recognise the form
_SAMPLE = 20  # lines looked at

SEPARATORS = {
  ",": "commas",
  "\t": "tabs",
  ";": "semicolons",
  "|": "vertical bars",
  "::": "double colons",
  " ": "blanks",
}
_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
_STAND_IN = b"\x1f"  # Arrow takes separators of one ASCII character
_TYPED = re.compile(r"^(.+):(token|float|token_seq|float_seq)$")  # RecBole's headers
_EXCEL = re.compile(r'"?sep=.{1,2}"?\s*')  # a first line for Excel alone
_NUMBER = re.compile(r"-?\d+(\.\d+)?|\d{4}-\d\d-\d\d.*")


class CsvFile:
  """One file of rows, its values separated by a character, with a header or with given column names.

  Args:
    path: the file, perhaps gzipped.
    names: the columns' names in order, of a file without a header.
    separator: between values, a character or its name; "" to recognise it.
    fits: how many of the columns that are looked for a header has; decides between separators.

  Attributes:
    columns: names, without blanks around them and without RecBole's types.
    first: the first row, by column.
    notes: what was recognised, in sentences.

  Raises:
    InputError: the file is empty or damaged, its header has a name twice, or all rows have one value more.
  """

  lists = ()  # no value is a list

  def __init__(
    self,
    path: pathlib.Path,
    names: Sequence[str] = (),
    separator: str = "",
    fits: Callable[[Sequence[str]], int] = lambda _: 0,
  ):
    self.path = path
    self.notes: list[str] = []
    with raw_files.unpacked(path, "Opening") as file:
      head = file.read(_PEEK)
    raw_files.refuse_other_forms(head, path)
    self._encoding = raw_files.encoding_of(head, path)
    head = head.removeprefix(b"\xef\xbb\xbf")
    text = head.decode(self._encoding, errors="replace")
    lines = [line for line in text.split("\n")[: _SAMPLE + 1] if line.strip()]
    if len(head) == _PEEK and len(lines) > 1:
      lines = lines[:-1] if len(text.split("\n")) <= _SAMPLE + 1 else lines
    if not lines:
      raise InputError(f"{path} is empty: expected rows with named columns; write the file again.")
    self.separator = _NAMED.get(separator, separator) or _recognise(lines, len(names), fits)
    rows = _split(lines, self.separator)
    if rows is not None and '\\"' in text:
      rows = max((rows, _split(lines, self.separator, escape="\\") or rows), key=_alike)
    if rows is None:
      raise InputError(f"{path} is not a CSV file: write it again in that form.")
    header = _names(rows[0])
    self._skip = not names or header == list(names)
    self.first_line = lines[0].strip("\r")
    if _EXCEL.fullmatch(self.first_line):
      raise InputError(f"{path} begins with {self.first_line!r}, which only Excel understands: remove this line.")
    if not names and len(rows) > 1 and all(len(row) == len(header) + 1 for row in rows[1:]):
      raise InputError(
        f"{path} has {len(header)} column names, but {len(header) + 1} values in each row, as where row names are "
        "written (R) or a separator ends each row: write the file again with a name for each column."
      )
    if names:
      if len(names) != len(header):
        raise InputError(
          f"{path} has {len(header)} columns in its first line, {self.first_line[:80]!r}, separated by "
          f"{SEPARATORS.get(self.separator, repr(self.separator))}, but the config names {len(names)}, "
          f"{str(tuple(names))[:200]}: name each column, in order, with config.data.columns or, for the items file, "
          "config.data.item_file_columns, in quotation marks each: \"('user', 'item', 'timestamp')\"."
        )
      if not self._skip and fits(header) > 1:
        raise InputError(
          f"{path} has the column names {', '.join(header)} in its first line, but config.data.columns gives others "
          "(or, for the items file, config.data.item_file_columns): leave the setting out, or give it these names."
        )
      header = [name if name.strip("_") else f"_{place}" for place, name in enumerate(names)]
    if any("\ufffd" in name for name in header):
      raise InputError(f"{path} has column names that are not UTF-8 text: write the file again in UTF-8.")
    # A column without a name cannot be asked for, and pandas writes one for its index.
    header = [name or f"_{place}" for place, name in enumerate(header)]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
      raise InputError(f"{path} has two columns named {twice!r}: rename one of them.")
    self.columns = header
    values = rows[1:] if self._skip else rows
    self.first: dict[str, Any] = (
      dict(zip(header, (value.strip() for value in values[0]), strict=False)) if values else {}
    )
    if self.separator != ",":
      self.notes.append(f"{path.name}: columns are separated by {SEPARATORS.get(self.separator, repr(self.separator))}")
    encoded = self.separator.encode()
    self._one_byte = encoded if len(encoded) == 1 else _STAND_IN
    self._quoting = self.separator != "::"
    self._lenient = self.separator in "\t| "  # where marks are as often text as they are quotation marks
    self._escapes = False

  @property
  def headerless(self) -> bool:
    """Whether the first line looks like values, not like names."""
    return self._skip and any(_NUMBER.fullmatch(name) for name in self.columns)

  def batches(self, types: dict[str, pa.DataType] | None, time: str = "") -> Iterator[tuple[int, pa.Table]]:
    """Yields (number of the first line, columns); with None as types, all columns as text.

    A block in which a value is not of the asked type comes as text in all columns.
    """
    wanted = types or dict.fromkeys(self.columns, pa.string())
    if self._lenient:
      self._settle_marks(time)
    for line, text in self._blocks(time):
      yield line, self._parsed(line, text, wanted)

  def _settle_marks(self, time: str) -> None:
    """Looks through the file, so that what its last row tells about quotation marks holds for its first one as well."""
    before = None
    while self._quoting and before != self._escapes:
      before = self._escapes
      for _ in self._blocks(time):
        if not self._quoting:
          return

  def _parsed(self, line: int, text: bytes, types: dict[str, pa.DataType]) -> pa.Table:
    marks = self._quoting and b'"' in text

    def read(kinds):
      return pa_csv.read_csv(
        pa.BufferReader(raw_files.native_copy(text)),
        read_options=pa_csv.ReadOptions(column_names=self.columns, use_threads=False, block_size=len(text) + 1),
        parse_options=pa_csv.ParseOptions(
          delimiter=self._one_byte.decode(),
          quote_char='"' if marks else False,
          escape_char="\\" if marks and self._escapes else False,
          newlines_in_values=marks,
        ),
        convert_options=pa_csv.ConvertOptions(column_types=kinds, include_columns=list(kinds)),
      )

    try:
      return read(types)
    except pa.ArrowException as error:
      first = error
    if set(types.values()) != {pa.string()}:
      try:
        return read(dict.fromkeys(types, pa.string()))
      except pa.ArrowException as error:
        first = error
    raise InputError(f"{self.path} {_say(str(first), line - 1)}") from None

  def _blocks(self, time: str) -> Iterator[tuple[int, bytes]]:
    """Yields (number of the first line, whole rows)."""
    shape = self._shape(time)
    rest, line, begun, block = b"", 1, False, b"more"
    with raw_files.native(self.path) as (file, advance):
      while block:
        block = file.read(_BLOCK)
        text = rest + (block if self._encoding == "utf-8" else block.decode(self._encoding).encode())
        if self._one_byte != self.separator.encode():
          text = text.replace(self.separator.encode(), self._one_byte)
        if not begun:
          if block and b"\n" not in text[1:]:
            rest = text  # the header has not ended yet
            continue
          text, begun = text.removeprefix(b"\xef\xbb\xbf"), True
          if self._skip:
            line += len(text) - len(text.lstrip(b"\r\n")) + 1
            text = text.lstrip(b"\r\n").partition(b"\n")[2]
        cut = self._whole(text, shape, line, final=not block)
        rest = text[cut:]
        rows = text[:cut]
        if rows and not rows.isspace():
          yield line, rows
        line += text.count(b"\n", 0, cut)
        advance()

  def _whole(self, text: bytes, shape: quotes.Shape, line: int, *, final: bool) -> int:
    """How many bytes of the text are whole rows; recognises how marks inside of values are written."""
    if not self._quoting or b'"' not in text:
      return len(text) if final else text.rfind(b"\n") + 1
    try:
      masked = _masked(text) if self._escapes else text
      cut = quotes.whole_rows(masked, shape, final=final)
      if cut is None and not self._escapes and b'\\"' in text:
        cut = quotes.whole_rows(_masked(text), shape, final=final)
        self._escapes = cut is not None
      if cut is None and not self._lenient:
        cut = quotes.whole_rows_slowly(masked, shape, final=final)
    except quotes.Unclosed as found:
      if not self._escapes and b'\\"' in text and not self._lenient:
        self._escapes = True
        return self._whole(text, shape, line, final=final)
      if not self._lenient:
        raise self._unclosed(line + text.count(b"\n", 0, found.position)) from None
      cut = None
    if cut is None:
      self._quoting = False
      return len(text) if final else text.rfind(b"\n") + 1
    if not cut and len(text) > _LONGEST:
      raise self._unclosed(line)
    return cut

  def _unclosed(self, line: int) -> InputError:
    return InputError(
      f"{self.path} line {line} opens a quotation mark that is not closed where its value ends, so that the lines "
      'after it would be lost: close it, or write it twice ("") where it is part of the text.'
    )

  def _shape(self, time: str) -> quotes.Shape:
    separator = self._one_byte
    place = self.columns.index(time) if time in self.columns else None

    def is_row(line: bytes) -> bool:
      values = [value.strip(b' "\r') for value in line.split(separator)]
      if place is not None:
        return _like_time(values[place], self.first.get(time, ""))
      return len(values) > 1 and _like_id(values[0], self.first.get(self.columns[0], ""))

    return quotes.Shape(separator, len(self.columns), is_row)


def _like_time(value: bytes, first: str) -> bool:
  """Whether a value may be a time like the first one: the same characters but for the digits."""
  return bool(value) and re.sub(rb"\d+", b"0", value)[:5] == re.sub(rb"\d+", b"0", first.strip(' "').encode())[:5]


def _like_id(value: bytes, first: str) -> bool:
  """Whether a value may be an id like the first one: without blanks, and a number where that is one."""
  value, known = value.strip(b'"'), first.strip(' "').encode()
  return bool(value) and b" " not in value and value.isdigit() == known.isdigit() and len(value) <= 2 * len(known) + 4


def _masked(text: bytes) -> bytes:
  return text.replace(b"\\\\", b"..").replace(b'\\"', b"..")


def _names(row: Sequence[str]) -> list[str]:
  """The names of a header, without what stands around them and without RecBole's types."""
  return [_TYPED.sub(r"\1", name.strip().strip("\ufeff").strip('"').strip()) for name in row]


def _split(lines: Sequence[str], separator: str, escape: str | None = None) -> list[list[str]] | None:
  if len(separator) > 1:
    return [line.rstrip("\r\n").split(separator) for line in lines]
  try:
    return [row for row in csv.reader(lines, delimiter=separator, skipinitialspace=True, escapechar=escape) if row]
  except csv.Error:
    return None


def _recognise(lines: Sequence[str], columns: int, fits: Callable[[Sequence[str]], int]) -> str:
  """The separator under which the header has the columns looked for, or else under which the lines are alike."""
  best, score = ",", (0, 0, 0)
  for separator in SEPARATORS:
    rows = _split([line.rstrip("\r") for line in lines], separator)
    if not rows or len(rows[0]) < 2:
      continue
    header = _names(rows[0])
    found = int(len(header) == columns) if columns else fits(header)
    this = (found, int(_alike(rows) == 1), len(header) if separator != " " else 0)
    if this > score:
      best, score = separator, this
  return best


def _alike(rows: Sequence[Sequence[str]]) -> float:
  """The share of rows that are as long as the first."""
  return sum(len(row) == len(rows[0]) for row in rows) / len(rows) if rows else 0.0


def _say(arrow: str, lines_before: int) -> str:
  """Arrow's message about a CSV block, as what to do about it."""
  value = re.search(r"(?:Row #(\d+): )?CSV conversion error to (\w+).*: (invalid .*)", arrow, re.DOTALL)
  if value:
    line = f"line {lines_before + int(value[1])} " if value[1] else ""
    kind = "UTF-8 text" if value[2] == "string" else f"a value like those above it ({value[2]})"
    return f"{line}cannot be read ({value[3]}): expected {kind}; correct the line or write the file again."
  width = re.search(r"Row #(\d+): (Expected \d+ columns, got \d+)", arrow)
  if width:
    what = f"{width[2][0].lower()}{width[2][1:]}"
    return f"line {lines_before + int(width[1])} is torn: {what}; correct the line or write the file again."
  first_line = " ".join(arrow.split())
  return f"cannot be read ({first_line}): write the file again."
