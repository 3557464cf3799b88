"""What an experiment checks before hours are spent on it."""

from collections.abc import Iterable

from rastp_jax.errors import InputError
from rastp_jax.training.workdir import Workdir


def check_known(flag: str, values: Iterable[str], known: Iterable[str]) -> None:
  """Raises InputError if a flag names something that is not known."""
  if unknown := sorted(set(values) - set(known)):
    raise InputError(f"--{flag}={unknown[0]} is not known: expected some of {', '.join(known)}.")


def check_lengths(workdirs: Iterable[Workdir], wanted: str, place: str) -> None:
  """Refuses runs that saw another amount of data than a table says.

  Args:
    workdirs: of the table's runs; those that are not there yet do not matter.
    wanted: their length of training; "": that of the first that is there.
    place: the flag that names their directory, like "--runs_dir".

  Raises:
    InputError: a run has another length.
  """
  for workdir in workdirs:
    if workdir.config.exists():
      length = workdir.read_config().train.length
      wanted = wanted or length
      if length != wanted:
        raise InputError(
          f"{workdir} holds a run of {length!r}, not {wanted!r} like the rest of the table: remove it, or choose "
          f"another {place} or --length."
        )
