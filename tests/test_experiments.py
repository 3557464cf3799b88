"""The command that runs experiments: it finds them by their files, and what they write says where it comes from."""

import gzip
import json
import os
import re
import subprocess
import sys
import types

import pytest

from rastp_jax import experiment
from rastp_jax.experiments import results, scale
from tests.helpers.commands import command


def test_experiments_are_found_by_their_files():
  found = experiment.find()
  assert {"ablations", "code_sets", "faults", "learning_codes", "meshes", "scale", "tables"} <= set(found)
  assert not {"experiment", "paper_table", "results", "tiny", "tiny_run"} & set(found)
  for name, summary in found.items():
    assert summary.endswith("."), name


@pytest.mark.slow
def test_without_a_name_all_are_listed():
  for arguments in ((), ("--help",)):
    code, printed, _ = command("rastp_jax.experiment", *arguments)
    assert code == 0
    assert all(re.search(rf"^ +{name} .*\.$", printed, re.MULTILINE) for name in experiment.find())


@pytest.mark.parametrize(
  ("name", "sentence"),
  [("meshs", "There is no experiment 'meshs': did you mean meshes?"), ("xyz", "'xyz': choose one of ablations, ")],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name, sentence):
  code, _, said = command("rastp_jax.experiment", name, "--steps=3")
  assert code == 2 and said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_each_tells_its_flags():
  for name, summary in experiment.find().items():
    code, printed, said = command("rastp_jax.experiment", name, "--help")
    assert code == 1, said  # as absl ends --help
    assert printed.startswith(summary)
    assert name == "tables" or "--output: " in printed


def test_results_say_where_they_come_from(tmp_path):
  output = tmp_path / "scale.json"
  code, _, said = command("rastp_jax.experiment", "scale", "--interactions=2000", f"--output={output}")
  assert code == 0, said
  written = json.loads(output.read_text())
  assert written["command"] == f"python -m rastp_jax.experiment scale --interactions=2000 --output={output}"
  assert {"python", "jax", "jaxlib", "flax", "rastp_jax"} == set(written["versions"])
  assert {"cores", "device_kind", "devices"} == set(written["machine"])
  assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", written["date"])
  assert written["interactions"] == 2000 and written["prepare"]["seconds"] > 0 and written["prepare"]["peak_gb"] > 0
  assert written["batches"]["samples_per_epoch"] > 0 and written["batches"]["batches_per_second_per_core"] > 0


def test_the_commit_says_whether_files_have_changed(tmp_path, monkeypatch):
  def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

  checkout = tmp_path / "checkout"
  checkout.mkdir()
  monkeypatch.setattr(results, "CHECKOUT", tmp_path)
  assert results.origin()["commit"] is None
  git("init")
  (tmp_path / "file").write_text("1")
  git("add", "file")
  git("commit", "-m", "first")
  committed = results.origin()["commit"]
  assert re.fullmatch("[0-9a-f]{7,}", committed)
  (tmp_path / "file").write_text("2")
  assert results.origin()["commit"] == committed + "+changes"
  monkeypatch.setattr(results, "CHECKOUT", checkout)  # inside a checkout of something else
  assert results.origin()["commit"] is None


def test_generated_interactions_are_a_log_in_time_order(tmp_path):
  scale.generate(tmp_path / "log.csv", 1000, 100, 20)
  header, *rows = (tmp_path / "log.csv").read_text().replace('"', "").splitlines()
  moments = [int(row.split(",")[2]) for row in rows]
  assert header == "user,item,timestamp" and len(rows) == 1000 and moments == sorted(moments)
  assert len({row.split(",")[1] for row in rows}) <= 20


def test_memory_is_told_in_powers_of_ten(monkeypatch):
  wait = os.wait4

  def used_a_mebi_kib(pid, options):
    return *wait(pid, options)[:2], types.SimpleNamespace(ru_maxrss=2**20, ru_utime=0.0, ru_stime=0.0)

  monkeypatch.setattr(scale.os, "wait4", used_a_mebi_kib)
  measured = scale.measure("print(1)")
  assert measured["peak_gb"] == 1.07 and measured["printed"] == ["1"]


COUNT = """
import json, pathlib, sys
from rastp_jax.experiments import recommendations
place = pathlib.Path(sys.argv[1])
print(json.dumps(recommendations.count(place / "recs.jsonl", place, json.loads(sys.argv[2]))))
"""


def test_a_target_beyond_the_answers_is_a_miss_at_every_cut_off(tmp_path):
  (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(b'{"item_id": 1}\n{"item_id": 2}\n{"item_id": 3}\n'))
  (tmp_path / "sequences.txt.gz").write_bytes(gzip.compress(b"a 1 2 3\nb 2 1 3\n"))
  answered = {"a": ["3", "1"], "b": ["2", "1"]}
  lines = [{"user": user, "recommendations": [{"item_id": i} for i in items]} for user, items in answered.items()]
  (tmp_path / "recs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  evaluated = {"users": 2, "recall@20": 0.5, "recall@5": 0.5, "ndcg@5": 0.5, "ndcg@20": 0.5}
  # Its flags have the names of others', so that it needs a process of its own.
  arguments = [sys.executable, "-c", COUNT, str(tmp_path), json.dumps(evaluated)]
  found = json.loads(subprocess.run(arguments, check=True, capture_output=True, timeout=300).stdout)
  for k in (5, 20):
    assert found[f"hits@{k}"] == 1 and found[f"recall@{k} equal"] and found[f"ndcg@{k} differs by"] == 0


def test_recommendations_are_asked_for_as_far_as_evaluation_counts(tmp_path):
  (tmp_path / "eval_test.json").write_text('{"recall@5": 0.0, "recall@20": 0.0}')
  code, _, said = command("rastp_jax.experiment", "recommendations", f"--workdir={tmp_path}", "--raw_dir=raw")
  assert code == 2 and "--split=test -k 20` failed with exit code 2" in said


@pytest.mark.parametrize("wrong", ["", "145,-3"])
def test_shapes_of_attention_are_numbers(wrong):
  code, _, said = command("rastp_jax.experiment", "attention", "--config=configs/beauty.py", f"--positions={wrong}")
  assert code == 2 and said == f"error: --positions={wrong} cannot be used: give numbers from 1 on, like 145,160.\n"
