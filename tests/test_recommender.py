"""Recommendations: what is asked comes back, in order, from the catalogue, once each."""

import csv
import dataclasses
import gzip
import io
import json
import os
import threading
import tracemalloc

import numpy as np
import pytest

from rastp_jax.config import EvalConfig
from rastp_jax.data import splits
from rastp_jax.errors import InputError
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.serving import recommendation_files, recommender
from rastp_jax.serving.exported_model import ExportedModel
from rastp_jax.serving.recommender import Recommendation, Recommender, UserRecommendations
from rastp_jax.training import workdir
from tests.helpers.commands import command
from tests.helpers.saved import make_saved


@pytest.fixture(scope="module")
def saved():
  return make_saved()[0]


@pytest.fixture(scope="module")
def ours(saved):
  return Recommender(saved, make_saved()[1])


@pytest.fixture
def exported_row(ours):
  model = object.__new__(ExportedModel)
  model._rows = {item.item_id: row for row, item in enumerate(ours.items)}
  return model.row


@pytest.fixture(scope="module")
def lines(saved, ours):
  return list(recommendation_files.held_out_histories(saved.histories, ours.items, "test"))


def test_a_plain_count_of_the_output_file_equals_the_evaluation(saved, ours, lines, tmp_path):
  recommendation_files.write_recommendations(tmp_path / "recs.jsonl", lines, ours.stream, total=len(lines))
  catalogue, buckets, recall, gain = {str(row + 1) for row in range(50)}, set(), 0, 0.0
  offsets = saved.histories.offsets
  written = (tmp_path / "recs.jsonl").read_text().splitlines()
  for text, start, end in zip(written, offsets[:-1], offsets[1:], strict=True):
    recommended = [item["item_id"] for item in json.loads(text)["recommendations"]]
    assert len(recommended) == len(set(recommended)) == 10 and set(recommended) <= catalogue
    target = str(saved.histories.items[end - 1] + 1)
    buckets.add(end - start - 1 <= 4)
    if target in recommended:
      recall, gain = recall + 1, gain + 1 / np.log2(recommended.index(target) + 2)
  constrained = dataclasses.replace(saved.config, eval=EvalConfig(batch_size=8))
  found = Evaluator(constrained, saved.histories, saved.semantic_ids, saved.mesh).evaluate(saved.model, "test")
  assert buckets == {True, False} and found["users"] == 90 and 0 < recall < 90
  assert found["recall@10"] == recall / 90
  assert found["ndcg@10"] == pytest.approx(gain / 90, rel=1e-12)


def test_history_is_left_out_and_k_remain(ours, lines):
  histories = [history for _, history in lines if len(history) > 4][:24]
  everything = ours.recommend(histories, k=50, beam_width=64)
  for left, ranked, history in zip(
    ours.recommend(histories, k=10, exclude_history=True, beam_width=64), everything, histories, strict=True
  ):
    assert left == [item for item in ranked if item.item_id not in history][:10]
    assert len(left) == 10


def test_beams_suffice_for_long_histories(ours):
  # 30 distinct items, of which the model reads 12: k + 12 beams would not do.
  history = [str(row) for row in range(1, 31)]
  (answer,) = ours.recommend([history], k=15, exclude_history=True)
  assert len(answer) == 15 and not {item.item_id for item in answer} & set(history)


def test_unknown_items_are_skipped_and_counted(ours):
  histories = [["1", "B001", "3"], ["1", 2, "nix", "3", "nix"], ["nada"], []]
  with pytest.warns(UserWarning, match="3 items in 2 of 4 histories are not in the catalogue .* like 'nix'"):
    answers = ours.recommend(histories, k=3)
  assert [len(answer) for answer in answers] == [3, 3, 0, 0]
  assert answers[0] == answers[1]  # an ASIN, a number and an item id name the same item
  assert [answer.unknown_items for answer in ours.stream(histories)] == [(), ("nix", "nix"), ("nada",), ()]
  best = answers[0][0]
  assert isinstance(best, Recommendation) and best.title == f"Title {int(best.item_id) - 1}"
  scores = [item.score for item in answers[0]]
  assert scores == sorted(scores, reverse=True) and scores[0] < 0


def test_ids_may_be_written_otherwise_than_when_they_were_prepared(ours, exported_row):
  histories = [["1", "3"], [" 1", "3.0"], [1.0, 3]]
  answers = list(ours.stream(histories, k=3))
  assert answers[0] == answers[1] == answers[2] and answers[0].recommendations and not answers[0].unknown_items
  assert [exported_row(item) for item in (" 1", "3.0", 3.0, 3, "03", "nix")] == [0, 2, 2, 2, None, None]


