"""Writing files whole or not at all."""

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from rastp_jax.errors import InputError


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a file so that a reader (or a crash) sees the old content or the new one, never a part.

  The directory is made if needed.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(content.encode() if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # mkstemp's files are private
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


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
