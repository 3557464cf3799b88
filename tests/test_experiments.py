"""The command that runs experiments: it finds them by their files, and what they write says where it comes from."""

import json
import re
import subprocess

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


@pytest.mark.parametrize("wrong", ["", "145,-3"])
def test_shapes_of_attention_are_numbers(wrong):
  code, _, said = command("rastp_jax.experiment", "attention", "--config=configs/beauty.py", f"--positions={wrong}")
  assert code == 2 and said == f"error: --positions={wrong} cannot be used: give numbers from 1 on, like 145,160.\n"
