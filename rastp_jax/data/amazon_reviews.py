"""Review histories and item tables as TFDS datasets in ArrayRecord files, without TensorFlow.

A dataset is one entry of `DATASETS` and two TFDS builders share that list: `ReviewHistories` (one row a user) and
`ReviewItems` (one row an item). Where rows come from is a `Source`'s business; `RawDirectory` reads id sequences with
an items file, `synthetic.SyntheticSource` generates. A new kind of raw file is a new `Source`.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import pathlib
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from rastp_jax.data.synthetic import SyntheticSource
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import embeddings
from rastp_jax.semantic_ids.embeddings import Item

# Validation and test each take one item as target, and validation needs a history of at least one more.
MIN_ITEMS = 3

_FILE_FORMAT = "array_record"
_SPLIT = "rows"  # leave-one-out is by position in time, not by row, so TFDS sees one split


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


class Source(Protocol):
  """Where a dataset's rows come from.

  Attributes:
    where: what messages call the source, a directory for instance.
  """

  where: str

  def fingerprint(self) -> str:
    """Identifies the contents of users and items."""

  def items(self) -> Iterator[Item]:
    """Yields the catalogue; the k-th item is row k."""

  def users(self) -> Iterator[tuple[str, list[int]]]:
    """Yields (user id, item rows from 0 in time order), users of any length."""

  def embeddings(self, num_items: int) -> np.ndarray | None:
    """Item vectors, float32 (num_items, features), or None where the source has none."""


def open_source(dataset: str, raw_dir: str) -> Source:
  """The source of a dataset's raw rows; the synthetic one needs no directory.

  Raises:
    InputError: the directory is missing, lacks a file, or a file cannot be unpacked.
  """
  return SyntheticSource() if dataset == "synthetic" else RawDirectory(raw_dir)


class RawDirectory:
  """A directory with `sequences.txt`, `items.jsonl` (either may be gzipped) and perhaps `embeddings.npy`.

  sequences.txt: one user a line, `user_id item_id item_id …`, item ids from 1, in time order. items.jsonl: one item a
  line, `item_id`, and as far as known `asin`, `title`, `brand`, `categories` (a list of paths, each a list of names).
  embeddings.npy: row k = item id k + 1.
  """

  def __init__(self, raw_dir: str):
    root = pathlib.Path(raw_dir)
    if not root.is_dir():
      raise InputError(
        f"There is no directory {raw_dir}: give --raw_dir a directory with sequences.txt(.gz) and items.jsonl(.gz)."
      )
    self.where = str(root)
    self._embeddings = root / "embeddings.npy"
    self._sequences = _find(root, "sequences.txt")
    self._items = _find(root, "items.jsonl")
    self._text = {path: _unpack(path) for path in (self._sequences, self._items)}

  def fingerprint(self) -> str:
    """sha256 over both files' unpacked contents."""
    digest = hashlib.sha256()
    for path in (self._sequences, self._items):
      digest.update(hashlib.sha256(self._text[path]).digest())
    return digest.hexdigest()

  def items(self) -> Iterator[Item]:
    """Yields the catalogue in the order of item ids.

    Raises:
      InputError: a line is no JSON object, a field has the wrong type, or the ids are not 1, 2, … each once.
    """
    return iter(self._catalogue)

  def users(self) -> Iterator[tuple[str, list[int]]]:
    """Yields users in file order.

    Raises:
      InputError: a line is empty, an item id is no integer or not in the items file, a user comes twice.
    """
    num_items = len(self._catalogue)
    seen: dict[str, int] = {}
    for number, line in _lines(self._sequences, self._text[self._sequences]):
      user, *ids = line.split() or [""]
      place = f"{self._sequences} line {number}"
      if not user:
        raise InputError(f"{place} is empty: expected a user id and item ids; remove the line or copy the file again.")
      if user in seen:
        raise InputError(f"{place} gives user {user!r} again, after line {seen[user]}: expected one line a user.")
      seen[user] = number
      try:
        rows = [int(text) - 1 for text in ids]
      except ValueError:
        wrong = next(text for text in ids if not text.removeprefix("-").isdecimal())
        raise InputError(
          f"{place} has the item id {wrong!r}, expected integers from 1 to {num_items}: the file is damaged or of "
          "another format; copy it again."
        ) from None
      if rows and not 0 <= min(rows) <= max(rows) < num_items:
        wrong = next(row + 1 for row in rows if not 0 <= row < num_items)
        raise InputError(
          f"{place} has the item id {wrong}, which has no row in {self._items} (ids 1 to {num_items}): use the two "
          "files of one dataset."
        )
      yield user, rows

  def embeddings(self, num_items: int) -> np.ndarray | None:
    return embeddings.load_embeddings(self._embeddings, num_items) if self._embeddings.exists() else None

  @functools.cached_property
  def _catalogue(self) -> list[Item]:
    found: dict[int, Item] = {}
    for number, line in _lines(self._items, self._text[self._items]):
      place = f"{self._items} line {number}"
      try:
        row = json.loads(line)
        item_id, item = _parse_item(row)
      except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
          f"{place} cannot be read as an item ({type(error).__name__}: {error}): expected a JSON object with an "
          "integer item_id and, as far as known, asin, title, brand and categories; copy the file again."
        ) from None
      if item_id in found:
        raise InputError(f"{place} gives item id {item_id} a second time: expected one line an item.")
      found[item_id] = item
    if not found:
      raise InputError(f"{self._items} holds no items: copy the file again.")
    if max(found) != len(found) or min(found) != 1:
      missing = next(i for i in range(1, len(found) + 1) if i not in found)
      raise InputError(
        f"{self._items} has {len(found)} items but none with item id {missing}: expected the ids 1 to {len(found)}, "
        "each once; copy the file again."
      )
    return [found[item_id] for item_id in sorted(found)]


