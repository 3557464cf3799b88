"""Raw files in, flat histories out: what is kept, what is refused, and that a refusal leaves nothing behind."""

import dataclasses
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rastp_jax.config import DataConfig
from rastp_jax.data import datasets, histories, preparation
from rastp_jax.data import prepared as prepared_lib
from rastp_jax.data.items import Item
from rastp_jax.data.sources import detect, synthetic, synthetic_long
from rastp_jax.data.sources.sequences import SequencesDirectory
from rastp_jax.data.sources.source import RawData
from rastp_jax.errors import InputError
from rastp_jax.runtime import files
from tests.helpers import synthetic_recall

SEQUENCES = ["alice 1 2 3 4", "bob 4 3", "carol 2 2 5"]
ITEMS = [{"item_id": k, "title": f"Item {k}", "brand": "", "categories": [["A", f"B{k}"]]} for k in range(1, 6)]


@pytest.fixture(autouse=True)
def sized(monkeypatch):
  """A dataset whose published sizes are those of the files above."""
  published = datasets.NamedDataset("for tests", users=2, items=5, interactions=7)
  monkeypatch.setitem(datasets.DATASETS, "sized", published)


def write_raw(root: pathlib.Path, sequences=SEQUENCES, items=ITEMS, gzipped=True) -> str:
  root.mkdir(exist_ok=True)
  lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
  for name, text in (("sequences.txt", sequences), ("items.jsonl", lines)):
    content = "".join(f"{line}\n" for line in text).encode()
    (root / (f"{name}.gz" if gzipped else name)).write_bytes(gzip.compress(content) if gzipped else content)
  return str(root)


def prepare(tmp_path, raw_dir, dataset="small"):
  return preparation.prepare(str(tmp_path / "data"), dataset, SequencesDirectory(raw_dir))


def files_under(root: pathlib.Path) -> dict[str, bytes]:
  return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("gzipped", [True, False])
def test_histories_and_items_survive_the_round_trip(tmp_path, gzipped):
  prepared = prepare(tmp_path, write_raw(tmp_path / "raw", gzipped=gzipped), "sized")
  assert (prepared.num_users, prepared.num_items, prepared.num_interactions) == (2, 5, 7)
  assert prepared.dropped_users == 1  # bob

  loaded = histories.load(str(tmp_path / "data"), "sized")
  np.testing.assert_array_equal(loaded.items, [0, 1, 2, 3, 1, 1, 4])
  np.testing.assert_array_equal(loaded.offsets, [0, 4, 7])
  assert loaded.items.dtype == np.int32 and loaded.offsets.dtype == np.int64
  assert list(loaded.user_ids) == ["alice", "carol"] and loaded.num_items == 5

  items = histories.load_items(str(tmp_path / "data"), "sized")
  assert [item.title for item in items] == [f"Item {k}" for k in range(1, 6)]
  assert items[2].categories == ("A > B3",)


def test_items_are_ordered_by_id_not_by_line(tmp_path):
  prepared = prepare(tmp_path, write_raw(tmp_path / "raw", items=ITEMS[::-1]))
  assert [item.item_id for item in prepared.items] == ["1", "2", "3", "4", "5"]


def test_leave_one_out():
  data = histories.Histories(np.arange(7, dtype=np.int32), np.array([0, 4, 7]), 7, ["a", "b"], "")
  start, end = data.spans("test")
  assert (start.tolist(), (end - 1).tolist()) == ([0, 4], [3, 6])  # targets are the last items
  start, end = data.spans("validation")
  assert (start.tolist(), (end - 1).tolist()) == ([0, 4], [2, 5])
  first, stop = data.training_spans()
  assert (first.tolist(), stop.tolist()) == ([0, 4], [2, 5])  # held-out positions 2, 3, 5, 6 are outside
  with pytest.raises(InputError, match="expected validation or test"):
    data.spans("train")


def test_a_second_run_reuses_what_is_there(tmp_path):
  raw_dir = write_raw(tmp_path / "raw")
  assert not prepare(tmp_path, raw_dir).reused
  before = files_under(tmp_path / "data")
  assert prepare(tmp_path, raw_dir).reused
  # The same contents are the same source, however they are packed.
  assert prepare(tmp_path, write_raw(tmp_path / "plain", gzipped=False)).reused
  assert files_under(tmp_path / "data") == before


