"""Every way in which raw data was seen or imagined to be bad: one clear sentence each, and nothing written."""

import decimal
import errno
import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from rastp_jax.config import DataConfig, from_dict
from rastp_jax.data import prepared, tfds_tables
from rastp_jax.data.sources import detect
from rastp_jax.errors import InputError

CSV = "user,item,timestamp\n" + "".join(f"u{u},i{k},{u + k}\n" for u in range(3) for k in range(3))
REVIEWS = "".join(
  json.dumps({"reviewerID": f"A{u}", "asin": f"B{k}", "unixReviewTime": u + k}) + "\n"
  for u in range(3)
  for k in range(3)
)
META = "".join(repr({"asin": f"B{k}", "title": f"It's {k}"}) + "\n" for k in range(3))
ITEMS = "".join(json.dumps({"item": f"i{k}", "title": f"Item {k}"}) + "\n" for k in range(3))

Files = dict[str, str | bytes]


def own(interactions: str | bytes = CSV, name="interactions.csv", **more: str | bytes) -> Files:
  return {name: interactions, **more}


def official(reviews: str | bytes = REVIEWS, meta: str | bytes = META) -> Files:
  return {"reviews_Soap_5.json": reviews, "meta_Soap.json": meta}


def jsonl(*extra: str) -> str:
  rows = [json.dumps({"user": f"u{u}", "item": f"i{k}", "timestamp": u + k}) for u in range(3) for k in range(3)]
  return "".join(f"{row}\n" for row in [*rows, *extra])


def table_bytes(table: pa.Table) -> bytes:
  sink = pa.BufferOutputStream()
  pa.parquet.write_table(table, sink)
  return sink.getvalue().to_pybytes()


def parquet(**columns) -> bytes:
  return table_bytes(pa.table(columns))


GOOD_COLUMNS = {"user": ["a", "a", "a"], "item": ["x", "y", "z"], "timestamp": [1, 2, 3]}
TORN_GZIP = gzip.compress(CSV.encode() * 50)[:-20]