def test_a_stream_keeps_the_order_and_few_users_wait(ours, lines, monkeypatch):
  monkeypatch.setattr(recommender, "_WAITING_BATCHES", 1)
  long = next(history for _, history in lines if len(history) > 4)
  histories = [["1"], *[long] * 40, ["2"], *[long] * 40]
  taken = 0

  def take():
    nonlocal taken
    for history in histories:
      taken += 1
      yield history

  answers = []
  for answer in ours.stream(take(), k=3):
    answers.append(answer.recommendations)
    assert taken - len(answers) <= 3 * 8  # the window, a full batch and the one being decoded
  expected = [*ours.recommend([["1"], long, ["2"]], k=3)]
  assert answers == [expected[0], *[expected[1]] * 40, expected[2], *[expected[1]] * 40]


def test_a_catalogue_smaller_than_k_is_recommended_whole(ours):
  (answer,) = ours.recommend([["1", "2", "3", "4", "5"]], k=64)
  assert {item.item_id for item in answer} == {str(row + 1) for row in range(50)} and len(answer) == 50


@pytest.mark.slow
def test_k_is_at_most_the_catalogue_and_few_widths_are_compiled(saved, ours, monkeypatch):
  history = ["1", "2", "3"]
  known = {k: ours.recommend([history], k=k)[0] for k in (3, 10, 20, 50)}
  decoders = Recommender(saved, ours.items)
  for k in (1, 3, 5, 10, 11, 17, 20, 21, 40, 41, 49, 50, 51, 10**5, 10**9, 2**80):
    (answer,) = decoders.recommend([history], k=k)
    assert len(answer) == min(k, 50)
    assert answer[:10] == known[10][: len(answer)] or k > 10
    if k in known:
      assert answer == known[k]
  assert set(decoders._decoders) == {10, 20, 40, 50}  # the run's width, doubled, and the catalogue
  for k in (1, 9, 10, 12, 30, 10**9):
    (answer,) = decoders.recommend([history], k=k, exclude_history=True)
    assert len(answer) == min(k, 47) and not {item.item_id for item in answer} & set(history)
  assert set(decoders._decoders) == {10, 14, 20, 28, 40, 50}
  assert len(decoders.recommend([history], k=5, beam_width=10**9)[0]) == 5


def test_the_default_k_decodes_as_many_beams_as_before(ours):
  long = [str(row) for row in range(1, 31)]
  width = lambda history, exclude: ours._query(history, 10, 10, exclude).shape[1]
  assert [width(long, False), width(long[:3], True), width(long[:12], True), width(long, True)] == [10, 14, 22, 44]


def test_surrogates_are_unknown_items(ours, tmp_path, capsys):
  (answer,) = ours.stream([["1", "\ud800"]], k=2)
  assert len(answer.recommendations) == 2 and answer.unknown_items == ("\ud800",)
  (tmp_path / "in.jsonl").write_text('{"user": "\\ud800", "history": ["1", "\\udfff"]}\n')
  lines = recommendation_files.read_histories(tmp_path / "in.jsonl")
  summary = recommendation_files.write_recommendations(tmp_path / "recs.jsonl", lines, ours.stream)
  print(summary.describe())
  assert "unknown items left out: 1, in 1 histories, like '\\udfff'" in capsys.readouterr().out
  assert json.loads((tmp_path / "recs.jsonl").read_text(encoding="utf-8"))["user"] == "\ud800"


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_a_line_that_is_too_long_costs_bounded_memory(tmp_path, name):
  path = tmp_path / name
  with gzip.GzipFile(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
    file.write(b'{"user": 1, "history": []}\n{"user": 2, "history": ["1"')
    for _ in range(200):
      file.write(b" " * 1_000_000)
  tracemalloc.start()
  try:
    with pytest.raises(InputError, match=r"line 2 is longer than 1,000,000 bytes: give one user per line"):
      recommendation_files.count_histories(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
  finally:
    tracemalloc.stop()
  fits = b'{"user": 1, "history": ["1"]}'
  (tmp_path / "fits.jsonl").write_bytes(fits.ljust(recommendation_files.MAX_LINE_BYTES - 1) + b"\n" + fits)
  assert recommendation_files.count_histories(tmp_path / "fits.jsonl") == 2


def test_a_fifo_of_histories_is_read_once(published_run, tmp_path):
  os.mkfifo(tmp_path / "fifo")
  writer = threading.Thread(target=lambda: (tmp_path / "fifo").write_text('{"user": 1, "history": ["3"]}\n'))
  writer.start()
  summary = recommendation_files.recommend_to_file(
    published_run, tmp_path / "recs.jsonl", input_path=tmp_path / "fifo", k=2
  )
  writer.join()
  assert summary.users == 1 and summary.recommendations == 2


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ((["1", "2"],), "'1' is not a history"),
    (("12",), "'1' is not a history"),
    ((["12"],), "'12' is not a history"),
    (([b"12"],), "b'12' is not a history"),
    (([{"1": 2}],), "{'1': 2} is not a history"),
    (([5],), "5 is not a history"),
    (([[True]],), r"\[True\] is not a history"),
    (([[10**5000]],), "is not a history"),
    (([["1"]], True), "k=True cannot be used"),
    (([[1.5]],), r"\[1.5\] is not a history"),
    (([["1"]], 0), "k=0 cannot be used"),
  ],
)
def test_arguments_that_make_no_sense(ours, arguments, sentence):
  with pytest.raises(InputError, match=sentence):
    ours.recommend(*arguments)


