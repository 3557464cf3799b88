"""The Amazon 2014 files as published, with every oddity they have, from a directory and downloaded."""

import contextlib
import dataclasses
import functools
import gzip
import http.server
import json
import pathlib
import threading

import numpy as np
import pytest

from rastp_jax.config import DataConfig
from rastp_jax.data import datasets, histories
from rastp_jax.data import prepared as prepared_lib
from rastp_jax.data.sources import amazon2014, detect
from rastp_jax.errors import InputError

DAY = 86_400
# (reviewerID, asin, day), in file order: by product, as published.
REVIEWS = [
  ("A2", "B01", 3),
  ("A1", "B01", 1),
  ("A1", "B02", 4),
  ("A2", "B02", 3),  # the same day as B01: file order decides
  ("A2", "B03", 1),
  ("A1", "B03", 4),  # the same day as B02
  ("A2", "B01", 9),  # a second review of B01: left out
  ("A1", "B04", 2),  # without metadata
  ("A3", "B01", 5),  # two items only: left out
  ("A3", "B02", 6),
]
META = [
  {
    "asin": "B03",
    "title": "Tom&#39;s &quot;Soap&quot;",
    "brand": "A &amp; B",
    "categories": [["Beauty", "Bath &amp; Body"]],
  },
  {"asin": "B99", "title": "Nobody bought it", "categories": [["Beauty"]]},
  {"asin": "B01", "title": 'It\'s a "brush"\u2028really', "price": 3.5, "salesRank": {"Beauty": 7}, "related": None},
  {"asin": "B02", "categories": [["Beauty", "Hair"], ["Gifts"]], "title": "First"},
  {"asin": "B02", "title": "Second line of the same product"},
]


def write_files(root: pathlib.Path, category="Beauty", reviews=REVIEWS, meta=META, gzipped=True) -> str:
  """Rows may be given as text, to be torn or worse."""
  root.mkdir(exist_ok=True)
  lines = [
    row
    if isinstance(row, str)
    else json.dumps({"reviewerID": row[0], "asin": row[1], "overall": 5.0, "unixReviewTime": row[2] * DAY})
    for row in reviews
  ]
  products = [row if isinstance(row, str) else repr(row) for row in meta]
  for name, text in zip(amazon2014.file_names(category), (lines, products), strict=True):
    content = "".join(f"{line}\n" for line in text).encode()
    (root / (f"{name}.gz" if gzipped else name)).write_bytes(gzip.compress(content) if gzipped else content)
  return str(root)


def prepare(tmp_path, raw_dir, dataset="small"):
  return detect.prepare_dataset(DataConfig(dataset=dataset, data_dir=str(tmp_path / "data")), raw_dir)[0]


@pytest.mark.parametrize("gzipped", [True, False])
def test_every_oddity_gives_exactly_the_expected_sequences(tmp_path, gzipped):
  prepared = prepare(tmp_path, write_files(tmp_path / "raw", gzipped=gzipped))
  loaded = histories.load(str(tmp_path / "data"), "small")
  items = prepared.items
  assert [item.asin for item in items] == ["B01", "B02", "B03", "B04"]  # order of first appearance in the reviews
  assert list(loaded.user_ids) == ["A2", "A1"]
  sequences = [[items[k].asin for k in part] for part in np.split(loaded.items, loaded.offsets[1:-1])]
  assert sequences == [["B03", "B01", "B02"], ["B01", "B04", "B02", "B03"]]

  brush, hair, soap, unknown = items
  assert (soap.title, soap.brand, soap.categories) == ('Tom\'s "Soap"', "A & B", ("Beauty > Bath & Body",))
  assert brush.title == 'It\'s a "brush"\u2028really' and brush.brand == ""
  assert (hair.title, hair.categories) == ("First", ("Beauty > Hair", "Gifts"))
  assert (unknown.item_id, unknown.title, unknown.categories) == ("B04", "", ())

  assert prepared.dropped_users == 1
  told = prepared.describe()
  for line in (
    "10 interactions read",
    "1 repeated interactions left out",
    "4 interactions at the same time as another of their user",
    "1 products without metadata",
    "1 second metadata lines of a product left out",
    "1 products whose text held HTML entities",
  ):
    assert f"  {line}" in told


