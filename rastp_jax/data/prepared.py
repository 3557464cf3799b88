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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds

from rastp_jax import config as config_lib
from rastp_jax.data import datasets
from rastp_jax.data.items import Item
from rastp_jax.data.sources.source import Source
from rastp_jax.data.splits import LEAVE_ONE_OUT, MIN_ITEMS, Split
from rastp_jax.errors import InputError
from rastp_jax.runtime import buckets, files, terminal

_DEFAULTS = config_lib.DataConfig()
_FILE_FORMAT = "array_record"
_SPLIT = "rows"  # leave-one-out is by position in time, not by row, so TFDS sees one split
_SHARD_ROWS = 1 << 16  # rows per file; TFDS holds one file's rows in memory
_READ_ROWS = 1 << 12  # rows read at a time
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

  def __init__(
    self, *, rows: Iterable[dict[str, Any]] = (), num_rows: int = 0, facts: dict[str, Any] | None = None, **kwargs
  ):
    self._rows, self._num_rows = rows, num_rows
    self._facts = facts or {}
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
    # Files are written one after another, so that all can draw from one iterator.
    numbered = enumerate(self._rows)
    shards = -(-self._num_rows // _SHARD_ROWS)
    return {_SPLIT: [lambda: itertools.islice(numbered, _SHARD_ROWS)] * shards}


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

  def histories(self) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All users: ids, items int32 (interactions,) end to end, offsets int64 (users + 1,)."""
    user_ids = []
    try:
      items, offsets = np.empty(self.num_interactions, np.int32), np.zeros(self.num_users + 1, np.int64)
    except (MemoryError, ValueError) as error:
      raise _unreadable(self.histories_dir, f"{self.num_interactions} interactions: {error}") from error
    for row in _read(self.histories_dir, self.num_users):
      start, user = offsets[len(user_ids)], len(user_ids)
      offsets[user + 1] = stop = start + len(row["items"])
      if stop > len(items):
        break
      items[start:stop] = row["items"]
      user_ids.append(row["user_id"].decode())
    if offsets[-1] != len(items) or (len(items) and not 0 <= items.min() <= items.max() < self.num_items):
      raise _unreadable(self.histories_dir, "its rows are not those that its metadata.json tells of")
    return user_ids, items, offsets

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


def prepare(data_dir: str, dataset: str, source: Source, split: Split = LEAVE_ONE_OUT) -> Prepared:
  """Writes a source's rows as the two tables, or finds them written already.

  Everything is read and checked before anything is written, and both tables are written aside and moved to their place
  at the end, so that an interrupted run leaves nothing that would stop the next.

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
  histories = _history_rows(rows.user_ids, rows.items, rows.offsets)
  catalogue = _item_rows(raw.catalogue, raw.file_rows)
  try:
    with files.scratch_directory(files.below(data_dir, f".preparing_{dataset}")) as aside:
      written = [
        _write(ReviewItems(config=dataset, data_dir=aside, rows=catalogue, num_rows=raw.num_items, facts=facts), aside),
        _write(
          ReviewHistories(config=dataset, data_dir=aside, rows=histories, num_rows=len(rows.user_ids), facts=facts),
          aside,
        ),
      ]
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


def _history_rows(user_ids: pa.Array, items: np.ndarray, offsets: np.ndarray) -> Iterator[dict[str, Any]]:
  with terminal.bar(len(user_ids), "Writing histories", " users") as bar:
    for first in range(0, len(user_ids), _READ_ROWS):
      some = user_ids[first : first + _READ_ROWS].to_pylist()
      for row, user_id in enumerate(some, start=first):
        yield {"user_id": user_id, "items": items[offsets[row] : offsets[row + 1]]}
      bar.update(len(some))


def _write(builder: _ReviewTable, aside: pathlib.Path) -> pathlib.Path:
  """Prepares a builder's table; returns its directory. `aside` is a directory that is removed afterwards."""
  tfds.disable_progress_bar()
  # There is no download, whatever TFDS prints about one and whatever directory it makes for it.
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(download_dir=aside / "downloads")
  return pathlib.Path(builder.data_path)


def _read(directory: str, num_rows: int) -> Iterator[dict[str, Any]]:
  """Yields a table's rows, read a few thousand at a time."""
  try:
    # A decorator of TFDS's hides the method's parameters.
    rows = tfds.builder_from_directory(directory).as_data_source(split=_SPLIT)  # pyright: ignore[reportCallIssue]
    if len(rows) != num_rows:
      raise ValueError(f"{len(rows)} rows of {num_rows}")
    with terminal.bar(num_rows, "Loading", " rows") as bar:
      for first in range(0, num_rows, _READ_ROWS):
        some = rows.__getitems__(range(first, min(first + _READ_ROWS, num_rows)))
        # ArrayRecord gives empty records for what a cut file lacks, and TFDS decodes them to None.
        complete = sum(all(value is not None for value in row.values()) for row in some)
        if complete != len(some):
          raise ValueError(f"{first + complete} complete rows of {num_rows}")
        yield from some
        bar.update(len(some))
  except Exception as error:  # array_record, protobuf and TFDS each raise their own kinds on torn files
    raise _unreadable(directory, error) from error


def _unreadable(directory: str, reason: str | Exception) -> InputError:
  if isinstance(reason, Exception):
    reason = f"{type(reason).__name__}: {files.first_line(reason)}"
  return InputError(f"{directory} cannot be read ({reason}): remove it and run `python -m rastp_jax.prepare` again.")
