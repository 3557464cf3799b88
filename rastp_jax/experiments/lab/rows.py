"""What the laboratory compares: every registered reduction, at equal budgets, and combinations of some."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.reduction.methods import REDUCTIONS

BUDGETS = (1 / 2, 1 / 4)
DENSE = "dense"


def combined(item_length: int) -> dict[str, dict[str, Any]]:
  """Arrangements that are more than one method at one budget after block 0: name -> settings of the reduction.

  Args:
    item_length: tokens per item; a budget is a share of the tokens, and some rows name a share of the items.
  """
  of_items = lambda share: (1.0, share / item_length)
  return {
    "rastp, 3/4": {"method": "rastp", "keep_ratio": (3 / 4,)},
    "rastp, 3/4, then 1/2": {"method": "rastp", "after_block": (0, 1), "keep_ratio": (3 / 4, 1 / 2)},
    "rastp, after block 1, 1/2": {"method": "rastp", "after_block": (1,), "keep_ratio": (1 / 2,)},
    "rastp, after block 1, 1/4": {"method": "rastp", "after_block": (1,), "keep_ratio": (1 / 4,)},
    "rastp, votes of the newest item, 1/2": {"method": "rastp", "voters": "last_item", "keep_ratio": (1 / 2,)},
    "rastp, votes of the newest item, 1/4": {"method": "rastp", "voters": "last_item", "keep_ratio": (1 / 4,)},
    "rastp, vote of the newest token, 1/4": {"method": "rastp", "voters": "last", "keep_ratio": (1 / 4,)},
    "rastp_recent, weight 4, 1/2": {"method": "rastp_recent", "keep_ratio": (1 / 2,), "rastp_recent.weight": 4.0},
    "rastp_recent, weight 4, 1/4": {"method": "rastp_recent", "keep_ratio": (1 / 4,), "rastp_recent.weight": 4.0},
    "item_sum, then rastp 3/4": {"method": "item_sum+rastp", "after_block": (-1, 0), "keep_ratio": of_items(3 / 4)},
    "item_sum, then rastp 1/2": {"method": "item_sum+rastp", "after_block": (-1, 0), "keep_ratio": of_items(1 / 2)},
    "item_sum, then recent 1/2": {"method": "item_sum+recent", "after_block": (-1, 0), "keep_ratio": of_items(1 / 2)},
    "the last half of the items": {"method": "recent", "after_block": (-1,), "keep_ratio": (1 / 2,)},
    "the last quarter of the items": {"method": "recent", "after_block": (-1,), "keep_ratio": (1 / 4,)},
    "the coarse half of the codes": {"method": "coarse_first", "after_block": (-1,), "keep_ratio": (1 / 2,)},
    "divprune, before block 0, 1/2": {"method": "divprune", "after_block": (-1,), "keep_ratio": (1 / 2,)},
    "divprune, before block 0, 1/4": {"method": "divprune", "after_block": (-1,), "keep_ratio": (1 / 4,)},
    "foveated, before block 0, 1/2": {"method": "foveated", "after_block": (-1,), "keep_ratio": (1 / 2,)},
    # How a model is trained: with a budget drawn for each step.
    "rastp, random budgets, 1/2": {
      "method": "rastp",
      "keep_ratio": (1 / 2,),
      "random_keep_ratios": (1.0, 1 / 2, 1 / 4),
    },
  }


# Arrangements that learn the dense model's probabilities besides the targets.
TAUGHT: Mapping[str, dict[str, Any]] = {
  "rastp, taught by dense, 1/2": {"method": "rastp", "keep_ratio": (1 / 2,)},
  "item_sum, before block 0, taught by dense": {"method": "item_sum", "after_block": (-1,)},
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One arrangement of the reduction.

  Attributes:
    name: unique, for people and for the run's directory.
    method: the registered method, or methods joined by +.
    budget: share of the positions that is left in the end; None where the method settles that itself.
    settings: of config.reduction, as they differ from the config's.
    taught: whether the dense run's probabilities are learned besides the targets.
  """

  name: str
  method: str
  budget: float | None
  settings: tuple[tuple[str, Any], ...]
  taught: bool = False

  def apply(self, config: Config) -> Config:
    """The config with this reduction."""
    return config_lib.with_values(config, [(f"reduction.{name}", value) for name, value in self.settings])

  @property
  def flags(self) -> list[str]:
    """The same as command-line flags."""
    return [f"--config.reduction.{name}={value}" for name, value in self.settings]

  @property
  def directory(self) -> str:
    """A name for its runs' directory."""
    return self.name.replace(", ", "_").replace(" ", "_").replace("/", "_")

  @property
  def learned(self) -> bool:
    """Whether it has weights of its own, which a dense model lacks."""
    return any(REDUCTIONS[part].learned is not None for part in self.method.split("+"))

  @property
  def untrained(self) -> bool:
    """Whether a dense model shows what it is worth: nothing is learned for it, or in another way."""
    return not (self.learned or self.taught or "random_keep_ratios" in dict(self.settings))


