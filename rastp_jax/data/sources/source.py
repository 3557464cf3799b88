"""The interface of a source of raw rows."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rastp_jax.config import DataConfig
from rastp_jax.data.items import Item


@dataclasses.dataclass(frozen=True, eq=False)
class RawData:
  """Everything a source holds, users of any length.

  Attributes:
    user_ids: the source's own ids as large_string, one per user.
    items: int32 (interactions,), 0-based item rows, all users' end to end, each user's in time order.
    offsets: int64 (users + 1,); user u owns items[offsets[u] : offsets[u + 1]].
    catalogue: the items in row order; may be read once only.
    num_items: the number of items.
    counts: how many irregular rows there were and what was done about them: description -> number, in display order.
    notes: what was recognised and what is doubtful, in sentences.
    times: (interactions,), of each of `items`, in any unit; None where the source has none or nobody asks for them.
    file_rows: int64 (num_items,), each item's row in the source's file of items, counted from 0, and -1 where it has
      none; None where the file's order is the order of the catalogue.
    num_file_rows: the number of rows of that file.
  """

  user_ids: pa.Array
  items: np.ndarray
  offsets: np.ndarray
  catalogue: Iterable[Item]
  num_items: int
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()
  times: np.ndarray | None = None
  file_rows: np.ndarray | None = None
  num_file_rows: int = 0


class Source(Protocol):
  """Where a dataset's rows come from."""

  @property
  def where(self) -> str:
    """What messages call the source, a directory for instance."""
    ...

  @property
  def settings(self) -> Mapping[str, Any]:
    """The settings (fields of config.data) that its rows depend on."""
    ...

  def fingerprint(self) -> str:
    """Identifies the contents and the settings; gzipped and plain files have the same fingerprint."""
    ...

  def read(self) -> RawData:
    """Reads and checks everything; raises InputError where a file is damaged."""
    ...

  def embeddings(self, num_items: int) -> np.ndarray | None:
    """Item vectors, float32 (num_items, features), or None where the source has none."""
    ...


class Form(Protocol):
  """A form in which a directory may hold raw files; usually the class of its source."""

  def find(self, root: pathlib.Path, category: str | None) -> list[pathlib.Path]:
    """The files that show that a directory holds this form; none where it does not.

    `category` is the Amazon category to look for, None for any.
    """
    ...

  def open(self, root: pathlib.Path, found: list[pathlib.Path], config: DataConfig) -> Source:
    """Opens the source; raises InputError where a file is missing, or there twice."""
    ...

  def wanted(self, category: str | None) -> str:
    """The files of this form, for the sentence about a directory that holds none."""
    ...
