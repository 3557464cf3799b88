"""A user's own files: what is read, in which order, what is filtered, and that the documented example does as told."""

import collections
import csv
import dataclasses
import datetime
import gzip
import json
import pathlib
import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from rastp_jax.config import DataConfig
from rastp_jax.data import histories, tfds_tables
from rastp_jax.data.sources import csv_files, detect, interactions, json_files, parquet_files
from rastp_jax.errors import InputError
from rastp_jax.experiments import scale
from tests.helpers.commands import command

ROOT = pathlib.Path(__file__).parent.parent
# Not in time order, a tie in time (bob's 9), an exact repeat (ann's pen), and a repeat at another time (bob's cup).
ROWS = [
  ("ann", "pen", 5),
  ("bob", "cup", 7),
  ("ann", "ink", 2),
  ("ann", "pen", 5),
  ("bob", "pen", 9),
  ("bob", "ink", 9),
  ("bob", "cup", 8),
  ("ann", "cup", 6),
  ("cat", "ink", 1),
]
# Users and items in the order of first appearance; cat has one item only.
HISTORIES = {"ann": ["ink", "pen", "cup"], "bob": ["cup", "cup", "pen", "ink"]}


def write_table(path: pathlib.Path, rows, columns=("user", "item", "timestamp")) -> None:
  if path.name.endswith(".parquet"):
    values = zip(*rows, strict=True)
    pa.parquet.write_table(pa.table(dict(zip(columns, map(list, values), strict=True))), path, row_group_size=2)
    return
  with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w", newline="") as file:
    if ".csv" in path.name:
      csv.writer(file).writerows([columns, *rows])
    else:
      file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


def prepare(tmp_path, rows=ROWS, name="interactions.csv", **config) -> tuple:
  """The prepared dataset, and its histories by user, as item ids."""
  (tmp_path / "raw").mkdir(exist_ok=True)
  if rows is not None:
    write_table(tmp_path / "raw" / name, rows)
  data = DataConfig(dataset="mine", data_dir=str(tmp_path / "data"), **{"k_core": 1, **config})
  prepared, _ = detect.prepare_dataset(data, str(tmp_path / "raw"))
  return prepared, read_back(data)


def read_back(data: DataConfig) -> dict[str, list[str]]:
  loaded = histories.load(data.data_dir, data.dataset)
  names = [item.item_id for item in histories.load_items(data.data_dir, data.dataset)]
  parts = np.split(loaded.items, loaded.offsets[1:-1])
  return {user: [names[k] for k in part] for user, part in zip(loaded.user_ids, parts, strict=True)}


@pytest.mark.parametrize(
  "name",
  ["interactions.csv", "interactions.csv.gz", "interactions.jsonl", "interactions.jsonl.gz", "interactions.parquet"],
)
@pytest.mark.parametrize("small_blocks", [False, True])
def test_all_formats_give_the_same_histories(tmp_path, monkeypatch, name, small_blocks):
  if small_blocks:  # rows then lie across the borders of what is read at a time
    monkeypatch.setattr(csv_files, "_BLOCK", 64)
    monkeypatch.setattr(json_files, "_BLOCK", 64)
    monkeypatch.setattr(parquet_files, "_ROWS", 2)
    monkeypatch.setattr(interactions, "_LOT", 2)
  prepared, found = prepare(tmp_path, name=name)
  assert found == HISTORIES and list(found) == ["ann", "bob"]
  assert [item.item_id for item in prepared.items] == ["pen", "cup", "ink"]
  assert prepared.counts["interactions read"] == 9
  assert prepared.counts["repeated interactions left out"] == 1
  assert prepared.counts["interactions at the same time as another of their user (file order decides)"] == 2
  assert prepared.counts["users left out"] == 1 and "1 users left out" in prepared.describe()


