"""Which of a user's items are held out. `prepared.prepare` arranges every source's rows by it.

Whatever the split, the prepared rows have one form: users who are evaluated come first, each with the test target as
the last item and the validation target before it; then users whose items are all for training.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rastp_jax.config import DataConfig
from rastp_jax.data.sources.source import RawData
from rastp_jax.errors import InputError

# Validation and test each take one item as target, and validation needs a history of at least one more.
MIN_ITEMS = 3
SETTINGS = ("split", "time_cut", "hold_out")
# What a split by time leaves out, as `Rows.counts` calls it.
LATER = "interactions after data.time_cut left out"
TOO_FEW = "users with too few interactions before data.time_cut left out"

# Digits before the point that numbers have now: seconds 10, milliseconds 13, microseconds 16, nanoseconds 19.
_UNITS = {1e11: 1, 1e14: 10**3, 1e17: 10**6, np.inf: 10**9}


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """Users' items end to end, evaluated users first.

  Attributes:
    user_ids: large_string, one per user.
    items: int32 (interactions,).
    offsets: int64 (users + 1,).
    evaluated: users with a validation and a test target.
    counts: how many users and interactions were treated in which way.
    notes: what was done, in sentences.
  """

  user_ids: pa.Array
  items: np.ndarray
  offsets: np.ndarray
  evaluated: int
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Split:
  """How users' items are held out.

  Attributes:
    split: "leave_one_out": everybody's last two items. "time": what comes after a moment.
    time_cut: that moment: a date, a time in the unit of the file, or the last share of all interactions.
    hold_out: items of an evaluated user that are held out, 2; 0: none, everything is for training.
  """

  split: str = "leave_one_out"
  time_cut: str = "0.1"
  hold_out: int = 2

  @classmethod
  def of(cls, config: DataConfig) -> "Split":
    return cls(config.split, config.time_cut, config.hold_out)

  @property
  def settings(self) -> dict[str, Any]:
    """What differs from leave-one-out, so that datasets without it stay what they are."""
    if not self.hold_out:
      return {"hold_out": 0}
    return {"split": self.split, "time_cut": self.time_cut} if self.split == "time" else {}

  def fingerprint(self, source: str) -> str:
    """Identifies a source's rows under this split."""
    if not self.settings:
      return source
    return hashlib.sha256(f"{source} {json.dumps(self.settings, sort_keys=True)}".encode()).hexdigest()

  def apply(self, raw: RawData, where: str) -> Rows:
    """Arranges the rows.

    Raises:
      InputError: there are no times to split by, or nobody is left to evaluate.
    """
    if self.split == "time" and self.hold_out:
      return self._by_time(raw, where)
    lengths = np.diff(raw.offsets)
    keep = lengths >= MIN_ITEMS
    user_ids, items, offsets = raw.user_ids, raw.items, raw.offsets
    if not keep.all():
      offsets = np.concatenate([[0], np.cumsum(lengths[keep])])
      user_ids, items = raw.user_ids.filter(pa.array(keep)), raw.items[np.repeat(keep, lengths)]
    if self.hold_out:
      return Rows(user_ids, items, offsets, len(user_ids))
    note = "nothing is held out (data.hold_out=0): all interactions are for training, and nothing can be evaluated"
    return Rows(user_ids, items, offsets, 0, notes=(note,))

  def _by_time(self, raw: RawData, where: str) -> Rows:
    times = raw.times
    if times is None or not len(times):
      raise InputError(f"{where} has no times, which data.split='time' needs: use data.split='leave_one_out'.")
    moment = self._moment(times)
    sums = np.concatenate([[0], np.cumsum(times < moment)])
    before = sums[raw.offsets[1:]] - sums[raw.offsets[:-1]]  # a user's times rise, so that these come first
    after = np.diff(raw.offsets) - before
    evaluated = np.flatnonzero((before >= MIN_ITEMS - 1) & (after >= 1))
    others = np.flatnonzero((before >= 2) & (after == 0))
    if not len(evaluated):
      raise InputError(
        f"{where} has no user with two interactions before config.data.time_cut={self.time_cut!r} and one after it: "
        "choose another moment."
      )
    users = np.concatenate([evaluated, others])
    lengths = before[users] + (after[users] > 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(offsets[-1]) + np.repeat(raw.offsets[users] - offsets[:-1], lengths)
    items = raw.items[place]
    trained = np.ones(len(items), bool)
    stops = offsets[1 : len(evaluated) + 1]
    trained[stops - 1] = trained[stops - 2] = False
    seen = np.bincount(items[trained], minlength=raw.num_items) > 0
    counts = {
      "users evaluated: by their first interaction after data.time_cut, and validated by the one before it": len(
        evaluated
      ),
      "users with interactions before data.time_cut only (for training)": len(others),
      TOO_FEW: len(before) - len(users),
      LATER: int(after.sum()) - len(evaluated),
      "test targets that training never sees (cold items)": int((~seen[items[stops - 1]]).sum()),
    }
    note = f"split at {self._shown(moment, times)}: what comes before is for training"
    return Rows(raw.user_ids.take(pa.array(users)), items, offsets, len(evaluated), counts, (note,))

  def _moment(self, times: np.ndarray) -> float:
    text = self.time_cut.strip()
    try:
      number = float(text)
    except ValueError:
      moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))  # config.data.check has read it
      moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
      return moment.timestamp() * _unit(times)
    if not 0 < number < 1:
      return number
    place = min(int(len(times) * (1 - number)), len(times) - 1)
    return np.partition(times, place)[place]

  def _shown(self, moment: float, times: np.ndarray) -> str:
    seconds = float(moment) / _unit(times)
    if not 1e8 < seconds < 1e10:  # numbers that are not times of day count as they are
      return f"{moment:g}"
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


LEAVE_ONE_OUT = Split()


def _unit(times: np.ndarray) -> int:
  """Parts per second that times are counted in, told by how large they are."""
  largest = float(np.abs(times).max())
  return next(unit for limit, unit in _UNITS.items() if largest < limit)