def _parse_item(row: dict[str, Any]) -> tuple[int, Item]:
  item_id = row["item_id"]
  if type(item_id) is not int:
    raise TypeError(f"item_id is {item_id!r}")
  texts = {name: row.get(name) or "" for name in ("asin", "title", "brand")}
  for name, text in texts.items():
    if not isinstance(text, str):
      raise TypeError(f"{name} is {text!r}")
  categories = tuple(" > ".join(path) for path in row.get("categories") or ())
  return item_id, Item(item_id=str(item_id), **texts, categories=categories)


def _find(root: pathlib.Path, name: str) -> pathlib.Path:
  found = [path for path in (root / name, root / f"{name}.gz") if path.exists()]
  if len(found) != 1:
    what = "both" if found else "neither"
    raise InputError(f"{root} holds {what} {name} {'and' if found else 'nor'} {name}.gz: expected exactly one of them.")
  return found[0]


def _unpack(path: pathlib.Path) -> bytes:
  try:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
  except (EOFError, OSError, zlib.error) as error:
    raise InputError(f"{path} is damaged or cut short ({error}): copy it again.") from error


def _lines(path: pathlib.Path, text: bytes) -> Iterator[tuple[int, str]]:
  # Split as bytes: str.splitlines would also split at characters that titles may hold.
  for number, line in enumerate(text.removesuffix(b"\n").split(b"\n"), start=1):
    try:
      yield number, line.decode()
    except UnicodeDecodeError as error:
      raise InputError(f"{path} line {number} is no UTF-8 text ({error.reason}): copy the file again.") from None


class _ReviewTable:
  """What both builders share: the datasets, the metadata, and rows handed over by `prepare`."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = DATASETS
  # Nothing is downloaded, so TFDS need not look beside the code for checksums (its search imports
  # importlib_resources, which it does not declare as a requirement).
  code_path = None

  def __init__(self, *, rows: Sequence[dict[str, Any]] = (), facts: dict[str, Any] | None = None, **kwargs):
    self._rows = rows
    self._facts = facts or {}
    super().__init__(file_format=_FILE_FORMAT, **kwargs)

  def _table_info(self, features: dict[str, Any]) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(self._facts),
      disable_shuffling=True,  # row k stays row k
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {_SPLIT: self._generate_examples()}

  def _generate_examples(self):
    yield from enumerate(self._rows)


class ReviewHistories(_ReviewTable, tfds.core.GeneratorBasedBuilder):
  """One row a user, in source order: `user_id`, and `items`, int32 item rows from 0 in time order."""

  def _info(self) -> tfds.core.DatasetInfo:
    return self._table_info(
      {"user_id": tfds.features.Text(), "items": tfds.features.Tensor(shape=(None,), dtype=np.int32)}
    )


class ReviewItems(_ReviewTable, tfds.core.GeneratorBasedBuilder):
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
    reused: True when `prepare` found it there.
  """

  histories_dir: str
  items_dir: str
  fingerprint: str
  num_users: int
  num_items: int
  num_interactions: int
  dropped_users: int
  reused: bool = True

  def users(self) -> list[dict[str, Any]]:
    """Rows of `ReviewHistories`: `user_id` bytes, `items` int32 (length,)."""
    return _read(self.histories_dir, self.num_users)

  def items(self) -> list[Item]:
    """The catalogue, row = item."""
    return [
      Item(
        **{name: row[name].decode() for name in ("item_id", "asin", "title", "brand")},
        categories=tuple(path.decode() for path in row["categories"]),
      )
      for row in _read(self.items_dir, self.num_items)
    ]


def open_prepared(data_dir: str, dataset: str) -> Prepared:
  """Finds a prepared dataset.

  Raises:
    InputError: it is not there (the sentence names the command that makes it), or its two tables don't fit.
  """
  found = _look(data_dir, dataset)
  if found is None:
    raw_dir = "" if dataset == "synthetic" else " and --raw_dir=DIR"
    raise InputError(
      f"Dataset {dataset!r} is not prepared under {data_dir}: run `python -m rastp_jax.prepare` with "
      f"the same --config{raw_dir}, or point config.data.data_dir to where it is."
    )
  return found


