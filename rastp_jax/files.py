"""Writing files whole or not at all."""

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any


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


def write_json(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
  write_whole(path, json.dumps(values, indent=2) + "\n")
