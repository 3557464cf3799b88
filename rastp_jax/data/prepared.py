"""Prepared datasets: histories and items as TFDS tables in ArrayRecord files, without TensorFlow.

Every dataset is a config of two TFDS builders: `ReviewHistories` (one row per user) and `ReviewItems` (one row per
item). Their rows come from a `Source`; published sizes from `datasets.py`.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as splits_lib

from rastp_jax import config as config_lib
from rastp_jax.data import datasets
from rastp_jax.data.items import Item
from rastp_jax.data.sources.source import Source
from rastp_jax.data.splits import LEAVE_ONE_OUT, MIN_ITEMS, Rows, Split
from rastp_jax.errors import InputError
from rastp_jax.runtime import buckets, files, terminal

_DEFAULTS = config_lib.DataConfig()
_FILE_FORMAT = "array_record"
_SPLIT = "rows"  # leave-one-out is by position in time, not by row, so TFDS sees one split
_SHARD_ROWS = 1 << 16  # rows per file; TFDS holds one file's rows in memory
_READ_ROWS = 1 << 12  # rows read at a time
_ARRAYS = "arrays.npz"  # beside the histories' table
_METADATA = "metadata.json"  # TFDS's name
# What `prepare` records of a table, and which of it every version did.
_FACTS: dict[str, Any] = {
  "fingerprint": str,
  "num_users": int,
  "num_items": int,
  "num_interactions": int,
  "dropped_users": int,
  "settings": dict,
  "counts": dict,
  "notes": list,
  "longest": list,
  "evaluated": int | None,
  "items_file_rows": int | None,
}
_ALWAYS = ("fingerprint", "num_users", "num_items", "num_interactions", "dropped_users")


# Yields a file's rows with their numbers.
_Shard = Callable[[], Iterator[tuple[int, dict[str, Any]]]]


class _TableInfo(tfds.core.DatasetInfo):
  """A table's description that is never looked for in TFDS's own store of datasets."""

  def initialize_from_bucket(self) -> None:
    """Does nothing: the original leaves an empty directory in the system's temporary folder for every new builder."""


class _ReviewTable(tfds.core.ShardBasedBuilder):
  """What both builders share: any dataset name, the metadata, and rows handed over by `prepare`."""

  VERSION = tfds.core.Version("1.0.0")
  # TFDS need not look beside the code for checksums (its search imports importlib_resources, which it does not declare
  # as a requirement).
  code_path = None

  def __init__(self, *, shards: Sequence[_Shard] = (), facts: dict[str, Any] | None = None, **kwargs):
    self._shards, self._facts = shards, facts or {}
    super().__init__(file_format=_FILE_FORMAT, **kwargs)

  @classmethod
  def get_builder_config(cls, name: str, version: str | None = None) -> tfds.core.BuilderConfig:
    del version  # there is one
    return tfds.core.BuilderConfig(name=name, description=datasets.named(name).description)

  def _table_info(self, features: dict[str, Any]) -> tfds.core.DatasetInfo:
    return _TableInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(self._facts),
      disable_shuffling=True,  # row k stays row k
    )

  def _shard_iterators_per_split(self, dl_manager):
    del dl_manager  # what is downloaded is downloaded before
    return {_SPLIT: self._shards}

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    super()._download_and_prepare(dl_manager, download_config)
    # With Beam and more than ten shards, TFDS records the lengths in the order of the shards' numbers as text.
    splits = self.info.splits
    assert splits is not None  # just set
    (found,) = splits.values()
    lengths = sorted(found.shard_lengths, reverse=True)  # all are full but the last one
    self.info.set_splits(splits_lib.SplitDict([dataclasses.replace(found, shard_lengths=lengths)]))


class ReviewHistories(_ReviewTable):
  """One row per user, in source order: `user_id`, and `items`, int32 item rows from 0 in time order."""

  def _info(self) -> tfds.core.DatasetInfo:
    return self._table_info(
      {"user_id": tfds.features.Text(), "items": tfds.features.Tensor(shape=(None,), dtype=np.int32)}
    )