# name -> (files of the raw directory, what the sentence says, settings that differ)
BAD: dict[str, tuple] = {
  # Which files there are.
  "no directory": (None, "There is no directory .*raw: give --raw_dir a directory with sequences.txt"),
  "empty directory": ({}, "holds nothing to prepare 'mine' from: looked for sequences.txt and items.jsonl, reviews_"),
  "unknown file format": ({"interactions.xlsx": "x"}, "looked for .*; interactions.xlsx has another name or form"),
  "two forms at once": ({**own(), **official()}, "reviews_Soap_5.json and interactions.csv: expected the files of one"),
  "the same file twice": (
    {**own(), "interactions.jsonl": "{}"},
    "interactions.csv and interactions.jsonl, which are not read",
  ),
  "metadata file missing": (
    {"reviews_Soap_5.json": REVIEWS},
    "but no meta_Soap.json or meta_Soap.json.gz: expected ex",
  ),
  "two categories": (
    official() | {"reviews_Tea_5.json": ""},
    "reviews_Soap_5.json and reviews_Tea_5.json: expected on",
  ),
  # Files that are torn.
  "truncated gzip": ({"interactions.csv.gz": TORN_GZIP}, "interactions.csv.gz is damaged or cut short .*copy it again"),
  "truncated gzip, official": (
    {"reviews_Soap_5.json.gz": gzip.compress(REVIEWS.encode())[:-9], "meta_Soap.json": META},
    "reviews_Soap_5.json.gz is damaged or cut short",
  ),
  "no gzip at all": ({"interactions.csv.gz": CSV}, "interactions.csv.gz is damaged or cut short .*gzip"),
  "truncated Parquet": (own(parquet(**GOOD_COLUMNS)[:-9], "interactions.parquet"), "is not a readable Parquet file"),
  "flipped bytes in Parquet": (
    own(parquet(**GOOD_COLUMNS)[:8] + b"\xff" * 60 + parquet(**GOOD_COLUMNS)[68:], "interactions.parquet"),
    "interactions.parquet (cannot be read|is not a readable)",
  ),
  "empty file": (own(""), "interactions.csv is empty: expected rows with named columns"),
  "empty JSONL file": (own("", "interactions.jsonl"), "interactions.jsonl is empty"),
  "only a header": (own("user,item,timestamp\n"), "holds no interactions, only column names"),
  "empty reviews": (official(reviews=""), "reviews_Soap_5.json holds no reviews"),
  "not UTF-8": (
    own(CSV.encode() + b"u\xff,i1,3\n"),
    r"line 11 cannot be read \(invalid UTF8 data\): expected UTF-8 text",
  ),
  "not UTF-8 in the header": (own("benützer,item\n".encode("latin-1")), "has column names that are not UTF-8 text"),
  "not UTF-8, official": (official(REVIEWS.encode() + b"\xff\n"), "reviews_Soap_5.json line 10 is not UTF-8 text"),
  # Columns and values.
  "wrong column names": (
    own(CSV.replace("user", "customer")),
    "has no column 'user': its columns are customer, item, timestamp; set config.data.user_column",
  ),
  "wrong column name in the config": (
    own(),
    "has no column 'time': .* set config.data.time_column",
    dict(time_column="time"),
  ),
  "two columns of one name": (own("user,item,user\na,b,1\n"), "has two columns named 'user'"),
  "a timestamp that is text": (
    own("user,item,timestamp\nu,i,yesterday\n"),
    "row 1 has the timestamp 'yesterday': expected",
  ),
  "a later timestamp that is text": (
    own(CSV + "u,i,yesterday\n"),
    r"line 11 cannot be read \(invalid value 'yesterday'\): expected a value",
  ),
  "a timestamp that is text, JSONL": (
    own(jsonl('{"user": "u", "item": "i", "timestamp": "now"}'), "interactions.jsonl"),
    r"line 10 cannot be read \(invalid value 'now'\): expected a value",
  ),
  "a timestamp that is text, Parquet": (
    own(parquet(**GOOD_COLUMNS | {"timestamp": ["1", "soon", "3"]}), "interactions.parquet"),
    r"line 2 cannot be read \(invalid value 'soon'\): expected a value .*a number",
  ),
  "a timestamp that is true": (
    own('{"user": "u", "item": "i", "timestamp": true}\n', "interactions.jsonl"),
    "timestamp True",
  ),
  "a missing timestamp": (own(CSV + "u,i,\n"), "interactions.csv row 10 has no timestamp"),
  "a timestamp that is NaN": (
    own(parquet(**GOOD_COLUMNS | {"timestamp": [1.0, np.nan, 3.0]}), "interactions.parquet"),
    "row 2 has no timestamp",
  ),
  "an empty user id": (own(CSV + ",i1,4\n"), "row 10 has no user: give it one or remove the row"),
  "a missing item id": (own(jsonl('{"user": "u", "timestamp": 4}'), "interactions.jsonl"), "row 10 has no item"),
  "ids that are fractions": (
    own(parquet(**GOOD_COLUMNS | {"user": [1.0, 1.5, 1.0]}), "interactions.parquet"),
    "double val",
  ),
  "a row too short": (own(CSV + "u1,i2\n"), "line 11 is torn: expected 3 columns, got 2"),
  "a torn JSON line": (own(jsonl('{"user": "u", "it'), "interactions.jsonl"), r"line 10 cannot be read \("),
  "a torn first JSON line": (
    own('{"user": "u', "interactions.jsonl"),
    "line 1 cannot be read .*one JSON object per line",
  ),
  "a JSON line that is a list": (own(jsonl("[1]"), "interactions.jsonl"), r"line 10 cannot be read \(a list\)"),
  "a torn review": (
    official(reviews=REVIEWS + '{"reviewerID": "A1", "as'),
    "line 10 cannot be read as a review .*JSONDecode",
  ),
  "a review without product": (official(reviews=REVIEWS + '{"reviewerID": "A"}\n'), "line 10 .*KeyError: 'asin'"),
  "a review whose time is text": (official(reviews=REVIEWS.replace("0}", '"x"}', 1)), "line 1 .*'A0', 'B0' and 'x'"),
  "a row that is null": (own(jsonl("null"), "interactions.jsonl"), r"line 10 cannot be read \(a NoneType\)"),
  "two columns of one name, Parquet": (
    own(table_bytes(pa.table([[1], [2], [3]], names=["user", "item", "user"])), "interactions.parquet"),
    "has two columns named 'user'",
  ),
  "ids that are not UTF-8, Parquet": (
    own(parquet(**GOOD_COLUMNS | {"user": [b"a", b"\xff", b"a"]}), "interactions.parquet"),
    "has values in its column 'user' that are not text",
  ),
  "decimal timestamps, Parquet": (
    own(parquet(**GOOD_COLUMNS | {"timestamp": [decimal.Decimal(k) for k in (1, 2, 3)]}), "interactions.parquet"),
    r"has decimal128\(.*\) values in its column 'timestamp'",
  ),
  "ids that are objects": (
    own(jsonl('{"user": "u", "item": {"id": 1}, "timestamp": 4}'), "interactions.jsonl"),
    "line 10 has the item .*expected one value",
  ),
  "a name twice in a row": (
    own(jsonl('{"user": "u", "user": "v", "item": "i", "timestamp": 4}'), "interactions.jsonl"),
    r"line 10 cannot be read \('user' occurs twice in one object\)",
  ),
  # Item text.
  "an object as categories": (
    own(**{"items.jsonl": '{"item": "i1", "categories": {"a": "b"}}\n'}),
    "row 1 cannot be read as an item .*list of names",
  ),
  "items without their id": (
    own(**{"items.csv": "code,title\n1,x\n"}),
    "items.csv has no column 'item': .*data.item_column",
  ),
  "an item with an empty id": (own(**{"items.csv": "item,title\n,x\n"}), "items.csv row 1 has no item"),
  "a title that is a number": (
    own(**{"items.jsonl": '{"item": "i1", "title": 5}\n'}),
    "row 1 cannot be read .*title is 5",
  ),
  "a torn item": (own(**{"items.jsonl": ITEMS + '{"item": "i9", "ti'}), "items.jsonl line 4 cannot be read"),
  "a literal with a call in it": (
    official(meta=META + "{'asin': 'B1', 'title': __import__('os').system('touch /tmp/never')}\n"),
    "meta_Soap.json line 4 cannot be read as a product .*holds more than plain values.*expected a dict of",
  ),
  "a torn literal": (official(meta=META + "{'asin': 'B1', 'title': 'x"), "meta_Soap.json line 4 .*unterminated"),
  "a literal nested without end": (official(meta=META + "[" * 10_000 + "\n"), "meta_Soap.json line 4 cannot be read"),
  "a product without asin": (
    official(meta="{'title': 'x'}\n"),
    "line 1 cannot be read as a product .*KeyError: 'asin'",
  ),
  # What is left.
  "users with one item": (own("user,item,timestamp\na,x,1\nb,x,2\n"), "has no users left of 2: .*data.min_length=3"),
  "users with one item, official": (official(REVIEWS[: REVIEWS.index("\n") + 1]), "no user with at least 3 items"),
  "a core that nothing reaches": (own(), "has no users left of 3: with config.data.k_core=9 ", dict(k_core=9)),
  "sizes that are not the published ones": (
    {"reviews_Beauty_5.json": REVIEWS, "meta_Beauty.json": META},
    "has 3 users .*expected the 22363 published for 'beauty'",
    dict(dataset="beauty"),
  ),
}


