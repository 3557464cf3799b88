"""The page about a comparison: whole, self-contained, safe; and the survival of tokens against a plain count."""

import base64
import dataclasses
import html.parser
import json

import jax
import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import Config, DataConfig, EvalConfig, ModelConfig, ReductionConfig
from rastp_jax.errors import InputError
from rastp_jax.evaluation import comparison, html_report, plots, tables
from rastp_jax.evaluation.measure_survival import measure_survival
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.reduction.survival import NO_TOKEN, SURVIVED, Survival
from rastp_jax.runtime import sharding
from rastp_jax.training.workdir import Workdir
from tests.helpers.data import make_data
from tests.helpers.results import make_result

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("separator", [True, False])
def test_survival_is_what_the_encoder_kept(separator):
  histories, codes = make_data([5, 9, 12, 7, 20, 6])
  config = dataclasses.replace(
    Config(), data=DataConfig(max_items=8, bucket_lengths=(4, 8)), eval=EvalConfig(batch_size=8)
  )
  sizes = ModelConfig(
    d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=2, decoder_blocks=1, separator=separator
  )
  reduction = ReductionConfig(after_block=(0, 1), keep_ratio=(0.5, 0.25))
  model = EncoderDecoder(sizes, reduction, codes.widths, rngs=nnx.Rngs(0))
  found = measure_survival(model, histories, codes, config, sharding.make_mesh(), "test")
  encode = jax.jit(model.encode_stages)
  assert found.dropped_at.shape == (6, 8, 4 + separator) and found.kinds[-1] == (
    "separator" if separator else "level 3"
  )
  for user in range(6):
    items = histories.items[histories.offsets[user] : histories.offsets[user + 1] - 1][-8:]
    room = 4 if len(items) <= 4 else 8
    history = np.full((1, room, 4), -1, np.int32)
    history[0, : len(items)] = codes.codes[items]
    encoded, stages = encode(history)
    first, last = (set(np.asarray(stage.after.positions)[0].tolist()) for stage in stages)
    expected = [
      [SURVIVED if place in last else 2 if place in first else 1 for place in range(start, start + 4 + separator)]
      for start in range(0, len(items) * (4 + separator), 4 + separator)
    ]
    row = found.users.tolist().index(user)
    assert found.items[row].tolist() == [-1] * (8 - len(items)) + items.tolist()
    assert found.dropped_at[row, 8 - len(items) :].tolist() == expected
    assert (found.dropped_at[row, : 8 - len(items)] == NO_TOKEN).all()
    assert (found.dropped_at[row] == SURVIVED).sum() == np.asarray(encoded.mask).sum()


@pytest.mark.parametrize("method", ["fuse", "item_mean"])
def test_merged_tokens_survive(method):
  histories, codes = make_data([5, 9, 12, 7, 20, 6])
  config = dataclasses.replace(
    Config(), data=DataConfig(max_items=8, bucket_lengths=(4, 8)), eval=EvalConfig(batch_size=8)
  )
  sizes = ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=2, decoder_blocks=1)
  reduction = ReductionConfig(method=method, after_block=(0,), keep_ratio=(0.5,))
  model = EncoderDecoder(sizes, reduction, codes.widths, rngs=nnx.Rngs(0))
  found = measure_survival(model, histories, codes, config, sharding.make_mesh(), "test")
  assert ((found.items >= 0).sum(1) == np.minimum(np.diff(histories.offsets)[found.users] - 1, 8)).all()
  assert (found.dropped_at == np.where(found.items >= 0, SURVIVED, NO_TOKEN)[..., None]).all()


def survival_by_hand():
  """Two users, at most two items of two codes and a separator; the first user has one item and loses nothing."""
  dropped_at = np.asarray([[[-1, -1, -1], [0, 0, 0]], [[0, 1, 1], [0, 0, 1]]], np.int8)
  return Survival(np.asarray([4, 7]), np.asarray([[-1, 5], [0, 5]], np.int32), dropped_at, depth=2)


def test_shares_of_survivors():
  survival = survival_by_hand()
  assert survival.by_kind().tolist() == [1, 0.75, 0.5]
  assert survival.by_recency().tolist() == [[1, 1, 0.5], [1, 0, 0]]
  assert survival.losing().users.tolist() == [7]
  assert survival.losing().counts() == {
    "users": 1,
    "tokens": 6,
    "surviving": 3,
    "separator_share": pytest.approx(1 / 3),
    "separator_share_of_surviving": 0,
  }


def test_only_settings_that_differ_are_shown():
  dense, pruned = make_result("dense", [0, 1, 2, 3]), make_result("pruned", [0, 1, 2, 3], method="rastp")
  pruned.metrics["config"]["semantic_ids"]["rqvae"]["latent"] = 3
  latent = dense.metrics["config"]["semantic_ids"]["rqvae"]["latent"]
  groups = [comparison.Group("dense", (dense,)), comparison.Group("pruned", (pruned,))]
  assert tables.settings(groups) == [
    ["", "dense", "pruned"],
    ["semantic_ids.rqvae.latent", str(latent), "3"],
    ["reduction.method", "none", "rastp"],
  ]


