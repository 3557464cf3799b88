"""What sources share that are generated from a seed."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rastp_jax.data.items import Item
from rastp_jax.data.sources.raw_files import flatten
from rastp_jax.data.sources.source import RawData


class Generated:
  """Base of generated sources, which tell `where`, `num_items`, their users, items and embeddings.

  Attributes:
    where: what messages call the source.
    settings: none.
    num_items: of the catalogue.
  """

  where: str
  settings: Mapping[str, Any] = {}
  num_items: int

  def users(self) -> Iterator[tuple[str, list[int]]]:
    """Yields (user id, item rows from 0 in time order)."""
    raise NotImplementedError

  def items(self) -> Iterator[Item]:
    """All items, row = item."""
    raise NotImplementedError

  def embeddings(self, num_items: int) -> np.ndarray:
    """float32 (num_items, features)."""
    raise NotImplementedError

  def fingerprint(self) -> str:
    """sha256 over all generated values: it changes when the generator does."""
    digest = hashlib.sha256(self.embeddings(self.num_items).tobytes())
    for user, items in self.users():
      digest.update(f"{user} {' '.join(map(str, items))}\n".encode())
    for item in self.items():
      digest.update(f"{item}\n".encode())
    return digest.hexdigest()

  def read(self) -> RawData:
    user_ids, histories = zip(*self.users(), strict=True)
    return RawData(pa.array(user_ids, pa.large_string()), *flatten(histories), self.items(), self.num_items)
