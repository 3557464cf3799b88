"""Quotation marks of a CSV file: where its rows end, and marks that are never closed."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

_QUOTE, _NEWLINE, _RETURN = 34, 10, 13
# A quoted value; inside it, two marks stand for one.
_VALUE = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')


class Unclosed(Exception):
  """A quotation mark that opens at a byte and is not closed where its value ends."""

  def __init__(self, position: int):
    super().__init__(position)
    self.position = position


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a row looks like.

  Attributes:
    separator: one byte.
    columns: how many.
    is_row: whether a line, without its end, looks like a whole row; a quoted value that holds such lines swallowed
      them.
  """

  separator: bytes
  columns: int
  is_row: Callable[[bytes], bool]


def whole_rows(text: bytes, shape: Shape, *, final: bool) -> int | None:
  """How many bytes of the text are whole rows.

  Args:
    text: begins with the start of a row.
    shape: of its rows.
    final: nothing comes after the text.

  Returns:
    The number of bytes, 0 if the first row does not end; None where marks stand in places in which no mark opens or
    closes a value.

  Raises:
    Unclosed: a value has swallowed rows, or the last one does not end.
  """
  array = np.frombuffer(text, np.uint8)
  is_mark = array == _QUOTE
  places = np.flatnonzero(is_mark | (array == _NEWLINE))  # of marks and newlines
  is_mark = is_mark[places]
  marks = places[is_mark]
  if not len(marks):
    return len(text) if final else text.rfind(b"\n") + 1
  opening, closing = marks[0::2], marks[1::2]
  edge = np.zeros(256, bool)
  edge[[shape.separator[0], _NEWLINE, _RETURN]] = True
  before = edge[array[opening - 1]]
  before[0] |= opening[0] == 0
  after = (
    np.append(array, _NEWLINE)[closing + 1] if len(closing) and closing[-1] + 1 == len(array) else array[closing + 1]
  )
  # Two marks in a row stand for one mark: the first seems to close it and the second to open it again.
  again = np.zeros(len(opening), bool)
  if b'""' in text:
    again[1:] = opening[1:] == closing[: len(opening) - 1] + 1
  if not (before | again).all() or not (edge[after] | (after == _QUOTE)).all():
    return None
  newlines = places[~is_mark]
  inside = (np.add.accumulate(is_mark.view(np.uint8), dtype=np.uint8)[~is_mark] & 1).view(bool)
  if len(opening) > len(closing):
    start = int(opening[np.flatnonzero(~again)[-1]])
    if final or _swallowed(text[start + 1 :].split(b"\n")[:-1], shape):
      raise Unclosed(start)
  for pair in np.unique(np.searchsorted(opening, newlines[inside]) - 1):
    if pair < len(closing) and _swallowed(text[opening[pair] + 1 : closing[pair]].split(b"\n"), shape):
      raise Unclosed(int(opening[np.flatnonzero(~again[: pair + 1])[-1]]))
  if final:
    return len(text)
  outside = newlines[~inside]
  if len(opening) > len(closing):  # its value may have begun in an earlier pair of marks
    outside = outside[outside < start]
  return int(outside[-1]) + 1 if len(outside) else 0


def whole_rows_slowly(text: bytes, shape: Shape, *, final: bool) -> int:
  """The same, value by value, where marks also stand inside of unquoted values, like 5" for inches."""
  start_of_value = re.compile(rb"(?:\A|(?<=[\n\r" + re.escape(shape.separator) + rb']))"')
  position = safe = 0
  while True:
    opening = start_of_value.search(text, position)
    end = opening.start() if opening else len(text)
    safe = max(safe, text.rfind(b"\n", position, end) + 1)
    if opening is None:
      return len(text) if final else safe
    value = _VALUE.match(text, end)
    if value is None:
      if final or _swallowed(text[end + 1 :].split(b"\n")[:-1], shape):
        raise Unclosed(end)
      return safe
    position = value.end()
    lines = value[0][1:-1].split(b"\n")
    ends_well = position == len(text) or text[position] in (shape.separator[0], _NEWLINE, _RETURN)
    if len(lines) > 1 and (not ends_well or _swallowed(lines, shape)):
      raise Unclosed(end)


def _swallowed(lines: list[bytes], shape: Shape) -> bool:
  """Whether lines of a value, the first of which is its start, look like rows of the file."""
  return any(line.count(shape.separator) == shape.columns - 1 and shape.is_row(line) for line in lines[1:])
