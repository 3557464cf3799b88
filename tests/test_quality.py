"""The table of quality: what is chosen where, and what its rows say."""

import dataclasses

import numpy as np
import pytest

from rastp_jax import config as config_lib
from rastp_jax.configs import toys
from rastp_jax.errors import InputError
from rastp_jax.evaluation import results
from rastp_jax.experiments import quality_runs as quality
from rastp_jax.runtime import files
from rastp_jax.training.workdir import Workdir
from tests.helpers.commands import command
from tests.helpers.results import make_result

CHOSEN = {"item_share": 0.8, "counts_share": 0.4}
COUNTS = {"counts.window": 7, "counts.decay": 0.5}


@pytest.fixture
def trained(tmp_path):
  return quality.Trained("toys", "best", (1, 2), "data", str(tmp_path))


def test_every_model_is_a_config_that_trains(trained):
  for model in quality.MODELS:
    one = quality.Trained("toys", model, (1,), "data", "runs")
    flags = one.train(1).arguments
    assert flags[1] == f"--config=configs/toys.py:{quality.MODELS[model]}"
  assert "--config.train.seed=2" in trained.train(2).arguments
  assert not trained.train(2).finished
  trained.workdir(2).path.mkdir(parents=True)
  Workdir(trained.workdir(2).path).summary.write_text('{"steps": 3}')
  assert trained.train(2).finished


def test_rows_differ_in_beams_and_sources_and_are_settings_of_decoding(trained):
  rows = quality.settings_of_rows(CHOSEN, COUNTS)
  allowed = config_lib.differing_settings(config_lib.May.DECODE)
  assert all(name in allowed for settings in rows.values() for name in settings)
  assert rows["beams_10"] == {"eval.beam_width": 10, "eval.item_share": 0.0}
  assert rows["fused_50"] == {
    "eval.beam_width": 50,
    "eval.item_share": 0.8,
    "eval.exclude_history": True,
    "counts.window": 7,
    "counts.decay": 0.5,
    "counts.share": 0.4,
  }
  command, output = trained.evaluate(1, "fused_50", rows["fused_50"])
  assert "--override=counts.share=0.4" in command.arguments and output.parent == trained.workdir(1).path
  assert not command.finished


def test_results_of_other_settings_are_refused(trained):
  rows = quality.settings_of_rows(CHOSEN, COUNTS)
  result = make_result("a", [0, 10, 10, 3])
  _, output = trained.evaluate(1, "scores_50", rows["scores_50"])
  result.metrics["config"]["eval"] |= {"beam_width": 50, "item_share": 0.8}
  results.save(output, result)
  again, _ = trained.evaluate(1, "scores_50", rows["scores_50"])
  assert again.finished
  other = quality.settings_of_rows(CHOSEN | {"item_share": 0.5}, COUNTS)
  with pytest.raises(InputError, match=r"test_scores_50.json was made with eval.item_share=0.8, but 0.5 is .*: remove"):
    trained.evaluate(1, "scores_50", other["scores_50"])


