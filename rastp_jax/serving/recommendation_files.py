"""Reads histories and writes recommendations, in constant memory: JSON lines, or CSV under a name that ends with .csv.

A line of the input:   {"user": "A1", "history": ["B004756YJA", "B004ZT0SSG"]}
A line of the output:  {"user": "A1", "recommendations": [{"item_id": …, "asin": …, "title": …, "score": …}, …],
                        "unknown_items": 0}
The same as CSV:       user,rank,item_id,asin,title,score, a row per recommendation, ranks from 1

`asin` is there where the catalogue has ASINs. Files whose name ends with .gz are compressed.

Many users are answered in shards: recs.jsonl becomes recs-00000-of-00064.jsonl and so on, each with a contiguous part
of the users. Several processes share the shards, and what stopped goes on with those that are missing. One after the
other, the shards are the file that a single process writes: `cat recs-*-of-00064.jsonl > recs.jsonl`, also for .gz.
"""

import contextlib
import csv
import dataclasses
import gzip
import hashlib
import io
import itertools
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import jax
import tqdm

from rastp_jax.data import prepared
from rastp_jax.data.histories import Histories
from rastp_jax.data.items import Item
from rastp_jax.data.prepared import Prepared
from rastp_jax.data.splits import LATER, TOO_FEW
from rastp_jax.errors import InputError
from rastp_jax.runtime import files, processes
from rastp_jax.serving.recommender import Recommendation, Recommender, UserRecommendations, is_id
from rastp_jax.training import runs
from rastp_jax.training.workdir import Workdir

# The memory that a line costs is bounded by it: some fifty thousand items.
MAX_LINE_BYTES = 1_000_000
MAX_SHARDS = 99_999
_SUFFIXES = ("", ".jsonl", ".ndjson", ".json", ".csv")  # of an output, each also with .gz

Line = tuple[Any, Sequence[str | int]]  # a user, whatever JSON value names them, and their history


@dataclasses.dataclass
class FileSummary:
  """Counts over the users of a file.

  Attributes:
    users: lines written.
    recommendations: items recommended, over all users.
    without_answer: users without a single known item.
    nothing_left: users with known items, for whom nothing was left to recommend without the items of the history.
    unknown_items: items of histories that are not in the catalogue, repetitions included.
    users_with_unknown: users who have such items.
    example: one of them.
    note: what is special about whose histories these are, in a sentence.
    seconds: for everything but loading the model.
  """

  users: int = 0
  recommendations: int = 0
  without_answer: int = 0
  nothing_left: int = 0
  unknown_items: int = 0
  users_with_unknown: int = 0
  example: str = ""
  note: str = ""
  seconds: float = 0.0

  def add(self, history: Sequence[str | int], answer: UserRecommendations) -> None:
    self.users += 1
    self.recommendations += len(answer.recommendations)
    if not answer.recommendations:
      known = len(history) > len(answer.unknown_items)
      self.nothing_left += known
      self.without_answer += not known
    if answer.unknown_items:
      self.unknown_items += len(answer.unknown_items)
      self.users_with_unknown += 1
      self.example = self.example or answer.unknown_items[0]

  def extend(self, other: "FileSummary") -> None:
    """Adds the counts of another file."""
    for field in dataclasses.fields(self):
      ours, theirs = getattr(self, field.name), getattr(other, field.name)
      setattr(self, field.name, ours or theirs if isinstance(ours, str) else ours + theirs)

  def describe(self) -> str:
    """One line for people."""
    if not self.users:
      return "nothing left to write"
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
    if self.nothing_left:
      parts.append(f"users with known items, for whom exclude_history left nothing to recommend: {self.nothing_left:,}")
    return "; ".join(parts + ([self.note] if self.note else []))


