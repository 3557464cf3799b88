"""After which blocks tokens become fewer, by which method, and how many are left: static facts for each length."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rastp_jax.config import ReductionConfig
from rastp_jax.reduction.methods import REDUCTIONS, Method
from rastp_jax.reduction.tokens import ItemLayout

BEFORE_BLOCKS = -1


class PlannedStage(NamedTuple):
  """One stage: the number of its method among the configured ones, the method, and the tokens it leaves."""

  number: int
  method: Method
  budget: int


def drawn(config: ReductionConfig) -> tuple[ReductionConfig, ...]:
  """What training draws from: the reduction itself, or one per random budget."""
  ratios = config.random_keep_ratios
  return tuple(dataclasses.replace(config, keep_ratio=(ratio,)) for ratio in ratios) or (config,)


def methods_of(config: ReductionConfig) -> list[Method]:
  """The method of each configured stage: one for all, or one per stage ("item_sum+rastp")."""
  names = config.methods()
  return [REDUCTIONS[name] for name in (names * len(config.after_block) if len(names) == 1 else names)]


def stages(config: ReductionConfig, length: int, layout: ItemLayout) -> Mapping[int, PlannedStage]:
  """The stage after each encoder block that reduces a sequence of `length` positions; block -1: before block 0.

  A share is taken of `length`, as published (`int(150 / 3)`). A stage whose budget is not below what is left is left
  out, so that such a block is an ordinary one. The first method that settles its number of tokens itself stands also
  where few tokens are left: those of an item are still several. After it there is nothing more to pool.
  """
  if config.method == "none":
    return {}
  counts = config.keep_tokens or [int(length * ratio + 1e-6) for ratio in config.keep_ratio]
  planned, current, most = {}, length, length
  for number, (block, method) in enumerate(zip(config.after_block, methods_of(config), strict=True)):
    count = max(1, counts[number] if method.tokens is None else method.tokens(length, layout))
    if count < (current if method.tokens is None else most):
      current = min(count, current)
      most = most if method.tokens is None else current
      planned[block] = PlannedStage(number, method, current)
  return planned


def budgets(config: ReductionConfig, length: int, layout: ItemLayout) -> dict[int, int]:
  """Tokens left after each encoder block that reduces; see `stages`."""
  return {block: stage.budget for block, stage in stages(config, length, layout).items()}


def idle_blocks(configs: Iterable[ReductionConfig], lengths: Iterable[int], layout: ItemLayout) -> list[int]:
  """Blocks after which these reductions were to shorten sequences of these lengths (positions), and shorten none."""
  asked, reduced = set(), set()
  for config in configs:
    asked |= set() if config.method == "none" else set(config.after_block)
    reduced |= {block for length in lengths for block in stages(config, length, layout)}
  return sorted(asked - reduced)
