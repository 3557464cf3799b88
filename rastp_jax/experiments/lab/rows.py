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

# Arrangements that are more than one method at one budget: name -> settings of the reduction.
COMBINED: Mapping[str, Mapping[str, Any]] = {
  "rastp, votes of the newest item, 1/2": {"method": "rastp", "voters": "last_item", "keep_ratio": (1 / 2,)},
  "rastp, votes of the newest item, 1/4": {"method": "rastp", "voters": "last_item", "keep_ratio": (1 / 4,)},
  "rastp, vote of the newest token, 1/4": {"method": "rastp", "voters": "last", "keep_ratio": (1 / 4,)},
  "item_sum, then rastp 1/2": {"method": "item_sum+rastp", "after_block": (-1, 0), "keep_ratio": (1.0, 1 / 8)},
  "item_sum, then recent 1/2": {"method": "item_sum+recent", "after_block": (-1, 0), "keep_ratio": (1.0, 1 / 8)},
  "the last half of the items": {"method": "recent", "after_block": (-1,), "keep_ratio": (1 / 2,)},
  "the last quarter of the items": {"method": "recent", "after_block": (-1,), "keep_ratio": (1 / 4,)},
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One arrangement of the reduction.

  Attributes:
    name: unique, for people and for the run's directory.
    method: the registered method, or methods joined by +.
    budget: share of the positions that is left in the end; None where the method settles that itself.
    settings: of config.reduction, as they differ from the config's.
  """

  name: str
  method: str
  budget: float | None
  settings: tuple[tuple[str, Any], ...]

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


def all_rows() -> dict[str, Row]:
  """Every row by its name: dense first, then each method at each budget, then the combinations."""
  rows = [_row(DENSE, {"method": "none"})]
  for name, method in REDUCTIONS.items():
    if name in ("none", "given"):  # "given" needs scores from outside: the screen's oracle
      continue
    if method.tokens is not None:
      for block in (-1, 0) if method.before_blocks else (0,):
        place = "before block 0" if block < 0 else "after block 0"
        rows.append(_row(f"{name}, {place}", {"method": name, "after_block": (block,)}))
    else:
      for budget in BUDGETS:
        settings = {"method": name, "after_block": (0,), "keep_ratio": (budget,)}
        rows.append(_row(f"{name}, {_share(budget)}", settings))
  rows += [_row(name, {"after_block": (0,), **settings}) for name, settings in COMBINED.items()]
  return {row.name: row for row in rows}


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


def _row(name: str, settings: Mapping[str, Any]) -> Row:
  method = settings["method"]
  counts_items = any(part.startswith("item_") or "tokens" in part for part in method.split("+"))
  full = {**settings, **({"positions": "item"} if counts_items else {})}
  fixed = REDUCTIONS[method.split("+")[-1]].tokens is not None
  budget = None if fixed or method == "none" else full["keep_ratio"][-1]
  return Row(name, method, budget, tuple(full.items()))


def _share(budget: float) -> str:
  return f"1/{round(1 / budget)}"
