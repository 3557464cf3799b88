"""How a setting is declared: default, help, bounds, choices and where it may differ, all in one place."""

import dataclasses
import difflib
import enum
import importlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rastp_jax.errors import InputError


class May(enum.Flag):
  """Where a setting may have another value than the run it belongs to. Without any, a run is bound to its value."""

  RESUME = enum.auto()  # a resumed run: it moves files, changes what is looked at, or when to stop; no step's result
  DECODE = enum.auto()  # evaluation and serving (--override): the weights mean the same
  SEED = enum.auto()  # runs that count as seeds of one setting: it changes no result, or only by chance
  HOST = enum.auto()  # processes of one run
  NOWHERE = 0


class Makes(enum.Flag):
  """What a setting determines besides the model: those files remember it, and are refused with another value."""

  ROWS = enum.auto()  # the prepared dataset
  CODES = enum.auto()  # the semantic IDs
  NOTHING = 0


@dataclasses.dataclass(frozen=True)
class Facts:
  """All that is known of one setting; see `setting`."""

  help: str
  at_least: float | None = None
  at_most: float | None = None
  above: float | None = None
  below: float | None = None
  choices: Iterable[str] = ()
  separator: str = ""
  may: May = May.NOWHERE
  makes: Makes = Makes.NOTHING


def setting(default: Any, help: str, **facts: Any) -> Any:
  """Declares a field of a settings dataclass.

  Args:
    default: its value unless given.
    help: one sentence, shown by --help.
    **facts: `at_least`, `at_most`, `above`, `below` (bounds; of each element where the value is a tuple), `choices`
      (names, or the `Methods` that have them), `separator` (between several names), `may` and `makes`.
  """
  return dataclasses.field(default=default, metadata={"facts": Facts(help, **facts)})


def facts_of(field: dataclasses.Field) -> Facts:
  return field.metadata["facts"]


def settings_of(section: type) -> list[dataclasses.Field]:
  """The fields of a settings dataclass that were declared by `setting`."""
  return [field for field in dataclasses.fields(section) if "facts" in field.metadata]


class Methods(Mapping):
  """The methods that one setting chooses from, by name, found when they are first asked for.

  Their rooms stand above this one, so they are named by their modules, not imported: a new method is one line in its
  own room's registry. Methods of a `WithMethods` section tell their `options`: a settings dataclass, or None.
  """

  def __init__(self, module: str, registry: str):
    self._module, self._registry = module, registry

  def _found(self) -> Mapping[str, Any]:
    return getattr(importlib.import_module(self._module), self._registry)

  def __getitem__(self, name: str) -> Any:
    return self._found()[name]

  def __iter__(self):
    return iter(self._found())

  def __len__(self) -> int:
    return len(self._found())

  def options(self) -> dict[str, type]:
    """The settings dataclass of each method that declares one, by the method's name."""
    return {name: method.options for name, method in self.items() if method.options is not None}


class Section:
  """Base of the settings dataclasses."""

  def check(self, config: Any) -> None:
    """Raises InputError where settings do not fit together; `config` is the whole `Config`. Most sections need none."""


class WithMethods(Section):
  """Base of settings dataclasses whose field `method` names one of `METHODS`, each with options of its own."""

  METHODS: ClassVar[Methods]
  options: tuple[Any, ...]

  def of(self, kind: type) -> Any:
    """The options of one method: the given ones, or their defaults."""
    return next((found for found in self.options if type(found) is kind), kind())


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training or an interval: an amount and its unit."""

  amount: float
  unit: str  # one of UNITS

  UNITS = ("steps", "epochs", "samples", "minutes", "percent")

  @classmethod
  def parse(cls, text: str, field: str) -> "Duration":
    """Reads '20 epochs', '5_000 steps', '1e6 samples', '40 minutes' or '2 percent'."""
    match = re.fullmatch(r"\s*([0-9][0-9_.]*(?:e[0-9]+)?)\s*([a-z%]+)\s*", str(text))
    unit = match[2].replace("%", "percent") if match else ""
    unit = unit if unit in cls.UNITS else unit + "s"  # "1 epoch"
    try:
      amount = float(match[1].replace("_", "")) if match else math.inf
    except ValueError:  # two points
      amount = math.inf
    if match is None or unit not in cls.UNITS or math.isinf(amount):
      raise InputError(
        f"config.{field}={text!r} is not a duration: expected an amount and a unit out of {', '.join(cls.UNITS)}, like "
        "'20 epochs'."
      )
    return cls(amount, unit)

  def steps(self, *, steps_per_epoch: int, samples_per_step: float, total_steps: int | None = None) -> int:
    """Converts to steps (batches); minutes have no fixed number of steps and are not accepted here."""
    per_unit = {"steps": 1.0, "epochs": float(steps_per_epoch), "samples": 1.0 / samples_per_step}
    if self.unit == "percent":
      if total_steps is None:
        raise InputError(
          f"'{self.amount:g} percent' needs a length of training that is known in steps: give train.length in steps, "
          "epochs or samples."
        )
      return round(self.amount / 100.0 * total_steps)
    if self.unit == "minutes":
      raise InputError(
        f"'{self.amount:g} minutes' cannot be converted to steps: give it in steps, epochs, samples or percent."
      )
    return max(1, round(self.amount * per_unit[self.unit]))


def check_value(value: Any, facts: Facts, name: str) -> None:
  """Raises InputError unless a value (or each element of a tuple) is among the choices and within the bounds."""
  for one in value if isinstance(value, tuple) else (value,):
    for part in one.split(facts.separator) if facts.separator else (one,):
      if facts.choices:
        one_of(part, facts.choices, name)
    lower = (facts.at_least is not None and not one >= facts.at_least) or (
      facts.above is not None and not one > facts.above
    )
    upper = (facts.at_most is not None and not one <= facts.at_most) or (
      facts.below is not None and not one < facts.below
    )
    if lower or upper:
      raise InputError(f"config.{name}={value!r} is too {'small' if lower else 'large'}: expected {_range(facts)}.")


def one_of(value: Any, choices: Iterable[str], name: str) -> None:
  """Raises InputError, with the nearest choice as a hint, unless the value is one of them."""
  choices = list(choices)
  if value not in choices:
    close = difflib.get_close_matches(str(value), choices, n=1)
    raise InputError(
      f"config.{name}={value!r} is not known: expected one of {', '.join(choices)}"
      + (f"; did you mean {close[0]!r}?" if close else ".")
    )


def unknown(name: str, known: Sequence[str]) -> str:
  """The sentence about a setting that does not exist."""
  name = name[:100]
  close = difflib.get_close_matches(name, list(known), n=1)
  inside = [one for one in known if one.startswith(name.partition(".")[0] + ".")]
  sections = list(dict.fromkeys(f"{one.partition('.')[0]}.*" if "." in one else one for one in known))
  hint = f"did you mean config.{close[0]}?" if close else f"the settings there are {', '.join(inside or sections)}."
  return f"config.{name} is not a setting of this program: {hint}"


def _range(facts: Facts) -> str:
  parts = [
    text.format(bound)
    for text, bound in (
      ("at least {}", facts.at_least),
      ("above {}", facts.above),
      ("at most {}", facts.at_most),
      ("below {}", facts.below),
    )
    if bound is not None
  ]
  return " and ".join(parts)
