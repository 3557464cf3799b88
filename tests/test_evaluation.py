"""Metrics against the published ones and against a plain count; every user's rank; comparisons."""

import collections
import dataclasses
import json
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from rastp_jax import config as config_lib
from rastp_jax.config import Config, DataConfig, EvalConfig, ModelConfig, ReductionConfig
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.evaluation import breakdown, comparison, metrics, results, tables
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.evaluation.user_ranks import UserRanks
from rastp_jax.generation.beam_search import beam_search
from rastp_jax.generation.decode import item_tables, make_decode
from rastp_jax.generation.mixture import NO_BEAM
from rastp_jax.generation.trie import build_transitions
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.reduction.methods import REDUCTIONS
from rastp_jax.runtime import sharding
from tests.helpers.data import LENGTHS, make_data
from tests.helpers.results import make_result
from tests.helpers.saved import make_saved

GOLDEN = pathlib.Path(__file__).parent / "golden"


def test_metrics_are_the_published_ones():
  units = np.load(GOLDEN / "units.npz")
  order = np.argsort(-units["metric/probs"], axis=1, kind="stable")
  beams = np.take_along_axis(units["metric/ids"], order[..., None], axis=1)
  # Each sequence of codes is an item of its own.
  _, items = np.unique(
    np.concatenate([beams, units["metric/labels"][:, None]], axis=1).reshape(-1, beams.shape[-1]),
    axis=0,
    return_inverse=True,
  )
  items = items.reshape(len(beams), -1)
  ranks = metrics.target_ranks(items[:, :-1], items[:, -1])
  sums = metrics.ranking_sums(ranks, (5, 10))
  for name in ("recall@5", "recall@10", "ndcg@5", "ndcg@10"):
    value = sums[name]
    assert value / len(ranks) == pytest.approx(float(units[f"metric/{name}"]), abs=1e-6)


def test_beams_that_are_not_an_item_keep_their_rank():
  items = np.asarray([[-1, 4, -1, 2], [-1, -1, -1, -1], [2, -1, 2, 4]])
  assert metrics.target_ranks(items, np.asarray([2, 2, 2])).tolist() == [3, 4, 0]


def test_faults_are_counted():
  items = np.asarray([[3, 1, 3, -1], [0, 1, 2, 3], [-1, -1, 5, 5], [4, NO_BEAM, NO_BEAM, NO_BEAM]])
  assert metrics.beam_faults(items) == {"invalid_beams": 3, "repeated_beams": 2}


@pytest.fixture(scope="module")
def setting():
  histories, codes = make_data(LENGTHS[:120])
  config = dataclasses.replace(
    Config(),
    data=DataConfig(max_items=20, bucket_lengths=(8, 20)),
    eval=EvalConfig(batch_size=10, beam_width=10),
  )
  model_config = ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=2, decoder_blocks=1)
  model = EncoderDecoder(model_config, ReductionConfig(after_block=(0,)), codes.widths, rngs=nnx.Rngs(0))
  return config, histories, codes, model


@pytest.mark.parametrize("constrained", [True, False])
def test_metrics_equal_a_plain_count(setting, constrained):
  config, histories, codes, model = setting
  config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, constrained=constrained))
  mesh = sharding.make_mesh()
  evaluator = Evaluator(config, histories, codes, mesh)
  ranks = UserRanks(histories.num_users, histories.num_items)
  found = evaluator.evaluate(model, "test", ranks=ranks)
  transitions = build_transitions(codes.codes) if constrained else None
  search = jax.jit(lambda h: beam_search(model, model.encode(h), transitions, 10, renormalize=False).codes)
  recall, gain, reciprocal, invalid = 0, 0.0, 0.0, 0
  shown = set()
  rows = {tuple(code): row for row, code in enumerate(codes.codes.tolist())}
  for user in range(histories.num_users):
    items = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
    room = 8 if len(items) - 1 <= 8 else 20
    history = np.full((1, room, 4), -1, np.int32)
    history[0, : min(len(items) - 1, room)] = codes.codes[items[:-1][-room:]]
    beams = [tuple(beam) for beam in np.asarray(search(history))[0]]
    target = tuple(codes.codes[items[-1]])
    invalid += sum(beam not in set(map(tuple, codes.codes)) for beam in beams)
    shown |= set(beams[:5])
    assert ranks.answers[user].tolist() == [rows.get(beam, -1) for beam in beams[:5]]
    assert ranks.ranks[user] == (beams.index(target) if target in beams else 10)
    if target in beams:
      recall += 1
      reciprocal += 1 / (beams.index(target) + 1)
      gain += 1 / np.log2(beams.index(target) + 2)
  assert found["users"] == 120 and found["beam_width"] == 10
  assert found["recall@10"] == pytest.approx(recall / 120) and recall > 0
  assert found["ndcg@10"] == pytest.approx(gain / 120)
  assert found["mrr@10"] == pytest.approx(reciprocal / 120)
  assert ranks.coverage([5])["coverage@5"] == len(shown & set(map(tuple, codes.codes))) / 50
  assert found["invalid_beams"] == invalid
  assert (invalid == 0) == constrained
  assert found["repeated_beams"] == 0