def answer_all(histories):
  """A recommender that needs no arithmetic."""
  for history in histories:
    yield UserRecommendations(
      [Recommendation("7", "B7", "Seife für Müßiggänger", -1.0)] if history else [], tuple(history[1:])
    )


def test_files_are_read_and_written_plain_and_compressed(tmp_path):
  lines = [{"user": "ü", "history": ["1", "?"]}, {"user": 5, "history": []}]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "in.jsonl").write_text(f"\ufeff{text}\n \n")  # with a byte order mark and blank lines
  with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
    file.write(text)
  for source, target, opener in (("in.jsonl", "out.jsonl.gz", gzip.open), ("in.jsonl.gz", "out.jsonl", open)):
    assert recommendation_files.count_histories(tmp_path / source) == 2
    read = recommendation_files.read_histories(tmp_path / source)
    summary = recommendation_files.write_recommendations(tmp_path / target, read, answer_all)
    with opener(tmp_path / target, "rt", encoding="utf-8") as file:
      first, second = map(json.loads, file)
    item = {"item_id": "7", "asin": "B7", "title": "Seife für Müßiggänger", "score": -1.0}
    assert first == {"user": "ü", "recommendations": [item], "unknown_items": 1}
    assert second == {"user": 5, "recommendations": [], "unknown_items": 0}
    assert "1 recommendations for 2 users" in summary.describe()
    assert "unknown items left out: 1, in 1 histories, like '?'" in summary.describe()
    assert "users without a known item, who got no recommendations: 1" in summary.describe()
    assert "exclude_history" not in summary.describe()


@pytest.mark.parametrize(
  ("content", "sentence"),
  [
    (b"", "is empty"),
    (b" \n\n", "is empty"),
    (b'\n{"user": 1}\n', "line 2 lacks a user or a history"),
    (b'{"user": 1, "history": []}\n{"user": 1,', "line 2 is not JSON"),
    (b'{"user": 1}\n', "line 1 lacks a user or a history"),
    (b'{"history": []}\n', "line 1 lacks a user or a history"),
    (b"[]\n", "line 1 lacks a user or a history"),
    (b'{"user": 1, "history": "B1"}\n', "line 1 has a history that is not a list of item ids"),
    (b'{"user": 1, "history": "12"}\n', "line 1 has a history that is not a list of item ids"),
    (b'{"user": NaN, "history": []}\n', r"line 1 is not JSON \(NaN is not a number\)"),
    (b'{"user": 1, "history": [], "history": ["1"]}\n', r"line 1 is not JSON \('history' occurs twice"),
    (b'{"user": ' + b"[" * 100_000 + b"}\n", r"line 1 is not JSON \(it is nested too deep\)"),
    (b'{"user": 1, "history": [null]}\n', "line 1 has a history that is not a list of item ids"),
    (b"\xff\n", "cannot be read"),
    (None, "cannot be read"),
  ],
)
def test_bad_input_ends_in_one_sentence_and_leaves_the_output_alone(tmp_path, content, sentence):
  if content is not None:
    (tmp_path / "in.jsonl").write_bytes(content)
  (tmp_path / "out.jsonl").write_text("old")
  with pytest.raises(InputError, match=sentence) as caught:
    read = recommendation_files.read_histories(tmp_path / "in.jsonl")
    recommendation_files.write_recommendations(tmp_path / "out.jsonl", read, answer_all)
  assert "\n" not in str(caught.value)
  assert (tmp_path / "out.jsonl").read_text() == "old"
  assert {path.name for path in tmp_path.iterdir()} <= {"in.jsonl", "out.jsonl"}