def test_published_sizes_hold_for_the_three_and_no_other(tmp_path):
  raw_dir = write_files(tmp_path / "raw")
  with pytest.raises(InputError, match="has 2 users .* expected the 22363 published for 'beauty'"):
    prepare(tmp_path, raw_dir, "beauty")
  with pytest.raises(InputError, match="looked for .*reviews_Toys_and_Games_5.json and meta_Toys_and_Games.json"):
    prepare(tmp_path, raw_dir, "toys")
  assert prepare(tmp_path, raw_dir, "soap_shop").num_users == 2


@contextlib.contextmanager
def server(root: pathlib.Path, monkeypatch, url="http://127.0.0.1:{port}/files"):
  """Serves a directory as the site of the published files; yields the paths that were asked for."""
  asked = []

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
      asked.append(self.path)

  handler = functools.partial(Handler, directory=root)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    monkeypatch.setattr(amazon2014, "URL", url.format(port=site.server_port))
    try:
      yield asked
    finally:
      site.shutdown()
      thread.join()


@pytest.fixture
def no_published_sizes(monkeypatch):
  beauty = dataclasses.replace(datasets.DATASETS["beauty"], users=None, items=None, interactions=None)
  monkeypatch.setitem(datasets.DATASETS, "beauty", beauty)


def test_downloads_once_and_records_checksums(tmp_path, monkeypatch, no_published_sizes):
  del no_published_sizes
  (tmp_path / "site").mkdir()
  write_files(tmp_path / "site" / "files")
  torn = tmp_path / "data" / "downloads" / "x.tmp.1234"  # as a killed download leaves it
  torn.mkdir(parents=True)
  config = DataConfig(dataset="beauty", data_dir=str(tmp_path / "data"))
  with server(tmp_path / "site", monkeypatch) as asked:
    prepared, source = detect.prepare_dataset(config)
    assert prepared.num_users == 2 and source is not None and not torn.exists()
    assert {path.rpartition("/")[2] for path in asked} == {"reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"}
    record = (tmp_path / "data" / "downloads" / "checksums.tsv").read_text().splitlines()
    assert len(record) == 2 and all(len(line.split("\t")[2]) == 64 for line in record)
    # Nothing is asked for again: not with the dataset there, nor from the downloads.
    del asked[:]
    assert detect.prepare_dataset(config) == (prepared_lib.open_prepared(config.data_dir, "beauty"), None)
    again, source = detect.prepare_dataset(config, needs_source=True)
    assert again.reused and source is not None and not asked
    # What comes later must be what came first.
    for path in (tmp_path / "data" / "downloads").glob("*.gz"):
      path.unlink()
    write_files(tmp_path / "site" / "files", reviews=REVIEWS[:-1])
    with pytest.raises(InputError, match=r"not the file recorded in .*checksums.tsv .*Expected.*try again"):
      detect.prepare_dataset(config, needs_source=True)


def test_a_file_that_cannot_be_had(tmp_path, monkeypatch):
  (tmp_path / "site").mkdir()
  config = DataConfig(dataset="toys", data_dir=str(tmp_path / "data"))
  with (
    server(tmp_path / "site", monkeypatch),
    pytest.raises(InputError, match=r"reviews_Toys_and_Games_5.json.gz.*cannot be downloaded .*404.*with --raw_dir"),
  ):
    detect.prepare_dataset(config)
  monkeypatch.setattr(amazon2014, "URL", "http://127.0.0.1:9/nobody")  # the port of "discard": nothing listens
  with pytest.raises(InputError, match="cannot be downloaded .*with --raw_dir"):
    detect.prepare_dataset(config)
  assert not (tmp_path / "data" / "review_items").exists()