def test_a_share_of_the_users_is_counted_as_such(setting):
  config, histories, codes, model = setting
  found = Evaluator(config, histories, codes, sharding.make_mesh()).evaluate(model, "validation", users=33)
  assert found["users"] == 33


HOST = """
import sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np
from rastp_jax.evaluation.user_ranks import UserRanks
from rastp_jax.runtime import processes
host = jax.process_index()
sums = processes.allgather(np.asarray([2.0**53 - 1 - host, 1 / 3], np.float64))
ranks = UserRanks(6, 4)
users = np.arange(6)[host::2]
ranks.add(users, 10 * users, np.asarray([[0, 1 + host], [1 + host, 0], [-1, 0]]))
ranks.merge_hosts()
print(sums.tolist(), ranks.ranks.tolist(), ranks.best_ranks.tolist(), ranks.answers[:, :3].tolist())
"""


def test_hosts_bring_their_users_together_bit_for_bit():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = str(probe.getsockname()[1])
  root = pathlib.Path(__file__).parent.parent
  hosts = [
    subprocess.Popen([sys.executable, "-c", HOST, port, host], cwd=root, stdout=subprocess.PIPE, text=True)
    for host in ("0", "1")
  ]
  never = np.iinfo(np.int32).max
  for host in hosts:
    told = host.communicate(timeout=300)[0].strip().splitlines()[-1]
    sums = [[2.0**53 - 1, 1 / 3], [2.0**53 - 2, 1 / 3]]
    answers = [[0, 1, -1], [0, 2, -1], [1, 0, -1], [2, 0, -1], [-1, 0, -1], [-1, 0, -1]]
    assert told == f"{sums} {[0, 10, 20, 30, 40, 50]} {[0, 0, 0, never]} {answers}"


def test_breakdowns_equal_a_plain_count():
  histories, _ = make_data(LENGTHS[:200], num_items=3000)
  ranks = np.random.default_rng(3).integers(0, 12, 200)
  ranks[::7] = -1
  for split, held_back in (("test", 1), ("validation", 2)):
    owned = [histories.items[a:b].tolist() for a, b in zip(histories.offsets[:-1], histories.offsets[1:], strict=True)]
    seen = collections.Counter(item for items in owned if len(items) > 3 for item in items[:-2])
    found = breakdown.breakdowns(histories, split, ranks, [5, 10])
    values = {
      "history_items": [len(items) - held_back for items in owned],
      "target_seen": [seen[items[-held_back]] for items in owned],
    }
    assert 0 in values["target_seen"]
    for name, groups in found.items():
      for group in groups:
        high = np.inf if group["to"] is None else group["to"]
        mine = [rank for rank, v in zip(ranks, values[name], strict=True) if rank >= 0 and group["from"] <= v <= high]
        assert group["users"] == len(mine)
        if mine:
          assert group["recall@5"] == pytest.approx(sum(rank < 5 for rank in mine) / len(mine))
          assert group["mrr@10"] == pytest.approx(sum(1 / (rank + 1) for rank in mine if rank < 10) / len(mine))
        else:
          assert "recall@5" not in group
      assert sum(group["users"] for group in groups) == (ranks >= 0).sum()


