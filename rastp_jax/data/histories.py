"""The prepared dataset as flat arrays, and what of it is held out. Nothing else knows which items these are."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rastp_jax.data import prepared as prepared_lib
from rastp_jax.data.items import Item
from rastp_jax.data.prepared import Prepared
from rastp_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
  """All users' items end to end.

  A *sample* is a pair of absolute positions (start, end) into `items`: its history is items[start : end - 1], its
  target items[end - 1].

  Attributes:
    items: int32 (interactions,), 0-based item rows, each user's in time order.
    offsets: int64 (users + 1,); user u owns items[offsets[u] : offsets[u + 1]], at least 3 of them. These users have a
      validation and a test target: their last two items.
    num_items: items in the catalogue; every entry of `items` is below it.
    user_ids: the source's user ids, one per user; of a prepared dataset, read only when they are asked for.
    fingerprint: identifies the source the dataset was prepared from.
    train_only: int64 (others + 1,): the same for users with no held-out item (data.split, data.hold_out), whose items
      follow; None where there are none.
  """

  items: np.ndarray
  offsets: np.ndarray
  num_items: int
  user_ids: Sequence[str]
  fingerprint: str
  train_only: np.ndarray | None = None

  @property
  def num_users(self) -> int:
    """Users with held-out items."""
    return len(self.offsets) - 1

  def spans(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """One held-out sample per user, in user order: "test" has the last item as target, "validation" the one before.

    Returns:
      (start, end), int64 (users,) each: absolute positions; the history is all the user's items before the target.

    Raises:
      InputError: split is neither "validation" nor "test", or nothing is held out.
    """
    held_back = {"test": 0, "validation": 1}
    if split not in held_back:
      raise InputError(f"There is no split {split!r}: expected validation or test.")
    if not self.num_users:
      raise InputError(
        f"This dataset holds nothing out (data.hold_out=0), so there is no {split} split to evaluate on: evaluate a "
        "model of the same data prepared with data.hold_out=2, under another config.data.dataset."
      )
    return self.offsets[:-1].copy(), self.offsets[1:] - held_back[split]

  def training_spans(self) -> tuple[np.ndarray, np.ndarray]:
    """Each user's region without held-out items: samples with first <= start < end - 1 < stop may be used.

    Returns:
      (first, stop), int64 (users + others,) each: absolute positions, `stop` exclusive; users without held-out items
      come last. A user with 3 items of which 2 are held out has a region of one item, which contains no sample.
    """
    first, stop = self.offsets[:-1].copy(), self.offsets[1:] - 2
    if self.train_only is None:
      return first, stop
    return np.concatenate([first, self.train_only[:-1]]), np.concatenate([stop, self.train_only[1:]])

  def training_counts(self) -> np.ndarray:
    """How often each item occurs where training may look, int64 (num_items,): held-out items do not count.

    A user whose training region is a single item has no training sample, so that item does not count either.
    """
    first, stop = self.training_spans()
    usable = stop - first >= 2
    change = np.zeros(len(self.items) + 1, np.int64)
    np.add.at(change, first[usable], 1)
    np.add.at(change, stop[usable], -1)
    return np.bincount(self.items[np.cumsum(change)[:-1] > 0], minlength=self.num_items)


def read(prepared: Prepared) -> Histories:
  """Reads a prepared dataset's histories, users in source order."""
  items, offsets = prepared.histories()
  evaluated = prepared.num_users if prepared.evaluated is None else prepared.evaluated
  return Histories(
    items,
    offsets[: evaluated + 1],
    prepared.num_items,
    prepared.user_ids[:evaluated],
    prepared.fingerprint,
    offsets[evaluated:] if evaluated < prepared.num_users else None,
  )


def load(data_dir: str, dataset: str) -> Histories:
  """Reads a prepared dataset's histories, users in source order.

  Raises:
    InputError: the dataset is not prepared under data_dir; the sentence names the command that does it.
  """
  return read(prepared_lib.open_prepared(data_dir, dataset))


def load_items(data_dir: str, dataset: str) -> list[Item]:
  """Reads a prepared dataset's item table, row = item.

  Raises:
    InputError: the dataset is not prepared under data_dir; the sentence names the command that does it.
  """
  return prepared_lib.open_prepared(data_dir, dataset).items