def test_another_source_is_refused_and_overwrites_nothing(tmp_path):
  prepare(tmp_path, write_raw(tmp_path / "raw"))
  before = files_under(tmp_path / "data")
  other = write_raw(tmp_path / "other", sequences=["alice 1 2 3 5"])
  with pytest.raises(
    InputError,
    match=r"review_histories/small/1.0.0 was prepared from other files.*choose another config.data.dataset or .*; or "
    r"remove it and [^ ]*review_items[^ ]*, after which runs",
  ):
    prepare(tmp_path, other)
  assert files_under(tmp_path / "data") == before


BAD_ITEM = {"item_id": "2", "title": "text instead of a number"}
REFUSED = {
  "id is not an integer": (dict(sequences=["u 1 2 3", "v 1 x7 3"]), r"sequences.txt.gz line 2 has the item id 'x7'"),
  "id is a fraction": (dict(sequences=["u 1 2.5 3"]), r"line 1 has the item id '2.5', expected integers from 1 to 5"),
  "id with an underscore": (dict(sequences=["u 1_0 2 3"]), r"line 1 has the item id '1_0', expected integers"),
  "id in other digits": (dict(sequences=["u \u0661 2 3"]), r"line 1 has the item id '\u0661', expected integers"),
  "id of 5,000 digits": (dict(sequences=["u 1 2 " + "9" * 5000]), r"line 1 has the item id '9{80}', expected integers"),
  "JSON nested without end": (dict(items=["[" * 100_000]), r"line 1 cannot be read as an item .*nested too deep"),
  "a name twice": (dict(items=['{"item_id": 1, "item_id": 2}']), r"line 1 .*'item_id' occurs twice in one object"),
  "half of a character": (dict(items=['{"item_id": 1, "title": "\\ud800"}']), r"line 1 .*surrogates not allowed"),
  "an object as categories": (dict(items=['{"item_id": 1, "categories": {"a": 1}}']), r"is not a list of paths"),
  "id without a row": (dict(sequences=["u 1 2 6"]), r"line 1 has the item id 6, which has no row in .*items.jsonl.gz"),
  "id zero": (dict(sequences=["u 0 2 3"]), r"line 1 has the item id 0, which has no row"),
  "empty line": (dict(sequences=["u 1 2 3", "", "v 1 2 3"]), r"sequences.txt.gz line 2 is empty"),
  "user twice": (dict(sequences=["u 1 2 3", "u 1 2 3"]), r"line 2 gives user 'u' again, after line 1"),
  "only short histories": (dict(sequences=["u 1 2"]), r"no user with at least 3 items"),
  "bad JSON": (dict(items=[*ITEMS[:3], '{"item_id": 4, "ti']), r"items.jsonl.gz line 4 cannot be read as an item"),
  "JSON but no object": (dict(items=["[1]"]), r"items.jsonl.gz line 1 cannot be read as an item"),
  "id of wrong type": (dict(items=[ITEMS[0], BAD_ITEM]), r"items.jsonl.gz line 2 .*item_id is '2'"),
  "item twice": (dict(items=[*ITEMS, ITEMS[0]]), r"items.jsonl.gz line 6 gives item id 1 a second time"),
  "item missing": (dict(items=[*ITEMS[:1], *ITEMS[2:]]), r"4 items but none with item id 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_rows_are_refused_before_anything_is_written(tmp_path, case):
  raw, sentence = REFUSED[case]
  with pytest.raises(InputError, match=sentence):
    prepare(tmp_path, write_raw(tmp_path / "raw", **raw))
  assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["sequences.txt.gz", "items.jsonl.gz"])
def test_a_cut_file_is_refused(tmp_path, name):
  raw_dir = write_raw(tmp_path / "raw")
  path = tmp_path / "raw" / name
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(InputError, match=rf"{name} is damaged or cut short .*copy it again"):
    prepare(tmp_path, raw_dir)
  assert not (tmp_path / "data").exists()


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path):
  raw_dir = write_raw(tmp_path / "raw", gzipped=False)
  path = tmp_path / "raw" / "sequences.txt"
  path.write_bytes(path.read_bytes() + b"d\xffn 1 2 3\n")
  with pytest.raises(InputError, match="sequences.txt line 4 is not UTF-8"):
    prepare(tmp_path, raw_dir)


