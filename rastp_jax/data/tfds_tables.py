"""Tables of a prepared dataset: TFDS builders, their rows in ArrayRecord files, and the histories as arrays.

Without TensorFlow. Rows are handed over by `preparation.prepare`, and read for `prepared.Prepared`.
"""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as splits_lib

from rastp_jax.data import datasets
from rastp_jax.errors import InputError
from rastp_jax.runtime import files, terminal

SHARD_ROWS = 1 << 16  # rows per file; TFDS holds one file's rows in memory
READ_ROWS = 1 << 12  # rows read at a time
ARRAYS = "arrays.npz"  # beside the histories' table
METADATA = "metadata.json"  # TFDS's name
_FILE_FORMAT = "array_record"
_SPLIT = "rows"  # leave-one-out is by position in time, not by row, so TFDS sees one split

# What gives the rows of one file, with their numbers.
Shard = Callable[[], Iterator[tuple[int, dict[str, Any]]]]


class _TableInfo(tfds.core.DatasetInfo):
  """A table's description that is never looked for in TFDS's own store of datasets."""

  def initialize_from_bucket(self) -> None:
    """Does nothing: the original leaves an empty directory in the system's temporary folder for every new builder."""


class ReviewTable(tfds.core.ShardBasedBuilder):
  """What both builders share: any dataset name, the metadata, and rows handed over by `preparation.prepare`."""

  VERSION = tfds.core.Version("1.0.0")
  # TFDS need not look beside the code for checksums (its search imports importlib_resources, which it does not declare
  # as a requirement).
  code_path = None

  def __init__(self, *, shards: Sequence[Shard] = (), facts: dict[str, Any] | None = None, **kwargs):
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


class ReviewHistories(ReviewTable):
  """One row per user, in source order: `user_id`, and `items`, int32 item rows from 0 in time order."""

  def _info(self) -> tfds.core.DatasetInfo:
    return self._table_info(
      {"user_id": tfds.features.Text(), "items": tfds.features.Tensor(shape=(None,), dtype=np.int32)}
    )


class ReviewItems(ReviewTable):
  """One row per item: the fields of `Item`, and `file_row`: its row in the source's items file, or -1."""

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    fields = dict.fromkeys(("item_id", "asin", "title", "brand"), text)
    more = {"categories": tfds.features.Sequence(text), "extra": text, "file_row": np.int64}
    return self._table_info({**fields, **more})


def place(table: type[ReviewTable], data_dir: str, dataset: str) -> pathlib.Path:
  """Where TFDS keeps a table."""
  return files.below(data_dir, table.name, dataset) / str(table.VERSION)


def write(builder: ReviewTable, aside: pathlib.Path, pipeline: Mapping[str, Any] = {}) -> pathlib.Path:
  """Prepares a builder's table; returns its directory.

  Args:
    builder: with its shards.
    aside: a directory that is removed afterwards.
    pipeline: see `preparation.beam_pipeline`; without one, this process writes the shards one after the other.
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
  np.savez(directory / ARRAYS, items=items.astype(np.int32, copy=False), offsets=offsets.astype(np.int64, copy=False))


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


def read_rows(directory: str, num_rows: int, wanted: range | None = None) -> Iterator[dict[str, Any]]:
  """Yields a table's rows, all or those wanted, read a few thousand at a time."""
  try:
    # A decorator of TFDS's hides the method's parameters.
    rows = tfds.builder_from_directory(directory).as_data_source(split=_SPLIT)  # pyright: ignore[reportCallIssue]
    if len(rows) != num_rows:
      raise ValueError(f"{len(rows)} rows of {num_rows}")
    wanted = range(num_rows) if wanted is None else wanted
    with terminal.bar(len(wanted), "Loading", " rows") as bar:
      for first in range(0, len(wanted), READ_ROWS):
        lot = wanted[first : first + READ_ROWS]
        some = rows.__getitems__(lot)
        # ArrayRecord gives empty records for what a cut file lacks, and TFDS decodes them to None.
        complete = sum(all(value is not None for value in row.values()) for row in some)
        if complete != len(some):
          raise ValueError(f"{lot[complete]} complete rows of {num_rows}")
        yield from some
        bar.update(len(some))
  except Exception as error:  # array_record, protobuf and TFDS each raise their own kinds on torn files
    raise unreadable(directory, error) from error


def unreadable(directory: str, reason: str | Exception) -> InputError:
  if isinstance(reason, Exception):
    reason = f"{type(reason).__name__}: {files.first_line(reason)}"
  return InputError(f"{directory} cannot be read ({reason}): remove it and run `python -m rastp_jax.prepare` again.")
