"""Settings: every config file is sound, and every value that makes no sense is refused in one sentence."""

import dataclasses
import importlib

import pytest

from rastp_jax import config as config_lib
from rastp_jax import loading
from rastp_jax.config import Config, Duration
from rastp_jax.errors import InputError


@pytest.mark.parametrize("name", ["beauty", "sports", "toys", "own", "tiny"])
@pytest.mark.parametrize("variants", ["", "cpu", "reference", "dense", "cpu,dense"])
def test_config_files_are_sound(name, variants):
  get_config = importlib.import_module(f"configs.{name}").get_config
  config = config_lib.from_config_dict(get_config(variants))
  assert config.data.dataset == {"tiny": "synthetic"}.get(name, name)
  assert (config.pruning.criterion == "none") == ("dense" in variants)
  assert config_lib.from_json(config_lib.to_json(config)) == config


def test_the_default_is_paper_sized():
  model = Config().model
  sizes = (model.d_model, model.num_heads, model.head_dim, model.d_ff, model.encoder_blocks, model.decoder_blocks)
  assert sizes == (128, 6, 64, 1024, 4, 4)
  assert (model.dropout, Config().train.learning_rate, Config().data.max_items + 1) == (0.15, 1e-3, 30)


def test_every_published_quirk_is_a_field_of_the_reference():
  """Read the differences aloud: default -> reference."""
  get_config = importlib.import_module("configs.beauty").get_config
  default, reference = (dataclasses.asdict(config_lib.from_config_dict(get_config(v))) for v in ("", "reference"))
  differing = {
    f"{section}.{field}"
    for section, fields in reference.items()
    for field, value in fields.items()
    if value != default[section][field]
  }
  assert {
    "data.sampling",
    "data.bucket_items",
    "data.mix_users",
    "model.uniform_width",
    "model.init",
    "model.attention_dropout",
    "model.mlp_dropout",
    "pruning.positions",
    "pruning.score_dropout",
    "pruning.score_padded_queries",
    "train.optimizer",
    "train.schedule",
    "train.accumulate",
    "eval.constrained",
  } <= differing


@pytest.mark.parametrize(
  ("section", "field", "value", "sentence"),
  [
    ("pruning", "keep_ration", 0.5, "pruning.keep_ration is no setting .* did you mean config.pruning.keep_ratio"),
    ("prunning", "keep_ratio", 0.5, "config.prunning is no setting .* did you mean config.pruning"),
    ("pruning", "keep_ratio", 0.0, "must be above 0 and at most 1"),
    ("pruning", "keep_ratio", 1.5, "must be above 0 and at most 1"),
    ("pruning", "keep_tokens", 0, "would keep nothing"),
    ("pruning", "keep_tokens", 146, "above the longest history's 145 positions"),
    ("pruning", "after_block", 4, "lie between 0 and 3"),
    ("pruning", "after_block", (1, 2), "has 1 values for the 2 stages"),
    ("data", "dataset", "beuty", "did you mean 'beauty'"),
    ("data", "bucket_items", (10, 5), "must rise"),
    ("data", "bucket_items", (5, 10), "end with at least data.max_items=29"),
    ("data", "mix_users", False, "needs data.sampling='subsequences'"),
    ("model", "num_heads", "six", "is a str: expected int"),
    ("model", "d_model", 0, "too small: expected at least 1"),
    ("model", "dropout", 1.0, "at least 0 and below 1"),
    ("train", "length", "40 fortnights", "is no duration"),
    ("train", "length", "40 minutes", "depend on the clock"),
    ("train", "length", "40 percent", "is a share of itself"),
    ("train", "log_every", "3 minutes", "cannot be converted to steps"),
    ("train", "optimizer", "sgd", "expected one of adamw, adam, adam_l2"),
    ("eval", "ks", (5, 20), "between 1 and eval.beam_width=10"),
  ],
)
def test_values_that_make_no_sense_are_refused(section, field, value, sentence):
  with pytest.raises(InputError, match=sentence) as caught:
    config_lib.from_config_dict({section: {field: value}})
  message = str(caught.value)
  assert message.endswith((".", "?")) and "\n" not in message


@pytest.mark.parametrize(
  ("text", "steps"),
  [("7 steps", 7), ("1 epoch", 100), ("2.5 epochs", 250), ("1e4 samples", 200), ("10 percent", 30), ("50%", 150)],
)
def test_durations(text, steps):
  duration = Duration.parse(text, "train.length")
  assert duration.steps(steps_per_epoch=100, samples_per_step=50.0, total_steps=300) == steps


def test_decoding_overrides_touch_nothing_else():
  config = loading.override(Config(), ["eval.beam_width=50", "pruning.criterion=none", "eval.ks=(5, 50)"])
  assert (config.eval.beam_width, config.pruning.criterion, config.eval.ks) == (50, "none", (5, 50))
  assert config.model == Config().model
  for text, sentence in (
    ("model.d_model=5", "would change what the weights were trained for"),
    ("beam_width", "expected SECTION.FIELD=VALUE"),
    ("eval.beem_width=5", "did you mean config.eval.beam_width"),
  ):
    with pytest.raises(InputError, match=sentence):
      loading.override(Config(), [text])
