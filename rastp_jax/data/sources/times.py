"""Times of interactions as numbers, whichever way they are written."""

import datetime
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

EXPECTED = (
  "a number (seconds, milliseconds, …) or an ISO date like 2014-07-23 or 2014-07-23T10:00:00Z; other forms are named "
  "by config.data.time_format, like '%d/%m/%Y' for 31/12/2024"
)
_NUMBERS = (pa.int64(), pa.float64())
_DATES = (pa.timestamp("us"), pa.timestamp("us", "UTC"))
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
SCIENTIFIC = re.compile(r"\d(?:\.(\d+))?[eE]\+?(\d+)")  # as spreadsheets write large numbers, with few digits
_FINE = r"\d[.,]\d{6}\d*[1-9]"  # a fraction of a second smaller than a microsecond
_UTC = r"\s*(?:UTC|GMT|Z|[+-]00:?00)$"


class Wrong(Exception):
  """A value that is not a time; `place` is its index."""

  def __init__(self, place: int, value: Any):
    super().__init__(place, value)
    self.place, self.value = place, value


class TooFar(Exception):
  """A date that a unit of time cannot hold."""


def is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_number(kind: pa.DataType) -> bool:
  return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def is_date(kind: pa.DataType) -> bool:
  return pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def type_of(value: Any, time_format: str) -> pa.DataType | None:
  """The type that a column is read as whose first value is this; None if that is not a time."""
  if time_format:
    return pa.string()
  if isinstance(value, bool):
    return None
  text = value.strip() if isinstance(value, str) else value
  # A JSON number is never a date, however small.
  for kind in (*_NUMBERS, *(_DATES if isinstance(value, str) else ())):
    try:
      pa.scalar(text, pa.string() if isinstance(value, str) else None).cast(kind)
      return kind
    except (pa.ArrowException, TypeError):
      continue
  moment = _moment(_iso(text)) if isinstance(value, str) else None
  if moment is None:
    return None
  return pa.timestamp("us", "UTC") if moment.tzinfo else pa.timestamp("us")


def numbers(column: pa.Array, kind: pa.DataType, time_format: str) -> pa.Array:
  """int64 or float64 values, null where there is none; dates in the unit of the kind, or else as microseconds.

  Raises:
    Wrong: a value is not of the kind.
    TooFar: a date does not fit into the kind.
  """
  if is_text(column.type):
    column = _from_text(column.cast(pa.string()), kind, time_format)
  elif pa.types.is_integer(column.type):
    column = column.cast(pa.int64())
  elif pa.types.is_floating(column.type):
    column = column.cast(pa.float64())
  elif pa.types.is_date(column.type):
    column = column.cast(pa.timestamp("us"))
  if not pa.types.is_timestamp(column.type):
    return column
  unit = kind.unit if pa.types.is_timestamp(kind) else "us"
  try:
    return column.cast(pa.timestamp(unit, column.type.tz)).cast(pa.int64())
  except pa.ArrowInvalid as error:
    raise TooFar(error) from None


def are_rounded(written: pa.Array, read: pa.Array, first: Any) -> bool:
  """Whether times have lost digits before or while they were read, so that later ones may seem to be equal.

  Args:
    written: as they stand in the file.
    read: as numbers, at least one.
    first: the file's first one, if it is text.
  """
  match = SCIENTIFIC.fullmatch(first.strip()) if isinstance(first, str) else None
  if match is not None and len(match[1] or "") < int(match[2]):
    return True
  kind = written.type if pa.types.is_floating(written.type) else read.type
  if not pa.types.is_floating(kind):
    return False
  exact = 2.0 ** (np.finfo(kind.to_pandas_dtype()).nmant + 1)
  return bool(np.abs(read.to_numpy(zero_copy_only=False)).max() >= exact)


def are_cut(written: pa.Array, kind: pa.DataType) -> bool:
  """Whether dates that are text lose what is smaller than a microsecond when they are read as this kind."""
  if not is_text(written.type) or not pa.types.is_timestamp(kind) or kind.unit == "ns":
    return False
  return pc.any(pc.match_substring_regex(written, _FINE)).as_py() is True  # pyright: ignore[reportAttributeAccessIssue]


def _from_text(column: pa.Array, kind: pa.DataType, time_format: str) -> pa.Array:
  text = pc.utf8_trim_whitespace(column)  # pyright: ignore[reportAttributeAccessIssue]
  empty = pc.equal(text, "")  # pyright: ignore[reportAttributeAccessIssue]
  text = pc.if_else(empty, pa.scalar(None, pa.string()), text)  # pyright: ignore[reportAttributeAccessIssue]
  if time_format:
    return _formatted(text, time_format)
  if not pa.types.is_timestamp(kind):
    for number in _NUMBERS:
      try:
        return text.cast(number)
      except pa.ArrowException:
        continue
    for place, value in enumerate(text.to_pylist()):
      try:
        float(value or 0)
      except ValueError:
        raise Wrong(place, value) from None
    return pa.array([None if value is None else float(value) for value in text.to_pylist()], pa.float64())
  if kind.tz:
    text = pc.replace_substring_regex(text, _UTC, "Z")  # pyright: ignore[reportAttributeAccessIssue]
  try:
    return text.cast(kind)
  except pa.ArrowException:
    found: list[int | None] = []
    for place, value in enumerate(text.to_pylist()):
      moment = _moment(_iso(value)) if value is not None else None
      if value is not None and (moment is None or bool(moment.tzinfo) != bool(kind.tz)):
        raise Wrong(place, value) from None
      found.append(None if moment is None else _microseconds(moment))
    return pa.array(found, pa.timestamp("us"))


def _formatted(text: pa.Array, time_format: str) -> pa.Array:
  try:
    parse = pc.strptime  # pyright: ignore[reportAttributeAccessIssue]
    known = parse(text, format=time_format, unit="us", error_is_null=True)
  except pa.ArrowException:
    known = pa.nulls(len(text), pa.timestamp("us"))
  unread = pc.and_(pc.is_null(known), pc.is_valid(text))  # pyright: ignore[reportAttributeAccessIssue]
  missing = np.flatnonzero(unread.to_numpy(zero_copy_only=False))
  if not len(missing):
    return known
  # What Arrow does not know, like fractions of seconds and zones, Python does.
  values = known.cast(pa.int64()).to_pylist()
  for place in missing.tolist():
    value = text[place].as_py()
    try:
      values[place] = _microseconds(datetime.datetime.strptime(value, time_format))
    except ValueError:
      raise Wrong(place, value) from None
  return pa.array(values, pa.timestamp("us"))


def _iso(text: str) -> str:
  return re.sub(_UTC, "+00:00", text)


def _moment(text: str) -> datetime.datetime | None:
  try:
    return datetime.datetime.fromisoformat(text)
  except ValueError:
    return None


def _microseconds(moment: datetime.datetime) -> int:
  """Since 1970; a moment without a zone counts as UTC, which keeps the order."""
  moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
  return (moment - _EPOCH) // datetime.timedelta(microseconds=1)
