"""Runs a measurement: python -m rastp_jax.experiment NAME [flags]

`python -m rastp_jax.experiment` lists the names; NAME --help tells what one measures and which flags it takes. A new
experiment is one module in `rastp_jax/experiments/` with a docstring, absl flags and a `main()`.
"""

import ast
import difflib
import importlib
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from absl import flags

from rastp_jax import experiments
from rastp_jax.errors import InputError
from rastp_jax.runtime import cli

_HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")


def find() -> dict[str, str]:
  """The first line of each experiment's docstring, by name; read from the files without importing them.

  Experiments are the modules that define `main` and do not start themselves.
  """
  found = {}
  for path in sorted(pathlib.Path(experiments.__file__).parent.glob("*.py")):
    module = ast.parse(path.read_text(encoding="utf-8"))
    has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body)
    if has_main and not any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in module.body):
      found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
  return found


def listing() -> str:
  """All names with what they measure, a line each."""
  found = find()
  width = max(map(len, found))
  return "\n".join(f"  {name.ljust(width)}  {summary}" for name, summary in found.items())


def load(name: str) -> Callable[[], int | None]:
  """The `main` of an experiment, whose flags and description become those of this command."""
  global __doc__
  module = importlib.import_module(f"{experiments.__name__}.{name}")
  for defining in (cli, module):  # so that --help shows them
    flags.adopt_module_key_flags(defining)
  __doc__ = module.__doc__
  return module.main


def refuse(name: str, names: Iterable[str]) -> NoReturn:
  """Raises InputError, with the nearest name as a hint."""
  near = difflib.get_close_matches(name, list(names), n=1)
  hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}."
  raise InputError(f"There is no experiment {name!r}: {hint}")


def main(arguments: Sequence[str]) -> None:
  if not arguments or arguments[0] in _HELP:
    print(f"{__doc__}\n{listing()}")
    return
  name, names = arguments[0], find()
  sys.argv[1:] = arguments[1:] if name in names else []
  cli.run(load(name) if name in names else lambda: refuse(name, names))


if __name__ == "__main__":
  main(sys.argv[1:])
