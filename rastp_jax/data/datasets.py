"""The datasets that this program knows by name, one entry each. Any other name is a dataset of the user's own."""

import dataclasses
import difflib
from collections.abc import Callable

from rastp_jax.data.sources.source import Source
from rastp_jax.data.sources.synthetic import SyntheticSource
from rastp_jax.data.sources.synthetic_long import SyntheticLongSource


@dataclasses.dataclass(frozen=True)
class NamedDataset:
  """What is known of a dataset.

  Attributes:
    description: one sentence.
    users: published number of users, checked when given.
    items: published number of items, checked when given.
    interactions: published number of interactions, checked when given.
    category: of the Amazon 2014 files, which can be downloaded; None for other datasets.
    source: makes its source where that needs no files.
  """

  description: str
  users: int | None = None
  items: int | None = None
  interactions: int | None = None
  category: str | None = None
  source: Callable[[], Source] | None = None


_AMAZON = "Amazon 2014 5-core reviews, category {}: each user's items in time order (McAuley et al., 2015)."
DATASETS: dict[str, NamedDataset] = {
  "beauty": NamedDataset(_AMAZON.format("Beauty"), 22363, 12101, 198502, category="Beauty"),
  "sports": NamedDataset(_AMAZON.format("Sports and Outdoors"), 35598, 18357, 296337, category="Sports_and_Outdoors"),
  "toys": NamedDataset(_AMAZON.format("Toys and Games"), 19412, 11924, 167597, category="Toys_and_Games"),
  "synthetic": NamedDataset(
    "Generated walks with planted structure (data/sources/synthetic.py).", source=SyntheticSource
  ),
  "synthetic_long": NamedDataset(
    "Generated histories of 50 to 200 items in which old ones matter.", source=SyntheticLongSource
  ),
}
_OWN = NamedDataset("Of the user's own.")


def named(name: str) -> NamedDataset:
  """The dataset of that name; without sizes or files if it is the user's own."""
  return DATASETS.get(name, _OWN)


def hint(name: str) -> str:
  """How a sentence about a dataset that was not found ends: with the name that was meant, if `name` is a slip of it."""
  close = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.8)
  # "beuty" is a slip, "beauty" and "beauty_2023" are not.
  return f"; did you mean {close[0]!r}?" if close and close[0] not in name else "."