def prepare(data_dir: str, dataset: str, source: Source) -> Prepared:
  """Writes a source's rows as the two tables, or finds them written already.

  Everything is read and checked before anything is written, and TFDS writes each table into a temporary directory
  that it renames at the end, so an interrupted run leaves no half table.

  Raises:
    InputError: the source is damaged, its sizes are not the published ones, or the data directory already holds this
      dataset from another source.
  """
  fingerprint = source.fingerprint()
  found = _look(data_dir, dataset)
  if found is not None:
    if found.fingerprint != fingerprint:
      raise InputError(
        f"{found.histories_dir} was prepared from other files than {source.where}: remove it and {found.items_dir}, or "
        "choose another config.data.data_dir."
      )
    return found

  items = list(source.items())
  everybody = list(source.users())
  users = [(user, rows) for user, rows in everybody if len(rows) >= MIN_ITEMS]
  facts = {
    "fingerprint": fingerprint,
    "num_users": len(users),
    "num_items": len(items),
    "num_interactions": sum(len(rows) for _, rows in users),
    "dropped_users": len(everybody) - len(users),
  }
  _check_sizes(dataset, source.where, facts)
  # Items first: `_look` takes the histories' presence to mean that both are complete.
  _write(ReviewItems, data_dir, dataset, [dataclasses.asdict(item) for item in items], facts)
  histories = [{"user_id": user, "items": np.asarray(rows, np.int32)} for user, rows in users]
  _write(ReviewHistories, data_dir, dataset, histories, facts)
  return dataclasses.replace(open_prepared(data_dir, dataset), reused=False)


def _check_sizes(dataset: str, where: str, facts: dict[str, Any]) -> None:
  if not facts["num_users"]:
    raise InputError(f"{where} holds no user with at least {MIN_ITEMS} items: there is nothing to train on.")
  published = next(config for config in DATASETS if config.name == dataset)
  for name in ("users", "items", "interactions"):
    expected, got = getattr(published, name), facts[f"num_{name}"]
    if expected is not None and got != expected:
      raise InputError(
        f"{where} has {got} {name} ({facts['dropped_users']} users with fewer than {MIN_ITEMS} items left out), "
        f"expected the {expected} published for {dataset!r}: a file is incomplete or of another dataset; get it again "
        "or change config.data.dataset."
      )


def _write(builder_class, data_dir: str, dataset: str, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
  tfds.disable_progress_bar()
  builder = builder_class(config=dataset, data_dir=data_dir, rows=rows, facts=facts)
  # Left by a run that was stopped between the two tables, perhaps from another source.
  stored = builder.info.metadata.get("fingerprint") if _exists(builder) else None
  if stored is not None and stored != facts["fingerprint"]:
    raise InputError(
      f"{builder.data_path} was prepared from other files: remove it, or choose another config.data.data_dir."
    )
  try:
    # There is no download, whatever TFDS prints about one and whatever directory it makes for it.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
      builder.download_and_prepare(download_dir=downloads)
  except OSError as error:
    raise InputError(
      f"{builder.data_path} cannot be written ({error}): make room or choose another directory."
    ) from error


def _exists(builder) -> bool:
  return builder.data_path.exists()


def _look(data_dir: str, dataset: str) -> Prepared | None:
  """The prepared dataset, or None where it is not complete."""
  paths = []
  for builder_class in (ReviewHistories, ReviewItems):
    builder = builder_class(config=dataset, data_dir=data_dir)
    if not _exists(builder):
      return None
    paths.append(builder)
  histories, items = paths
  facts = dict(histories.info.metadata)
  if items.info.metadata["fingerprint"] != facts["fingerprint"]:
    raise InputError(
      f"{histories.data_path} and {items.data_path} were prepared from different files: remove both and prepare again."
    )
  return Prepared(histories_dir=str(histories.data_path), items_dir=str(items.data_path), **facts)


def _read(directory: str, num_rows: int) -> list[dict[str, Any]]:
  try:
    rows = tfds.builder_from_directory(directory).as_data_source(split=_SPLIT)
    rows = list(rows.__getitems__(range(len(rows))))
    # ArrayRecord answers for what a cut file lacks with empty records, which TFDS decodes to None.
    complete = sum(all(value is not None for value in row.values()) for row in rows)
    if complete != num_rows:
      raise ValueError(f"{complete} complete rows of {num_rows}")
    return rows
  except Exception as error:  # array_record, protobuf and TFDS each raise their own kinds on torn files
    raise InputError(
      f"{directory} cannot be read ({type(error).__name__}: {error}): remove it and run `python -m rastp_jax.prepare` "
      "again."
    ) from error