@pytest.mark.parametrize(
  "times",
  [
    lambda t: t + 0.5,
    lambda t: f"2014-07-{t:02d}",
    lambda t: f"2014-07-01T10:{t:02d}:00",
    lambda t: f"2014-07-01 10:{t:02d}:00Z",
    lambda t: t - 1000,
    lambda t: 10**18 + t,  # nanoseconds: more digits than a float holds
  ],
)
@pytest.mark.parametrize("name", ["interactions.csv", "interactions.jsonl", "interactions.parquet"])
def test_times_may_be_numbers_or_dates(tmp_path, times, name):
  assert prepare(tmp_path, [(user, item, times(t)) for user, item, t in ROWS], name)[1] == HISTORIES


@pytest.mark.parametrize("unit", ["s", "ns"])
def test_parquet_may_hold_dates_and_numbers_as_ids(tmp_path, unit):
  number = {name: k for k, name in enumerate(["ann", "bob", "cat", "pen", "cup", "ink"], start=7)}
  moments = pa.array([datetime.datetime(2014, 7, t) for *_, t in ROWS], pa.timestamp(unit))
  columns = {"user": [number[u] for u, *_ in ROWS], "item": [number[i] for _, i, _ in ROWS], "timestamp": moments}
  (tmp_path / "raw").mkdir()
  pa.parquet.write_table(pa.table(columns), tmp_path / "raw" / "interactions.parquet")
  _, found = prepare(tmp_path, None)
  assert found == {str(number[u]): [str(number[i]) for i in items] for u, items in HISTORIES.items()}


def test_csv_ids_stay_text_and_may_hold_anything(tmp_path):
  odd = {"pen": "007", "cup": 'a "cup", blue\nsecond line', "ink": "Tinte für Füller"}
  _, found = prepare(tmp_path, [(user, odd[item], t) for user, item, t in ROWS])
  assert found == {user: [odd[item] for item in items] for user, items in HISTORIES.items()}


def test_only_the_first_of_repeats_if_asked(tmp_path):
  prepared, found = prepare(tmp_path, repeats="first")
  assert found == {"ann": ["ink", "pen", "cup"], "bob": ["cup", "pen", "ink"]}
  assert prepared.counts["repeated interactions left out"] == 2


def oracle(rows, core: int, min_length: int, repeats: str) -> dict[int, list[int]]:
  """The same, row by row, as docs/your_data.md tells it."""
  rows = sorted(rows, key=lambda row: row[2])
  seen, kept = set(), []
  for row in rows:
    key = row if repeats == "keep" else row[:2]
    if key not in seen:
      seen.add(key)
      kept.append(row)
  while True:
    users, items = (collections.Counter(row[k] for row in kept) for k in (0, 1))
    left = [row for row in kept if users[row[0]] >= max(core, min_length) and items[row[1]] >= core]
    if len(left) == len(kept):
      break
    kept = left
  found = collections.defaultdict(list)
  for user, item, _ in kept:
    found[user].append(item)
  return dict(found)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("repeats", ["keep", "first"])
def test_order_repeats_and_core_against_an_oracle(tmp_path, seed, repeats):
  rng = np.random.default_rng(seed)
  # Few moments, so that there are many ties and repeats; popularity falls, so that the core takes several rounds.
  rows = [(int(u), int(i), int(t)) for u, i, t in zip(*(rng.geometric(p, 600) for p in (0.04, 0.04, 0.3)), strict=True)]
  for core, min_length in ((1, 3), (4, 3), (3, 8)):
    wanted = oracle(rows, core, min_length, repeats)
    root = tmp_path / f"{core}"
    root.mkdir()
    prepared, found = prepare(root, rows, k_core=core, min_length=min_length, repeats=repeats)
    assert found == {str(user): list(map(str, items)) for user, items in wanted.items()}
    first_seen = [user for user in dict.fromkeys(u for u, _, _ in rows) if user in wanted]
    assert list(found) == list(map(str, first_seen))
    assert prepared.num_interactions == sum(map(len, wanted.values())) < len(rows)


