"""The benchmark measures what it says, and its ratios are of what it measured."""

import dataclasses
import math
import types

import jax
import numpy as np
import pytest

from rastp_jax.config import Config, DataConfig, EvalConfig, ModelConfig, ReductionConfig, TrainConfig
from rastp_jax.data.histories import Histories
from rastp_jax.experiments.speed import attention_speed, parts
from rastp_jax.experiments.speed.decoding_speed import DecodingSpeed, cost_of_transitions, generated_codes
from rastp_jax.experiments.speed.ratios import describe, make_ratios, speed_intervals
from rastp_jax.experiments.speed.training_speed import TrainingSpeed, costs, fastest_batch_size
from rastp_jax.experiments.speed.variants import make_variants
from rastp_jax.runtime.sharding import make_mesh
from rastp_jax.semantic_ids.codes import SemanticIds

CONFIG = Config(
  data=DataConfig(max_items=29, bucket_lengths=(6, 29)),
  model=ModelConfig(
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=32,
    encoder_blocks=1,
    decoder_blocks=1,
    mlp_hidden_layers=1,
    dropout=0.0,  # compiles faster
    mlp_dropout=0.0,
  ),
  reduction=ReductionConfig(after_block=(0,)),
  train=TrainConfig(optimizer="adam", weight_decay=0.0, clip_norm=0.0),
  eval=EvalConfig(beam_width=4, batch_size=16, top_k=(1,)),
)


LENGTHS = CONFIG.data.bucket_lengths


def make_data():
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, 40, 60)
  items = rng.integers(0, 30, lengths.sum()).astype(np.int32)
  codes = SemanticIds.from_learned(rng.integers(0, 16, (30, 1)), 16, {})
  return Histories(items, np.concatenate([[0], np.cumsum(lengths)]), 30, ["u"] * 60, "f"), codes


def mesh():
  return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def result():
  variants = make_variants(CONFIG, LENGTHS)
  few = {name: variants[name] for name in ("padded_dense", "bucketed_pruned")}  # each program takes seconds to compile
  speed = TrainingSpeed(few, *make_data(), mesh(), batch_size=8)
  speed.run(2)
  result = {"training": speed.results(), "input": speed.live_and_constant("bucketed_pruned", steps=8, repeats=2)}
  one_length = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, bucket_lengths=(29,)))
  decoding = DecodingSpeed(one_length, *make_data(), mesh(), (100, 2000))
  decoding.run(2)
  return result | {"decoding": decoding.results(), "transitions": {"2000": {"seconds": 2.0, "peak_gb": 0.5}}}


def test_nothing_but_results_goes_to_stdout(capsys):
  """`experiment ablations` reads seconds from there, a line each."""
  variants = {"padded_dense": make_variants(CONFIG, LENGTHS)["padded_dense"]}
  TrainingSpeed(variants, *make_data(), mesh(), batch_size=8)
  told = capsys.readouterr()
  assert not told.out and "padded_dense: compiled for " in told.err


@pytest.mark.slow
def test_what_was_measured_is_kept_after_each_part(monkeypatch):
  config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, bucket_lengths=(29,)))
  monkeypatch.setattr(parts.runs, "load_data", lambda _: make_data())

  def broken(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(parts, "DecodingSpeed", broken)
  monkeypatch.setattr(parts, "cost_of_transitions", lambda *_: {"seconds": 2.0, "peak_gb": 0.5})
  kept = []
  with pytest.raises(KeyboardInterrupt):
    parts.measure(config, [8], 1, [100], lambda found: kept.append((set(found), make_ratios(found))))
  assert [names - {"batch_size", "batch_size_sweep"} for names, _ in kept] == [{"training"}, {"training", "input"}]
  assert all(ratios["padded_pruned_vs_padded_dense"] > 0 for _, ratios in kept)


def test_variants_differ_in_lengths_and_reduction_alone():
  variants = make_variants(CONFIG, LENGTHS)
  assert {v.data.sampling for v in variants.values()} == {"subsequences"}
  assert variants["padded_dense"].data.bucket_lengths == (30,)
  assert variants["bucketed_keep50"].reduction.keep_tokens == (50,)
  assert variants["last10_dense"].data == dataclasses.replace(
    variants["bucketed_dense"].data, max_items=10, bucket_lengths=(6, 10)
  )
  for name, variant in variants.items():
    assert (variant.reduction.method == "none") == name.endswith("dense")
    assert dataclasses.replace(variant, data=CONFIG.data, reduction=CONFIG.reduction) == CONFIG


@pytest.mark.slow
def test_training_results_follow_from_the_timings(result):
  for name, found in result["training"].items():
    steps = sum(shape["batches_an_epoch"] for shape in found["shapes"])
    seconds = sum(shape["batches_an_epoch"] * np.median(shape["seconds"]) for shape in found["shapes"])
    samples = found["samples_a_step"] * steps
    np.testing.assert_allclose(found["samples_per_second"], samples / seconds)
    positions = sum(shape["batches_an_epoch"] * shape["rows"] * shape["items"] for shape in found["shapes"]) * 3
    np.testing.assert_allclose(found["real_tokens_per_second"] * seconds, positions * (1 - found["padding_share"]))
    assert all(len(shape["seconds"]) == 2 for shape in found["shapes"]), name
  padded, pruned = result["training"]["padded_dense"], result["training"]["bucketed_pruned"]
  for cost in ("padding_share", "flops_a_sample", "bytes_a_sample", "peak_bytes"):
    assert pruned[cost] < padded[cost], cost


def test_on_a_gpu_products_are_counted_before_xla_hands_them_to_a_library(monkeypatch):
  lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), np.float32))
  program = lowered.compile()
  assert costs(lowered, program, make_mesh())[1] is not None
  monkeypatch.setattr("rastp_jax.experiments.speed.training_speed.device_flops", lambda program: 0.0)  # as there
  mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="gpu")] * 2), size=2)
  assert costs(lowered, program, mesh) == (2 * 8**3 / 2, None)
  monkeypatch.setattr(type(lowered), "cost_analysis", lambda self: None)  # as some backends do
  assert costs(lowered, program, mesh) == (None, None)


