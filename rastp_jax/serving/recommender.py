"""Recommendations for any history, as a Python API.

    from rastp_jax import Recommender

    recommender = Recommender.load("runs/beauty")
    for item in recommender.recommend([["B004756YJA", "B004ZT0SSG"]], k=10)[0]:
      print(item.asin, item.title, item.score)

Every recommendation is an item of the catalogue, and no item comes twice: decoding is constrained to items whatever the
run's `eval.constrained` says.
"""

import collections
import dataclasses
import os
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from rastp_jax.data import histories as histories_lib
from rastp_jax.data.items import Item
from rastp_jax.data.sources.ids import cleaned
from rastp_jax.errors import InputError
from rastp_jax.generation.decode import item_tables, make_decode
from rastp_jax.generation.mixture import Answers
from rastp_jax.runtime import sharding
from rastp_jax.training import runs
from rastp_jax.training import workdir as workdir_lib
from rastp_jax.training.runs import SavedModel

DEFAULT_K = 10  # recommendations per user

# Users that may wait for their answer, in batches: bounds the memory of a long stream.
_WAITING_BATCHES = 32


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """One item for one user.

  Attributes:
    item_id: the source's own id.
    asin: Amazon's product number, empty if the source has none.
    title: product title, empty if unknown.
    score: the item's log-probability (natural logarithm) as the user's next one.
  """

  item_id: str
  asin: str
  title: str
  score: float


@dataclasses.dataclass(frozen=True)
class UserRecommendations:
  """The answer to one history.

  Attributes:
    recommendations: best first; k of them unless the catalogue has fewer, none if no item of the history is known.
    unknown_items: ids in the history that are not in the catalogue; the model does not read them.
  """

  recommendations: list[Recommendation]
  unknown_items: tuple[str, ...]


@dataclasses.dataclass(eq=False)
class _Query:
  """A user's history and, once decoded, the answer.

  Attributes:
    rows: int32, the known items of the history that the model reads, the most recent one last.
    unknown_items: ids of the others.
    shape: (items of the bucket, beams) of the program that decodes it.
    excluded: item rows to leave out.
    k: recommendations wanted.
    answer: None until it is decoded.
  """

  rows: np.ndarray
  unknown_items: tuple[str, ...]
  shape: tuple[int, int]
  excluded: frozenset[int]
  k: int
  answer: UserRecommendations | None = None