def write(root: pathlib.Path, files: Files) -> None:
  root.mkdir()
  for name, content in files.items():
    (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def config(tmp_path, **changes) -> DataConfig:
  return DataConfig(**{"dataset": "mine", "data_dir": str(tmp_path / "data"), "k_core": 1, **changes})


def refused(data: DataConfig, raw_dir, sentence: str) -> None:
  with pytest.raises(InputError, match=sentence) as caught:
    detect.prepare_dataset(data, str(raw_dir))
  message = str(caught.value)
  assert "\n" not in message and message.endswith(".") and ": " in message and len(message) < 600


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_sentence_and_nothing_is_written(tmp_path, case):
  files, sentence, *settings = BAD[case]
  if files is not None:
    write(tmp_path / "raw", files)
  refused(config(tmp_path, **(settings[0] if settings else {})), tmp_path / "raw", sentence)
  assert not (tmp_path / "data").exists() and not pathlib.Path("/tmp/never").exists()


@pytest.mark.parametrize(
  "files", [own(), own(jsonl(), "interactions.jsonl"), official()], ids=["csv", "jsonl", "official"]
)
def test_the_same_files_without_the_fault_are_fine(tmp_path, files):
  write(tmp_path / "raw", {**files, **({} if "meta_Soap.json" in files else {"items.jsonl": ITEMS})})
  prepared, _ = detect.prepare_dataset(config(tmp_path), str(tmp_path / "raw"))
  assert (prepared.num_users, prepared.num_items, prepared.num_interactions) == (3, 3, 9)
  assert [item.title for item in prepared.items][1] in ("Item 1", "It's 1")


def test_dictionaries_of_values_are_read(tmp_path):
  """As pandas writes categories."""
  rows = {name: [row.split(",")[k] for row in CSV.splitlines()[1:]] for k, name in enumerate(GOOD_COLUMNS)}
  columns = {name: pa.array(values).dictionary_encode() for name, values in rows.items()}
  write(tmp_path / "raw", own(parquet(**columns), "interactions.parquet"))
  prepared, _ = detect.prepare_dataset(config(tmp_path), str(tmp_path / "raw"))
  assert (prepared.num_users, prepared.num_items, prepared.num_interactions) == (3, 3, 9)


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (b"", "Expecting value"),
    (b'{"fingerprint": "f"}', "it lacks 'num_users'"),
    ({"num_users": "3"}, "'num_users' is not what this version writes there"),
    ({"num_items": True}, "'num_items' is not what this version writes there"),
    ({"number": 3}, "'number' is not what this version writes there"),
    ({"num_users": 4}, "its histories are not those"),
    ({"num_interactions": 2**61}, "its histories are not those"),
    ({"num_items": 2}, "its histories are not those"),
  ],
)
def test_damaged_metadata_of_a_dataset(tmp_path, change, reason):
  write(tmp_path / "raw", own())
  made, _ = detect.prepare_dataset(config(tmp_path), str(tmp_path / "raw"))
  path = pathlib.Path(made.histories_dir) / "metadata.json"
  values = json.loads(path.read_text())
  path.write_bytes(change if isinstance(change, bytes) else json.dumps(values | change).encode())
  with pytest.raises(
    InputError, match=rf"review_histories/mine/1.0.0.* cannot be read \(.*({reason}).*\): remove"
  ) as caught:
    prepared.open_prepared(str(tmp_path / "data"), "mine").histories()
  assert "run `python -m rastp_jax.prepare` again" in str(caught.value)


