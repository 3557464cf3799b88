"""Review histories and item tables as TFDS datasets in ArrayRecord files, without TensorFlow.

Every dataset is a config of two TFDS builders: `ReviewHistories` (one row a user) and `ReviewItems` (one row an item).
`DATASETS` lists the ones whose sizes are published; any other name is a dataset of the user's own. Where rows come from
is a `sources.Source`'s business.
"""

import contextlib
import dataclasses
import io
import itertools
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds

from rastp_jax import files
from rastp_jax.data import sources
from rastp_jax.data.sources import RawData, Source
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids.embeddings import Item

# Validation and test each take one item as target, and validation needs a history of at least one more.
MIN_ITEMS = 3

_FILE_FORMAT = "array_record"
_SPLIT = "rows"  # leave-one-out is by position in time, not by row, so TFDS sees one split
_SHARD_ROWS = 1 << 16  # rows a file; TFDS holds one file's rows in memory
_READ_ROWS = 1 << 12  # rows read at a time


@dataclasses.dataclass(eq=False, kw_only=True)
class ReviewsConfig(tfds.core.BuilderConfig):
  """One dataset.

  Attributes:
    users: published number of users, checked when given.
    items: published number of items, checked when given.
    interactions: published number of interactions, checked when given.
  """

  users: int | None = None
  items: int | None = None
  interactions: int | None = None


_AMAZON = "Amazon 2014 5-core reviews, category {}: each user's items in time order (McAuley et al., 2015)."
DATASETS = [
  ReviewsConfig(name="beauty", description=_AMAZON.format("Beauty"), users=22363, items=12101, interactions=198502),
  ReviewsConfig(
    name="sports", description=_AMAZON.format("Sports and Outdoors"), users=35598, items=18357, interactions=296337
  ),
  ReviewsConfig(
    name="toys", description=_AMAZON.format("Toys and Games"), users=19412, items=11924, interactions=167597
  ),
  ReviewsConfig(name="synthetic", description="Generated walks with planted structure (data/synthetic.py)."),
]


