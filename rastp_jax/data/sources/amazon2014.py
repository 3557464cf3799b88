"""The Amazon 2014 files as published (McAuley et al., 2015): 5-core reviews and product metadata of one category."""

import array
import ast
import hashlib
import html
import os
import pathlib
import re
import reprlib
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from rastp_jax.config import DataConfig
from rastp_jax.data.items import Item
from rastp_jax.data.sources import raw_files
from rastp_jax.data.sources.log import Log
from rastp_jax.data.sources.source import RawData
from rastp_jax.errors import InputError
from rastp_jax.runtime import files

URL = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"

_CHECKSUMS = "checksums.tsv"
_TIMEOUT = 30  # seconds a server may take to answer at all
# Most products of a category have no 5-core reviews: their lines need not be parsed.
_ASIN_FIRST = re.compile(r"\{'asin': '(\w+)'")


def file_names(category: str) -> tuple[str, str]:
  """Names of the reviews and the metadata file, without .gz."""
  return f"reviews_{category}_5.json", f"meta_{category}.json"


class Amazon2014Files:
  """One category's reviews_*_5.json and meta_*.json, gzipped or not.

  Users and items keep the order of their first appearance in the reviews file; a user's items are in time order, those
  of the same day (times are whole days) in file order. A second review of the same product by the same user is left
  out. Products without metadata stay, without text.

  Args:
    reviews: JSON lines with reviewerID, asin and unixReviewTime.
    meta: lines that are Python literals (not JSON), dicts with asin, title, brand, categories.
  """

  settings: Mapping[str, Any] = {}

  def __init__(self, reviews: pathlib.Path, meta: pathlib.Path):
    self.where = str(reviews)
    self._reviews, self._meta = reviews, meta

  def fingerprint(self) -> str:
    """sha256 over both files' unpacked contents."""
    return hashlib.sha256(raw_files.digest(self._reviews) + raw_files.digest(self._meta)).hexdigest()

  def read(self) -> RawData:
    """Reads both files.

    Raises:
      InputError: a file is cut short, or a line is not a review or not a literal.
    """
    log = self._log()
    log.sort("first", keep_times=True)
    user_ids, items, offsets, asins = log.histories()
    catalogue = self._catalogue(asins.to_pylist(), log.counts)
    return RawData(user_ids, items, offsets, catalogue, len(catalogue), log.counts, times=log.times)

  def embeddings(self, num_items: int) -> None:
    del num_items  # none are published

  def _log(self) -> Log:
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    columns = array.array("i"), array.array("i"), array.array("q")
    for number, line in raw_files.lines(self._reviews):
      try:
        row = raw_files.json_value(line)
        user, item, time = row["reviewerID"], row["asin"], row["unixReviewTime"]
        if not (isinstance(user, str) and isinstance(item, str) and type(time) is int):
          shown = [reprlib.repr(value) for value in (user, item, time)]
          raise TypeError(f"reviewerID, asin and unixReviewTime are {shown[0]}, {shown[1]} and {shown[2]}")
        columns[2].append(time)
      except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(
          f"{self._reviews} line {number} cannot be read as a review ({type(error).__name__}: {error}): expected a "
          "JSON object with the texts reviewerID and asin and the whole number unixReviewTime; get the file again."
        ) from None
      columns[0].append(users.setdefault(user, len(users)))
      columns[1].append(items.setdefault(item, len(items)))
    if not users:
      raise InputError(f"{self._reviews} holds no reviews: get the file again.")
    user_column, item_column, time_column = (
      np.frombuffer(column, dtype) for column, dtype in zip(columns, (np.int32, np.int32, np.int64), strict=True)
    )
    user_ids, item_ids = pa.array(users, pa.large_string()), pa.array(items, pa.large_string())
    return Log(user_column, item_column, time_column, user_ids, item_ids)

  def _catalogue(self, asins: list[str], counts: dict[str, int]) -> list[Item]:
    found: dict[str, Item | None] = dict.fromkeys(asins)
    again = escaped = 0
    for number, line in raw_files.lines(self._meta):
      first = _ASIN_FIRST.match(line)
      if first and first[1] not in found:
        continue
      asin, item, had_entities = _parse_product(line, f"{self._meta} line {number}")
      if asin in found:
        again += found[asin] is not None
        escaped += had_entities and found[asin] is None
        found[asin] = found[asin] or item
    counts["products without metadata (kept, without text)"] = sum(item is None for item in found.values())
    counts["second metadata lines of a product left out"] = again
    counts["products whose text held HTML entities (unescaped)"] = escaped
    return [item or Item(item_id=asin, asin=asin) for asin, item in found.items()]


