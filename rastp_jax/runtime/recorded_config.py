"""Settings in a JSON file, like the config.json that a run records.

`--config=runs/beauty/config.json` gives them to a command: ml_collections loads this file as it loads `configs/*.py`,
and hands it the path as the variants.
"""

import os

import ml_collections

from rastp_jax import config as config_lib
from rastp_jax.errors import InputError
from rastp_jax.runtime import files


def get_config(path: str) -> ml_collections.ConfigDict:
  """The file's settings, which flags may change."""
  return config_lib.to_config_dict(read(path, "give the config.json of a run, or a Python file with get_config()"))


def read(path: str | os.PathLike, advice: str) -> config_lib.Config:
  """The file's settings, checked; those that it does not name are at their defaults.

  Args:
    path: the file; names of earlier versions are understood.
    advice: what to do where it cannot be read, like "put back a copy of it".

  Raises:
    InputError: it is missing or damaged, or a value makes no sense.
  """
  values = files.read_json(path, advice)
  try:
    return config_lib.from_dict(values)
  except Exception as error:  # whatever settings that nobody wrote happen to raise
    raise InputError(f"{path} cannot be read ({files.first_line(error)}): {advice}.") from error
