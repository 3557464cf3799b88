"""Writing files and directories whole or not at all."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from rastp_jax.errors import InputError


@contextlib.contextmanager
def open_whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file to write, so that a reader (or a crash) sees the old content or the new one, never a part.

  The directory is made if needed.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # mkstemp's files are private
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary directory beside `path` that becomes `path` once all of it is written.

  Raises:
    InputError: there is something at `path` already, or nothing can be written there.
  """
  path = pathlib.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise InputError(f"{path} exists and is not empty: choose a new directory, or remove it.")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
  except OSError as error:
    raise InputError(f"{path} cannot be written ({error.strerror}): choose another directory.") from error
  try:
    yield temporary
    temporary.chmod(0o755)  # mkdtemp's directories are private
    os.replace(temporary, path)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a file by `open_whole`."""
  with open_whole(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def check_writable(path: str | os.PathLike) -> None:
  """Makes sure, before hours of work, that a file can be written there.

  Raises:
    InputError: it cannot.
  """
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
      pass
    if path.is_dir():
      raise IsADirectoryError(None, "it is a directory")
  except OSError as error:
    raise InputError(f"{path} cannot be written ({error.strerror}): choose another place for it.") from error


def write_json(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
  write_whole(path, json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def exclusive(directory: str | os.PathLike) -> Iterator[None]:
  """Makes a directory and keeps other processes that ask for it out; a killed process holds nothing.

  Raises:
    InputError: another process is in it.
  """
  pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
  handle = os.open(directory, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(f"Another process is writing to {directory}: wait until it is done, or stop it.") from None
    yield
  finally:
    os.close(handle)


@contextlib.contextmanager
def workshop(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """An empty directory to make things in before they are moved to their place; gone afterwards, whatever happens.

  What a killed process left in it is removed. Parents that had to be made for it go too if nothing is in them.

  Raises:
    InputError: another process works in it.
  """
  directory = pathlib.Path(directory)
  made = [parent for parent in (directory, *directory.parents) if not parent.exists()]
  try:
    with exclusive(directory):
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
