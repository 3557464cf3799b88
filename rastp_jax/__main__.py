"""Generative recommendation with semantic IDs and token reduction: rastp COMMAND [flags]

`rastp train --help` tells what a command does and which flags it takes; `python -m rastp_jax.train` is the same.
"""

import ast
import difflib
import pathlib
import runpy
import sys
from typing import NoReturn

from rastp_jax import __version__
from rastp_jax.errors import EXIT_MISTAKE

_HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")
# Listed first, in the order of use.
_DAILY = ("prepare", "train", "evaluate", "recommend", "report", "export")


def find() -> dict[str, str]:
  """The first line of each command's docstring, by name; read from the files without importing them."""
  found = {}
  for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    module = ast.parse(path.read_text(encoding="utf-8"))
    starts_itself = any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in module.body)
    if starts_itself and not path.stem.startswith("_"):
      found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
  return {name: found[name] for name in (*_DAILY, *(name for name in found if name not in _DAILY))}


def main() -> None:
  """What `rastp` calls."""
  name, commands = (sys.argv[1] if len(sys.argv) > 1 else _HELP[0]), find()
  if name in commands:
    del sys.argv[1]
    try:
      runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
    except ImportError as error:  # before the command could see to its own errors
      _refuse(f"A package is missing or damaged ({error}): install this one again, with what it needs.")
  elif name in _HELP:
    width = max(map(len, commands))
    print(f"{__doc__}\n" + "\n".join(f"  {one.ljust(width)}  {summary}" for one, summary in commands.items()))
  elif name == "--version":
    print(__version__)
  else:
    near = difflib.get_close_matches(name, commands, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(commands)}."
    _refuse(f"There is no command {name!r}: {hint}")


def _refuse(sentence: str) -> NoReturn:
  print("error:", sentence, file=sys.stderr)
  sys.exit(EXIT_MISTAKE)


if __name__ == "__main__":
  main()
