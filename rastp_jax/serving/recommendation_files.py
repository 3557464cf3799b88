"""Reads histories and writes recommendations, in constant memory: JSON lines, or CSV under a name that ends with .csv.

A line of the input:   {"user": "A1", "history": ["B004756YJA", "B004ZT0SSG"]}
A line of the output:  {"user": "A1", "recommendations": [{"item_id": …, "asin": …, "title": …, "score": …}, …],
                        "unknown_items": 0}
The same as CSV:       user,rank,item_id,asin,title,score, a row per recommendation, ranks from 1

`asin` is there where the catalogue has ASINs. Files whose name ends with .gz are compressed.
"""

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import tqdm

from rastp_jax.data import prepared
from rastp_jax.data.histories import Histories
from rastp_jax.data.items import Item
from rastp_jax.errors import InputError
from rastp_jax.runtime import files
from rastp_jax.serving.recommender import Recommendation, Recommender, UserRecommendations
from rastp_jax.training import runs
from rastp_jax.training.workdir import Workdir

# The memory that a line costs is bounded by it: some fifty thousand items.
MAX_LINE_BYTES = 1_000_000

Line = tuple[Any, Sequence[str | int]]  # a user, whatever JSON value names them, and their history


@dataclasses.dataclass
class FileSummary:
  """Counts over the users of a file.

  Attributes:
    users: lines written.
    recommendations: items recommended, over all users.
    without_answer: users without a single known item.
    unknown_items: items of histories that are not in the catalogue, repetitions included.
    users_with_unknown: users who have such items.
    example: one of them.
    seconds: for everything but loading the model.
  """

  users: int = 0
  recommendations: int = 0
  without_answer: int = 0
  unknown_items: int = 0
  users_with_unknown: int = 0
  example: str = ""
  seconds: float = 0.0

  def add(self, answer: UserRecommendations) -> None:
    self.users += 1
    self.recommendations += len(answer.recommendations)
    self.without_answer += not answer.recommendations
    if answer.unknown_items:
      self.unknown_items += len(answer.unknown_items)
      self.users_with_unknown += 1
      self.example = self.example or answer.unknown_items[0]

  def describe(self) -> str:
    """One line for people."""
    parts = [
      f"{self.recommendations:,} recommendations for {self.users:,} users in {self.seconds:.1f} s "
      f"({self.users / self.seconds:,.1f} users/s, compilation included)"
    ]
    if self.unknown_items:
      parts.append(
        f"unknown items left out: {self.unknown_items:,}, in {self.users_with_unknown:,} histories, like "
        f"{self.example!r}"
      )
    if self.without_answer:
      parts.append(f"users without a known item, who got no recommendations: {self.without_answer:,}")
    return "; ".join(parts)


def recommend_to_file(
  workdir: str | os.PathLike,
  output: str | os.PathLike,
  *,
  input_path: str | os.PathLike | None = None,
  split: str = "test",
  k: int = 10,
  exclude_history: bool = False,
  overrides: Sequence[str] = (),
) -> FileSummary:
  """Writes the recommendations of a run's best checkpoint.

  Args:
    workdir: of the run.
    output: JSON lines or CSV, replaced once complete; see `files.open_atomic`. None of the files that are read.
    input_path: a file of histories, or a device or FIFO, read once; None for those of `split`.
    split: without a file, whose histories: "test" or "validation", every prepared user's before that held-out item, or
      "all", every prepared user's whole one.
    k: recommendations per user.
    exclude_history: see `Recommender.recommend`.
    overrides: see `runs.load_model`.

  Raises:
    InputError: before anything is compiled or written, if flags, run or input cannot be used.
  """
  others = Workdir(workdir).files_of_training
  files.check_writable(output, inputs=others if input_path is None else (input_path, *others))
  total = None
  if input_path is not None and not _is_stream(input_path):
    total = count_histories(input_path)
  saved = runs.load_model(workdir, overrides)
  recommender = Recommender.from_saved(saved)
  if input_path is None and split == "all":
    lines = whole_histories(saved.config.data.data_dir, saved.config.data.dataset)
  elif input_path is None:
    lines, total = held_out_histories(saved.histories, recommender.items, split), saved.histories.num_users
  else:
    lines = read_histories(input_path)
  answers = lambda histories: recommender.stream(histories, k, exclude_history=exclude_history)
  asins = any(item.asin for item in recommender.items)
  return write_recommendations(output, lines, answers, total=total, asins=asins)


def read_histories(path: str | os.PathLike) -> Iterator[Line]:
  """Reads a file of histories line by line.

  Raises:
    InputError: while reading, where a line is not as described above or longer than `MAX_LINE_BYTES`, or the file is
      missing, torn or empty.
  """
  path = files.check_path(path)
  number = 0
  try:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
      while line := file.readline(MAX_LINE_BYTES + 1):
        where = f"{path}, line {number + 1}"
        if len(line) > MAX_LINE_BYTES:
          raise InputError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes: give one user per line, and fewer items.")
        yield _parse(line.decode(), where)
        number += 1
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
    where, reason = f" after line {number}" if number else "", getattr(error, "strerror", None) or error
    raise InputError(
      f"{path} cannot be read{where} ({reason}): expected JSON lines, plain, or compressed under a name that ends with "
      ".gz."
    ) from error
  if not number:
    raise InputError(f'{path} is empty: expected lines like {{"user": "A1", "history": ["B004756YJA"]}}.')