def test_held_out_items_are_not_seen_in_training():
  items = np.asarray([0, 1, 2, 3, 4, 5, 6], np.int32)
  histories = Histories(items, np.asarray([0, 4, 7]), 8, ["a", "b"], "f")
  # The second user's region is item 4 alone, which is in no training sample.
  assert histories.training_counts().tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_seeds_become_one_column_with_mean_and_deviation():
  rng = np.random.default_rng(0)
  ranks = [rng.integers(0, 20, 40) for _ in range(4)]
  runs = [
    make_result("runs/v2/dense/seed_1", ranks[0], seed=1),
    make_result("runs/v2/pruned/seed_1", ranks[1], seed=1, method="rastp"),
    make_result("runs/v2/dense/seed_12", ranks[2], seed=12),
    make_result("again", ranks[3], seed=12),
  ]
  groups = comparison.group_seeds(runs)
  assert [len(group.results) for group in groups] == [2, 1, 1]  # a repetition is not a further seed
  assert [group.name for group in comparison.group_seeds(runs[:3])] == ["dense", "pruned/seed_1"]
  recalls = [np.mean(ranks[0] < 10), np.mean(ranks[2] < 10)]
  assert groups[0].mean("recall@10") == pytest.approx(np.mean(recalls))
  assert groups[0].deviation("recall@10") == pytest.approx(np.std(recalls, ddof=1))
  table = dict((row[0], row[1:]) for row in tables.comparison(groups[:2]))
  assert table["recall@10"][0] == f"{np.mean(recalls):.4f} ± {np.std(recalls, ddof=1):.4f}"
  assert table["recall@10"][2] == f"{np.mean(ranks[1] < 10) / np.mean(recalls):.2f}x"
  assert table["beams"] == ["10", "10", "1.00x"]


def test_meshes_and_directories_make_no_other_setting():
  runs = [make_result(f"seed_{seed}", [0, 3, 12, 9], seed=seed) for seed in (1, 2, 3)]
  runs[1].metrics["config"]["mesh"] |= {"data": 2, "tensor": 4}
  runs[2].metrics["config"]["data"]["data_dir"] = "elsewhere"
  assert len(comparison.group_seeds(runs)) == 1
  runs[2].metrics["config"]["semantic_ids"]["rqvae"]["latent"] += 1
  assert len(comparison.group_seeds(runs)) == 2


def test_results_of_an_older_program_are_read_under_todays_names(tmp_path):
  old, new = (make_result(f"seed_{seed}", [0, 3, 12, 9], seed=seed, method="rastp") for seed in (1, 2))
  results.save(tmp_path / "new.json", new)
  config = json.loads(json.dumps(old.metrics["config"]))
  reduction, data, train = config.pop("reduction"), config["data"], config["train"]
  config["pruning"] = {"criterion": reduction["method"], "after_block": reduction["after_block"]}
  for former, name in (("core", "k_core"), ("buckets", "num_buckets"), ("bucket_items", "bucket_lengths")):
    data[former] = data.pop(name)
  config["eval"]["ks"] = config["eval"].pop("top_k")
  train["accumulate"] = train.pop("grad_accumulation_steps")
  del train["max_nonfinite_steps"]  # did not exist yet
  results.save(tmp_path / "old.json", dataclasses.replace(old, metrics={**old.metrics, "config": config}))
  loaded = [results.load(tmp_path / f"{name}.json", name) for name in ("old", "new")]
  assert loaded[0].metrics == old.metrics and loaded[1].metrics == new.metrics
  assert len(comparison.group_seeds(loaded)) == 1


def test_results_of_version_0_1_are_read_with_all_their_settings():
  path = GOLDEN / "evaluation_0.1.json"  # written by commit afe1aff
  former, config = json.loads(path.read_text())["config"], results.read_metrics(path, "run")["config"]
  assert config.keys() == config_lib.to_dict(Config()).keys()
  assert config["reduction"]["method"] == former["pruning"]["criterion"] == "rastp"
  assert list(config["data"]["bucket_lengths"]) == former["data"]["bucket_items"]
  assert config["semantic_ids"]["rqvae"]["train_steps"] == former["semantic_ids"]["train_steps"]
  assert list(config["eval"]["top_k"]) == former["eval"]["ks"]


def test_runs_on_other_data_are_not_compared():
  runs = [make_result("a", [0, 1, 2, 3]), make_result("b", [0, 1, 2, 3], dataset_fingerprint="g")]
  assert [len(groups) for groups in comparison.by_dataset(runs).values()] == [1, 1]


def test_bootstrap_of_three_users_is_the_exact_one():
  # Differences -1, 1, 1: of three draws, the mean is at most 0 with 2 or 3 of the first, 7 times in 27.
  found = comparison.paired_bootstrap("recall@1", np.asarray([1.0, 0, 0]), np.asarray([0.0, 1, 1]), resamples=100_000)
  assert found.value == pytest.approx(1 / 3)
  assert found.p == pytest.approx(2 * 7 / 27, abs=0.005)
  assert (found.low, found.high) == (-1, 1)  # either end has a chance of 1/27 or 8/27, above 2.5 %


def test_bootstrap_of_many_users_is_the_normal_one():
  rng = np.random.default_rng(5)
  hard = rng.normal(size=1000) * 10  # differences between users cancel out in pairs
  first, second = hard + rng.normal(size=1000), hard + rng.normal(size=1000) + 0.1
  found = comparison.paired_bootstrap("ndcg@10", first, second, resamples=4000)
  error = np.std(second - first) / np.sqrt(1000)
  assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.1 * error)
  assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.1 * error)
  assert found == comparison.paired_bootstrap("ndcg@10", first, second, resamples=4000)
  nothing = comparison.paired_bootstrap("ndcg@10", first, first)
  assert (nothing.value, nothing.low, nothing.high, nothing.p) == (0, 0, 0, 1)
  clear = comparison.paired_bootstrap("ndcg@10", first, second + 1, resamples=4000)
  assert clear.p == pytest.approx(2 / 4001)


def test_results_come_back_and_mixed_up_files_are_refused(tmp_path):
  path = tmp_path / "eval_test.json"
  with pytest.raises(InputError, match=r"run has no results yet .*rastp_jax.evaluate"):
    results.load(path, "run")
  result = make_result("run", [0, 3, 12, 9])
  results.save(path, result)
  loaded = results.load(path, "run")
  assert loaded.metrics == result.metrics and loaded.ranks.tolist() == [0, 3, 12, 9] and loaded.answers.shape == (0, 5)
  answers = np.asarray([[4, 1, 2, 0, 3], [1, 2, 3, 4, -1], [5] * 5, [-1] * 5])
  results.save(path, dataclasses.replace(result, answers=answers))
  assert results.load(path, "run").answers.tolist() == answers.tolist()
  results.save(path, dataclasses.replace(result, answers=answers[:3]))
  with pytest.raises(InputError, match="different evaluations"):
    results.load(path, "run")
  results.save(path, result)
  results.save(tmp_path / "other.json", dataclasses.replace(result, ranks=np.asarray([0, 3, 12, 12])))
  (tmp_path / "other.npz").replace(tmp_path / "eval_test.npz")
  with pytest.raises(InputError, match="different evaluations"):
    results.load(path, "run")
  (tmp_path / "eval_test.npz").write_bytes(b"torn")
  with pytest.raises(InputError, match="cannot be read"):
    results.load(path, "run")


def test_markdown_holds_the_same_numbers():
  groups = comparison.group_seeds([make_result("a", [0, 3, 12, 9] * 10), make_result("b|c", [1, 3, 2, 9] * 10, x=1)])
  text = tables.text({"beauty": groups}, markdown_tables=True)
  rows = [line for line in text.splitlines() if line.startswith("| recall@5")]
  assert [cell.strip() for cell in rows[0].split("|")[2:5]] == ["0.5000", "0.7500", "1.50x"]
  assert "b\\|c - a" in text and "Paired bootstrap over the 40 users" in text


def test_runs_without_a_common_cut_off_are_refused():
  other = make_result("b", [0, 1, 2, 3], seed=1)
  other.metrics["config"]["eval"]["top_k"] = [1]
  with pytest.raises(InputError, match=r"No cut-off is common to all runs \(a at \(5, 10\), b at \(1,\)\)"):
    tables.text({"beauty": comparison.group_seeds([make_result("a", [0, 1, 2, 3]), other])})


@pytest.mark.parametrize("method", sorted(set(REDUCTIONS) - {"given"}))
def test_every_method_is_decoded_on_each_device(method):
  saved, _ = make_saved(method)
  tables = item_tables(saved.semantic_ids, saved.histories, saved.config)
  graph, params = nnx.split(saved.model)
  decode = make_decode(saved.mesh, saved.config.eval, saved.config.counts)
  answers = jax.eval_shape(decode, graph, params, tables, np.zeros((8, 12), np.int32))
  assert answers.items.shape == (8, saved.config.eval.beam_width)
