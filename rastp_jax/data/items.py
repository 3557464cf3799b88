"""Items of a catalogue: what the source says about each."""

import dataclasses
from collections.abc import Mapping

# Further columns that are kept wherever a source has them, because texts for embeddings often name them.
EXTRA = ("description", "features", "price")


@dataclasses.dataclass(frozen=True)
class Item:
  """What the catalogue says about one item; text that is not known is empty.

  Attributes:
    item_id: the source's own id.
    asin: Amazon's product number.
    title: product title.
    brand: maker.
    categories: category paths, most specific last, like "Beauty > Makeup > Nails".
    extra: further columns by name, like description, features and price; only those that have a value.
  """

  item_id: str
  asin: str = ""
  title: str = ""
  brand: str = ""
  categories: tuple[str, ...] = ()
  extra: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, hash=False)
