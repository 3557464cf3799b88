"""The prepared dataset as flat arrays, and the leave-one-out split. Nothing else knows which items are held out."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rastp_jax.data import amazon_reviews
from rastp_jax.data.amazon_reviews import Item
from rastp_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
  """All users' items end to end.

  A *sample* is a pair of absolute positions (start, end) into `items`: its history is items[start : end - 1], its
  target items[end - 1].

  Attributes:
    items: int32 (interactions,), 0-based item rows, each user's in time order.
    offsets: int64 (users + 1,); user u owns items[offsets[u] : offsets[u + 1]], at least 3 of them.
    num_items: items in the catalogue; every entry of `items` is below it.
    user_ids: the source's user ids, one a user.
    fingerprint: identifies the source the dataset was prepared from.
  """

  items: np.ndarray
  offsets: np.ndarray
  num_items: int
  user_ids: Sequence[str]
  fingerprint: str

  @property
  def num_users(self) -> int:
    return len(self.offsets) - 1

  def spans(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """One held-out sample a user, in user order: "test" has the last item as target, "validation" the one before.

    Returns:
      (start, end), int64 (users,) each: absolute positions; the history is all the user's items before the target.

    Raises:
      InputError: split is neither "validation" nor "test".
    """
    held_back = {"test": 0, "validation": 1}
    if split not in held_back:
      raise InputError(f"There is no split {split!r}: expected validation or test.")
    return self.offsets[:-1].copy(), self.offsets[1:] - held_back[split]

  def training_spans(self) -> tuple[np.ndarray, np.ndarray]:
    """Each user's region without the two held-out items: any sample with first <= start < end - 1 < stop is fit.

    Returns:
      (first, stop), int64 (users,) each: absolute positions, `stop` exclusive. A user with 3 items has a region of
      one item, which holds no sample.
    """
    return self.offsets[:-1].copy(), self.offsets[1:] - 2


def load(data_dir: str, dataset: str) -> Histories:
  """Reads a prepared dataset's histories, users in source order.

  Raises:
    InputError: the dataset is not prepared under data_dir; the sentence names the command that does it.
  """
  prepared = amazon_reviews.open_prepared(data_dir, dataset)
  user_ids, items, offsets = prepared.histories()
  return Histories(items, offsets, prepared.num_items, user_ids, prepared.fingerprint)


def load_items(data_dir: str, dataset: str) -> list[Item]:
  """Reads a prepared dataset's item table, row = item.

  Raises:
    InputError: the dataset is not prepared under data_dir; the sentence names the command that does it.
  """
  return amazon_reviews.open_prepared(data_dir, dataset).items()