DISKS = {
  "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
  "a full disk, as array_record tells it": RuntimeError("write() failed: No space left on device"),
  "a quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
}


@pytest.mark.parametrize("table", ["ReviewItems", "ReviewHistories"])
@pytest.mark.parametrize("case", DISKS)
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, case, table):
  write(tmp_path / "raw", own())
  writing = tfds_tables.write

  def full(builder, *more):
    if type(builder).__name__ == table:
      raise DISKS[case]
    return writing(builder, *more)

  with monkeypatch.context() as patch:
    patch.setattr(tfds_tables, "write", full)
    refused(
      config(tmp_path), tmp_path / "raw", "cannot be written to .*data .*: make room, or choose another directory"
    )
  assert not (tmp_path / "data").exists()
  assert not detect.prepare_dataset(config(tmp_path), str(tmp_path / "raw"))[0].reused


FULL = """
import resource, signal, sys
from rastp_jax.config import DataConfig
from rastp_jax.data.sources import detect
from rastp_jax.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
  detect.prepare_dataset(DataConfig(dataset="mine", data_dir=sys.argv[1], k_core=1), sys.argv[2])
except InputError as error:
  print(error)
"""


def test_no_room_for_real(tmp_path):
  """Files may not grow beyond 1000 bytes: writing fails where a full disk makes it fail."""
  write(tmp_path / "raw", own())
  arguments = [sys.executable, "-c", FULL, str(tmp_path / "data"), str(tmp_path / "raw")]
  done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
  assert "Dataset 'mine' cannot be written to" in done.stdout and "File too large" in done.stdout, done.stderr
  assert not (tmp_path / "data").exists()