ITEMS = [("ink", "Blue ink", "Herlitz", ["Office", "Ink"]), ("pen", "Fountain pen", None, [["A", "B"], ["C"]])]


@pytest.mark.parametrize("name", ["items.jsonl", "items.jsonl.gz"])
def test_item_text_is_joined_by_id(tmp_path, name):
  (tmp_path / "raw").mkdir()
  write_table(tmp_path / "raw" / name, [*ITEMS, ("jar", "Nobody's", "", [])], ("item", "title", "brand", "categories"))
  prepared, _ = prepare(tmp_path)
  pen, cup, ink = prepared.items
  assert (ink.item_id, ink.title, ink.brand, ink.categories) == ("ink", "Blue ink", "Herlitz", ("Office > Ink",))
  assert (pen.title, pen.brand, pen.categories) == ("Fountain pen", "", ("A > B", "C"))
  assert (cup.item_id, cup.title) == ("cup", "")
  assert prepared.counts["items without a row in the items file"] == 1
  assert prepared.counts["rows of the items file without interactions left"] == 1


@pytest.mark.parametrize("name", ["items.csv", "items.parquet"])
def test_item_columns_can_be_named(tmp_path, name):
  (tmp_path / "raw").mkdir()
  rows = [("ink", "Blue ink", "Office"), ("pen", "Pen", "")]
  write_table(tmp_path / "raw" / name, rows, ("item", "name", "genre"))
  prepared, _ = prepare(tmp_path, title_column="name", categories_column="genre")
  assert [(item.title, item.categories) for item in prepared.items] == [
    ("Pen", ()),
    ("", ()),
    ("Blue ink", ("Office",)),
  ]


def test_prepared_data_is_reused_and_refused_with_other_settings(tmp_path):
  prepared, _ = prepare(tmp_path, name="interactions.csv")
  assert not prepared.reused and prepare(tmp_path, None)[0].reused
  files = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
  with pytest.raises(
    InputError, match=r"mine/1.0.0 was prepared with data.k_core=1, but now data.k_core=2 is asked for"
  ):
    prepare(tmp_path, None, k_core=2)
  with pytest.raises(InputError, match=r"data.repeats='keep', but now data.repeats='first' is asked for"):
    detect.prepare_dataset(DataConfig(dataset="mine", data_dir=str(tmp_path / "data"), k_core=1, repeats="first"))
  with pytest.raises(InputError, match="prepared from other files than .*raw"):
    prepare(tmp_path, ROWS[:-1])
  assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()} == files
  # Without the raw files, and with the settings it was made with, it is there.
  found, source = detect.prepare_dataset(DataConfig(dataset="mine", data_dir=str(tmp_path / "data"), k_core=1))
  assert found.reused and source is None


def test_datasets_of_former_versions_are_found_again(tmp_path):
  """Commit afe1aff called data.k_core data.core, in the fingerprint and in the prepared tables."""
  (tmp_path / "raw").mkdir()
  for name, content in documented_files().items():
    (tmp_path / "raw" / name).write_text(content)
  data = DataConfig(dataset="mine", data_dir=str(tmp_path / "data"), k_core=2)
  prepared, _ = detect.prepare_dataset(data, str(tmp_path / "raw"))
  assert prepared.fingerprint == "898226c09fbecf067bffc367f00edc37f8e975fa9b4ee90f2c998bd01831ca3a"  # afe1aff's
  for directory in (prepared.histories_dir, prepared.items_dir):
    path = pathlib.Path(directory) / "metadata.json"
    facts = json.loads(path.read_text())
    facts["settings"]["core"] = facts["settings"].pop("k_core")
    path.write_text(json.dumps(facts))
  for raw_dir in (None, str(tmp_path / "raw")):
    found, _ = detect.prepare_dataset(data, raw_dir)
    assert found.reused and found.settings == prepared.settings and len(read_back(data)) == 2
  with pytest.raises(InputError, match="prepared with data.k_core=2, but now data.k_core=3 is asked for"):
    detect.prepare_dataset(dataclasses.replace(data, k_core=3))