def test_shards_go_on_only_with_the_same_recommendations(published_run, tmp_path, monkeypatch):
  monkeypatch.setattr(recommendation_files.Recommender, "stream", lambda self, histories, k, **_: answer_all(histories))
  saved = recommendation_files.runs.load_model(published_run)
  monkeypatch.setattr(recommendation_files.runs, "load_model", lambda *_: saved)  # once, not ten times
  (tmp_path / "in.jsonl").write_text("".join(f'{{"user": {user}, "history": ["1"]}}\n' for user in range(5)))
  output = tmp_path / "recs.jsonl.gz"
  write = lambda **changes: recommendation_files.recommend_to_file(
    published_run, output, **{"input_path": tmp_path / "in.jsonl", "k": 2, "shards": 3, **changes}
  )
  assert write().users == 5
  paths = sorted(tmp_path.glob("recs-*"))
  assert [path.name for path in paths] == [*(f"recs-0000{n}-of-00003.jsonl.gz" for n in range(3)), "recs-of-00003.json"]
  joined = gzip.decompress(b"".join(path.read_bytes() for path in paths[:3]))
  assert [json.loads(line)["user"] for line in joined.splitlines()] == list(range(5))
  paths[1].unlink()
  assert write().users == 2
  assert write().describe() == "nothing left to write"
  for changes, name in (
    ({"k": 3}, "k=2, but now 3"),
    ({"exclude_history": True}, "exclude_history=False, but now True"),
    ({"input_path": None}, "split=None, but now 'test'"),
    ({"overrides": ["eval.beam_width=50"]}, r"overrides=\[\], but now"),
  ):
    with pytest.raises(InputError, match=f"recs-of-00003.json says that the shards beside it were made with {name}"):
      write(**changes)
  (tmp_path / "in.jsonl").write_text('{"user": 1, "history": ["2"]}\n' * 5)
  with pytest.raises(InputError, match="were made with input="):
    write()
  paths[3].unlink()
  with pytest.raises(InputError, match=r"There are shards of .*recs.jsonl.gz, but no .*recs-of-00003.json that says"):
    write()


def test_shards_need_files(published_run, tmp_path):
  write = lambda output, **changes: recommendation_files.recommend_to_file(published_run, output, **changes)
  for shards in (0, -1, 100_000):
    with pytest.raises(InputError, match=f"shards={shards} cannot be used"):
      write(tmp_path / "out", shards=shards)
  os.mkfifo(tmp_path / "fifo")
  for output, source in (("-", None), (tmp_path / "out", tmp_path / "fifo"), (tmp_path / "fifo", None)):
    with pytest.raises(InputError, match="Shards need an input and an output that are files"):
      write(output, input_path=source, shards=2)
  assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_mistaken_command_leaves_no_record_of_shards(published_run, tmp_path, monkeypatch):
  saved = recommendation_files.runs.load_model(published_run)
  histories = saved.histories
  none_held_out = dataclasses.replace(histories, offsets=histories.offsets[:1], train_only=histories.offsets)
  monkeypatch.setattr(
    recommendation_files.runs, "load_model", lambda *_: dataclasses.replace(saved, histories=none_held_out)
  )
  write = lambda output=tmp_path / "recs.jsonl", **changes: recommendation_files.recommend_to_file(
    published_run, output, shards=3, **changes
  )
  for changes, sentence in (
    ({"output": tmp_path / "recs.parquet"}, "are JSON lines or CSV, not .parquet; give a name that ends with .jsonl"),
    ({"output": tmp_path / "recs.tsv.gz"}, "are JSON lines or CSV, not .tsv"),
    ({"k": 0, "split": "all"}, "k=0 cannot be used: give a whole number of at least 1"),
    ({"split": "test"}, "holds nothing out"),
    ({"split": "train"}, "There is no split 'train'"),
  ):
    with pytest.raises(InputError, match=sentence):
      write(**changes)
  assert not list(tmp_path.iterdir())


def test_users_without_an_answer_are_counted_by_the_cause(tmp_path):
  lines = [("all known", ["1", "2"]), ("none known", ["?"]), ("nothing", [])]
  answers = lambda some: (UserRecommendations([], tuple(item for item in h if item == "?")) for h in some)
  said = recommendation_files.write_recommendations(tmp_path / "recs", lines, answers).describe()
  assert "users without a known item, who got no recommendations: 2" in said
  assert "users with known items, for whom exclude_history left nothing to recommend: 1" in said