def recommend_to_file(
  workdir: str | os.PathLike,
  output: str | os.PathLike,
  *,
  input_path: str | os.PathLike | None = None,
  split: str = "test",
  k: int = 10,
  exclude_history: bool | None = None,
  overrides: Sequence[str] = (),
  shards: int | None = None,
) -> FileSummary:
  """Writes the recommendations of a run's best checkpoint.

  Several processes, which all call this alike, share the shards; each answers its own on its own devices.

  Args:
    workdir: of the run.
    output: JSON lines or CSV, replaced once complete; see `files.open_atomic`. None of the files that are read.
    input_path: a file of histories, or a device or FIFO, read once; None for those of `split`.
    split: without a file, whose histories: "test" or "validation", every prepared user's before that held-out item, or
      "all", every prepared user's whole one: as far as it was prepared, see `whole_histories`.
    k: recommendations per user.
    exclude_history: see `Recommender.recommend`.
    overrides: see `runs.load_model`.
    shards: files that the output is divided into; 1: the output itself. None: one for each process.

  Returns:
    The counts of what this process wrote.

  Raises:
    InputError: in all processes, before anything is compiled or written, if flags, run or input cannot be used.
  """
  shards = jax.process_count() if shards is None else shards
  with processes.raise_on_all():
    total = _check(Workdir(workdir), output, input_path, shards, k)
  saved = runs.load_model(workdir, overrides)
  if input_path is None and split != "all":
    saved.histories.spans(split)  # refuses here a split that is not there, before shards are recorded
  if exclude_history is None:
    exclude_history = saved.config.eval.exclude_history
  on_disk = prepared.open_prepared(saved.config.data.data_dir, saved.config.data.dataset)
  of_split = on_disk.num_users if split == "all" else saved.histories.num_users
  users = of_split if input_path is None else total
  asked = {
    "shards": shards,
    "k": k,
    "exclude_history": exclude_history,
    "split" if input_path is None else "input": split if input_path is None else _digest(input_path, shards),
    "users": users,
    "workdir": str(workdir),
    "step": saved.step,
    **runs.fingerprints(saved.histories, saved.semantic_ids),
    "overrides": sorted(overrides),
  }
  missing = _missing(output, asked) if shards > 1 else [(output, slice(None))]
  summary = FileSummary(note=_cut(on_disk) if input_path is None and split == "all" else "")
  with processes.raise_on_all():  # a process whose disk is full waits until the others have done what they can
    recommender = Recommender.from_saved(runs.on_this_host(saved)) if missing else None
    for path, part in missing:
      assert recommender is not None
      answers = lambda histories: recommender.stream(histories, k, exclude_history=exclude_history)
      if input_path is not None:
        lines = itertools.islice(read_histories(input_path), part.start, part.stop)
      elif split == "all":
        lines = whole_histories(on_disk, part)
      else:
        lines = held_out_histories(saved.histories, recommender.items, split, part)
      count = None if users is None else len(range(users)[part])
      asins = any(item.asin for item in recommender.items)
      first = path in (output, shard_path(output, 0, shards))
      summary.extend(write_recommendations(path, lines, answers, total=count, asins=asins, heading=first))
  return summary


def shard_path(output: str | os.PathLike, shard: int, shards: int) -> str:
  """The file of a shard: recs.jsonl.gz becomes recs-00003-of-00064.jsonl.gz."""
  directory, name = os.path.split(os.fspath(output))
  stem, dot, rest = name.partition(".")
  return os.path.join(directory, f"{stem}-{shard:05}-of-{shards:05}{dot}{rest}")