def test_runs_of_another_length_and_shares_of_other_users_are_refused(trained):
  quality.check(trained, 4000)
  files.write_json(trained.shares, {"users": 100})
  with pytest.raises(InputError, match="was chosen on 100 validation users, not 4000: .*--choice_users=100"):
    quality.check(trained, 4000)
  quality.check(trained, 100)
  own = toys.get_config(quality.MODELS["best"]).train.length
  for length, asked, wanted in (("6 epochs", "", own), (own, "6 epochs", "6 epochs")):
    files.write_json(trained.workdir(2).config, {"train": {"length": length}})
    with pytest.raises(InputError, match=f"seed_2 holds a run of '{length}', not '{wanted}' .*: remove it, or choose"):
      quality.check(dataclasses.replace(trained, length=asked), 100)
    quality.check(dataclasses.replace(trained, length=length), 100)


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["experiment", "quality", "--datasets=beauty,office"], "--datasets=office is not known: expected some of beauty,"),
    (["experiment", "quality", "--models=large"], "--models=large is not known: expected some of best, repeats"),
    (["paper_table", "--datasets=office", "--dry_run"], "--datasets=office is not known: expected some of beauty,"),
    (["experiment", "code_sets", "--raw_dir=raw", "--only=RQ"], "--only=RQ is not known: expected some of residual"),
  ],
)
def test_unknown_names_are_refused_before_any_work(arguments, sentence, tmp_path):
  code, _, said = command(f"rastp_jax.{arguments[0]}", *arguments[1:], cwd=tmp_path)
  assert code == 2 and said.startswith(f"error: {sentence}")
  assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_code_sets_of_another_length_are_refused(tmp_path):
  files.write_json(tmp_path / "random" / "run" / "config.json", {"train": {"length": "9 epochs"}})
  flags = ["--raw_dir=raw", f"--work={tmp_path}", "--only=RQ-VAE", f"--output={tmp_path / 'out.json'}"]
  code, _, said = command("rastp_jax.experiment", "code_sets", *flags)
  assert code == 2 and "random/run holds a run of '9 epochs', not '2 epochs'" in said
  assert "choose another --work or --length" in said


def test_a_row_is_the_mean_over_seeds(trained, monkeypatch):
  results = {
    name: make_result(name, ranks, seed=seed, training_samples=100.0, training_seconds=seconds, device_kind="cpu")
    for name, ranks, seed, seconds in (("a", [0, 10, 10, 3], 1, 60.0), ("b", [0, 1, 10, 10], 2, 180.0))
  }
  monkeypatch.setattr(quality.evaluation_results, "load", lambda path, name: results[path])
  (row,) = quality.rows_of(trained, {"beams_10": ["a", "b"]}, {"beams_10": "python -m this"})
  assert row["recall@10"] == 0.5 and row["training_minutes"] == 2.0 and row["seeds"] == [1, 2]
  assert row["ndcg@10"] == pytest.approx(np.mean([(1 + 1 / np.log2(5)) / 4, (1 + 1 / np.log2(3)) / 4]))
  assert row["devices"] == ["cpu"]
  assert not row["fused"] and not row["exclude_history"] and row["beams"] == 10 and row["samples"] == 100.0
  text = quality.table([row])
  assert text[1][:5] == ["toys", "cpu,best", "beams_10", "2", ""]
  assert text[1][6] == f"0.5000 ± {row['deviation']['recall@10']:.4f}" and text[1][-2:] == ["2", "cpu"]
  histories = {(True, False): "left out", (True, True): "left out", (False, True): "learned", (False, False): ""}
  for (left_out, repeats), said in histories.items():
    assert quality.table([row | {"exclude_history": left_out, "item_repeats": repeats}])[1][4] == said
  assert ["toys", "published TIGER"] in [cells[:2] for cells in text]


def test_anchors_come_with_the_settings_that_validation_chose(tmp_path):
  metrics = {name: 0.1 for name in quality.METRICS}
  settings = {"window": 3, "distance_power": 0.5, "backward": 0.0, "popularity_power": 0.1, "decay": 0.4}
  values = {"minutes": 2.0, "test": metrics, "test, history excluded": {name: 0.2 for name in quality.METRICS}}
  models = {"counts": {**values, "settings": {**settings, "last_items": 5}}}
  file = tmp_path / "baselines_toys.json"
  written = {"models": models, "command": "python -m that", "machine": {"device_kind": "cpu"}}
  files.write_json(file, written)
  rows, counts = quality.anchors("toys", file, "f" * 64)
  assert [(row["exclude_history"], row["recall@10"]) for row in rows] == [(False, 0.1), (True, 0.2)]
  assert rows[0]["devices"] == ["cpu"]
  assert counts == {f"counts.{name}": value for name, value in {**settings, "last_items": 5}.items()}
  files.write_json(file, {**written, "dataset_fingerprint": "f" * 64})
  assert quality.anchors("toys", file, "f" * 64) == (rows, counts)
  with pytest.raises(InputError, match=r"measured on toys as it was prepared then \(f{12}\), not as it is now \(e{12}"):
    quality.anchors("toys", file, "e" * 64)
