"""What people see while a command works: plain lines, and on a terminal a bar below them that moves."""

import sys

import jax
import tqdm


def say(text: str) -> None:
  """Prints a line on stdout, above the bars; in the first process only."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def bar(total: int | None, doing: str, unit: str, *, initial: int = 0) -> tqdm.tqdm:
  """A progress bar on stderr if that is a terminal; silent otherwise, so that logs stay short."""
  return tqdm.tqdm(
    total=total,
    desc=doing,
    unit=unit,
    unit_scale=True,
    initial=initial,
    leave=False,
    mininterval=0.5,
    dynamic_ncols=True,
    file=sys.stderr,
    disable=None,  # unless on a terminal
  )