def _parse_product(line: str, place: str) -> tuple[str, Item, bool]:
  """The asin, the item, and whether its text held HTML entities."""
  try:
    row = _literal(line)
    asin = row["asin"]
    if not isinstance(asin, str):
      raise TypeError(f"asin is {reprlib.repr(asin)}")
    texts = raw_files.text_fields(row, ("title", "brand"))
    categories = raw_files.category_paths(row.get("categories"))
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise InputError(
      f"{place} cannot be read as a product ({type(error).__name__}: {error}): expected a dict of plain values written "
      "as Python writes it, with asin and, as far as known, title, brand and categories; get the file again."
    ) from None
  plain = {name: html.unescape(text) for name, text in texts.items()}
  plain_categories = tuple(html.unescape(path) for path in categories)
  escaped = plain != texts or plain_categories != categories
  item = Item(item_id=asin, asin=asin, title=plain["title"], brand=plain["brand"], categories=plain_categories)
  return asin, item, escaped


def _literal(line: str) -> Any:
  """The value of a Python literal; no code in it is run."""
  try:
    value = ast.literal_eval(line)
  except SyntaxError as error:
    raise ValueError(error.msg) from None
  except ValueError:  # its message would be an address in memory
    raise ValueError("the line holds more than plain values") from None
  except (RecursionError, MemoryError):
    raise ValueError("the line is nested too deeply") from None
  raw_files.check_texts(value, line)
  return value


def download(directory: str | os.PathLike, category: str) -> Amazon2014Files:
  """Downloads a category's two files with TFDS, or finds them downloaded.

  Checksums are recorded in `directory`/checksums.tsv at the first download, and checked at every later one.

  Args:
    directory: where downloads are kept.
    category: as the published file names spell it, like "Toys_and_Games".

  Raises:
    InputError: a file cannot be downloaded, or is not the one recorded.
  """
  directory = pathlib.Path(directory)
  urls = _urls(category)
  try:
    with files.directory_lock(directory):
      return Amazon2014Files(*(_fetch(directory, url) for url in urls))
  except NonMatchingChecksumError as error:
    raise InputError(
      f"A download is not the file recorded in {directory / _CHECKSUMS} ({' '.join(str(error).split())}): try again "
      f"later, or remove {directory} if the published file has changed."
    ) from None
  except (tfds.download.DownloadError, requests.RequestException, OSError) as error:
    raise InputError(
      f"{urls[0]} and {urls[1]} cannot be downloaded to {directory} ({error}): try again later, or get them in another "
      "way and name their directory with --raw_dir."
    ) from None


def is_downloaded(directory: str | os.PathLike, category: str) -> bool:
  """Whether `download` has fetched a category's files to a directory."""
  record = pathlib.Path(directory) / _CHECKSUMS
  known = checksums.load_url_infos(record) if record.exists() else {}
  return set(_urls(category)) <= set(known)


def _urls(category: str) -> list[str]:
  return [f"{URL}/{name}.gz" for name in file_names(category)]


def _fetch(directory: pathlib.Path, url: str) -> pathlib.Path:
  record = directory / _CHECKSUMS
  known = checksums.load_url_infos(record) if record.exists() else {}
  for torn in directory.glob("*.tmp.*"):  # a download that was killed
    shutil.rmtree(torn)
  if url not in known:
    # TFDS tries a server that is not there for minutes; this fails at once.
    requests.get(url, stream=True, timeout=_TIMEOUT).close()
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  with tempfile.TemporaryDirectory() as extracted:  # nothing is: we read gzip as it is
    manager = tfds.download.DownloadManager(
      download_dir=directory,
      extract_dir=extracted,
      url_infos=known,
      register_checksums=url not in known,
      register_checksums_path=record,
    )
    return pathlib.Path(manager.download(url))


class Amazon2014:
  """The form of these files in a directory."""

  def find(self, root: pathlib.Path, category: str | None) -> list[pathlib.Path]:
    reviews, _ = file_names(category or "*")
    return raw_files.glob(root, reviews)

  def open(self, root: pathlib.Path, found: list[pathlib.Path], config: DataConfig) -> Amazon2014Files:
    del config
    if len(found) > 1:
      raise InputError(f"{root} holds {found[0].name} and {found[1].name}: expected one of them; move the other away.")
    category = found[0].name.removeprefix("reviews_").split("_5.json")[0]
    _, meta = file_names(category)
    products = raw_files.find(root, meta)
    if len(products) != 1:
      what = f"both {meta} and {meta}.gz" if products else f"no {meta} or {meta}.gz"
      raise InputError(f"{root} holds {found[0].name} but {what}: expected exactly one, for the products' text.")
    return Amazon2014Files(found[0], products[0])

  def wanted(self, category: str | None) -> str:
    return " and ".join(file_names(category or "CATEGORY"))