class ReviewItems(_ReviewTable):
  """One row per item: the fields of `Item`, and `file_row`: its row in the source's items file, or -1."""

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    fields = dict.fromkeys(("item_id", "asin", "title", "brand"), text)
    more = {"categories": tfds.features.Sequence(text), "extra": text, "file_row": np.int64}
    return self._table_info({**fields, **more})


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A dataset that is ready under a data directory.

  Attributes:
    dataset: its name.
    histories_dir: directory of the histories table.
    items_dir: directory of the item table.
    fingerprint: identifies the source it was made from.
    num_users: users kept.
    num_items: items in the catalogue.
    num_interactions: items in all histories together.
    dropped_users: users left out because they had fewer than `MIN_ITEMS` items.
    settings: the settings of config.data that its rows depend on, by field name.
    counts: how many irregular rows its source found, see `RawData`.
    notes: what its source recognised and what is doubtful, in sentences.
    longest: the user with the longest history, and its items.
    evaluated: users, the first ones, that have held-out items; None: all.
    items_file_rows: rows of the items file that a bare .npy follows; 0 where there is no such file; None where rows
      follow the catalogue.
    reused: True when `prepare` found it there.
  """

  dataset: str
  histories_dir: str
  items_dir: str
  fingerprint: str
  num_users: int
  num_items: int
  num_interactions: int
  dropped_users: int
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()
  longest: Sequence[Any] = ()
  evaluated: int | None = None
  items_file_rows: int | None = None
  reused: bool = True

  def describe(self) -> str:
    """Sizes, and counts of what was found in the raw files, a line each."""
    sizes = (
      f"{self.num_users} users, {self.num_items} items, {self.num_interactions} interactions; "
      f"{self.dropped_users} users with fewer than {MIN_ITEMS} items left out"
    )
    lines = [f"  {count} {what}" for what, count in self.counts.items() if count]
    if self.longest:
      lines.insert(0, f"  the longest history, of user {self.longest[0]!r}, has {self.longest[1]} items")
    return "\n".join([sizes, *lines, *(f"  {note}" for note in self.notes)])

  def histories(self) -> tuple[np.ndarray, np.ndarray]:
    """All users' items end to end, int32 (interactions,), and where each begins, offsets int64 (users + 1,).

    Raises:
      InputError: they cannot be read.
    """
    path = pathlib.Path(self.histories_dir) / _ARRAYS
    items, offsets = read_arrays(path) if path.exists() else self.histories_of_table()
    shown = (len(items), len(offsets)) == (self.num_interactions, self.num_users + 1)
    if not shown or offsets[-1] != len(items) or (len(items) and not 0 <= items.min() <= items.max() < self.num_items):
      raise _unreadable(self.histories_dir, "its histories are not those that its metadata.json tells of")
    return items, offsets

  def histories_of_table(self) -> tuple[np.ndarray, np.ndarray]:
    """The same, unchecked, from the table: earlier versions wrote no arrays."""
    try:
      items, offsets = np.empty(self.num_interactions, np.int32), np.zeros(self.num_users + 1, np.int64)
    except (MemoryError, ValueError) as error:
      raise _unreadable(self.histories_dir, f"{self.num_interactions} interactions: {error}") from error
    for user, row in enumerate(_read(self.histories_dir, self.num_users)):
      offsets[user + 1] = stop = offsets[user] + len(row["items"])
      if stop > len(items):
        break
      items[offsets[user] : stop] = row["items"]
    return items, offsets

  @property
  def user_ids(self) -> "UserIds":
    """The source's user ids, in the order of `histories`."""
    return UserIds(self.histories_dir, self.num_users, range(self.num_users))

  @functools.cached_property
  def items(self) -> list[Item]:
    """The catalogue, row = item; read when it is first asked for."""
    return list(self.iterate_items())

  def iterate_items(self) -> Iterator[Item]:
    """Yields the catalogue, row = item, without reading more of it than is asked for."""
    for row in _read(self.items_dir, self.num_items):
      try:
        extra = files.parse_json(row["extra"].decode() or "{}") if "extra" in row else {}
      except ValueError as error:
        raise _unreadable(self.items_dir, error) from error
      yield Item(
        **{name: row[name].decode() for name in ("item_id", "asin", "title", "brand")},
        categories=tuple(path.decode() for path in row["categories"]),
        extra=extra,
      )

  @functools.cached_property
  def file_rows(self) -> np.ndarray | None:
    """Each item's row in the items file, int64 (num_items,), -1 where it has none; None: the row of the catalogue.

    Raises:
      InputError: it was prepared by a version that did not record them.
    """
    if self.items_file_rows is None and "user_column" not in self.settings:
      return None
    rows = _read(self.items_dir, self.num_items)
    if self.items_file_rows is None:
      raise InputError(
        f"{self.items_dir} was prepared by an earlier version, which did not record the order of the items file: give "
        "an .npz with an array ids beside the embeddings, or remove it and its histories and prepare again."
      )
    return np.array([int(row["file_row"]) for row in rows], np.int64)

  @functools.cached_property
  def item_ids(self) -> list[str]:
    """The source's ids, row = item."""
    return [item.item_id for item in self.items]


