"""Writing files whole or not at all."""

import contextlib
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


def write_json(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
  write_whole(path, json.dumps(values, indent=2) + "\n")
