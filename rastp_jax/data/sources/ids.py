"""Ids of users and items: numbered while they are read, and cleaned of what the way they were written adds."""

import decimal
import re
import reprlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BOM = "\ufeff"  # inside of a file where several were joined
_WHOLE = re.compile(r"(-?\d+)\.0+")
_WHOLE_OR_INTEGER = r"^\s*-?\d+(\.0+)?\s*$"


def cleaned(name: str) -> str:
  """One id without blanks around it, and a whole number without its ".0"."""
  name = name.strip().strip(_BOM).strip()
  whole = _WHOLE.fullmatch(name)
  return whole[1] if whole else name


def text_of(value: Any) -> str | None:
  """An id of any type as text, without blanks around it; None where there is none.

  Raises:
    ValueError: it is neither text nor a number, or a number that may have lost digits.
  """
  value = value.decode() if isinstance(value, bytes) else value
  if value is None or value != value:
    return None
  if isinstance(value, bool) or not isinstance(value, str | int | float | decimal.Decimal):
    raise ValueError(f"{reprlib.repr(value)} is neither text nor a number")
  if isinstance(value, float):
    if abs(value) >= 2.0**53:
      raise ValueError(f"{value} is too large for its type to hold all digits")
    value = int(value) if value.is_integer() else value
  return str(value).strip() or None


class Numbers:
  """Numbers ids from 0 in the order of first appearance."""

  def __init__(self):
    self.ids = pa.array([], pa.large_string())

  def of(self, column: pa.Array) -> np.ndarray:
    """int32 numbers of a column's ids, new ones appended."""
    encoded = column.dictionary_encode()
    known = pc.index_in(encoded.dictionary, value_set=self.ids)  # pyright: ignore[reportAttributeAccessIssue]
    new = pc.is_null(known)  # pyright: ignore[reportAttributeAccessIssue]
    numbers = known.fill_null(0).to_numpy(zero_copy_only=False)
    is_new = new.to_numpy(zero_copy_only=False)
    numbers = np.where(is_new, len(self.ids) + np.cumsum(is_new) - 1, numbers).astype(np.int32)
    self.ids = pa.concat_arrays([self.ids, encoded.dictionary.filter(new)])
    return numbers[encoded.indices.to_numpy()]

  def clean(self) -> np.ndarray | None:
    """Takes blanks from around ids and, if all are whole numbers, ".0" from their ends.

    Returns:
      What each number becomes, int32; None where nothing changes.
    """
    ids = pc.utf8_trim(self.ids, _BOM)  # pyright: ignore[reportAttributeAccessIssue]
    ids = pc.utf8_trim_whitespace(ids)  # pyright: ignore[reportAttributeAccessIssue]
    if pc.any(pc.match_substring(ids, ".0")).as_py():  # pyright: ignore[reportAttributeAccessIssue]
      whole = pc.match_substring_regex(ids, _WHOLE_OR_INTEGER)  # pyright: ignore[reportAttributeAccessIssue]
      if pc.all(whole).as_py():  # pyright: ignore[reportAttributeAccessIssue]
        ids = pc.replace_substring_regex(ids, r"\.0+$", "")  # pyright: ignore[reportAttributeAccessIssue]
    if ids.equals(self.ids):
      return None
    merged = Numbers()
    becomes = merged.of(ids)
    self.ids = merged.ids
    return becomes