class UserIds(Sequence[str]):
  """Users' ids, read from the table each time they are asked for: training needs none, and a billion would not fit.

  Args:
    directory: of the histories' table.
    num_rows: the table's rows.
    rows: those that these are.
  """

  def __init__(self, directory: str, num_rows: int, rows: range):
    self._directory, self._num_rows, self._rows = directory, num_rows, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __iter__(self) -> Iterator[str]:
    for row in _read(self._directory, self._num_rows, self._rows):
      yield row["user_id"].decode()

  @overload
  def __getitem__(self, index: int) -> str: ...
  @overload
  def __getitem__(self, index: slice) -> "UserIds": ...
  def __getitem__(self, index):
    if isinstance(index, slice):
      return UserIds(self._directory, self._num_rows, self._rows[index])
    row = self._rows[index]
    return next(iter(UserIds(self._directory, self._num_rows, range(row, row + 1))))


def find_prepared(data_dir: str, dataset: str) -> Prepared | None:
  """The prepared dataset, or None where it is not complete.

  Raises:
    InputError: its two tables do not belong together.
  """
  histories, items = (_place(table, data_dir, dataset) for table in (ReviewHistories, ReviewItems))
  if not (histories.exists() and items.exists()):
    return None
  facts, of_items = _facts(histories), _facts(items)
  if of_items["fingerprint"] != facts["fingerprint"]:
    raise InputError(f"{histories} and {items} were prepared from different files: remove both and prepare again.")
  facts["settings"] = _with_current_names(facts.get("settings", {}))
  return Prepared(dataset=dataset, histories_dir=str(histories), items_dir=str(items), **facts)


def _place(table: type[_ReviewTable], data_dir: str, dataset: str) -> pathlib.Path:
  """Where TFDS keeps a table."""
  return files.below(data_dir, table.name, dataset) / str(table.VERSION)


def _facts(directory: pathlib.Path) -> dict[str, Any]:
  """What `prepare` wrote about a table.

  Raises:
    InputError: the file is missing, damaged, or of another version.
  """
  path = directory / _METADATA
  again = f"remove {directory} and run `python -m rastp_jax.prepare` again"
  facts = files.read_json(path, again)
  for name, value in facts.items():
    wrong = _FACTS.get(name) is None or not isinstance(value, _FACTS[name]) or isinstance(value, bool)
    if wrong or (isinstance(value, int) and not 0 <= value < 2**62):
      raise InputError(f"{path} cannot be read ({name!r} is not what this version writes there): {again}.")
  missing = [name for name in _ALWAYS if name not in facts]
  if missing:
    raise InputError(f"{path} cannot be read (it lacks {missing[0]!r}): {again}.")
  return facts


def open_prepared(data_dir: str, dataset: str) -> Prepared:
  """Finds a prepared dataset.

  Raises:
    InputError: it is not there (the sentence names the command that makes it), or its tables do not belong together.
  """
  found = find_prepared(data_dir, dataset)
  if found is None:
    raw_dir = "" if datasets.named(dataset).source else " and --raw_dir=DIR"
    raise InputError(
      f"Dataset {dataset!r} is not prepared under {data_dir}: run `python -m rastp_jax.prepare` with the same "
      f"--config{raw_dir}, or point config.data.data_dir to where it is{datasets.hint(dataset)}"
    )
  return found