def all_rows(config: Config) -> dict[str, Row]:
  """Every row by its name: dense first, then each method at each budget, then the combinations."""
  rows = [make_row(DENSE, {"method": "none"})]
  for name, method in REDUCTIONS.items():
    if name in ("none", "given"):  # "given" needs scores from outside: the screen's oracles
      continue
    if method.tokens is not None:
      for block in (-1, 0) if method.before_blocks else (0,):
        place = "before block 0" if block < 0 else "after block 0"
        rows.append(make_row(f"{name}, {place}", {"method": name, "after_block": (block,)}))
    else:
      for budget in BUDGETS:
        settings = {"method": name, "after_block": (0,), "keep_ratio": (budget,)}
        rows.append(make_row(f"{name}, {share(budget)}", settings))
  several = combined(config.item_length)
  rows += [make_row(name, {"after_block": (0,), **settings}) for name, settings in several.items()]
  rows += [make_row(name, {"after_block": (0,), **settings}, taught=True) for name, settings in TAUGHT.items()]
  return {row.name: row for row in rows}


def possible(rows: Mapping[str, Row], config: Config) -> tuple[dict[str, Row], dict[str, str]]:
  """The rows that a config allows, and why it refuses the others, by name."""
  allowed, refused = {}, {}
  for name, row in rows.items():
    try:
      row.apply(config)
      allowed[name] = row
    except InputError as error:
      refused[name] = str(error)
  return allowed, refused


def choose(wanted: Sequence[str], rows: Mapping[str, Row]) -> list[Row]:
  """The rows whose name, or whose method's name, is asked for; all if nothing is. Dense is always among them.

  Raises:
    InputError: a name fits no row.
  """
  if not wanted:
    return list(rows.values())
  chosen = {DENSE: rows[DENSE]}
  for name in wanted:
    found = {row.name: row for row in rows.values() if name in (row.name, row.directory, row.method)}
    if not found:
      raise InputError(f"--methods={name} is not a method or a row of the laboratory: {'; '.join(rows)}.")
    chosen |= found
  return list(chosen.values())


def make_row(name: str, settings: Mapping[str, Any], *, taught: bool = False) -> Row:
  """A row that tells each token's place as its methods need it."""
  method = settings["method"]
  parts = [REDUCTIONS[part] for part in method.split("+")]
  # Not the config's positions, which suit its own method. Where nothing is reduced they mean nothing.
  suited = next((part.positions for part in parts if part.positions != "original"), "original")
  full = {**settings, **({} if method == "none" else {"positions": suited})}
  budget = None if parts[-1].tokens is not None else full["keep_ratio"][-1]
  return Row(name, method, budget, tuple(full.items()), taught)


def share(budget: float) -> str:
  """A budget for people: 0.25 -> 1/4."""
  return f"1/{round(1 / budget)}"