def test_histories_that_were_cut_by_time_are_told(published_run, tmp_path, monkeypatch):
  nothing = Recommender(*make_saved())
  monkeypatch.setattr(nothing, "stream", lambda some, *_, **__: (UserRecommendations([], ()) for _ in some))
  monkeypatch.setattr(recommendation_files.Recommender, "from_saved", lambda *_: nothing)
  write = lambda: recommendation_files.recommend_to_file(published_run, tmp_path / "recs.csv", split="all", k=1)
  assert "time_cut" not in write().describe()
  on_disk = recommendation_files.prepared.open_prepared

  def by_time(*args):
    counts = {splits.LATER: 1234, splits.TOO_FEW: 0}
    return dataclasses.replace(on_disk(*args), settings={"split": "time", "time_cut": "0.2"}, counts=counts)

  monkeypatch.setattr(recommendation_files.prepared, "open_prepared", by_time)
  said = write().describe()
  assert (
    "before data.time_cut=0.2 and a user's first one after it (1,234 interactions after data.time_cut left out): "
    in said
  )
  assert "users with too few" not in said and "give whole histories by --input, or prepare with data.hold_out=0" in said


def test_torn_gzip(tmp_path):
  packed = gzip.compress(b'{"user": 1, "history": ["1"]}\n' * 1000)
  (tmp_path / "in.jsonl.gz").write_bytes(packed[:-12])
  with pytest.raises(InputError, match="cannot be read"):
    recommendation_files.count_histories(tmp_path / "in.jsonl.gz")


def test_the_binary(published_run, tmp_path):
  (tmp_path / "in.jsonl").write_text('{"user": "a", "history": ["3", "SYN0000004", "gone"]}\n')
  files = [f"--workdir={published_run}", f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'recs.jsonl'}"]
  code, out, err = command("rastp_jax.recommend", *files, "-k", "4", "--exclude_history")
  assert code == 0, err
  assert "4 recommendations for 1 users" in out and "unknown items left out: 1" in out
  (line,) = map(json.loads, (tmp_path / "recs.jsonl").read_text().splitlines())
  ids = {item["item_id"] for item in line["recommendations"]}
  assert line["user"] == "a" and len(ids) == 4 and not ids & {"3", "4"}


def test_csv_has_a_row_per_recommendation(ours, lines, tmp_path):
  as_json, as_csv, gzipped = (tmp_path / name for name in ("recs.jsonl", "recs.csv", "recs.csv.gz"))
  some = [*lines[:5], ({"id": 7}, ["1", "2"]), ("nobody", [])]
  for path in (as_json, as_csv, gzipped):
    recommendation_files.write_recommendations(path, some, ours.stream)
  rows = list(csv.DictReader(io.StringIO(as_csv.read_text())))
  expected = [
    {
      "user": line["user"] if isinstance(line["user"], str) else json.dumps(line["user"]),
      "rank": str(rank),
      **{name: str(value) for name, value in item.items()},
    }
    for line in map(json.loads, as_json.read_text().splitlines())
    for rank, item in enumerate(line["recommendations"], 1)
  ]
  assert rows == expected and len(rows) == 60 and list(rows[0]) == ["user", "rank", "item_id", "asin", "title", "score"]
  assert gzip.decompress(gzipped.read_bytes()) == as_csv.read_bytes()


def test_asins_are_written_only_where_there_are_any(ours, lines, tmp_path):
  for name in ("recs.jsonl", "recs.csv"):
    recommendation_files.write_recommendations(tmp_path / name, lines[:3], ours.stream, asins=False)
    assert "asin" not in (tmp_path / name).read_text() and "title" in (tmp_path / name).read_text()


def test_a_run_is_found_below_a_directory(tmp_path):
  assert workdir.find_run(tmp_path) == tmp_path
  for name in ("dense", "deeper/rastp"):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.json").write_text("{}")
    if name == "dense":
      assert workdir.find_run(tmp_path) == tmp_path / "dense" == workdir.find_run(tmp_path / "dense")
  with pytest.raises(InputError, match="holds 2 runs: give one of them, .*deeper/rastp, .*dense"):
    Recommender.load(tmp_path)
  with pytest.raises(InputError, match="give one of the runs below it: .*dense"):
    workdir.Workdir(tmp_path).read_config()


def test_after_a_warm_up_nothing_is_compiled():
  fresh = Recommender(*make_saved())
  fresh.warm_up(k=5)
  (decode,) = fresh._decoders.values()
  compiled = decode._cache_size()
  assert compiled == 2  # two lengths; a batch of one user is as large as a full one on eight devices
  fresh.recommend([["1", "2"], ["3"] * 12, *[["4"] * 7] * 9], k=5)
  assert decode._cache_size() == compiled