class Seen(html.parser.HTMLParser):
  """What a browser would make of a page: its tags, its addresses, its text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.addresses, self.text = [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.addresses += [value for name, value in attributes if name in ("src", "href")]

  def handle_data(self, data):
    self.text += data


EVIL = "<script>alert('$1 & $2')</script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  rng = np.random.default_rng(0)
  finished = {"training_seconds": 60.0, "step_bytes": 5e7}
  runs = [
    make_result("runs/dense/seed_1", rng.integers(0, 20, 40), seed=1, **finished),
    make_result("runs/dense/seed_2", rng.integers(0, 20, 40), seed=2, **finished),
    make_result("runs/$p/../<b>/seed_1", rng.integers(0, 20, 40), seed=1, method="rastp", **finished),
    make_result("runs/$p/../<b>/seed_2", rng.integers(0, 20, 40), seed=2, method="rastp", **finished),
  ]
  log = {name: np.asarray([1.0, 2.0, 3.0]) for name in ("step", "seconds", "loss")}
  log["validation/recall@10"] = np.asarray([np.nan, 0.1, 0.2])
  asked = []

  def survival_of(name):
    asked.append(name)
    return html_report.SurvivalSection(survival_by_hand(), [EVIL, *"abcd", ""], np.arange(8) % 5)

  output = tmp_path_factory.mktemp("parent") / "report"
  path = html_report.write(output, runs, {run.name: log for run in runs}, survival_of, command="python -m this")
  return path, asked


def test_the_page_needs_nothing_but_itself(written):
  path, asked = written
  assert asked == ["runs/$p/../<b>/seed_1"]
  seen = Seen(path.read_text())
  pngs = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix == ".png"}
  assert len(pngs) == 4 and all(png.startswith(PNG) for png in pngs.values())
  embedded = [base64.b64decode(address.removeprefix("data:image/png;base64,")) for address in seen.addresses]
  assert sorted(embedded) == sorted(pngs.values())
  assert not {"link", "iframe", "script"} & set(seen.tags)
  assert path.stat().st_size < 2_000_000
  assert "ratio to the first" in seen.text and "Paired bootstrap over the 40 users" in seen.text
  assert "1 of 2 users lose tokens" in seen.text and "reduction.method" in seen.text
  assert "Made by python -m this" in seen.text


def test_titles_and_names_are_text_and_files_stay_in_their_directory(written):
  path, _ = written
  seen = Seen(path.read_text())
  assert "script" not in seen.tags and "b" not in seen.tags
  assert EVIL in seen.text and "(item 5, without a title)" in seen.text
  assert [child.name for child in path.parent.parent.iterdir()] == ["report"]


def test_an_unfinished_run_has_curves_but_no_cost():
  groups = comparison.group_seeds([make_result("a", [0, 3, 12, 9])])
  assert plots.quality_and_cost(groups, "recall@10") is None
  log = {name: np.asarray([1.0]) for name in ("step", "seconds", "loss")}  # not validated yet
  assert plots.learning_curves(groups, {"a": log}, "recall@10").startswith(PNG)


def test_a_page_without_dropped_tokens_says_so(tmp_path):
  survival = survival_by_hand()
  whole = dataclasses.replace(survival, dropped_at=np.minimum(survival.dropped_at, SURVIVED))
  log = {name: np.asarray([1.0]) for name in ("step", "seconds", "loss")}
  section = html_report.SurvivalSection(whole, list("abcdef"), np.arange(8) % 5)
  runs = [make_result("a", [0, 3, 12, 9], method="item_mean")]
  path = html_report.write(tmp_path / "report", runs, {"a": log}, lambda _: section, command="")
  assert "No token is dropped" in path.read_text() and not list(path.parent.glob("*survival*"))


def test_training_logs_are_read_as_columns(tmp_path):
  with pytest.raises(InputError, match="metrics.jsonl cannot be read"):
    Workdir(tmp_path).read_log()
  lines = [{"step": 5, "loss": 2.5}, {"step": 9, "loss": 2.0, "validation/recall@10": 0.1}]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  log = Workdir(tmp_path).read_log()
  assert log["step"].tolist() == [5, 9] and log["loss"].tolist() == [2.5, 2.0]
  assert np.isnan(log["validation/recall@10"][0]) and log["validation/recall@10"][1] == 0.1
  (tmp_path / "metrics.jsonl").write_text('{"step": 5, "lo')
  with pytest.raises(InputError, match="damaged"):
    Workdir(tmp_path).read_log()