class Recommender:
  """A trained model with its catalogue.

  It compiles a program per bucket of history lengths and per beam width when it first needs it, and keeps it.

  Args:
    saved: a trained model, from `runs.load_model`.
    items: its catalogue, row = item.
  """

  def __init__(self, saved: SavedModel, items: Sequence[Item]):
    self.items = items
    self._config, self._mesh = saved.config, saved.mesh
    self._lengths = saved.lengths
    self._graph, self._params = nnx.split(saved.model)
    tables = item_tables(saved.semantic_ids, saved.histories, saved.config)
    self._tables = jax.device_put(tables, sharding.replicated(saved.mesh))
    self._decoders: dict[int, Callable[..., Answers]] = {}  # beam width -> compiled decoding
    devices = saved.mesh.shape["data"]
    self._batch_size = sharding.round_up(saved.config.eval.batch_size, devices)
    # A small batch is compiled besides the full one, so that few users do not wait for many rows of padding.
    self._small_batch_size = sharding.round_up(sharding.round_up(self._batch_size, 16) // 16, devices)
    self._rows = {item.item_id: row for row, item in enumerate(items)}
    for row, item in enumerate(items):
      if item.asin:
        self._rows.setdefault(item.asin, row)

  @classmethod
  def load(cls, workdir: str | os.PathLike, overrides: Sequence[str] = ()) -> "Recommender":
    """The best checkpoint of a training run.

    Args:
      workdir: of the run, finished or still running; or a directory above a single run.
      overrides: "SECTION.FIELD=VALUE" settings that differ from the run's, within `config.overridable`, like
        "data.data_dir=/data" where the dataset has moved, or "eval.beam_width=50".

    Raises:
      InputError: there is no such run, there are several below the directory (the sentence names them), or the run's
        data is not where its config says.
    """
    return cls.from_saved(runs.load_model(workdir_lib.find_run(workdir), overrides))

  @classmethod
  def from_saved(cls, saved: SavedModel) -> "Recommender":
    """A loaded model with the item table of its prepared dataset."""
    return cls(saved, histories_lib.load_items(saved.config.data.data_dir, saved.config.data.dataset))

  def recommend(
    self,
    histories: Iterable[Sequence[str | int]],
    k: int = DEFAULT_K,
    *,
    exclude_history: bool | None = None,
    beam_width: int | None = None,
  ) -> list[list[Recommendation]]:
    """The k most probable next items of each history, best first.

    Items that are not in the catalogue are left out, with a warning that counts them; a history without any known item
    gets an empty list.

    Args:
      histories: item ids in time order, the most recent one last; an id is the dataset's `item_id` or else its ASIN.
      k: recommendations per history; where it is more than the items of the catalogue, all of them.
      exclude_history: leave out the items of the history; the run's `eval.exclude_history` if not given. Exact:
        decoding keeps at least k plus the history's number of distinct items as beams, so that k remain; it takes
        longer.
      beam_width: beams per user, the run's `eval.beam_width` if not given. Where more are needed, it is doubled, so
        that few programs are compiled; there are never more beams than items. More beams find better items and take
        longer.

    Raises:
      InputError: k or beam_width is below 1, or a history is not a list of ids.
    """
    answers = list(self.stream(histories, k, exclude_history=exclude_history, beam_width=beam_width))
    unknown = [item for answer in answers for item in answer.unknown_items]
    if unknown:
      users = sum(bool(answer.unknown_items) for answer in answers)
      warnings.warn(
        f"{len(unknown)} items in {users} of {len(answers)} histories are not in the catalogue and were left out, like "
        f"{unknown[0]!r}.",
        stacklevel=2,
      )
    return [answer.recommendations for answer in answers]

  def warm_up(self, k: int = DEFAULT_K, *, exclude_history: bool | None = None, beam_width: int | None = None) -> None:
    """Compiles what `recommend` with these arguments needs, so that the first users do not wait for it.

    It takes seconds to a minute per length of `data.bucket_lengths`, once per process. `exclude_history` may still
    compile for users who have more distinct items than the longest of these lengths.
    """
    known = [item.item_id for item in self.items]
    for length in self._lengths:
      history = (known * -(-length // len(known)))[:length]
      for users in dict.fromkeys((1, self._batch_size)):
        for _ in self.stream([history] * users, k, exclude_history=exclude_history, beam_width=beam_width):
          pass

  def stream(
    self,
    histories: Iterable[Sequence[str | int]],
    k: int = DEFAULT_K,
    *,
    exclude_history: bool | None = None,
    beam_width: int | None = None,
  ) -> Iterator[UserRecommendations]:
    """`recommend` for any number of users in constant memory: takes histories as needed, yields answers in their order.

    Args and errors are those of `recommend`; there are no warnings, since each answer holds its unknown items.
    """
    beam_width = self._config.eval.beam_width if beam_width is None else beam_width
    excluding = self._config.eval.exclude_history if exclude_history is None else exclude_history
    for name, value in (("k", k), ("beam_width", beam_width)):
      if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={value!r} cannot be used: give a whole number of at least 1.")
    k = min(k, len(self.items))
    return self._answers(self._query(history, k, beam_width, excluding) for history in histories)

  def _answers(self, queries: Iterable[_Query]) -> Iterator[UserRecommendations]:
    queue = _Queue(self._decode, self._answer, self._batch_size)
    for query in queries:
      queue.add(query)
      yield from queue.take_answers()
    queue.decode_all()
    yield from queue.take_answers()

  def _query(self, history: Sequence[str | int], k: int, beam_width: int, exclude_history: bool) -> _Query:
    try:
      if isinstance(history, str | bytes | Mapping):
        raise TypeError
      ids = [_id(item) for item in history]
    except (TypeError, ValueError) as error:  # not iterable, or something else in it
      raise InputError(
        f"{_shown(history)} is not a history: expected a list of item ids, the most recent one last."
      ) from error
    known = [self._row(item) for item in ids]
    rows = np.asarray([row for row in known if row is not None], np.int32)
    max_items = self._config.data.max_items
    items = self._lengths[np.searchsorted(self._lengths, min(len(rows), max_items))]
    excluded = frozenset(rows.tolist()) if exclude_history else frozenset()
    # All items of the history are left out, those before the last `max_items` too.
    needed = k + max(items, len(excluded)) if exclude_history else k
    # Doubling from a width that depends neither on k nor on the user keeps the programs few.
    width = max(beam_width, DEFAULT_K + items) if exclude_history else beam_width
    while width < needed:
      width *= 2
    width = min(width, len(self.items))
    unknown = tuple(item for item, row in zip(ids, known, strict=True) if row is None)
    return _Query(rows[-max_items:], unknown, (items, width), excluded, k)

  def _row(self, item: str) -> int | None:
    row = self._rows.get(item)
    return self._rows.get(cleaned(item)) if row is None else row  # written otherwise than when it was prepared

  def _decode(self, batch: Sequence[_Query]) -> Answers:
    """Starts decoding queries of one shape."""
    items, width = batch[0].shape
    size = self._small_batch_size if len(batch) <= self._small_batch_size else self._batch_size
    rows = np.full((size, items), -1, np.int32)
    for index, query in enumerate(batch):
      rows[index, : len(query.rows)] = query.rows
    history = sharding.place_rows(rows, self._mesh)
    if width not in self._decoders:
      settings = dataclasses.replace(self._config.eval, beam_width=width, constrained=True)
      self._decoders[width] = make_decode(self._mesh, settings, self._config.counts)
    return self._decoders[width](self._graph, self._params, self._tables, history)

  def _answer(self, answers: Answers, batch: Sequence[_Query]) -> None:
    """Waits for a batch's decoding and turns it into its queries' answers."""
    rows = sharding.local_rows(answers.items).tolist()
    scores = sharding.local_rows(answers.log_probs).tolist()
    for query, query_rows, query_scores in zip(batch, rows, scores, strict=False):  # the last rows may be padding
      found = [
        (self.items[row], score)
        for row, score in zip(query_rows, query_scores, strict=True)
        if row >= 0 and row not in query.excluded  # -1: the catalogue has fewer items than beams
      ]
      best = [Recommendation(item.item_id, item.asin, item.title, score) for item, score in found[: query.k]]
      query.answer = UserRecommendations(best, query.unknown_items)


def is_id(item: Any) -> bool:
  """Whether a value may name an item: text or a whole number, which pandas writes as 242.0 where others are missing."""
  whole = isinstance(item, float) and item.is_integer()
  return isinstance(item, str | int) and not isinstance(item, bool) or whole


def _id(item: Any) -> str:
  """An item id as text. Raises TypeError or ValueError if it is none."""
  if not is_id(item):
    raise TypeError
  return str(item)  # ValueError: a number of thousands of digits


def _shown(history: Any) -> str:
  """A few of the values in a history, for people."""
  try:
    return reprlib.repr(history)
  except ValueError:  # a number of thousands of digits
    return f"A {type(history).__name__} with such numbers"


class _Queue:
  """Decodes queries in batches of one shape and returns their answers in the order of the queries.

  Args:
    decode: starts decoding a batch.
    answer: waits for the beams of a batch and sets its queries' answers.
    batch_size: of a full batch.
  """

  def __init__(
    self,
    decode: Callable[[Sequence[_Query]], Answers],
    answer: Callable[[Answers, Sequence[_Query]], None],
    batch_size: int,
  ):
    self._decode, self._answer, self._batch_size = decode, answer, batch_size
    self._in_order: collections.deque[_Query] = collections.deque()  # every query whose answer was not taken yet
    self._waiting: dict[tuple[int, int], list[_Query]] = {}  # shape -> queries for the next batch of that shape
    # Batches on the devices; the previous one is converted meanwhile.
    self._decoding: collections.deque[tuple[Answers, list[_Query]]] = collections.deque()

  def add(self, query: _Query) -> None:
    """Decodes a batch if this query fills one, or if too many queries wait for the oldest one."""
    self._in_order.append(query)
    if not len(query.rows):
      query.answer = UserRecommendations([], query.unknown_items)
    else:
      self._waiting.setdefault(query.shape, []).append(query)
      if len(self._waiting[query.shape]) == self._batch_size:
        self._start(query.shape)
    oldest = self._in_order[0]
    if len(self._in_order) > _WAITING_BATCHES * self._batch_size and oldest.answer is None:
      if oldest in self._waiting.get(oldest.shape, []):  # its shape is rare: a full batch may never come
        self._start(oldest.shape)
      self._finish(left=0)

  def decode_all(self) -> None:
    """Answers every query, in batches that are not full where need be."""
    for shape in list(self._waiting):
      self._start(shape)
    self._finish(left=0)

  def take_answers(self) -> Iterator[UserRecommendations]:
    """The answers that are next in order."""
    while self._in_order and (answer := self._in_order[0].answer) is not None:
      self._in_order.popleft()
      yield answer

  def _start(self, shape: tuple[int, int]) -> None:
    batch = self._waiting.pop(shape)
    self._decoding.append((self._decode(batch), batch))
    self._finish(left=1)

  def _finish(self, left: int) -> None:
    while len(self._decoding) > left:
      self._answer(*self._decoding.popleft())