def _is_stream(path: str | os.PathLike) -> bool:
  """Whether a path leads to a device or a FIFO, which can be read only once."""
  path = files.check_path(path)
  return path.exists() and not path.is_file() and not path.is_dir()


def count_histories(path: str | os.PathLike) -> int:
  """Reads the whole file once, so that a mistake in its last line is found before decoding starts.

  Raises:
    InputError: as `read_histories`.
  """
  return sum(1 for _ in read_histories(path))


def held_out_histories(histories: Histories, items: Sequence[Item], split: str) -> Iterator[Line]:
  """Every prepared user's history before the held-out item of "test" or "validation", as lines with item ids."""
  for user, start, end in zip(histories.user_ids, *histories.spans(split), strict=True):
    yield user, [items[row].item_id for row in histories.items[start : end - 1]]


def whole_histories(data_dir: str, dataset: str) -> Iterator[Line]:
  """Every prepared user's whole history, also of users without held-out items, as lines with item ids."""
  dataset_on_disk = prepared.open_prepared(data_dir, dataset)
  ids = [item.item_id for item in dataset_on_disk.items]
  users, items, offsets = dataset_on_disk.histories()
  for user, start, end in zip(users, offsets[:-1], offsets[1:], strict=True):
    yield user, [ids[row] for row in items[start:end]]


def write_recommendations(
  path: str | os.PathLike,
  lines: Iterable[Line],
  answers: Callable[[Iterator[Sequence[str | int]]], Iterator[UserRecommendations]],
  *,
  total: int | None = None,
  asins: bool = True,
) -> FileSummary:
  """Writes each line's recommendations in the same order, whole or not at all, with a progress bar on stderr.

  Args:
    path: the output; see `files.open_atomic`.
    lines: users and histories.
    answers: turns an iterator of histories into an iterator of answers, like `Recommender.stream`.
    total: number of lines, if known.
    asins: whether the catalogue has any.

  Raises:
    InputError: the output cannot be written, or what `lines` raises.
  """
  summary, start = FileSummary(), time.perf_counter()
  lines, for_users = itertools.tee(lines)  # tee holds only the users who wait for their answer
  try:
    with files.open_atomic(path) as file, _compressed(file, pathlib.Path(path)) as out:
      as_csv = pathlib.Path(path).name.endswith((".csv", ".csv.gz"))
      write = _csv_writer(out, asins) if as_csv else _json_writer(out, asins)
      answered = zip(for_users, answers(history for _, history in lines), strict=True)
      for (user, _), answer in tqdm.tqdm(answered, total=total, unit=" users", unit_scale=True, mininterval=1.0):
        write(user, answer)
        summary.add(answer)
  except OSError as error:
    raise InputError(
      f"{path} cannot be written ({error.strerror}): make room there, or choose another directory."
    ) from error
  summary.seconds = time.perf_counter() - start
  return summary


Write = Callable[[Any, UserRecommendations], object]  # of one user


def _fields(item: Recommendation, asins: bool) -> dict[str, Any]:
  """What is written of a recommendation."""
  return {name: value for name, value in dataclasses.asdict(item).items() if asins or name != "asin"}


def _json_writer(out: IO[bytes] | gzip.GzipFile, asins: bool) -> Write:
  def write(user: Any, answer: UserRecommendations) -> None:
    recommendations = [_fields(item, asins) for item in answer.recommendations]
    line = {"user": user, "recommendations": recommendations, "unknown_items": len(answer.unknown_items)}
    out.write(files.to_json(line, escaped=False).encode() + b"\n")

  return write


def _csv_writer(out: IO[bytes] | gzip.GzipFile, asins: bool) -> Write:
  """Writes the heading, and returns what writes a user's rows: none where there is no recommendation."""
  names = [field.name for field in dataclasses.fields(Recommendation) if asins or field.name != "asin"]

  def write_rows(rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    out.write(text.getvalue().encode())

  def write(user: Any, answer: UserRecommendations) -> None:
    name = user if isinstance(user, str) else files.to_json(user, escaped=False)
    items = enumerate(answer.recommendations, 1)
    write_rows([name, rank, *_fields(item, asins).values()] for rank, item in items)

  write_rows([["user", "rank", *names]])
  return write


def _compressed(file: IO[bytes], path: pathlib.Path):
  if path.suffix == ".gz":
    return gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
  return contextlib.nullcontext(file)


def _parse(line: str, where: str) -> Line:
  try:
    value = files.parse_json(line)
  except ValueError as error:
    raise InputError(f"{where} is not JSON ({error}): expected one object per line, with user and history.") from error
  if not isinstance(value, dict) or not {"user", "history"} <= set(value):
    raise InputError(f'{where} lacks a user or a history: expected {{"user": "A1", "history": ["B004756YJA"]}}.')
  history = value["history"]
  if not isinstance(history, list) or not all(
    isinstance(item, str | int) and not isinstance(item, bool) for item in history
  ):
    raise InputError(f"{where} has a history that is not a list of item ids: expected the most recent one last.")
  return value["user"], history