class _ReviewTable(tfds.core.ShardBasedBuilder):
  """What both builders share: any dataset name, the metadata, and rows handed over by `prepare`."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = DATASETS
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
  def get_builder_config(cls, name: str, version: str | None = None) -> ReviewsConfig:
    return super().get_builder_config(name, version) or ReviewsConfig(name=name, description="Of the user's own.")

  def _table_info(self, features: dict[str, Any]) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
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
  """One row a user, in source order: `user_id`, and `items`, int32 item rows from 0 in time order."""

  def _info(self) -> tfds.core.DatasetInfo:
    return self._table_info(
      {"user_id": tfds.features.Text(), "items": tfds.features.Tensor(shape=(None,), dtype=np.int32)}
    )


class ReviewItems(_ReviewTable):
  """One row an item: the fields of `Item`."""

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    fields = dict.fromkeys(("item_id", "asin", "title", "brand"), text)
    return self._table_info({**fields, "categories": tfds.features.Sequence(text)})


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A dataset that lies ready under a data directory.

  Attributes:
    histories_dir: directory of the histories table.
    items_dir: directory of the item table.
    fingerprint: identifies the source it was made from.
    num_users: users kept.
    num_items: items in the catalogue.
    num_interactions: items in all histories together.
    dropped_users: users left out because they had fewer than `MIN_ITEMS` items.
    settings: config.data fields its rows depend on.
    counts: what its source met, see `sources.RawData`.
    reused: True when `prepare` found it there.
  """

  histories_dir: str
  items_dir: str
  fingerprint: str
  num_users: int
  num_items: int
  num_interactions: int
  dropped_users: int
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  reused: bool = True

  def describe(self) -> str:
    """Sizes, and what was met in the raw files, a line each."""
    sizes = (
      f"{self.num_users} users, {self.num_items} items, {self.num_interactions} interactions; "
      f"{self.dropped_users} users with fewer than {MIN_ITEMS} items left out"
    )
    return "\n".join([sizes, *(f"  {count} {what}" for what, count in self.counts.items() if count)])

  def histories(self) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All users: ids, items int32 (interactions,) end to end, offsets int64 (users + 1,)."""
    user_ids = []
    items, offsets = np.empty(self.num_interactions, np.int32), np.zeros(self.num_users + 1, np.int64)
    for row in _read(self.histories_dir, self.num_users):
      start, user = offsets[len(user_ids)], len(user_ids)
      offsets[user + 1] = stop = start + len(row["items"])
      items[start:stop] = row["items"]
      user_ids.append(row["user_id"].decode())
    return user_ids, items, offsets

  def items(self) -> list[Item]:
    """The catalogue, row = item."""
    return [
      Item(
        **{name: row[name].decode() for name in ("item_id", "asin", "title", "brand")},
        categories=tuple(path.decode() for path in row["categories"]),
      )
      for row in _read(self.items_dir, self.num_items)
    ]


def find_prepared(data_dir: str, dataset: str) -> Prepared | None:
  """The prepared dataset, or None where it is not complete.

  Raises:
    InputError: its two tables don't fit.
  """
  histories, items = (table(config=dataset, data_dir=data_dir) for table in (ReviewHistories, ReviewItems))
  if not (histories.data_path.exists() and items.data_path.exists()):
    return None
  facts = dict(histories.info.metadata)
  if items.info.metadata["fingerprint"] != facts["fingerprint"]:
    raise InputError(
      f"{histories.data_path} and {items.data_path} were prepared from different files: remove both and prepare again."
    )
  return Prepared(histories_dir=str(histories.data_path), items_dir=str(items.data_path), **facts)


def open_prepared(data_dir: str, dataset: str) -> Prepared:
  """Finds a prepared dataset.

  Raises:
    InputError: it is not there (the sentence names the command that makes it), or its two tables don't fit.
  """
  found = find_prepared(data_dir, dataset)
  if found is None:
    raw_dir = "" if dataset == "synthetic" else " and --raw_dir=DIR"
    raise InputError(
      f"Dataset {dataset!r} is not prepared under {data_dir}: run `python -m rastp_jax.prepare` with "
      f"the same --config{raw_dir}, or point config.data.data_dir to where it is."
    )
  return found


def prepare(data_dir: str, dataset: str, source: Source) -> Prepared:
  """Writes a source's rows as the two tables, or finds them written already.

  Everything is read and checked before anything is written, and both tables are written aside and moved to their place
  at the end, so that an interrupted run leaves nothing that is in the way of the next.

  Raises:
    InputError: the source is damaged, its sizes are not the published ones, the data directory already holds this
      dataset from another source or with other settings, or cannot be written.
  """
  found = find_prepared(data_dir, dataset)
  if found is not None:
    check_settings(found, source.settings)
  fingerprint = source.fingerprint()
  if found is not None:
    if found.fingerprint != fingerprint:
      raise InputError(
        f"{found.histories_dir} was prepared from other files than {source.where}: remove it and {found.items_dir}, or "
        "choose another config.data.data_dir."
      )
    return found
  raw = source.read()
  user_ids, items, offsets = _long_enough(raw)
  facts = {
    "fingerprint": fingerprint,
    "num_users": len(user_ids),
    "num_items": raw.num_items,
    "num_interactions": len(items),
    "dropped_users": len(raw.offsets) - len(offsets),
    "settings": dict(source.settings),
    "counts": dict(raw.counts),
  }
  _check_sizes(dataset, source.where, facts)
  histories = _history_rows(user_ids, items, offsets)
  catalogue = (dataclasses.asdict(item) for item in raw.catalogue)
  try:
    with files.workshop(pathlib.Path(data_dir) / f".preparing_{dataset}") as aside:
      written = [
        _write(ReviewItems(config=dataset, data_dir=aside, rows=catalogue, num_rows=raw.num_items, facts=facts)),
        _write(ReviewHistories(config=dataset, data_dir=aside, rows=histories, num_rows=len(user_ids), facts=facts)),
      ]
      for directory in written:
        place = pathlib.Path(data_dir) / directory.relative_to(aside)
        if place.exists():  # a run was killed between the two moves: without its other half it is nothing
          shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(place)
  except (OSError, RuntimeError) as error:  # array_record raises RuntimeError where the disk is full
    raise InputError(
      f"Dataset {dataset!r} cannot be written to {data_dir} ({error}): make room, or choose another directory with "
      "config.data.data_dir."
    ) from error
  return dataclasses.replace(open_prepared(data_dir, dataset), reused=False)


def check_settings(found: Prepared, settings: Mapping[str, Any]) -> None:
  """Raises InputError where a prepared dataset was made with other settings; the sentence names the first."""
  for name in sorted({*found.settings, *settings}):
    made_with, wanted = found.settings.get(name), settings.get(name)
    if made_with != wanted:
      raise InputError(
        f"{found.histories_dir} was prepared with data.{name}={made_with!r}, but now data.{name}={wanted!r} is asked "
        f"for: remove it and {found.items_dir}, or choose another config.data.dataset or config.data.data_dir."
      )


def _long_enough(raw: RawData) -> tuple[pa.Array, np.ndarray, np.ndarray]:
  """User ids, items and offsets of the users who have enough items for leave-one-out."""
  lengths = np.diff(raw.offsets)
  keep = lengths >= MIN_ITEMS
  if keep.all():
    return raw.user_ids, raw.items, raw.offsets
  offsets = np.concatenate([[0], np.cumsum(lengths[keep])])
  return raw.user_ids.filter(pa.array(keep)), raw.items[np.repeat(keep, lengths)], offsets


def _check_sizes(dataset: str, where: str, facts: dict[str, Any]) -> None:
  if not facts["num_users"]:
    raise InputError(f"{where} holds no user with at least {MIN_ITEMS} items: there is nothing to train on.")
  published = next((config for config in DATASETS if config.name == dataset), ReviewsConfig(name=dataset))
  for name in ("users", "items", "interactions"):
    expected, got = getattr(published, name), facts[f"num_{name}"]
    if expected is not None and got != expected:
      raise InputError(
        f"{where} has {got} {name} ({facts['dropped_users']} users with fewer than {MIN_ITEMS} items left out), "
        f"expected the {expected} published for {dataset!r}: a file is incomplete or of another dataset; get it again "
        "or change config.data.dataset."
      )


def _history_rows(user_ids: pa.Array, items: np.ndarray, offsets: np.ndarray) -> Iterator[dict[str, Any]]:
  with sources.progress(len(user_ids), "Writing histories", " users") as bar:
    for first in range(0, len(user_ids), _READ_ROWS):
      some = user_ids[first : first + _READ_ROWS].to_pylist()
      for row, user_id in enumerate(some, start=first):
        yield {"user_id": user_id, "items": items[offsets[row] : offsets[row + 1]]}
      bar.update(len(some))


def _write(builder: _ReviewTable) -> pathlib.Path:
  """Prepares a builder's table; returns its directory."""
  tfds.disable_progress_bar()
  # There is no download, whatever TFDS prints about one and whatever directory it makes for it.
  with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
    builder.download_and_prepare(download_dir=downloads)
  return pathlib.Path(builder.data_path)


def _read(directory: str, num_rows: int) -> Iterator[dict[str, Any]]:
  """Yields a table's rows, read in small lots."""
  try:
    rows = tfds.builder_from_directory(directory).as_data_source(split=_SPLIT)
    if len(rows) != num_rows:
      raise ValueError(f"{len(rows)} rows of {num_rows}")
    with sources.progress(num_rows, "Loading", " rows") as bar:
      for first in range(0, num_rows, _READ_ROWS):
        some = rows.__getitems__(range(first, min(first + _READ_ROWS, num_rows)))
        # ArrayRecord answers for what a cut file lacks with empty records, which TFDS decodes to None.
        complete = sum(all(value is not None for value in row.values()) for row in some)
        if complete != len(some):
          raise ValueError(f"{first + complete} complete rows of {num_rows}")
        yield from some
        bar.update(len(some))
  except Exception as error:  # array_record, protobuf and TFDS each raise their own kinds on torn files
    raise InputError(
      f"{directory} cannot be read ({type(error).__name__}: {error}): remove it and run `python -m rastp_jax.prepare` "
      "again."
    ) from error
