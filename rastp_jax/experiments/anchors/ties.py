"""Ties in time: Amazon's times are whole days, and items of the same day are in the order of their product numbers.

Prepared histories have an order but no times. How many neighbours are tied follows from how often product numbers rise:
between ties always, elsewhere half of the time.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rastp_jax.data.histories import Histories


def rising_steps(histories: Histories, numbers: Sequence[str]) -> np.ndarray:
  """Whether the same user's next item has the greater product number.

  Args:
    histories: all users.
    numbers: product number of each item.

  Returns:
    bool (interactions,); False at each user's last item, which has no next one.
  """
  order = np.unique(np.asarray(numbers), return_inverse=True)[1]
  number = order[histories.items]
  rising = np.zeros(len(number), bool)
  rising[:-1] = number[1:] > number[:-1]
  rising[histories.offsets[1:] - 1] = False
  return rising


def tied_share(rising_share: float) -> float:
  """The share of steps that are between ties: rising = tied + (1 - tied) / 2."""
  return max(0.0, 2 * rising_share - 1)


def shuffled(histories: Histories, numbers: Sequence[str], share: float, rng: np.random.Generator) -> Histories:
  """The same histories with ties in random order.

  Args:
    histories: all users.
    numbers: product number of each item.
    share: of the rising steps that are taken for ties, at random.
    rng: draws the ties and their order.
  """
  tied = rising_steps(histories, numbers)
  tied &= rng.random(len(tied)) < share
  group = np.concatenate([[0], np.cumsum(~tied[:-1])])
  order = np.lexsort((rng.random(len(group)), group))
  return dataclasses.replace(histories, items=histories.items[order])
