"""What a source of raw rows is, and how its text files are read: streamed, unpacked on the way, with line numbers."""

import array
import contextlib
import dataclasses
import gzip
import hashlib
import os
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import tqdm

from rastp_jax.errors import InputError
from rastp_jax.semantic_ids.embeddings import Item

_BLOCK = 1 << 20  # bytes
_TORN = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclasses.dataclass(frozen=True, eq=False)
class RawData:
  """Everything a source holds, users of any length.

  Attributes:
    user_ids: the source's own ids as large_string, one a user.
    items: int32 (interactions,), 0-based item rows, all users' end to end, each user's in time order.
    offsets: int64 (users + 1,); user u owns items[offsets[u] : offsets[u + 1]].
    catalogue: the items in row order; may be read once only.
    num_items: how many those are.
    counts: what was met and what was done about it: a description -> how often, in the order to tell it.
  """

  user_ids: pa.Array
  items: np.ndarray
  offsets: np.ndarray
  catalogue: Iterable[Item]
  num_items: int
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Source(Protocol):
  """Where a dataset's rows come from.

  Attributes:
    where: what messages call the source, a directory for instance.
    settings: the settings (config.data fields) its rows depend on.
  """

  where: str
  settings: Mapping[str, Any]

  def fingerprint(self) -> str:
    """Identifies the contents and the settings, however the files are packed."""

  def read(self) -> RawData:
    """Reads and checks everything; raises InputError where a file is damaged."""

  def embeddings(self, num_items: int) -> np.ndarray | None:
    """Item vectors, float32 (num_items, features), or None where the source has none."""


def find(root: pathlib.Path, *names: str) -> list[pathlib.Path]:
  """The files of these names that a directory holds, plain or with .gz at the end."""
  return [path for name in names for path in (root / name, root / f"{name}.gz") if path.is_file()]


@contextlib.contextmanager
def unpacked(path: pathlib.Path, doing: str) -> Iterator[BinaryIO]:
  """Opens a file for reading, unzipped if its name ends in .gz, with a progress bar over its bytes on a terminal.

  Args:
    path: the file.
    doing: what the bar says, like "Reading".

  Raises:
    InputError: the file cannot be opened, or (on reading) turns out to be torn.
  """
  try:
    with _Watched(path, doing) as raw, gzip.open(raw) if path.suffix == ".gz" else contextlib.nullcontext(raw) as file:
      yield file
  except _TORN as error:
    raise InputError(f"{path} is damaged or cut short ({error}): copy it again.") from error
  except OSError as error:
    raise InputError(f"{path} cannot be read ({error}): check that the file is there and may be read.") from error


def lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields (line number from 1, line without its end) of a text file.

  Raises:
    InputError: the file is torn, or a line is no UTF-8 text.
  """
  with unpacked(path, "Reading") as file:
    # Split as bytes: str.splitlines would also split at characters that titles may hold.
    for number, line in enumerate(file, start=1):
      try:
        yield number, line.removesuffix(b"\n").decode()
      except UnicodeDecodeError as error:
        raise InputError(f"{path} line {number} is no UTF-8 text ({error.reason}): copy the file again.") from None


def digest(path: pathlib.Path) -> bytes:
  """sha256 of a file's unpacked contents."""
  sha256 = hashlib.sha256()
  with unpacked(path, "Checking") as file:
    while block := file.read(_BLOCK):
      sha256.update(block)
  return sha256.digest()


def progress(total: int | None, doing: str, unit: str) -> tqdm.tqdm:
  """A progress bar on stderr if that is a terminal; silent otherwise, so that logs stay short."""
  return tqdm.tqdm(
    total=total,
    desc=doing,
    unit=unit,
    unit_scale=True,
    leave=False,
    mininterval=0.5,
    file=sys.stderr,
    disable=None,  # unless on a terminal
  )


def flatten(histories: Iterable[Iterable[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Lays users' item rows end to end: items int32 (interactions,), offsets int64 (users + 1,)."""
  items, offsets = array.array("i"), array.array("q", [0])
  for rows in histories:
    items.extend(rows)
    offsets.append(len(items))
  return np.frombuffer(items, np.int32) if items else np.zeros(0, np.int32), np.frombuffer(offsets, np.int64)


def text_fields(row: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
  """Text columns of an item, empty where not known.

  Raises:
    TypeError: one is something else than text.
  """
  texts = {name: row.get(name) or "" for name in names}
  for name, text in texts.items():
    if not isinstance(text, str):
      raise TypeError(f"{name} is {text!r}")
  return texts


def category_paths(paths: Iterable[Iterable[str]] | None) -> tuple[str, ...]:
  """[["Beauty", "Nails"]] -> ("Beauty > Nails",).

  Raises:
    TypeError: not a list of lists of text.
  """
  paths = paths or ()
  if not all(isinstance(path, (list, tuple)) for path in paths):
    raise TypeError(f"categories is {paths!r}, no list of paths")
  return tuple(" > ".join(path) for path in paths)


class _Watched:
  """A binary file that tells a progress bar how far it has been read."""

  def __init__(self, path: pathlib.Path, doing: str):
    self._file = open(path, "rb")  # noqa: SIM115 (closed in __exit__)
    self._bar = progress(os.fstat(self._file.fileno()).st_size, f"{doing} {path.name}", "B")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()
    self._file.close()

  def __getattr__(self, name):
    return getattr(self._file, name)

  def __iter__(self):
    for line in self._file:
      self._bar.update(len(line))
      yield line

  def read(self, size: int = -1) -> bytes:
    block = self._file.read(size)
    self._bar.update(len(block))
    return block
