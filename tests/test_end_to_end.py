"""The commands on the generated data, as a user runs them."""

import json

import pytest

from rastp_jax.data import histories
from tests.helpers.commands import ROOT, command
from tests.helpers.synthetic_recall import popularity_recall


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  place = tmp_path_factory.mktemp("synthetic")
  config = ["--config=configs/tiny.py", f"--config.data.data_dir={place / 'data'}"]
  runs = {"none": "1 steps", "some": "1.5 epochs"}
  code, out, err = command("rastp_jax.prepare", *config)
  assert code == 0, err
  assert "240 items" in out and "2000 users" in out
  cache = f"--compilation_cache={place / 'compiled'}"
  for name, length in runs.items():
    train = [*config, f"--config.train.length={length}", "--config.train.log_every=50 steps"]
    train += ["--config.train.eval_users=200", "--config.data.max_items=4", "--config.data.num_buckets=1"]
    code, out, err = command("rastp_jax.train", *train, cache, f"--workdir={place / name}")
    assert code == 0, err
  code, again, err = command("rastp_jax.train", *train, f"--workdir={place / name}")
  assert code == 0 and "This run is finished" in again
  code, table, err = command("rastp_jax.evaluate", *(f"--workdir={place / name}" for name in runs), cache)
  assert code == 0, err
  return place, out, table


def test_a_trained_model_beats_popularity_and_an_untrained_one_does_not(trained):
  place, _, table = trained
  loaded = histories.load(str(place / "data"), "synthetic")
  users = [loaded.items[a:b].tolist() for a, b in zip(loaded.offsets[:-1], loaded.offsets[1:], strict=True)]
  popularity = popularity_recall(users)
  metrics = {name: json.loads((place / name / "eval_test.json").read_text()) for name in ("none", "some")}
  assert metrics["some"]["recall@10"] > 3 * popularity
  assert metrics["none"]["recall@10"] < 2 * popularity
  for values in metrics.values():
    assert values["users"] == 2000 and values["beam_width"] == 10
    assert values["invalid_beams"] == values["repeated_beams"] == 0
    assert {"recall@5", "ndcg@5", "ndcg@10", "step", "config", "command", "step_bytes"} <= set(values)
  assert f"{metrics['some']['recall@10']:.4f}" in table and "ratio to the first" in table


def test_logs_are_complete(trained):
  place, out, _ = trained
  lines = [json.loads(line) for line in (place / "some" / "metrics.jsonl").read_text().splitlines()]
  assert len(lines) >= 3 and lines[-1]["loss"] < lines[0]["loss"]
  assert all({"step", "loss", "samples_per_second"} <= set(line) for line in lines)
  assert list((place / "some" / "tensorboard").iterdir())
  assert any(file.name.startswith("jit_train_step") for file in (place / "compiled").iterdir())
  assert "samples/s" in out and "left" in out


def test_a_pruned_model_can_be_decoded_densely(trained):
  place, _, _ = trained
  dense = ["--override=reduction.method=none", f"--override=data.data_dir={place / 'data'}"]
  code, _, err = command("rastp_jax.evaluate", f"--workdir={place / 'some'}", *dense)
  assert code == 2 and err.strip().splitlines()[-1].startswith("error: --override needs --output=FILE")
  output = place / "dense.json"
  code, _, err = command("rastp_jax.evaluate", f"--workdir={place / 'some'}", *dense, f"--output={output}")
  assert code == 0, err
  metrics, pruned = (json.loads(path.read_text()) for path in (output, place / "some" / "eval_test.json"))
  assert metrics["config"]["reduction"]["method"] == "none" and metrics["recall@10"] != pruned["recall@10"]


def test_the_report_of_both_runs_shows_item_titles(trained):
  place, _, _ = trained
  workdirs = [f"--workdir={place / name}" for name in ("none", "some")]
  code, out, err = command("rastp_jax.report", *workdirs, f"--output={place / 'report'}")
  assert code == 0, err
  page = (place / "report" / "index.html").read_text()
  assert out.strip().endswith("index.html") and "Nail Polish No." in page and "2,000 users of synthetic" in page


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["rastp_jax.evaluate"], "--workdir is missing"),
    (["rastp_jax.evaluate", "--workdir=nowhere"], "nowhere holds no training run"),
    (["rastp_jax.report", "--workdir=nowhere", "--output=x"], "nowhere has no results yet"),
    (["rastp_jax.train", "--config=configs/tiny.py"], "--workdir is missing"),
    (["rastp_jax.train", "--config=configs/tiny.py", "--workdir=x", "--config.data.data_dir=nowhere"], "not prepared"),
  ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence):
  code, _, err = command(*arguments)
  assert code == 2 and "Traceback" not in err
  assert sentence in err.strip().splitlines()[-1]
  assert not (ROOT / "x").exists()