def _check(
  workdir: Workdir, output: str | os.PathLike, input_path: str | os.PathLike | None, shards: int, k: int
) -> int | None:
  """Raises InputError for flags and files that cannot be used; the number of histories in a file that is given."""
  stream = input_path is not None and _is_stream(input_path)
  others = workdir.files_of_training if input_path is None else (input_path, *workdir.files_of_training)
  if k < 1:
    raise InputError(f"k={k} cannot be used: give a whole number of at least 1.")
  suffix = pathlib.Path(pathlib.Path(output).name.removesuffix(".gz")).suffix
  if suffix not in _SUFFIXES and not files.is_stdout(output) and not _is_stream(output):
    raise InputError(
      f"{output} cannot be written: recommendations are JSON lines or CSV, not {suffix}; give a name that ends with "
      ".jsonl, .json or .csv, or one of them with .gz."
    )
  if shards < 1 or shards > MAX_SHARDS:
    raise InputError(f"shards={shards} cannot be used: give a number from 1 to {MAX_SHARDS}.")
  if shards == 1 and jax.process_count() > 1:
    raise InputError("Several processes cannot write one file: give as many shards as processes, or more.")
  if shards > 1 and (stream or files.is_stdout(output) or _is_stream(output)):
    raise InputError("Shards need an input and an output that are files: streams are read and written once.")
  for path in [output] if shards == 1 else [shard_path(output, shard, shards) for shard in _mine(shards)]:
    files.check_writable(path, inputs=others)
  return count_histories(input_path) if input_path is not None and not stream else None


