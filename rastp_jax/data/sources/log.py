"""A log of interactions, and how it becomes histories: time order, repeats, k-core."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rastp_jax.data.sources import times

# A user or an item with more than this share of all rows, and this many times the rows of the usual one, is doubted.
_SHARE, _TIMES_USUAL = 0.05, 5
_FEW = 20  # rows that never are
_SHARE_OF_UNKNOWN = 0.01  # ... of one whose name often stands for an unknown one
_UNKNOWN = {
  "na",
  "n/a",
  "nan",
  "null",
  "none",
  "nil",
  "0",
  "-1",
  "unknown",
  "undefined",
  "anonymous",
  "guest",
  "(null)",
  "\\n",
}
_SUSPECTS = 3  # looked at
# The first moment, in 1973, that a number stands for if it is one of these since 1970; a hundred times it is in 2286.
_UNITS = {"seconds": 1e8, "milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17}


@dataclasses.dataclass(eq=False)
class Log:
  """Interactions in file order, and the steps that turn them into histories. Each step replaces the arrays it changes.

  Attributes:
    users: int32 (n,), numbers into `user_ids`.
    items: int32 (n,), numbers into `item_ids`.
    times: int64 or float64 (n,).
    user_ids: large_string, in the order of first appearance.
    item_ids: large_string, in the order of first appearance.
    counts: how many rows each step left out, see `RawData.counts`.
    notes: what is doubtful, see `RawData.notes`.
  """

  users: np.ndarray
  items: np.ndarray
  times: np.ndarray
  user_ids: pa.Array
  item_ids: pa.Array
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)

  def doubt(self) -> None:
    """Notes what is read as it stands and is probably not meant so."""
    self._doubt_shares()
    for what, ids in (("user", self.user_ids), ("item", self.item_ids)):
      scientific = pc.match_substring_regex(ids, f"^{times.SCIENTIFIC.pattern}$")  # pyright: ignore[reportAttributeAccessIssue]
      first = pc.index(scientific, True).as_py()
      if first >= 0:
        self.notes.append(
          f"WARNING: {what} ids like {ids[first].as_py()!r} are rounded numbers, as spreadsheets write them; what "
          f"differs only in lost digits is now one {what}: write the ids again as text"
        )
    units = {name for name, start in _UNITS.items() for time in _ends(self.times) if start <= time < 100 * start}
    if len(units) > 1:
      self.notes.append(f"WARNING: some times are in {' and others in '.join(sorted(units))}; write all in one unit")

  def _doubt_shares(self) -> None:
    """Notes users and items with an unlikely share of all rows: names that stand for an unknown one, mostly."""
    for what, numbers, ids in (("user", self.users, self.user_ids), ("item", self.items, self.item_ids)):
      rows = np.bincount(numbers, minlength=len(ids))
      usual = max(float(np.median(rows)), 1.0)
      for number in np.argsort(-rows, kind="stable")[:_SUSPECTS].tolist():
        name, share = ids[number].as_py(), rows[number] / len(numbers)
        unknown = name.strip().lower() in _UNKNOWN and rows[number] > 2 * usual
        if (
          rows[number] >= _FEW
          and share > (_SHARE_OF_UNKNOWN if unknown else _SHARE)
          and (unknown or rows[number] > _TIMES_USUAL * usual)
        ):
          self.notes.append(
            f"WARNING: {what} {name!r} has {rows[number]} of the {len(numbers)} interactions ({100 * share:.0f} %); if "
            f"that stands for an unknown {what}, remove these rows"
          )

  def sort(self, repeats: str, *, keep_times: bool = False) -> None:
    """Orders by user, then time, then position in the file, and drops repeated interactions.

    Args:
      repeats: "keep" drops rows with the user, item and time of an earlier row; "first" those with its user and item;
        "consecutive" those of "keep", and those whose user's row before it has the same item.
      keep_times: the times are needed later.
    """
    self.counts["interactions read"] = len(self.users)
    order = np.lexsort((self.times, self.users))  # stable
    self.times, self.users, self.items = self.times[order], self.users[order], self.items[order]
    del order
    tied = _tied(self.users, self.times)
    # Comparing needs some 30 bytes per row, so only rows that can repeat another are compared.
    where = np.arange(len(tied)) if repeats == "first" else np.flatnonzero(tied)
    alike = (self.users,) if repeats == "first" else (self.users, self.times)
    again = where[_again([self.items[where], *(column[where] for column in alike)])]
    self.counts["repeated interactions left out"] = len(again)
    if len(again):
      keep = np.ones(len(tied), bool)
      keep[again] = False
      self.users, self.items, self.times = self.users[keep], self.items[keep], self.times[keep]
      tied = _tied(self.users, self.times)
    self.counts["interactions at the same time as another of their user (file order decides)"] = int(tied.sum())
    if repeats == "consecutive":
      self._drop_consecutive()
    if not keep_times:
      self.times = self.times[:0].copy()  # frees the timestamps: the order now encodes them

  def _drop_consecutive(self) -> bool:
    """Drops rows whose user's row before has the same item; whether there were any."""
    keep = np.ones(len(self.users), bool)
    keep[1:] = (self.users[1:] != self.users[:-1]) | (self.items[1:] != self.items[:-1])
    what = "consecutive interactions with the same item left out"
    self.counts[what] = self.counts.get(what, 0) + int(len(keep) - keep.sum())
    self._select(keep)
    return not keep.all()

  def _select(self, keep: np.ndarray) -> None:
    if len(self.times):
      self.times = self.times[keep]
    self.users, self.items = self.users[keep], self.items[keep]

  def k_core(self, min_user: int, min_item: int, *, consecutive: bool = False) -> None:
    """Drops users with fewer than min_user interactions and items with fewer than min_item, until none is left.

    With `consecutive`, also rows that an item's leaving has made equal to the one before.
    """
    users, items = len(self.user_ids), len(self.item_ids)
    kept = len(self.users)
    while True:
      enough = np.bincount(self.users, minlength=users) >= min_user
      keep = enough[self.users]
      enough = np.bincount(self.items, minlength=items) >= min_item
      keep &= enough[self.items]
      if keep.all():
        if not consecutive or not self._drop_consecutive():
          break
      else:
        self._select(keep)
    self.counts["interactions left out by data.k_core and data.min_length"] = kept - len(self.users)

  def histories(self) -> tuple[pa.Array, np.ndarray, np.ndarray, pa.Array]:
    """User ids, items and offsets (see `RawData`), and item ids, of the users and items that are left.

    Both keep the order of their first appearance in the file.
    """
    lengths = np.bincount(self.users, minlength=len(self.user_ids))
    present = np.bincount(self.items, minlength=len(self.item_ids)) > 0
    rows = (np.cumsum(present, dtype=np.int32) - 1)[self.items] if len(self.items) else self.items
    self.counts["users left out"] = int(np.count_nonzero(lengths == 0))
    self.counts["items left out"] = int(np.count_nonzero(~present))
    user_ids, item_ids = self.user_ids.filter(pa.array(lengths > 0)), self.item_ids.filter(pa.array(present))
    return user_ids, rows, np.concatenate([[0], np.cumsum(lengths[lengths > 0])]), item_ids


def _ends(times: np.ndarray) -> tuple[float, ...]:
  return (float(times.min()), float(times.max())) if len(times) else ()


def _tied(users: np.ndarray, times: np.ndarray) -> np.ndarray:
  """Marks sorted rows that share user and time with a neighbour, bool (n,)."""
  tied = np.zeros(len(users), bool)
  tied[1:] = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
  tied[:-1] |= tied[1:]
  return tied


def _again(columns: list[np.ndarray]) -> np.ndarray:
  """Numbers of the rows that equal an earlier row in all columns."""
  order = np.lexsort(columns)  # stable: among equals the first stays first
  same = np.ones(max(len(order) - 1, 0), bool)
  for column in columns:
    same &= column[order[1:]] == column[order[:-1]]
  return order[1:][same]
