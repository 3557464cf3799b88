"""The page about a comparison: whole, self-contained, safe; and the survival of tokens against a plain count."""

import dataclasses
import html.parser
import json
import re
import xml.etree.ElementTree

import jax
import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import Config, DataConfig, EvalConfig, ModelConfig, ReductionConfig
from rastp_jax.errors import InputError
from rastp_jax.evaluation import baselines as baselines_lib
from rastp_jax.evaluation import comparison, html_report, plots, svg, tables
from rastp_jax.evaluation.baselines import Baselines
from rastp_jax.evaluation.measure_survival import measure_survival
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.reduction.survival import NO_TOKEN, SURVIVED, Survival
from rastp_jax.runtime import sharding
from rastp_jax.training.workdir import Workdir
from tests.helpers.data import make_data
from tests.helpers.results import make_result


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
    self.tags, self.addresses, self.ids, self.text = [], [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.addresses += [value for name, value in attributes if name in ("src", "href")]
    self.ids += [value for name, value in attributes if name == "id"]

  def handle_data(self, data):
    self.text += data


EVIL = "<script>alert('$1 & $2')</script>"
TITLES = [EVIL, *"abcd", ""]


def inspection_by_hand(survival):
  """Eight users whose last item is one of five."""
  return html_report.Inspection(TITLES, [np.asarray([0, 5], np.int32)] * 8, np.arange(8) % 5, survival, levels=2)


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
  runs = [dataclasses.replace(run, answers=np.tile([0, 1, 2, 3, 4], (40, 1))) for run in runs]
  log = {name: np.asarray([1.0, 2.0, 3.0]) for name in ("step", "seconds", "loss")}
  log["validation/recall@10"] = np.asarray([np.nan, 0.1, 0.2])
  asked = []

  def inspect(name):
    asked.append(name)
    return inspection_by_hand(None if "dense" in name else survival_by_hand())

  output = tmp_path_factory.mktemp("parent") / "report"
  logs = {run.name: log for run in runs}
  baselines = Baselines("beauty", "f", {"popularity": {"test": {"recall@5": 0.01, "recall@10": 0.02, "ndcg@10": 0}}})
  path = html_report.write(output, runs, logs, inspect, command="python -m this", baselines=baselines)
  return path, asked


def test_the_page_needs_nothing_but_itself(written):
  path, asked = written
  assert asked == ["runs/dense/seed_1", "runs/$p/../<b>/seed_1"]
  text = path.read_text()
  seen = Seen(text)
  assert not {"link", "iframe", "script", "img"} & set(seen.tags)
  assert all(address.startswith("#") and address[1:] in seen.ids for address in seen.addresses) and seen.addresses
  assert path.stat().st_size < 500_000
  for said in (
    "ratio to the first",
    "Paired bootstrap over the 40 users",
    "1 of 2 users lose tokens",
    "reduction.method",
  ):
    assert said in seen.text, said
  assert "half of the tokens" not in seen.text  # how many are left was not counted
  assert "code 2, fine" in seen.text
  assert "popularity0.01000.02000.0000" in re.sub(r"\s", "", seen.text)
  assert "Equal in all runs: training, minutes 1.0" in seen.text
  assert "Made by python -m this" in seen.text


def test_simpler_recommenders_are_asked_what_the_runs_were_asked():
  """The same split, and the history's items left out where runs leave them out; an unknown metric is not 0."""
  found = lambda value: {"recall@5": value, "recall@10": value + 0.01, "ndcg@10": value / 2}
  splits = {"test": 0.1, "test, history excluded": 0.2, "validation": 0.3, "validation, history excluded": 0.4}
  simpler = Baselines("beauty", "f", {"counts": {name: found(value) for name, value in splits.items()}})
  plain, left_out = (make_result(name, [0, 1, 2, 30], split="validation") for name in ("plain", "left out"))
  left_out.metrics["config"]["eval"]["exclude_history"] = True
  groups = [comparison.Group(run.name, (run,)) for run in (plain, left_out)]
  rows = simpler.rows(groups, "recall@10")
  assert rows[0] == ["", "recall@5", "recall@10", "NDCG@10"]
  assert rows[1:3] == [
    ["counts", "0.3000", "0.3100", "0.1500"],
    ["counts, history left out", "0.4000", "0.4100", "0.2000"],
  ]
  assert [row[0] for row in rows[3:]] == ["plain", "left out"] and rows[3][1] == "0.7500"
  del plain.metrics["recall@5"]
  assert [row[1] for row in simpler.rows(groups[:1], "recall@20")[1:]] == ["0.3000", "-"]
  assert simpler.rows(groups[:1], "recall@20")[1][2] == "-"


def test_recommenders_of_other_data_are_refused(tmp_path):
  runs, path = [make_result("run", [0, 1, 2, 30])], tmp_path / "baselines.json"
  values = {"dataset": "beauty", "models": {"counts": {"test": {"recall@10": 0.5}}}}
  for given in (values, values | {"dataset_fingerprint": "f"}):  # older files do not say
    path.write_text(json.dumps(given))
    assert baselines_lib.read(path, runs).fits(runs[0])
  for wrong, said in (
    (values | {"dataset": "toys"}, "is about the dataset 'toys', and none of the runs is"),
    (values | {"dataset_fingerprint": "other"}, r"is about the dataset 'beauty' as prepared then \(other\)"),
    ({"dataset": "beauty"}, "does not hold recommenders and their metrics: give the JSON that"),
    (values | {"models": {"counts": [1]}}, "does not hold recommenders"),
    (values | {"models": {"counts": {"test": {"recall@10": "0.5"}}}}, "does not hold recommenders"),
    (values | {"dataset_fingerprint": 7}, "does not hold recommenders"),
  ):
    path.write_text(json.dumps(wrong))
    with pytest.raises(InputError, match=said):
      baselines_lib.read(path, runs)


def test_each_dataset_has_plots_of_its_own(tmp_path):
  """Runs of equal names on two datasets: none of the files takes another's place."""
  names = {"dense": "none", "pruned": "rastp"}
  runs = [
    make_result(f"runs/{dataset}/{name}", np.arange(40) % 20, method=method, dataset_fingerprint=dataset)
    for dataset in ("beauty", "toys")
    for name, method in names.items()
  ]
  for run in runs:
    run.metrics["config"]["data"]["dataset"] = run.metrics["dataset_fingerprint"]
  runs = [dataclasses.replace(run, answers=np.tile([0, 1, 2, 3, 4], (40, 1))) for run in runs]
  log = {name: np.asarray([1.0, 2.0, 3.0]) for name in ("step", "seconds", "loss")}
  inspect = lambda name: inspection_by_hand(survival_by_hand() if "pruned" in name else None)
  path = html_report.write(tmp_path, runs, {run.name: log for run in runs}, inspect, command="python -m this")
  names = {file.name for file in tmp_path.iterdir() if file.suffix == ".svg"}
  assert len(names) == path.read_text().count("<svg ")
  assert {"beauty_survival_pruned.svg", "toys_survival_pruned.svg"} <= names


def test_runs_that_read_histories_of_different_lengths_stand_side_by_side(tmp_path):
  long, short = survival_by_hand(), survival_by_hand()
  short = dataclasses.replace(short, items=short.items[:, 1:], dropped_at=short.dropped_at[:, 1:])
  survivals = {"long": long, "short": short}
  runs = [make_result(name, np.arange(40) % 20, method="rastp") for name in survivals]
  runs = [dataclasses.replace(run, answers=np.tile([0, 1, 2, 3, 4], (40, 1))) for run in runs]
  log = {name: np.asarray([1.0, 2.0, 3.0]) for name in ("step", "seconds", "loss")}
  inspect = lambda name: inspection_by_hand(survivals[name])
  path = html_report.write(tmp_path, runs, dict.fromkeys(survivals, log), inspect, command="python -m this")
  cells = [
    len(re.findall("<span", cell)) for cell in re.findall(r'<td class="cells">(.*?)</td>', path.read_text(), re.DOTALL)
  ]
  assert cells == [3, 3, 3, 0]  # user 7's items, the newest first


def test_every_plot_is_a_file_of_its_own_too(written):
  path, _ = written
  files = [file for file in path.parent.iterdir() if file.suffix == ".svg"]
  assert len(files) == 11 == path.read_text().count("<svg ") and [*path.parent.iterdir()] != files
  for file in files:
    root = xml.etree.ElementTree.parse(file).getroot()
    box = [float(number) for number in root.get("viewBox").split()]
    assert box[2] == svg.WIDTH and root.get("aria-label")
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
      assert 0 <= float(text.get("x")) <= box[2] and 0 <= float(text.get("y")) <= box[3], (file, text.text)


def test_the_models_answers_stand_beside_the_target(written):
  text = written[0].read_text()
  assert text.count('class="hit"') == 2 * 2  # two models, the two users that were measured
  assert set(re.findall(r'<li class="hit">(.*?)</li>', text)) == {"d", "b"}  # what users 4 and 7 took next


def test_titles_and_names_are_text_and_files_stay_in_their_directory(written):
  path, _ = written
  seen = Seen(path.read_text())
  assert "script" not in seen.tags and seen.text.count("<b>") > 3
  assert EVIL in seen.text and "(item 5, without a title)" in seen.text
  assert [child.name for child in path.parent.parent.iterdir()] == ["report"]


@pytest.mark.parametrize(("shift", "colour"), [(-15, "good"), (0, ""), (15, "bad")])
def test_a_tile_is_coloured_only_where_the_interval_excludes_0(shift, colour):
  ranks = np.random.default_rng(0).integers(0, 20, 200)
  first, other = (comparison.Group(str(by), (make_result("a", np.clip(ranks + by, 0, 30)),)) for by in (0, shift))
  found = html_report._headline(other, first, comparison.compare(first, other), "recall@10", None)
  assert [tile["colour"] for tile in found["tiles"]] == [colour, colour, "", ""]
  assert found["certain"] == bool(colour)
  assert found["tiles"][2]["detail"] == "known when every run is finished"


def test_how_many_tokens_are_left_is_said_in_words():
  survival = dataclasses.replace(survival_by_hand(), left=np.asarray([3, 2]))
  assert html_report._tokens(survival.losing()) == "a third of the tokens"  # 2 of 6
  assert html_report._tokens(survival) == "56% of the tokens"  # 5 of 9
  assert html_report._level_names(["level 0", "level 1", "level 2", "level 3", "separator"], 3) == [
    "code 1, coarse",
    "code 2",
    "code 3, fine",
    "collision code",
    "separator",
  ]


def test_an_unfinished_run_has_curves_but_no_cost(tmp_path):
  run = make_result("a", [0, 3, 12, 9])
  groups = comparison.group_seeds([run])
  assert plots.quality_and_time(groups, "recall@10") is None and plots.bars(groups, "step_bytes", 1.0, "") is None
  log = {name: np.asarray([1.0]) for name in ("step", "seconds", "loss")}  # not validated yet
  path = html_report.write(tmp_path, [run], {"a": log}, lambda _: inspection_by_hand(None), command="")
  assert "A run is not finished" in path.read_text()


def test_answers_are_those_of_the_evaluation_and_only_items(tmp_path):
  answers = np.tile([5, -1, 3, -1, -1], (4, 1))
  kept, former = dataclasses.replace(make_result("a", [0, 3, 12, 9]), answers=answers), make_result("b", [9, 0, 3, 1])
  logs = {name: {key: np.asarray([1.0]) for key in ("step", "seconds", "loss")} for name in "ab"}
  runs = [kept, dataclasses.replace(former, metrics={**former.metrics, "step": 8})]
  text = html_report.write(tmp_path, runs, logs, lambda _: inspection_by_hand(None), command="").read_text()
  assert text.count("(item 5, without a title)</li>") == text.count("not kept when it was evaluated") == 4
  listed = re.findall(r"<ol>(.*?)</ol>", text)
  assert [len(re.findall("<li", one)) for one in listed] == [2, 2, 2, 2]


def test_a_page_without_dropped_tokens_says_so(tmp_path):
  survival = survival_by_hand()
  whole = dataclasses.replace(survival, dropped_at=np.minimum(survival.dropped_at, SURVIVED))
  log = {name: np.asarray([1.0]) for name in ("step", "seconds", "loss")}
  runs = [make_result("a", [0, 3, 12, 9, 1, 1, 1, 1], method="item_mean")]
  path = html_report.write(tmp_path, runs, {"a": log}, lambda _: inspection_by_hand(whole), command="")
  assert "No token is dropped" in path.read_text() and not list(path.parent.glob("*survival*"))


def test_ticks_are_round_and_inside():
  assert [label for _, label in svg.ticks(0, 1)] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
  for low, high in ((0.031, 0.047), (-0.2, 0.05), (0, 12345), (3.0, 3.0)):
    found = [value for value, _ in svg.ticks(low, high)]
    assert (
      1 <= len(found) <= 6 and all(low - 1e-9 <= value <= high + 1e-9 for value in found) and found == sorted(found)
    )


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
