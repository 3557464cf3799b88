"""Writing files and directories whole or not at all, and JSON files both ways.

Every output of a command goes through `open_atomic`, which decides what may be written where.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import socket
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

from rastp_jax.errors import InputError
from rastp_jax.runtime import buckets

# As an output: standard output.
STDOUT = "-"
# Deeper JSON is refused: what walks through the values need not mind how deep they are.
_MAX_DEPTH = 50


def check_path(path: str | os.PathLike) -> pathlib.Path:
  """The path, if a file can have that name.

  Raises:
    InputError: it has a NUL character, or one that the file system cannot encode; or see `buckets.local`, whose copy
      stands for what is in a bucket.
  """
  text = os.fspath(path)
  if buckets.is_url(text):
    return buckets.local(text)
  try:
    possible = b"\0" not in os.fsencode(text)
  except UnicodeEncodeError:
    possible = False
  if not possible:
    raise InputError(f"{text!r} cannot be the name of a file: leave out its NUL or surrogate characters.")
  return pathlib.Path(path)


def below(directory: str | os.PathLike, *parts: str) -> pathlib.Path:
  """`check_path` of a path in a directory; of a bucket's, nothing else is copied."""
  text = os.fspath(directory)
  if buckets.is_url(text):
    return buckets.local("/".join([text.rstrip("/"), *parts]))
  return check_path(text).joinpath(*parts)


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file to write, so that a reader (or a crash) sees the old content or the new one, never a part.

  The directory is made if needed. A symbolic link stays, and the file that it leads to is replaced. What is not a file
  is written through, as it comes: a device, a FIFO, `STDOUT`.

  Raises:
    InputError: a directory is there, or no file can have that name.
    OSError: it cannot be written.
  """
  stream = _stream(path)
  if stream is not None:
    if isinstance(stream, int) and sys.stdout is not None:
      sys.stdout.flush()  # what was printed before goes before
    handle = os.dup(stream) if isinstance(stream, int) else os.open(stream, os.O_WRONLY)
    try:
      with os.fdopen(handle, "wb") as file:
        yield file
    except BrokenPipeError:
      raise InputError(f"{path} cannot be written to the end: what reads it has ended.") from None
    return
  target = _file(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # mkstemp's files are private
    os.replace(temporary, target)
    buckets.upload(target)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


def is_stdout(path: str | os.PathLike) -> bool:
  """Whether an output goes to standard output."""
  return _stream(path) == 1


def _stream(path: str | os.PathLike) -> int | pathlib.Path | None:
  """What an output that is not a file is written through: a descriptor or a path to open; None for a file."""
  text = os.fspath(path)
  if text == STDOUT:
    return 1
  # A link to a descriptor may lead to a file, but opening that would start at its beginning.
  descriptor = re.fullmatch(r"/dev/(stdout)|/dev/(stderr)|/(?:dev|proc/self)/fd/([0-9]+)", os.path.normpath(text))
  if descriptor:
    return 1 if descriptor[1] else 2 if descriptor[2] else int(descriptor[3])
  path = check_path(path)
  try:
    mode = path.stat().st_mode
  except OSError:  # not there yet
    return None
  return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else path


def _file(path: str | os.PathLike) -> pathlib.Path:
  """The file, there or not, that a path leads to. Raises InputError where that cannot be a file."""
  target = pathlib.Path(os.path.realpath(check_path(path)))
  if target.is_dir() or os.fspath(path).endswith(os.sep):
    raise InputError(f"{path} cannot be written (it is a directory): choose another place for it.")
  if target.is_symlink():
    raise InputError(f"{path} cannot be written (it is a link that leads to itself): choose another place for it.")
  return target


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary directory beside `path` that becomes `path` once all of it is written.

  Raises:
    InputError: there is something at `path` already, or nothing can be written there.
  """
  path = check_path(path)
  target = pathlib.Path(os.path.realpath(path))  # a link stays, and what it leads to is made
  if os.fspath(path) == STDOUT:
    raise InputError("A directory cannot be written to standard output: give a name in place of -.")
  try:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
      raise InputError(f"{path} exists and is not empty: choose a new directory, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    buckets.check_writable(target)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
  except OSError as error:
    raise InputError(f"{path} cannot be written ({error.strerror}): choose another directory.") from error
  try:
    with buckets.unfinished(temporary):
      yield temporary
    temporary.chmod(0o755)  # mkdtemp's directories are private
    os.replace(temporary, target)
    buckets.upload(target)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a file by `open_atomic`."""
  with open_atomic(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def check_writable(path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = ()) -> None:
  """Makes sure, before hours of work, that `open_atomic` can write there.

  Args:
    path: an output.
    inputs: files that the same command reads, or must leave alone. The output may be none of them.

  Raises:
    InputError: it cannot.
  """
  try:
    stream = _stream(path)
    target = _file(path) if stream is None else stream
    for other in inputs:
      if _same(target, check_path(other)):
        raise InputError(f"{path} cannot be written: it is {other}, which would be lost; choose another output.")
    if isinstance(target, int):
      os.fstat(target)
    elif stream is not None and not os.access(target, os.W_OK):  # opening a FIFO would wait for its reader
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    elif stream is None:
      target.parent.mkdir(parents=True, exist_ok=True)
      with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
        pass
      buckets.check_writable(target)
  except OSError as error:
    raise InputError(f"{path} cannot be written ({error.strerror}): choose another place for it.") from error


def _same(target: int | pathlib.Path, other: pathlib.Path) -> bool:
  """Whether two names are of one file, or would be; devices like /dev/null may be read and written."""
  try:
    found, expected = os.stat(target), other.stat()
  except OSError:
    return not isinstance(target, int) and os.path.realpath(target) == os.path.realpath(other)
  return os.path.samestat(found, expected) and not stat.S_ISCHR(found.st_mode)


@contextlib.contextmanager
def open_npz(path: str | os.PathLike) -> Iterator[Any]:
  """The arrays of an .npz, by name. A damaged one shows as whatever zipfile, zlib and NumPy happen to raise."""
  import numpy as np  # here: every command imports this module, and --help need not wait

  path = check_path(path)
  if path.exists() and not path.is_file():  # reading a FIFO would wait
    raise ValueError("it is not a file")
  # NumPy leaves a file open that turns out not to be a whole .npz.
  with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
    yield arrays


def first_line(error: Exception) -> str:
  """What an error says, short enough to be part of a sentence; its kind where it says nothing."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def to_json(values: Any, *, indent: int | None = None, escaped: bool = True) -> str:
  """JSON text. Numbers that are not finite become null: JSON has none.

  Args:
    values: to be written.
    indent: spaces per level; None: all on one line.
    escaped: write other characters than ASCII as escapes. Surrogates, which UTF-8 cannot encode, always are.
  """
  try:
    text = json.dumps(values, indent=indent, ensure_ascii=escaped, allow_nan=False)
  except ValueError:
    values = _with_null(values)
    text = json.dumps(values, indent=indent, ensure_ascii=escaped, allow_nan=False)
  try:
    text.encode()
  except UnicodeEncodeError:
    return json.dumps(values, indent=indent)
  return text


def _with_null(values: Any) -> Any:
  if isinstance(values, Mapping):
    return {name: _with_null(value) for name, value in values.items()}
  if isinstance(values, list | tuple):
    return [_with_null(value) for value in values]
  return None if isinstance(values, float) and not math.isfinite(values) else values


def write_json(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
  write_atomic(path, to_json(values, indent=2) + "\n")


def parse_json(text: str | bytes) -> Any:
  """JSON as the standard has it, and no more; in bytes, a byte order mark may go before it.

  Raises:
    ValueError: it is not JSON, has NaN or an infinite number, one name twice in an object, or is nested too deep; the
      reason is one line.
  """
  try:
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    value = _DECODER.decode(text)
  except RecursionError:
    raise ValueError("it is nested too deep") from None
  if text.count("[") + text.count("{") <= _MAX_DEPTH:
    return value
  level = [value]
  for _ in range(_MAX_DEPTH):
    level = [inner for outer in level for inner in _inside(outer)]
    if not level:
      return value
  raise ValueError("it is nested too deep")


def _inside(value: Any) -> Iterable[Any]:
  inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return [one for one in inner if isinstance(one, dict | list)]


def _not_finite(name: str) -> NoReturn:
  raise ValueError(f"{name} is not a number")


def _float(text: str) -> float:
  value = float(text)
  return value if math.isfinite(value) else _not_finite(text[:40])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"{twice[:40]!r} occurs twice in one object")
  return found


_DECODER = json.JSONDecoder(parse_constant=_not_finite, parse_float=_float, object_pairs_hook=_object)


def read_json(path: str | os.PathLike, advice: str) -> dict[str, Any]:
  """A file that holds one JSON object.

  Args:
    path: the file.
    advice: what to do where it cannot be read, like "put back a copy of it".

  Raises:
    InputError: it is missing, damaged, not as `parse_json` says, or holds something else than an object.
  """
  path = check_path(path)
  try:
    if path.exists() and not path.is_file():  # reading a FIFO would wait
      raise ValueError("it is not a file")
    values = parse_json(path.read_bytes())
    if not isinstance(values, dict):
      raise ValueError("it does not hold names with values")
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or first_line(error)
    raise InputError(f"{path} cannot be read ({reason}): {advice}.") from error
  return values


@contextlib.contextmanager
def directory_lock(directory: str | os.PathLike, owner_file: str | None = None) -> Iterator[None]:
  """Makes a directory and keeps other processes that ask for it out, until the context or this process ends.

  The lock is the operating system's: one that a killed process left behind blocks nobody. On a network file system
  without locks it only warns.

  Args:
    directory: to be locked.
    owner_file: name of a file in it that tells others which process holds the lock; None: no such file.

  Raises:
    InputError: another process is in it.
    OSError: it cannot be made or written.
  """
  directory = check_path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  in_bucket = buckets.remote(directory)
  if in_bucket is not None:
    with buckets.lock(in_bucket / (owner_file or "lock")):
      yield
    return
  handle = (
    os.open(directory / owner_file, os.O_RDWR | os.O_CREAT, 0o644) if owner_file else os.open(directory, os.O_RDONLY)
  )
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      owner = _owner(handle) if owner_file else "Another process"
      raise InputError(
        f"{owner} is writing to {directory}: wait until it ends, stop it, or choose another directory."
      ) from None
    except OSError as error:
      warnings.warn(f"{directory} cannot be locked ({error.strerror}): start no second process there.", stacklevel=3)
    if owner_file:
      os.ftruncate(handle, 0)
      os.write(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
    yield
  finally:
    os.close(handle)


def _owner(handle: int) -> str:
  """The process that wrote itself into a lock's file."""
  try:
    return "Process {pid} on {host}".format(**json.loads(os.read(handle, 1000)))
  except (ValueError, KeyError, TypeError):  # it may be writing that right now
    return "Another process"


@contextlib.contextmanager
def scratch_directory(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """An empty directory to make things in before they are moved to their place; gone afterwards, whatever happens.

  What a killed process left in it is removed. Parents that had to be made for it go too if nothing is in them.

  Raises:
    InputError: another process works in it.
  """
  directory = check_path(directory)
  made = [parent for parent in (directory, *directory.parents) if not parent.exists()]
  try:
    with directory_lock(directory):
      try:
        _empty(directory)
        yield directory
      finally:
        _empty(directory)
        directory.rmdir()
  finally:
    for parent in made:
      with contextlib.suppress(OSError):  # in use
        parent.rmdir()


def _empty(directory: pathlib.Path) -> None:
  for entry in directory.iterdir():
    if entry.is_dir() and not entry.is_symlink():
      shutil.rmtree(entry)
    else:
      entry.unlink()