def test_a_read_only_directory(tmp_path, monkeypatch):
  write(tmp_path / "raw", own())

  def read_only(path, *_, **__):  # the owner of this process may be root, whom permissions do not stop
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

  monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
  refused(config(tmp_path), tmp_path / "raw", "cannot be written to .*Read-only file system.*data.*choose another dir")
  assert not (tmp_path / "data").exists()


def test_a_data_dir_that_is_a_file(tmp_path):
  write(tmp_path / "raw", own())
  (tmp_path / "data").write_text("mine")
  refused(
    config(tmp_path), tmp_path / "raw", "cannot be written to .*choose another directory with config.data.data_dir"
  )
  assert (tmp_path / "data").read_text() == "mine"


NAMES = {
  "../elsewhere": "is not a name for a dataset",
  "My Data": "is not a name",
  "": "is not a name",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_would_leave_the_directory(name):
  with pytest.raises(InputError, match=NAMES[name]):
    from_dict({"data": {"dataset": name}})


@pytest.mark.parametrize("name", ["synthetc", "beuty"])
def test_slips_of_a_known_name_are_told_where_the_dataset_is_not_found(tmp_path, name):
  data = config(tmp_path, dataset=name)
  hint = f"; did you mean {'synthetic' if name.startswith('s') else 'beauty'!r}\\?$"
  with pytest.raises(InputError, match=f"needs raw files.*{hint}"):
    detect.prepare_dataset(data)
  with pytest.raises(InputError, match=f"is not prepared.*{hint}"):
    prepared.open_prepared(data.data_dir, name)
  assert not (tmp_path / "data").exists()
  write(tmp_path / "raw", own())  # who gives files means it
  assert detect.prepare_dataset(data, str(tmp_path / "raw"))[0].num_users == 3


@pytest.mark.parametrize("name", ["beauty_2023", "shop"])
def test_names_that_are_not_slips_get_no_hint(tmp_path, monkeypatch, name):
  with pytest.raises(InputError, match=r"where it is\.$"):
    prepared.open_prepared(str(tmp_path), name)
  monkeypatch.chdir(tmp_path)
  flags = r"--config.data.data_dir=DIR, or --override=data.data_dir=DIR for a trained run"
  with pytest.raises(InputError, match=f"is not prepared under {tmp_path}/data: .*{flags}"):
    prepared.open_prepared("data", name)


@pytest.mark.parametrize(("field", "value"), [("k_core", 0), ("min_length", 2), ("repeats", "last")])
def test_filters_that_make_no_sense(field, value):
  with pytest.raises(InputError, match=rf"config.data.{field}={value!r}"):
    from_dict({"data": {field: value}})


def test_own_names_are_fine():
  for name in ("mine", "beauty_2023", "toys2", "movielens_1m"):
    assert from_dict({"data": {"dataset": name}}).data.dataset == name
