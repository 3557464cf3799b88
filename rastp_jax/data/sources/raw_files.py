"""Text files of raw rows: streamed, unzipped while they are read, with line numbers."""

import array
import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import re
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rastp_jax.errors import InputError
from rastp_jax.runtime import files, terminal

_BLOCK = 1 << 20  # bytes
_BOM = b"\xef\xbb\xbf"  # some programs write it at the start of UTF-8 text
_SURROGATE = re.compile(r"\\[uU](0000)?[dD][89a-fA-F]")  # an escape; pairs of them are fine
_TORN = (EOFError, gzip.BadGzipFile, zlib.error)


def find(root: pathlib.Path, *names: str) -> list[pathlib.Path]:
  """The files of these names that a directory holds, plain or with .gz at the end."""
  return [path for name in names for path in (root / name, root / f"{name}.gz") if path.is_file()]


def glob(root: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
  """The files of a directory whose names have these patterns, plain or with .gz at the end, in order."""
  return sorted(path for one in patterns for name in (one, f"{one}.gz") for path in root.glob(name) if path.is_file())


def tables(root: pathlib.Path, stem: str, suffixes: Sequence[str]) -> list[list[pathlib.Path]]:
  """The tables called `stem` that a directory holds, each as its files in order.

  A table is one file (stem.csv), several files (stem-00000-of-00002.parquet, stem_1.csv, …), or a folder of files
  (stem or stem.parquet, as Spark and Dask write it; also with folders in it).
  """
  groups: dict[str, list[pathlib.Path]] = {}
  part = re.compile(re.escape(stem) + r"[-_.]?(part|chunk|shard)?[-_.]?\d+([-_.]\w+)*")
  for path in sorted(root.iterdir(), key=_natural):
    suffix = next((one for one in suffixes if path.name.removesuffix(".gz").endswith(one)), None)
    name = path.name.removesuffix(".gz").removesuffix(suffix or "")
    if path.is_dir() and name == stem:
      inside = [
        file
        for file in sorted(path.rglob("*"), key=_natural)
        if file.is_file() and file.name.removesuffix(".gz").endswith(tuple(suffixes)) and file.name[0] not in "._"
      ]
      if inside:
        groups[path.name] = inside
    elif path.is_file() and suffix and name == stem:
      groups[path.name] = [path]
    elif path.is_file() and suffix and part.fullmatch(name):
      groups.setdefault(f"{stem}*{suffix}", []).append(path)
  return list(groups.values())


def check_alone(root: pathlib.Path, stem: str, suffixes: Sequence[str], found: Sequence[pathlib.Path]) -> None:
  """Raises InputError where a directory holds what may be more of a table, under a name that no part of it has.

  Args:
    root: the directory.
    stem: what the table is called.
    suffixes: of what may be more of it, in small letters.
    found: the table's files, as `tables` gives them.
  """
  more = re.compile(re.escape(stem) + r"(?![a-z]).*(" + "|".join(map(re.escape, suffixes)) + r")(\.gz)?")
  for path in sorted(root.iterdir(), key=_natural):
    if more.fullmatch(path.name.lower()) and path not in found and path not in found[0].parents:
      beside = found[0].relative_to(root).parts[0]
      raise InputError(
        f"{root} holds {path.name} beside {beside}, and only {beside} would be read: {names_of_parts(stem, beside)}; "
        f"or move {path.name} away."
      )


def names_of_parts(stem: str, like: str) -> str:
  """What to call the files of one table, in words, where one of them is called `like`."""
  suffix = pathlib.PurePath(like.removesuffix(".gz")).suffix
  return (
    f"if both are of one table, write them in one form and call them {stem}_1{suffix} and {stem}_2{suffix}, in their "
    f"order, or put them into one folder {stem}"
  )


def check_parts(paths: Sequence[pathlib.Path]) -> None:
  """Raises InputError where names like x-00000-of-00003 tell that a file is not there, or one is there packed, too."""
  plain: dict[pathlib.Path, pathlib.Path] = {}
  for path in paths:
    other = plain.setdefault(path.with_name(path.name.removesuffix(".gz")), path)
    if other != path:
      raise InputError(
        f"{path.parent} holds {other.name} and {path.name}, the same name plain and compressed: expected each part of "
        "a table once; move one of them away, or give it another number."
      )
  numbered = [re.search(r"-(\d+)-of-(\d+)\b", path.name) for path in paths]
  there, wanted = {int(part[1]) for part in numbered if part}, {int(part[2]) for part in numbered if part}
  missing = sorted(set(range(max(wanted, default=0))) - there)
  if missing and all(numbered):
    raise InputError(
      f"{paths[0].parent} lacks {len(missing)} of the {max(wanted)} files that {paths[0].name} is one of, the first of "
      f"them number {missing[0]}: copy all of them there."
    )


def is_empty(path: pathlib.Path) -> bool:
  """Whether a file has no content."""
  with unpacked(path, "Opening") as file:
    return not file.read(1)


def _natural(path: pathlib.Path) -> list[Any]:
  """Orders part-2 before part-10."""
  return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", str(path))]


def encoding_of(head: bytes, path: pathlib.Path) -> str:
  """utf-8, or latin-1 for the MovieLens files that are known to be in it."""
  if path.name.removesuffix(".gz") not in ("u.item", "u.user", "movies.dat"):
    return "utf-8"
  try:
    head[: head.rfind(b"\n") + 1].decode()
  except UnicodeDecodeError:
    return "latin-1"
  return "utf-8"


def refuse_other_forms(head: bytes, path: pathlib.Path) -> None:
  """Raises InputError where the first bytes of a text file are those of a file of another form."""
  zipped = "is a gzip file: its name must end with .gz"
  forms = {
    b"PAR1": "is a Parquet file: name it .parquet",
    b"\x1f\x8b": "is a gzip file inside a gzip file: unpack it once" if path.suffix == ".gz" else zipped,
    b"PK\x03\x04": "is a zip archive (as Excel files are): unpack it, or save the table as CSV",
    b"BZh": "is a bzip2 file: unpack it, or pack it by gzip",
    b"\x28\xb5\x2f\xfd": "is a Zstandard file: unpack it, or pack it by gzip",
    b"\xff\xfe": "is UTF-16 text: write the file again in UTF-8",
    b"\xfe\xff": "is UTF-16 text: write the file again in UTF-8",
  }
  for start, sentence in forms.items():
    if head.startswith(start):
      raise InputError(f"{path} {sentence}.")
  if b"\0" in head.partition(b"\n")[0]:
    raise InputError(f"{path} is not UTF-8 text (its first line has NUL bytes): write the file again in UTF-8.")
  if b"\r" in head and b"\n" not in head:
    raise InputError(f"{path} ends its lines by CR alone: write the file again with LF or CR LF.")


@contextlib.contextmanager
def native(path: pathlib.Path) -> Iterator[tuple[pa.NativeFile, Callable[[], Any]]]:
  """The file, unzipped and opened by Arrow, and a function that updates the progress bar.

  Arrow reads ahead in threads of its own: one that still has a Python file open when Python ends would abort it.

  Raises:
    InputError: the file is damaged or cannot be read.
  """
  try:
    with (
      terminal.bar(path.stat().st_size, f"Reading {path.name}", "B") as bar,
      pa.OSFile(str(path)) as raw,
      pa.CompressedInputStream(raw, "gzip") if path.suffix == ".gz" else contextlib.nullcontext(raw) as file,
    ):
      yield file, lambda: bar.update(raw.tell() - bar.n)
  except OSError as error:
    raise InputError(f"{path} is damaged or cut short ({error}): copy it again.") from error


def native_copy(text: bytes) -> pa.Buffer:
  """The bytes in memory of Arrow's own, which its threads may read for as long as they like."""
  copy = pa.BufferOutputStream()
  copy.write(text)
  return copy.getvalue()


@contextlib.contextmanager
def unpacked(path: pathlib.Path, doing: str) -> Iterator["gzip.GzipFile | _Watched"]:
  """Opens a file for reading, unzipped if its name ends in .gz, with a progress bar over its bytes on a terminal.

  Args:
    path: the file.
    doing: what the bar says, like "Reading".

  Raises:
    InputError: the file cannot be opened, or (on reading) turns out to be damaged.
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
    InputError: the file is damaged, or a line is not UTF-8 text.
  """
  with unpacked(path, "Reading") as file:
    # Split as bytes: str.splitlines would also split at characters that may be part of a title.
    for number, line in enumerate(file, start=1):
      try:
        yield number, (line.removeprefix(_BOM) if number == 1 else line).removesuffix(b"\n").decode()
      except UnicodeDecodeError as error:
        raise InputError(f"{path} line {number} is not UTF-8 text ({error.reason}): copy the file again.") from None


def json_value(line: str) -> Any:
  """A line of JSON.

  Raises:
    ValueError: it is not JSON (`files.parse_json`), or holds text that is not UTF-8 (`check_texts`).
  """
  value = files.parse_json(line)
  check_texts(value, line)
  return value


def check_texts(value: Any, line: str) -> None:
  """Raises ValueError where a value that was read of a line has text that no file can hold: half a surrogate pair."""
  if _SURROGATE.search(line):
    json.dumps(value, ensure_ascii=False, default=str).encode()


def digest(path: pathlib.Path) -> bytes:
  """sha256 of a file's unpacked contents."""
  sha256 = hashlib.sha256()
  with unpacked(path, "Checking") as file:
    while block := file.read(_BLOCK):
      sha256.update(block)
  return sha256.digest()


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
    TypeError: one is not text.
  """
  texts = {name: row.get(name) or "" for name in names}
  for name, text in texts.items():
    if not isinstance(text, str):
      raise TypeError(f"{name} is {reprlib.repr(text)}")
  return texts


def category_paths(paths: Iterable[Iterable[str]] | None) -> tuple[str, ...]:
  """[["Beauty", "Nails"]] -> ("Beauty > Nails",).

  Raises:
    TypeError: not a list of lists of text.
  """
  paths = paths or ()
  if not isinstance(paths, (list, tuple)) or not all(isinstance(path, (list, tuple)) for path in paths):
    raise TypeError(f"categories is {reprlib.repr(paths)}, which is not a list of paths")
  return tuple(" > ".join(path) for path in paths)


def any_categories(value: Any) -> tuple[str, ...]:
  """Category paths of text, of a list of names from general to special, or of a list of such lists.

  Raises:
    TypeError: it is none of these.
  """
  if isinstance(value, str):
    return (value,) if value.strip() else ()
  if value and isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
    return (" > ".join(value),)
  return category_paths(value)


def as_text(value: Any) -> str:
  """Any value of a column as text for embeddings: lists joined by blanks, numbers without a needless ".0"."""
  if value is None:
    return ""
  if isinstance(value, (list, tuple, np.ndarray)):
    return " ".join(filter(None, map(as_text, value)))
  if isinstance(value, float):
    return "" if value != value else f"{value:.10g}"
  return value.strip() if isinstance(value, str) else str(value)


class _Watched:
  """A binary file that advances a progress bar as it is read."""

  def __init__(self, path: pathlib.Path, doing: str):
    self._file = open(path, "rb")  # noqa: SIM115 (closed in __exit__)
    self._bar = terminal.bar(os.fstat(self._file.fileno()).st_size, f"{doing} {path.name}", "B")

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

  def seek(self, offset: int, origin: int = os.SEEK_SET) -> int:
    return self._file.seek(offset, origin)

  def read(self, size: int = -1) -> bytes:
    block = self._file.read(size)
    self._bar.update(len(block))
    return block
