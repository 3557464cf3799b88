"""Recommendations for anybody's history, as a Python API.

    from rastp_jax import Recommender

    recommender = Recommender.load("runs/beauty")
    for item in recommender.recommend([["B004756YJA", "B004ZT0SSG"]], k=10)[0]:
      print(item.asin, item.title, item.score)

Every answer is an item of the catalogue and none comes twice, whatever the run's `eval.constrained` says: a
recommendation has to exist.
"""

import collections
import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from rastp_jax import loading, sharding
from rastp_jax.data import histories as histories_lib
from rastp_jax.decoding import make_decode
from rastp_jax.errors import InputError
from rastp_jax.loading import SavedModel
from rastp_jax.model.beam_search import Beams
from rastp_jax.semantic_ids.embeddings import Item
from rastp_jax.semantic_ids.trie import build_transitions

# Users that may wait for a batch of their shape to fill, in batches: what bounds the memory of a long stream.
_WAITING_BATCHES = 32


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """One item for one user.

  Attributes:
    item_id: the source's own id.
    asin: Amazon's product number, empty if the source has none.
    title: product title, empty if not known.
    score: the item's log-probability (natural logarithm) as the user's next one.
  """

  item_id: str
  asin: str
  title: str
  score: float


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a user gets.

  Attributes:
    recommendations: best first; k of them unless the catalogue has fewer, none if no item of the history is known.
    unknown_items: ids in the history that the catalogue lacks; the model did not see them.
  """

  recommendations: list[Recommendation]
  unknown_items: tuple[str, ...]


@dataclasses.dataclass(eq=False)
class _Query:
  """A user between asking and being answered: `shape` is (items of the bucket, beams) of the program that answers."""

  rows: np.ndarray
  unknown_items: tuple[str, ...]
  shape: tuple[int, int]
  excluded: frozenset[int]
  answer: Answer | None = None


class Recommender:
  """A trained model with its catalogue.

  It compiles a program for each history length bucket (and beam width) it meets, and keeps it.

  Args:
    saved: a trained model, from `loading.load_model`.
    items: its catalogue, row = item.
  """

  def __init__(self, saved: SavedModel, items: Sequence[Item]):
    self.items = items
    self._config, self._mesh, self._semantic_ids = saved.config, saved.mesh, saved.semantic_ids
    self._graph, self._params = nnx.split(saved.model)
    transitions = build_transitions(saved.semantic_ids.codes)
    self._transitions = jax.device_put(transitions, sharding.replicated(saved.mesh))
    self._decoders = {}  # beam width -> compiled decoding
    devices = saved.mesh.shape["data"]
    self._batch_size = _round_up(saved.config.eval.batch_size, devices)
    # A handful of users should not wait for the arithmetic of a full batch: two numbers of rows are compiled.
    self._few = _round_up(-(-self._batch_size // 16), devices)
    self._rows = {item.item_id: row for row, item in enumerate(items)}
    for row, item in enumerate(items):
      if item.asin:
        self._rows.setdefault(item.asin, row)

  @classmethod
  def load(cls, workdir: str | os.PathLike, overrides: Sequence[str] = ()) -> "Recommender":
    """The best checkpoint of a training run.

    Args:
      workdir: of the run, finished or still going on.
      overrides: "SECTION.FIELD=VALUE" settings that differ from the run's, within `loading.OVERRIDABLE`, like
        "data.data_dir=/data" where the dataset has moved, or "eval.beam_width=50".

    Raises:
      InputError: there is no such run, or its data is not where its config says.
    """
    return cls.from_saved(loading.load_model(workdir, overrides))

  @classmethod
  def from_saved(cls, saved: SavedModel) -> "Recommender":
    """A loaded model with the item table of its prepared dataset."""
    return cls(saved, histories_lib.load_items(saved.config.data.data_dir, saved.config.data.dataset))

  def recommend(
    self,
    histories: Iterable[Sequence[str | int]],
    k: int = 10,
    *,
    exclude_history: bool = False,
    beam_width: int | None = None,
  ) -> list[list[Recommendation]]:
    """The k most probable next items of each history, best first.

    Items the catalogue does not know are left out, with a warning that counts them; a history without any known item
    gets an empty list.

    Args:
      histories: item ids in time order, the most recent one last; an id is the dataset's `item_id` or else its ASIN.
      k: recommendations a history.
      exclude_history: leave out what is in the history. Exact: decoding keeps at least k plus the history's number of
        distinct items as beams (rounded up, so that few programs are compiled), so that k remain; it takes longer.
      beam_width: beams a user, the run's `eval.beam_width` if not given; never fewer than needed. More find better
        items and take longer.

    Raises:
      InputError: k or beam_width is below 1, or a history is no list of ids.
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

  def stream(
    self,
    histories: Iterable[Sequence[str | int]],
    k: int = 10,
    *,
    exclude_history: bool = False,
    beam_width: int | None = None,
  ) -> Iterator[Answer]:
    """`recommend` for any number of users in constant memory: takes histories as needed, yields answers in their order.

    Args and errors are those of `recommend`; there are no warnings, since each answer tells its unknown items.
    """
    beam_width = self._config.eval.beam_width if beam_width is None else beam_width
    for name, value in (("k", k), ("beam_width", beam_width)):
      if not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r} makes no sense: give a whole number of at least 1.")
    queries = (self._query(history, k, beam_width, exclude_history) for history in histories)
    return self._answers(queries, k)

  def _query(self, history: Sequence[str | int], k: int, beam_width: int, exclude_history: bool) -> _Query:
    if isinstance(history, str) or not all(isinstance(item, str | int) for item in history):
      raise InputError(f"{history!r} is no history: expected a list of item ids, the most recent one last.")
    ids = [str(item) for item in history]
    rows = np.asarray([self._rows[item] for item in ids if item in self._rows], np.int32)
    data = self._config.data
    items = data.bucket_items[np.searchsorted(data.bucket_items, min(len(rows), data.max_items))]
    excluded = frozenset(rows.tolist()) if exclude_history else frozenset()
    width = max(beam_width, k + items) if exclude_history else max(beam_width, k)
    # The whole history is left out, also what the model no longer reads of it. Doubling keeps the widths few.
    while width < k + len(excluded):
      width *= 2
    return _Query(rows[-data.max_items :], tuple(i for i in ids if i not in self._rows), (items, width), excluded)

  def _answers(self, queries: Iterable[_Query], k: int) -> Iterator[Answer]:
    owed = collections.deque()  # in the order in which they were asked
    waiting = collections.defaultdict(list)  # shape -> queries for the next batch of that shape
    decoding = collections.deque()  # one batch is being decoded while the one before it is put into words

    def decode(shape):
      batch = waiting.pop(shape)
      decoding.append((self._decode(batch, shape), batch))

    def finish(left: int):
      while len(decoding) > left:
        beams, batch = decoding.popleft()
        self._fill(beams, batch, k)

    for query in queries:
      owed.append(query)
      if not len(query.rows):
        query.answer = Answer([], query.unknown_items)
      else:
        waiting[query.shape].append(query)
        if len(waiting[query.shape]) == self._batch_size:
          decode(query.shape)
          finish(left=1)
      if len(owed) > _WAITING_BATCHES * self._batch_size and owed[0].answer is None:
        if owed[0] in waiting[owed[0].shape]:  # of a rare shape, whose batch would take for ever to fill
          decode(owed[0].shape)
        finish(left=0)
      while owed and owed[0].answer is not None:
        yield owed.popleft().answer
    for shape in [shape for shape, batch in waiting.items() if batch]:
      decode(shape)
      finish(left=1)
    finish(left=0)
    yield from (query.answer for query in owed)

  def _decode(self, batch: Sequence[_Query], shape: tuple[int, int]) -> Beams:
    items, width = shape
    rows = self._few if len(batch) <= self._few else self._batch_size
    history = np.full((rows, items, self._semantic_ids.depth), -1, np.int32)
    for place, query in enumerate(batch):
      history[place, : len(query.rows)] = self._semantic_ids.codes[query.rows]
    placed = sharding.place_batch({"history": history}, self._mesh)["history"]
    if width not in self._decoders:
      self._decoders[width] = make_decode(self._mesh, width, renormalize=self._config.eval.renormalize)
    return self._decoders[width](self._graph, self._params, self._transitions, placed)

  def _fill(self, beams: Beams, batch: Sequence[_Query], k: int) -> None:
    rows = self._semantic_ids.items_of(sharding.local_rows(beams.codes)).tolist()
    scores = sharding.local_rows(beams.log_probs).tolist()
    for query, query_rows, query_scores in zip(batch, rows, scores, strict=False):
      found = [
        Recommendation(item.item_id, item.asin, item.title, score)
        for item, score in (
          (self.items[row], score)
          for row, score in zip(query_rows, query_scores, strict=True)
          if row >= 0 and row not in query.excluded  # fewer items than beams leave beams that are none
        )
      ]
      query.answer = Answer(found[:k], query.unknown_items)


def _round_up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple
