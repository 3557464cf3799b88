"""Metrics against the published ones and against twenty lines of NumPy."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from rastp_jax import sharding
from rastp_jax.config import Config, DataConfig, EvalConfig, ModelConfig, PruningConfig
from rastp_jax.evaluation import metrics
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.model.beam_search import beam_search
from rastp_jax.model.encoder_decoder import EncoderDecoder
from tests.test_batches import LENGTHS, make_data

GOLDEN = pathlib.Path(__file__).parent / "golden"


def test_metrics_are_the_published_ones():
  units = np.load(GOLDEN / "units.npz")
  order = np.argsort(-units["metric/probs"], axis=1, kind="stable")
  beams = np.take_along_axis(units["metric/ids"], order[..., None], axis=1)
  ranks = metrics.target_ranks(beams, units["metric/labels"])
  sums = metrics.ranking_sums(ranks, (5, 10))
  assert len(sums) == 4
  for name, value in sums.items():
    assert value / len(ranks) == pytest.approx(float(units[f"metric/{name}"]), abs=1e-6)


def test_faults_are_counted():
  items = np.asarray([[3, 1, 3, -1], [0, 1, 2, 3], [-1, -1, 5, 5]])
  assert metrics.beam_faults(items) == {"invalid_beams": 3, "repeated_beams": 2}


@pytest.fixture(scope="module")
def setting():
  histories, codes = make_data(LENGTHS[:120])
  config = dataclasses.replace(
    Config(),
    data=DataConfig(max_items=20, bucket_items=(8, 20)),
    eval=EvalConfig(batch_size=10, beam_width=10),
  )
  model_config = ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=2, decoder_blocks=1)
  model = EncoderDecoder(model_config, PruningConfig(after_block=(0,)), codes.widths, rngs=nnx.Rngs(0))
  return config, histories, codes, model


@pytest.mark.parametrize("constrained", [True, False])
def test_figures_equal_a_plain_count(setting, constrained):
  config, histories, codes, model = setting
  config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, constrained=constrained))
  mesh = sharding.make_mesh()
  evaluator = Evaluator(config, histories, codes, mesh)
  figures = evaluator.evaluate(model, "test")
  search = jax.jit(lambda h: beam_search(model, model.encode(h), evaluator._transitions, 10, renormalize=False).codes)
  recall, gain, invalid = 0, 0.0, 0
  for user in range(histories.num_users):
    items = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
    room = 8 if len(items) - 1 <= 8 else 20
    history = np.full((1, room, 4), -1, np.int32)
    history[0, : min(len(items) - 1, room)] = codes.codes[items[:-1][-room:]]
    beams = [tuple(beam) for beam in np.asarray(search(history))[0]]
    target = tuple(codes.codes[items[-1]])
    invalid += sum(beam not in set(map(tuple, codes.codes)) for beam in beams)
    if target in beams:
      recall += 1
      gain += 1 / np.log2(beams.index(target) + 2)
  assert figures["users"] == 120 and figures["beam_width"] == 10
  assert figures["recall@10"] == pytest.approx(recall / 120) and recall > 0
  assert figures["ndcg@10"] == pytest.approx(gain / 120)
  assert figures["invalid_beams"] == invalid
  assert (invalid == 0) == constrained
  assert figures["repeated_beams"] == 0


def test_a_share_of_the_users_is_counted_as_such(setting):
  config, histories, codes, model = setting
  figures = Evaluator(config, histories, codes, sharding.make_mesh()).evaluate(model, "validation", users=33)
  assert figures["users"] == 33