def prepare(
  data_dir: str,
  dataset: str,
  source: Source,
  split: Split = LEAVE_ONE_OUT,
  beam_options: Sequence[str] | None = None,
) -> Prepared:
  """Writes a source's rows as the two tables, or finds them written already.

  Everything is read and checked before anything is written, and both tables are written aside and moved to their place
  at the end, so that an interrupted run leaves nothing that would stop the next.

  Args:
    data_dir: where to.
    dataset: its name.
    source: of the rows.
    split: which of them are held out.
    beam_options: of an Apache Beam pipeline whose workers write the histories, the same rows to the same files; they
      must see data_dir. None: this process writes them.

  Raises:
    InputError: the source is damaged, its sizes are not the published ones, the data directory already holds this
      dataset from another source or with other settings, or cannot be written.
  """
  found = find_prepared(data_dir, dataset)
  if found is not None:
    check_settings(found, {**source.settings, **split.settings})
  fingerprint = split.fingerprint(source.fingerprint())
  if found is not None:
    if found.fingerprint != fingerprint:
      raise InputError(
        f"{found.histories_dir} was prepared from other files than {source.where}: remove it and {found.items_dir}, or "
        "choose another config.data.data_dir."
      )
    return found
  pipeline = {} if beam_options is None else _pipeline(beam_options)
  if pipeline and buckets.is_url(str(data_dir)):
    raise InputError(f"{data_dir} cannot be used with --beam_options: its workers need a directory that they share.")
  raw = source.read()
  lengths = np.diff(raw.offsets)
  short = lengths < MIN_ITEMS
  sizes = {
    "users": len(lengths) - int(short.sum()),
    "items": raw.num_items,
    "interactions": len(raw.items) - int(lengths[short].sum()),
  }
  _check_sizes(dataset, source.where, sizes, int(short.sum()))
  rows = split.apply(raw, source.where)
  longest = int(np.diff(rows.offsets).argmax())
  facts = {
    "fingerprint": fingerprint,
    "num_users": len(rows.user_ids),
    "num_items": raw.num_items,
    "num_interactions": len(rows.items),
    "dropped_users": int(short.sum()),
    "settings": {**source.settings, **split.settings},
    "counts": {**raw.counts, **rows.counts},
    "notes": [*raw.notes, *rows.notes],
    "longest": [rows.user_ids[longest].as_py(), int(rows.offsets[longest + 1] - rows.offsets[longest])],
    "evaluated": None if rows.evaluated == len(rows.user_ids) else rows.evaluated,
    "items_file_rows": None if raw.file_rows is None else raw.num_file_rows,
  }
  try:
    with files.scratch_directory(files.below(data_dir, f".preparing_{dataset}").absolute()) as aside:
      catalogue = enumerate(_item_rows(raw.catalogue, raw.file_rows))
      shards = [lambda: itertools.islice(catalogue, _SHARD_ROWS)] * -(-raw.num_items // _SHARD_ROWS)
      items = _write(ReviewItems(config=dataset, data_dir=aside, shards=shards, facts=facts), aside)
      with terminal.bar(len(rows.user_ids), "Writing histories", " users") as bar:
        if not pipeline:
          read, tell = lambda: rows, bar.update
        else:  # workers get a path, not the rows: these may be larger than a pipeline can be
          _save(aside, rows)
          read, tell = functools.partial(_open_saved, aside), None
        firsts = range(0, len(rows.user_ids), _SHARD_ROWS)
        shards = [functools.partial(_history_rows, read, first, tell) for first in firsts]
        histories = _write(ReviewHistories(config=dataset, data_dir=aside, shards=shards, facts=facts), aside, pipeline)
      write_arrays(histories, rows.items, rows.offsets)
      written = [items, histories]
      for directory in written:
        place = files.below(data_dir, *directory.relative_to(aside).parts)
        if place.exists():  # a run was killed between the two moves: one table is of no use without the other
          shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(place)
        buckets.upload(place)
  except (OSError, RuntimeError) as error:  # array_record raises RuntimeError where the disk is full
    raise InputError(
      f"Dataset {dataset!r} cannot be written to {data_dir} ({error}): make room, or choose another directory with "
      "config.data.data_dir."
    ) from error
  return dataclasses.replace(open_prepared(data_dir, dataset), reused=False)


def check_settings(found: Prepared, settings: Mapping[str, Any]) -> None:
  """Raises InputError where a prepared dataset was made with other settings; the sentence names the first."""
  for name in sorted({*found.settings, *settings}):
    default = getattr(_DEFAULTS, name, None)  # datasets are silent about settings that have it
    default = list(default) if isinstance(default, tuple) else default
    made_with, wanted = found.settings.get(name, default), settings.get(name, default)
    if made_with != wanted:
      raise InputError(
        f"{found.histories_dir} was prepared with data.{name}={made_with!r}, but now data.{name}={wanted!r} is asked "
        f"for: remove it and {found.items_dir}, or choose another config.data.dataset or config.data.data_dir."
      )


def _with_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings as a dataset recorded them, under today's names."""
  current = {now: value for name, value in settings.items() for now in config_lib.current_names(f"data.{name}")}
  return {name.removeprefix("data."): value for name, value in current.items()}


def _check_sizes(dataset: str, where: str, sizes: Mapping[str, int], dropped_users: int) -> None:
  if not sizes["users"]:
    raise InputError(f"{where} holds no user with at least {MIN_ITEMS} items: there is nothing to train on.")
  published = datasets.named(dataset)
  for name, got in sizes.items():
    expected = getattr(published, name)
    if expected is not None and got != expected:
      raise InputError(
        f"{where} has {got} {name} ({dropped_users} users with fewer than {MIN_ITEMS} items left out), "
        f"expected the {expected} published for {dataset!r}: a file is incomplete or of another dataset; get it again "
        "or change config.data.dataset."
      )


def _item_rows(catalogue: Iterable[Item], file_rows: np.ndarray | None) -> Iterator[dict[str, Any]]:
  for row, item in enumerate(catalogue):
    extra = json.dumps(dict(item.extra), ensure_ascii=False) if item.extra else ""
    yield {**dataclasses.asdict(item), "extra": extra, "file_row": -1 if file_rows is None else int(file_rows[row])}


def _history_rows(
  read: Callable[[], Rows], first: int, tell: Callable[[int], Any] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
  """A shard of histories: users from `first` on. `tell` is told how many more are done."""
  rows = read()
  for start in range(first, min(first + _SHARD_ROWS, len(rows.user_ids)), _READ_ROWS):
    some = rows.user_ids[start : min(start + _READ_ROWS, first + _SHARD_ROWS)].to_pylist()
    for row, user_id in enumerate(some, start=start):
      yield row, {"user_id": user_id, "items": rows.items[rows.offsets[row] : rows.offsets[row + 1]]}
    if tell is not None:
      tell(len(some))


def _save(directory: pathlib.Path, rows: Rows) -> None:
  """Writes rows for `_open_saved`."""
  np.save(directory / "items.npy", rows.items)
  np.save(directory / "offsets.npy", rows.offsets)
  table = pa.table({"user_id": rows.user_ids})
  with pa.ipc.new_file(directory / "user_ids.arrow", table.schema) as file:
    file.write_table(table)


def _open_saved(directory: pathlib.Path) -> Rows:
  """Rows in files, which are read where they are asked for."""
  user_ids = pa.ipc.open_file(pa.memory_map(str(directory / "user_ids.arrow"))).read_all().column(0)
  items, offsets = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("items", "offsets"))
  return Rows(user_ids, items, offsets, 0)


def _pipeline(options: Sequence[str]) -> dict[str, Any]:
  """Options like "runner=DirectRunner" as TFDS takes them.

  Raises:
    InputError: Apache Beam is not installed, or does not know an option or its value.
  """
  try:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions  # pyright: ignore[reportMissingImports]
    from apache_beam.runners.runner import create_runner  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(
      f"--beam_options needs Apache Beam ({error}): pip install 'rastp_jax[beam]', or leave it out."
    ) from error
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      parsed = PipelineOptions([f"--{option}" for option in options])
      unknown = parsed.get_all_options(retain_unknown_options=True).keys() - parsed.get_all_options().keys()
    if unknown:
      raise ValueError(f"there is no option {sorted(unknown)[0]}")
    runner = create_runner(parsed.view_as(StandardOptions).runner or "DirectRunner")
  except (SystemExit, Exception) as error:  # argparse exits
    reason = said.getvalue().strip().rpartition("error: ")[2] or str(error)
    raise InputError(
      f"--beam_options={','.join(options)} cannot be used ({reason.splitlines()[0]}): expected options of Apache Beam "
      "like runner=DirectRunner,direct_num_workers=4."
    ) from error
  return {"beam_options": parsed, "beam_runner": runner}


def _write(builder: _ReviewTable, aside: pathlib.Path, pipeline: Mapping[str, Any] = {}) -> pathlib.Path:
  """Prepares a builder's table; returns its directory.

  Args:
    builder: with its shards.
    aside: a directory that is removed afterwards.
    pipeline: see `_pipeline`; without one, this process writes the shards one after the other.
  """
  tfds.disable_progress_bar()
  # There is no download, whatever TFDS prints about one and whatever directory it makes for it.
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(
      download_dir=aside / "downloads", download_config=tfds.download.DownloadConfig(**pipeline)
    )
  directory = pathlib.Path(builder.data_path)
  for notes in directory.glob("*.shard_infos.json"):  # left there by TFDS's pipeline
    notes.unlink()
  return directory


def write_arrays(directory: pathlib.Path, items: np.ndarray, offsets: np.ndarray) -> None:
  """Writes the histories once more, as arrays: a thousand times faster to read than rows are (see `Prepared`)."""
  np.savez(directory / _ARRAYS, items=items.astype(np.int32, copy=False), offsets=offsets.astype(np.int64, copy=False))


def read_arrays(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """What `write_arrays` wrote: items and offsets.

  Raises:
    InputError: the file is torn or damaged (it holds checksums), or is not such a file.
  """
  try:
    with files.open_npz(path) as file:
      items, offsets = file["items"], file["offsets"]
    if (items.dtype, offsets.dtype, int(offsets[-1])) != (np.int32, np.int64, len(items)):
      raise ValueError("the arrays do not fit each other")
  except Exception as error:  # zipfile, zlib and NumPy each raise their own kinds on torn files
    raise InputError(
      f"{path} cannot be read ({type(error).__name__}: {error}): remove it, and the table beside it is read instead."
    ) from error
  return items, offsets


def _read(directory: str, num_rows: int, wanted: range | None = None) -> Iterator[dict[str, Any]]:
  """Yields a table's rows, all or those wanted, read a few thousand at a time."""
  try:
    # A decorator of TFDS's hides the method's parameters.
    rows = tfds.builder_from_directory(directory).as_data_source(split=_SPLIT)  # pyright: ignore[reportCallIssue]
    if len(rows) != num_rows:
      raise ValueError(f"{len(rows)} rows of {num_rows}")
    wanted = range(num_rows) if wanted is None else wanted
    with terminal.bar(len(wanted), "Loading", " rows") as bar:
      for first in range(0, len(wanted), _READ_ROWS):
        lot = wanted[first : first + _READ_ROWS]
        some = rows.__getitems__(lot)
        # ArrayRecord gives empty records for what a cut file lacks, and TFDS decodes them to None.
        complete = sum(all(value is not None for value in row.values()) for row in some)
        if complete != len(some):
          raise ValueError(f"{lot[complete]} complete rows of {num_rows}")
        yield from some
        bar.update(len(some))
  except Exception as error:  # array_record, protobuf and TFDS each raise their own kinds on torn files
    raise _unreadable(directory, error) from error


def _unreadable(directory: str, reason: str | Exception) -> InputError:
  if isinstance(reason, Exception):
    reason = f"{type(reason).__name__}: {files.first_line(reason)}"
  return InputError(f"{directory} cannot be read ({reason}): remove it and run `python -m rastp_jax.prepare` again.")