def _missing(output: str | os.PathLike, asked: Mapping[str, Any]) -> list[tuple[str, slice]]:
  """The shards that this process must write, and their users.

  Raises:
    InputError: in all processes, if the shards that are there are of other recommendations, or nothing can be written.
  """
  shards, users = asked["shards"], asked["users"]
  directory, name = os.path.split(os.fspath(output))
  record = os.path.join(directory, f"{name.partition('.')[0]}-of-{shards:05}.json")
  exists = lambda path: files.check_path(path).exists()
  with processes.raise_on_all():
    if exists(record):
      before = files.read_json(record, "remove it and the shards beside it")
      for name, value in asked.items():
        if before.get(name) != value:
          raise InputError(
            f"{record} says that the shards beside it were made with {name}={before.get(name)!r}, but now {value!r} is "
            "asked for: remove it and them, or choose another output."
          )
    elif any(exists(shard_path(output, shard, shards)) for shard in range(shards)):
      raise InputError(f"There are shards of {output}, but no {record} that says what they are: remove them.")
  with processes.raise_on_all():  # nobody writes before all have looked
    if jax.process_index() == 0:
      files.write_json(record, asked)
  missing = [shard for shard in _mine(shards) if not exists(shard_path(output, shard, shards))]
  part = lambda shard: slice(shard * users // shards, (shard + 1) * users // shards)
  return [(shard_path(output, shard, shards), part(shard)) for shard in missing]


def _mine(shards: int) -> range:
  """The shards of this process."""
  return range(jax.process_index(), shards, jax.process_count())


def _digest(path: str | os.PathLike, shards: int) -> str:
  """What tells a file of histories from another, where shards may already be there."""
  if shards == 1:
    return ""
  with files.check_path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_histories(path: str | os.PathLike) -> Iterator[Line]:
  """Reads a file of histories line by line.

  Raises:
    InputError: while reading, where a line is not as described above or longer than `MAX_LINE_BYTES`, or the file is
      missing, torn or empty.
  """
  path = files.check_path(path)
  number, found = 0, False
  try:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
      while line := file.readline(MAX_LINE_BYTES + 1):
        where = f"{path}, line {number + 1}"
        if len(line) > MAX_LINE_BYTES:
          raise InputError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes: give one user per line, and fewer items.")
        text = line.decode() if number else line.decode("utf-8-sig")
        number += 1
        if text.strip():
          found = True
          yield _parse(text, where)
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
    where, reason = f" after line {number}" if number else "", getattr(error, "strerror", None) or error
    raise InputError(
      f"{path} cannot be read{where} ({reason}): expected JSON lines, plain, or compressed under a name that ends with "
      ".gz."
    ) from error
  if not found:
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


def held_out_histories(
  histories: Histories, items: Sequence[Item], split: str, part: slice = slice(None)
) -> Iterator[Line]:
  """Prepared users' histories before the held-out item of "test" or "validation", as lines with item ids."""
  starts, ends = histories.spans(split)
  for user, start, end in zip(histories.user_ids[part], starts[part], ends[part], strict=True):
    yield user, [items[row].item_id for row in histories.items[start : end - 1]]


def whole_histories(dataset: Prepared, part: slice = slice(None)) -> Iterator[Line]:
  """Prepared users' whole histories, also of users without held-out items, as lines with item ids.

  With data.split="time", what `prepare` left out is not in them: all but the first interaction after data.time_cut.
  """
  ids = dataset.item_ids
  items, offsets = dataset.histories()
  for user, start, end in zip(dataset.user_ids[part], offsets[:-1][part], offsets[1:][part], strict=True):
    yield user, [ids[row] for row in items[start:end]]


def _cut(dataset: Prepared) -> str:
  """What the histories of a dataset that is split by time lack; "" where they lack nothing."""
  if dataset.settings.get("split") != "time":
    return ""
  lost = [f"{dataset.counts[what]:,} {what}" for what in (LATER, TOO_FEW) if dataset.counts.get(what)]
  if dataset.counts and not lost:
    return ""
  counted = f" ({', '.join(lost)})" if lost else ""
  return (
    "--users=all reads only what was prepared with data.split=time, interactions before data.time_cut="
    f"{dataset.settings.get('time_cut')} and a user's first one after it{counted}: give whole "
    "histories by --input, or prepare with data.hold_out=0 under another data.dataset and train on that"
  )


def write_recommendations(
  path: str | os.PathLike,
  lines: Iterable[Line],
  answers: Callable[[Iterator[Sequence[str | int]]], Iterator[UserRecommendations]],
  *,
  total: int | None = None,
  asins: bool = True,
  heading: bool = True,
) -> FileSummary:
  """Writes each line's recommendations in the same order, whole or not at all, with a progress bar on stderr.

  Args:
    path: the output; see `files.open_atomic`.
    lines: users and histories.
    answers: turns an iterator of histories into an iterator of answers, like `Recommender.stream`.
    total: number of lines, if known.
    asins: whether the catalogue has any.
    heading: whether a CSV file begins with the names of its columns.

  Raises:
    InputError: the output cannot be written, or what `lines` raises.
  """
  summary, start = FileSummary(), time.perf_counter()
  lines, for_users = itertools.tee(lines)  # tee holds only the users who wait for their answer
  try:
    with files.open_atomic(path) as file, _compressed(file, pathlib.Path(path)) as out:
      as_csv = pathlib.Path(path).name.endswith((".csv", ".csv.gz"))
      write = _csv_writer(out, asins, heading) if as_csv else _json_writer(out, asins)
      answered = zip(for_users, answers(history for _, history in lines), strict=True)
      for (user, history), answer in tqdm.tqdm(answered, total=total, unit=" users", unit_scale=True, mininterval=1.0):
        write(user, answer)
        summary.add(history, answer)
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


def _csv_writer(out: IO[bytes] | gzip.GzipFile, asins: bool, heading: bool) -> Write:
  """Writes the heading, if wanted, and returns what writes a user's rows: none where there is no recommendation."""
  names = [field.name for field in dataclasses.fields(Recommendation) if asins or field.name != "asin"]

  def write_rows(rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    out.write(text.getvalue().encode())

  def write(user: Any, answer: UserRecommendations) -> None:
    name = user if isinstance(user, str) else files.to_json(user, escaped=False)
    items = enumerate(answer.recommendations, 1)
    write_rows([name, rank, *_fields(item, asins).values()] for rank, item in items)

  if heading:
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
  if not isinstance(history, list) or not all(map(is_id, history)):
    raise InputError(f"{where} has a history that is not a list of item ids: expected the most recent one last.")
  return value["user"], history