@pytest.mark.slow
def test_what_a_device_does_not_tell_is_left_out(result):
  unknown = {"flops_a_sample": None, "bytes_a_sample": None}
  found = result["training"]["padded_dense"] | unknown
  training = {name: found for name in make_variants(CONFIG, LENGTHS)}
  ratios = make_ratios(result | {"training": training})
  assert "padded_pruned_vs_padded_dense" in ratios and not any("flop" in name for name in ratios)
  text = describe(result | {"training": training, "ratios": ratios})
  assert "samples/s" in text and "MFLOP" not in text


@pytest.mark.slow
def test_a_run_needs_one_program_per_bucket(result):
  assert result["input"]["compiles"] == result["input"]["buckets"] == 2


@pytest.mark.slow
def test_ratios_are_of_the_runs_own_measurements(result):
  found = result["training"]["padded_dense"]
  training = {
    name: {**found, "samples_per_second": 10.0 + index, "flops_a_sample": 90.0 - 7 * index, "peak_bytes": 50 - index}
    for index, name in enumerate(make_variants(CONFIG, LENGTHS))
  }
  ratios = make_ratios(result | {"training": training})
  expected = {
    "padded_pruned_vs_padded_dense": 11 / 10,
    "bucketed_dense_vs_padded_dense": 12 / 10,
    "bucketed_keep50_vs_padded_pruned": 13 / 11,
    "bucketed_pruned_vs_padded_dense": 14 / 10,
    "bucketed_pruned_vs_bucketed_dense": 14 / 12,
    "share_of_flop_limit": (11 / 10) / (90 / 83),
    "flop_limit_bucketed_pruned_vs_bucketed_dense": 76 / 62,
    "peak_memory_pruned_vs_dense": 49 / 50,
    "transitions_2k_seconds": 2.0,
    "compiles": 2,
  }
  np.testing.assert_allclose([ratios[name] for name in expected], list(expected.values()))
  tables = result["decoding"]["tables"]
  slower = tables["unconstrained"]["users_per_second"] / tables["constrained"]["users_per_second"]
  np.testing.assert_allclose(ratios["constrained_vs_unconstrained"], slower)
  assert "decode_2k_vs_0k_items" in ratios
  text = describe(result | {"training": training, "ratios": ratios})
  assert "bucketed_keep50" in text and "2000 items" in text and "MFU" not in text  # a CPU has no known peak


@pytest.mark.slow
def test_intervals_tell_drift_from_difference(result):
  def timed(*seconds_of_shapes):
    shapes = [{"batches_an_epoch": 1 + index, "seconds": seconds} for index, seconds in enumerate(seconds_of_shapes)]
    return {"samples_a_step": 8.0, "shapes": shapes}

  drift, noise = np.linspace(1.0, 3.0, 31), np.random.default_rng(0).uniform(1.0, 2.0, 31)
  training = {name: timed(2 * drift, drift) for name in make_variants(CONFIG, LENGTHS)}
  training["padded_pruned"] = timed(drift, drift / 2)
  training["last10_dense"] = timed(drift * noise, drift * noise)
  intervals = speed_intervals(training)
  np.testing.assert_allclose(intervals["padded_pruned_vs_padded_dense"], 2.0)  # every turn says the same
  np.testing.assert_allclose(intervals["bucketed_pruned_vs_bucketed_dense"], 1.0)
  low, high = intervals["last10_dense_vs_padded_dense"]
  assert low < 0.9 * high and low < 4 / 3 / 1.5 < high


def test_generated_codes_are_unique_and_in_range():
  codes = generated_codes(5000, (16, 16, 16))
  assert len(np.unique(codes, axis=0)) == 5000 and codes[:, :3].max() == 15 and (codes >= 0).all()
  assert codes[:, 3].max() >= 2  # 5,000 draws from 4,096 collide


@pytest.mark.slow
def test_a_childs_memory_is_its_own():
  ballast = np.ones(1 << 27)  # 1.07 GB in this process, which the child must not count
  cost = cost_of_transitions(1000, (16, 16))
  assert cost["seconds"] > 0 and 0.05 < cost["peak_gb"] < 0.8 * ballast.nbytes / 1e9


def test_the_sweep_stops_when_larger_batches_bring_nothing():
  class Fake:
    def __init__(self, size):
      self.size = size

    def run(self, repeats):
      pass

    def results(self):
      return {"only": {"samples_per_second": min(self.size, 400) * 1.0}}

  best, tried = fastest_batch_size(Fake, [100, 200, 400, 800, 1600], 1)
  assert best == 400 and [one["batch_size"] for one in tried] == [100, 200, 400, 800]
  assert math.isclose(tried[-1]["samples_per_second"], 400)


def test_forms_of_attention_agree_and_refusals_are_rows():
  found = list(attention_speed.measured(ModelConfig(num_heads=2, head_dim=8), 2, 21, 1))
  assert [row["form"] for row in found] == ["ours", "xla", "cudnn"]
  assert found[1]["difference"] < 1e-5 and found[1]["forward_backward_seconds"] > 0
  assert "cuDNN" in found[2]["refused"]  # there is none on a CPU


def test_our_own_form_may_not_refuse(monkeypatch):
  monkeypatch.setattr(attention_speed.products, "matmul", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    next(attention_speed.measured(ModelConfig(num_heads=2, head_dim=8), 2, 21, 1))