def test_sizes_must_be_the_published_ones(tmp_path):
  raw_dir = write_raw(tmp_path / "raw", sequences=SEQUENCES[:2])
  with pytest.raises(InputError, match=r"has 1 users \(1 users with fewer.*expected the 2 published for 'sized'"):
    prepare(tmp_path, raw_dir, "sized")
  with pytest.raises(InputError, match="expected the 22363 published for 'beauty'"):
    prepare(tmp_path, raw_dir, "beauty")
  assert not (tmp_path / "data").exists()


def test_missing_files_are_named(tmp_path):
  write_raw(tmp_path / "raw")
  write_raw(tmp_path / "raw", gzipped=False)
  with pytest.raises(InputError, match="holds both sequences.txt and sequences.txt.gz"):
    SequencesDirectory(str(tmp_path / "raw"))
  for path in (tmp_path / "raw").glob("items*"):
    path.unlink()
  (tmp_path / "raw" / "sequences.txt").unlink()
  with pytest.raises(InputError, match=r"holds neither items.jsonl nor items.jsonl.gz"):
    SequencesDirectory(str(tmp_path / "raw"))


def test_an_interrupted_write_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
  source = SequencesDirectory(write_raw(tmp_path / "raw"))

  def stopped(*_):
    yield 0, {"user_id": "alice", "items": np.arange(4, dtype=np.int32)}
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(preparation, "_history_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
      preparation.prepare(str(tmp_path / "data"), "small", source)
  assert not (tmp_path / "data").exists()
  assert preparation.prepare(str(tmp_path / "data"), "small", source).num_users == 2


KILLED = """
import os, signal, sys
from rastp_jax.data import preparation
from rastp_jax.data.sources import sequences

def killed(*_):
  yield 0, {"user_id": "alice", "items": [0, 1, 2, 3]}
  os.kill(os.getpid(), signal.SIGKILL)

preparation._history_rows = killed
preparation.prepare(sys.argv[1], "small", sequences.SequencesDirectory(sys.argv[2]))
"""


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
  raw_dir = write_raw(tmp_path / "raw")
  arguments = [sys.executable, "-c", KILLED, str(tmp_path / "data"), raw_dir]
  assert subprocess.run(arguments, timeout=60).returncode == -signal.SIGKILL
  left = [path for path in (tmp_path / "data").rglob("incomplete.*")]
  assert len(left) == 1 and (tmp_path / "data" / ".preparing_small") in left[0].parents
  with pytest.raises(InputError, match="not prepared"):
    histories.load(str(tmp_path / "data"), "small")
  assert prepare(tmp_path, raw_dir).num_users == 2
  assert {path.name for path in (tmp_path / "data").iterdir()} == {"review_histories", "review_items"}
  assert not [path for path in (tmp_path / "data").rglob("incomplete.*")]


def test_a_run_killed_between_the_two_moves_is_repeated(tmp_path):
  prepared = prepare(tmp_path, write_raw(tmp_path / "raw"))
  shutil.rmtree(prepared.histories_dir)
  other = write_raw(tmp_path / "other", items=[*ITEMS, {"item_id": 6}])
  assert prepare(tmp_path, other).num_items == 6
  assert len(histories.load_items(str(tmp_path / "data"), "small")) == 6


def test_two_runs_at_once_do_not_mix(tmp_path):
  raw_dir = write_raw(tmp_path / "raw")
  with (
    files.scratch_directory(tmp_path / "data" / ".preparing_small"),
    pytest.raises(InputError, match="Another process is writing to .*preparing_small: wait"),
  ):
    prepare(tmp_path, raw_dir)
  assert prepare(tmp_path, raw_dir).num_users == 2


def test_unprepared_names_the_command(tmp_path):
  command = r"python -m rastp_jax.prepare` with the same --config and --raw_dir=DIR"
  for read in (histories.load, histories.load_items):
    with pytest.raises(InputError, match=command):
      read(str(tmp_path), "beauty")


def test_torn_histories_are_refused(tmp_path):
  prepared = prepare(tmp_path, write_raw(tmp_path / "raw"))
  tear = lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  arrays = pathlib.Path(prepared.histories_dir) / "arrays.npz"
  (shard,) = pathlib.Path(prepared.histories_dir).glob("*array_record*")
  whole = arrays.read_bytes()
  tear(arrays)
  with pytest.raises(InputError, match="arrays.npz cannot be read .*remove it, and the table beside it is read"):
    histories.load(str(tmp_path / "data"), "small")
  damaged = bytearray(whole)
  damaged[whole.index(b"descr") + 128] ^= 1  # a bit of the first item
  arrays.write_bytes(damaged)
  with pytest.raises(InputError, match="arrays.npz cannot be read .*CRC"):
    histories.load(str(tmp_path / "data"), "small")
  np.savez(arrays, items=np.zeros(3, np.int32), offsets=np.array([0, 3]))
  with pytest.raises(InputError, match="its histories are not those that its metadata.json tells of"):
    histories.load(str(tmp_path / "data"), "small")
  tear(shard)
  arrays.write_bytes(whole)
  loaded = histories.load(str(tmp_path / "data"), "small")  # training needs no user ids, and reads no table
  arrays.unlink()
  torn = "review_histories/small/1.0.0 cannot be read .*remove it"
  with pytest.raises(InputError, match=torn):
    list(loaded.user_ids)
  with pytest.raises(InputError, match=torn):
    histories.load(str(tmp_path / "data"), "small")


def test_histories_without_arrays_are_read_from_the_table(tmp_path):
  """Earlier versions wrote no arrays."""
  prepared = prepare(tmp_path, write_raw(tmp_path / "raw"))
  with_arrays = histories.load(str(tmp_path / "data"), "small")
  (pathlib.Path(prepared.histories_dir) / "arrays.npz").unlink()
  without = histories.load(str(tmp_path / "data"), "small")
  for name in ("items", "offsets"):
    np.testing.assert_array_equal(getattr(without, name), getattr(with_arrays, name), strict=True)


def test_user_ids_are_read_in_part(tmp_path):
  ids = prepare(tmp_path, write_raw(tmp_path / "raw")).user_ids
  everybody = list(ids)
  assert len(ids) == len(everybody) >= 2
  assert list(ids[1:]) == everybody[1:] and ids[0] == everybody[0] and ids[-1] == everybody[-1]
  assert list(ids[1:][:0]) == [] and list(ids[5:]) == []


class Pair:
  """A generated source of two users and two items."""

  where = "the pair"
  settings: Mapping[str, Any] = {}

  def fingerprint(self) -> str:
    return "pair"

  def read(self) -> RawData:
    items, offsets = np.array([0, 1, 0, 1, 1, 0], np.int32), np.array([0, 3, 6])
    return RawData(pa.array(["a", "b"], pa.large_string()), items, offsets, [Item("x"), Item("y")], 2)

  def embeddings(self, num_items: int) -> None:
    del num_items


def test_a_new_named_dataset_is_one_entry(tmp_path, monkeypatch):
  monkeypatch.setitem(datasets.DATASETS, "pair", datasets.NamedDataset("Two users.", 2, 2, 6, source=Pair))
  data = DataConfig(dataset="pair", data_dir=str(tmp_path / "data"))
  prepared, source = detect.prepare_dataset(data)  # without files
  assert isinstance(source, Pair) and prepared.num_interactions == 6
  assert '"Two users."' in (pathlib.Path(prepared.items_dir) / "dataset_info.json").read_text()
  with pytest.raises(InputError, match="did you mean 'pair'"):
    prepared_lib.open_prepared(str(tmp_path / "data"), "pai")
  monkeypatch.setitem(datasets.DATASETS, "other", datasets.NamedDataset("Others.", 3, source=Pair))
  with pytest.raises(InputError, match="has 2 users .* expected the 3 published for 'other'"):
    detect.prepare_dataset(dataclasses.replace(data, dataset="other"))
  # An Amazon category is looked for under its own file names.
  soap = datasets.NamedDataset("Soap.", category="Soap_and_Water")
  monkeypatch.setitem(datasets.DATASETS, "soap", soap)
  with pytest.raises(InputError, match="looked for .*reviews_Soap_and_Water_5.json and meta_Soap_and_Water.json"):
    detect.prepare_dataset(dataclasses.replace(data, dataset="soap"), str(tmp_path))


NOTHING_LEFT = """
import sys
from rastp_jax.config import DataConfig
from rastp_jax.data import histories
from rastp_jax.data.sources import detect
from rastp_jax.errors import InputError

data_dir, raw_dir = sys.argv[1:]
try:
  histories.load(data_dir, "small")
except InputError:
  pass
for dataset, directory in (("synthetic", None), ("small", raw_dir)):
  for _ in range(2):
    detect.prepare_dataset(DataConfig(dataset=dataset, data_dir=data_dir), directory)
  assert histories.load(data_dir, dataset).num_users and histories.load_items(data_dir, dataset)
"""


def test_nothing_is_left_in_the_temporary_directory(tmp_path):
  (tmp_path / "tmp").mkdir()
  arguments = [sys.executable, "-c", NOTHING_LEFT, str(tmp_path / "data"), write_raw(tmp_path / "raw")]
  environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
  done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert not list((tmp_path / "tmp").iterdir())
  assert {path.name for path in (tmp_path / "data").iterdir()} == {"review_histories", "review_items"}


def test_synthetic_rewards_history_and_nothing_else(tmp_path):
  source = synthetic.SyntheticSource()
  users = [rows for _, rows in source.users()]
  assert {len(rows) for rows in users} <= set(range(5, 30)) and max(map(max, users)) < synthetic.NUM_ITEMS
  assert synthetic_recall.popularity_recall(users) < 0.1
  assert synthetic_recall.best_recall(source, users) > 0.8
  last_eight, last_six = (synthetic_recall.best_recall(source, users, last) for last in (8, 6))
  assert round(last_eight, 2) == 0.87 and round(last_six, 2) == 0.6  # old items matter; docs/results.md tells how much

  # Knowing only the last item: the best 10 successors, counted on the very targets they are judged by (which flatters
  # them: what can be learned is half of the oracle's).
  last, target = np.array([rows[-2] for rows in users]), np.array([rows[-1] for rows in users])
  cluster_of = synthetic.ITEMS_PER_GROUP * len(synthetic.GROUPS)
  pairs = np.zeros((len(synthetic.CLUSTERS), synthetic.NUM_ITEMS))
  np.add.at(pairs, (last // cluster_of, target), 1)
  best = np.sort(pairs, axis=1)[:, -10:].sum() / len(users)
  assert best < 0.6

  same = synthetic.SyntheticSource()
  assert list(same.users()) == list(source.users()) and same.fingerprint() == source.fingerprint()
  assert synthetic.SyntheticSource(seed=1).fingerprint() != source.fingerprint()
  prepared = preparation.prepare(str(tmp_path), "synthetic", source)
  loaded = histories.load(str(tmp_path), "synthetic")
  assert np.concatenate(users).tolist() == loaded.items.tolist() and prepared.num_users == loaded.num_users == 2000


@pytest.mark.parametrize("make", [synthetic.SyntheticSource, synthetic_long.SyntheticLongSource])
def test_probabilities_are_those_of_the_rules(make):
  """A target of probability p occurs with frequency p."""
  source = make(num_users=300)
  predicted, found = [], []
  for _, rows in source.users():
    probabilities = source.probabilities(rows[:-1])
    assert probabilities.sum() == pytest.approx(1)
    predicted.append(probabilities)
    found.append(np.arange(source.num_items) == rows[-1])
  predicted, found = np.concatenate(predicted), np.concatenate(found)
  for low, high in ((0.05, 1.0), (0.01, 0.05), (0.0, 0.01)):
    inside = (predicted >= low) & (predicted < high)
    if inside.any():
      error = 4 * np.sqrt(predicted[inside].mean() / inside.sum())
      assert found[inside].mean() == pytest.approx(predicted[inside].mean(), abs=error)


def test_old_items_matter_in_long_histories():
  source = synthetic_long.SyntheticLongSource(num_users=600)
  users = [rows for _, rows in source.users()]
  lengths = [len(rows) for rows in users]
  assert min(lengths) == 50 and max(lengths) == 200 and np.mean(lengths) == pytest.approx(100, abs=4)
  recall = [synthetic_recall.best_recall(source, users, last) for last in (None, 50, 25, 1)]
  assert recall[0] > 0.55 and recall[1] < recall[0] - 0.02 and recall[2] < 0.85 * recall[0] and recall[3] < 0.25