def test_many_small_files_hold_the_same_rows(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_tables, "SHARD_ROWS", 3)
  monkeypatch.setattr(tfds_tables, "READ_ROWS", 2)
  rows = [(f"u{u}", f"i{(u + k) % 7}", k) for u in range(11) for k in range(3 + u % 3)]
  prepared, found = prepare(tmp_path, rows)
  assert len(list(pathlib.Path(prepared.histories_dir).glob("*array_record*"))) == 4
  assert found == {f"u{u}": [f"i{(u + k) % 7}" for k in range(3 + u % 3)] for u in range(11)}


def test_no_python_object_is_made_per_interaction(tmp_path, monkeypatch):
  """Memory grows by some bytes an interaction; a tuple of three numbers alone would take 150."""
  monkeypatch.setattr(csv_files, "_BLOCK", 1 << 16)  # the files are smaller than what is read at a time otherwise
  peaks = []
  for interactions_ in (50_000, 200_000):
    scale.generate(tmp_path / "interactions.csv", interactions_, users=2_000, items=500)
    source = detect.open_source(DataConfig(dataset="mine"), str(tmp_path))
    tracemalloc.start()
    assert len(source.read().items) > 0.99 * interactions_
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert (peaks[1] - peaks[0]) / 150_000 < 60


def documented_files() -> dict[str, str]:
  """The raw files that docs/your_data.md shows, by name."""
  text = (ROOT / "docs" / "your_data.md").read_text()
  shown = dict(re.findall(r"^`raw/([\w.]+)`:\n\n```\w*\n(.*?)```", text, re.DOTALL | re.MULTILINE))
  assert set(shown) == {"interactions.csv", "items.jsonl"}
  return shown


def test_the_documented_example(tmp_path):
  """Runs the very files and settings that docs/your_data.md shows."""
  text = (ROOT / "docs" / "your_data.md").read_text()
  (tmp_path / "raw").mkdir()
  for name, content in documented_files().items():
    (tmp_path / "raw" / name).write_text(content)
  assert len(documented_files()["interactions.csv"].splitlines()) == 10
  overrides = dict(re.findall(r"--config\.data\.(\w+)=(\w+)", text))
  settings = {name: int(value) if value.isdecimal() else value for name, value in overrides.items()}
  data = DataConfig(**settings, data_dir=str(tmp_path / "data"))
  prepared, _ = detect.prepare_dataset(data, str(tmp_path / "raw"))
  assert prepared.describe() in text
  told = dict(re.findall(r"^\| (\w+) \| ([\w, ]+) \|$", text, re.MULTILINE))
  assert {"user": "items"} | {user: ", ".join(items) for user, items in read_back(data).items()} == told


@pytest.mark.slow
def test_the_documented_commands_run_to_the_last(tmp_path):
  """Every command of docs/your_data.md, in its order, in a directory that holds nothing but its files."""
  text = (ROOT / "docs" / "your_data.md").read_text()
  (tmp_path / "raw").mkdir()
  for name, content in documented_files().items():
    (tmp_path / "raw" / name).write_text(content)
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  commands = re.findall(r"^python -m (rastp_jax\.\w+ .*)$", text, re.MULTILINE)
  names = [line.split()[0].partition(".")[2] for line in commands]
  assert names == ["prepare", "train", "evaluate", "recommend", "experiment"]
  for line in commands:
    code, _, err = command(*line.split(), cwd=tmp_path)
    assert code == 0, err
  heading, *rows = (tmp_path / "runs/shop/recommendations.csv").read_text().splitlines()
  assert heading == "user,rank,item_id,title,score"  # no ASINs here
  assert [row.split(",")[:2] for row in rows] == [[user, str(rank)] for user in ("ann", "bob") for rank in (1, 2, 3)]
  assert set(json.loads((tmp_path / "runs/shop/baselines.json").read_text())["models"]) == {"popularity", "counts"}
