"""The Amazon 2014 files as published (McAuley et al., 2015): 5-core reviews and product metadata of one category."""

import array
import ast
import hashlib
import html
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from rastp_jax import files
from rastp_jax.data import sources
from rastp_jax.data.interactions import Log
from rastp_jax.data.sources import RawData
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids.embeddings import Item

URL = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
CATEGORIES = {"beauty": "Beauty", "sports": "Sports_and_Outdoors", "toys": "Toys_and_Games"}

_CHECKSUMS = "checksums.tsv"
_TIMEOUT = 30  # seconds a server may take to answer at all
# Most products of a category have no 5-core reviews: their lines need not be parsed.
_ASIN_FIRST = re.compile(r"\{'asin': '(\w+)'")


def file_names(category: str) -> tuple[str, str]:
  """Names of the reviews and the metadata file, without .gz."""
  return f"reviews_{category}_5.json", f"meta_{category}.json"


class OfficialFiles:
  """One category's reviews_*_5.json and meta_*.json, gzipped or not.

  Users and items keep the order of their first appearance in the reviews file; a user's items are in time order, those
  of one moment (the times are whole days) in file order. A second review of the same product by the same user is left
  out. Products without metadata stay, without text.

  Args:
    reviews: JSON lines with reviewerID, asin and unixReviewTime.
    meta: lines that are Python literals (not JSON), dicts with asin, title, brand, categories.
  """

  settings = {}

  def __init__(self, reviews: pathlib.Path, meta: pathlib.Path):
    self.where = str(reviews)
    self._reviews, self._meta = reviews, meta

  def fingerprint(self) -> str:
    """sha256 over both files' unpacked contents."""
    return hashlib.sha256(sources.digest(self._reviews) + sources.digest(self._meta)).hexdigest()

  def read(self) -> RawData:
    """Reads both files.

    Raises:
      InputError: a file is torn, or a line is no review or no literal.
    """
    log = self._log()
    log.sort("first")
    user_ids, items, offsets, asins = log.histories()
    catalogue = self._catalogue(asins.to_pylist(), log.counts)
    return RawData(user_ids, items, offsets, catalogue, len(catalogue), log.counts)

  def embeddings(self, num_items: int) -> None:
    del num_items  # none are published

  def _log(self) -> Log:
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    columns = array.array("i"), array.array("i"), array.array("q")
    for number, line in sources.lines(self._reviews):
      try:
        row = json.loads(line)
        user, item, time = row["reviewerID"], row["asin"], row["unixReviewTime"]
        if not (isinstance(user, str) and isinstance(item, str) and type(time) is int):
          raise TypeError(f"reviewerID, asin and unixReviewTime are {user!r}, {item!r} and {time!r}")
        columns[2].append(time)
      except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(
          f"{self._reviews} line {number} cannot be read as a review ({type(error).__name__}: {error}): expected a "
          "JSON object with the texts reviewerID and asin and the whole number unixReviewTime; get the file again."
        ) from None
      columns[0].append(users.setdefault(user, len(users)))
      columns[1].append(items.setdefault(item, len(items)))
    if not users:
      raise InputError(f"{self._reviews} holds no reviews: get the file again.")
    arrays = (
      np.frombuffer(column, dtype) for column, dtype in zip(columns, (np.int32, np.int32, np.int64), strict=True)
    )
    return Log(*arrays, pa.array(users, pa.large_string()), pa.array(items, pa.large_string()))

  def _catalogue(self, asins: list[str], counts: dict[str, int]) -> list[Item]:
    found: dict[str, Item | None] = dict.fromkeys(asins)
    again = escaped = 0
    for number, line in sources.lines(self._meta):
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
      raise TypeError(f"asin is {asin!r}")
    texts = sources.text_fields(row, ("title", "brand"))
    categories = sources.category_paths(row.get("categories"))
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise InputError(
      f"{place} cannot be read as a product ({type(error).__name__}: {error}): expected a dict of plain values written "
      "as Python writes it, with asin and, as far as known, title, brand and categories; get the file again."
    ) from None
  plain = {name: html.unescape(text) for name, text in texts.items()}
  plain_categories = tuple(html.unescape(path) for path in categories)
  escaped = plain != texts or plain_categories != categories
  return asin, Item(item_id=asin, asin=asin, **plain, categories=plain_categories), escaped


def _literal(line: str) -> Any:
  """The value that a line of Python is; nothing in it is run."""
  try:
    return ast.literal_eval(line)
  except SyntaxError as error:
    raise ValueError(error.msg) from None
  except ValueError:  # its message would be an address in memory
    raise ValueError("the line holds more than plain values") from None
  except (RecursionError, MemoryError):
    raise ValueError("the line is nested too deeply") from None


def download(directory: str | os.PathLike, dataset: str) -> OfficialFiles:
  """Downloads a dataset's two files with TFDS, or finds them downloaded.

  Checksums are recorded in `directory`/checksums.tsv when a file first comes, and hold from then on.

  Args:
    directory: where downloads are kept.
    dataset: a key of `CATEGORIES`.

  Raises:
    InputError: a file cannot be had, or is not the one recorded.
  """
  directory = pathlib.Path(directory)
  urls = _urls(dataset)
  try:
    with files.exclusive(directory):
      return OfficialFiles(*(_fetch(directory, url) for url in urls))
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


def is_downloaded(directory: str | os.PathLike, dataset: str) -> bool:
  """Whether `download` has fetched a dataset's files to a directory."""
  record = pathlib.Path(directory) / _CHECKSUMS
  known = checksums.load_url_infos(record) if record.exists() else {}
  return dataset in CATEGORIES and set(_urls(dataset)) <= set(known)


def _urls(dataset: str) -> list[str]:
  return [f"{URL}/{name}.gz" for name in file_names(CATEGORIES[dataset])]


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
