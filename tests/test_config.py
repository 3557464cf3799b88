"""Settings: declared once, every config file sound, every value that makes no sense refused in one sentence."""

import ast
import dataclasses
import importlib
import inspect
import json
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from rastp_jax import __main__
from rastp_jax import config as config_lib
from rastp_jax.config import Config, Duration, May
from rastp_jax.errors import InputError
from rastp_jax.runtime import cli
from rastp_jax.training import runs
from tests.helpers.commands import command

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["beauty", "sports", "toys", "own", "tiny"])
@pytest.mark.parametrize("variants", ["", "cpu", "reference", "dense", "cpu,dense", "cpu,best", "cpu,best,repeats"])
def test_config_files_are_sound(name, variants):
  get_config = importlib.import_module(f"configs.{name}").get_config
  config = config_lib.from_dict(get_config(variants))
  assert config.data.dataset == {"tiny": "synthetic"}.get(name, name)
  assert (config.reduction.method == "none") == ("dense" in variants)
  assert config_lib.from_dict(json.loads(config_lib.to_json(config))) == config


@pytest.mark.parametrize(("items", "sizes"), [(3, (2, 4)), (385, (2, 64)), (4096, (2, 128)), (12_101, (3, 256))])
def test_code_sizes_follow_from_the_catalogue(items, sizes):
  asked = config_lib.SemanticIdsConfig(levels=0, codebook_size=0)
  found = asked.sized(items)
  assert (found.levels, found.codebook_size) == sizes and found.codebook_size**found.levels >= 4 * items
  assert config_lib.SemanticIdsConfig(levels=4, codebook_size=0).sized(items).levels == 4
  assert Config().semantic_ids.sized(items) == Config().semantic_ids


def test_the_default_is_paper_sized():
  model = Config().model
  sizes = (model.d_model, model.num_heads, model.head_dim, model.d_ff, model.encoder_blocks, model.decoder_blocks)
  assert sizes == (128, 6, 64, 1024, 4, 4)
  assert (model.dropout, Config().train.learning_rate, Config().data.max_items + 1) == (0.15, 1e-3, 30)
  assert (Config().reduction.method, Config().reduction.keep_ratio) == ("rastp", (1 / 3,))


def test_every_published_quirk_is_a_field_of_the_reference():
  """Read the differences aloud: default -> reference."""
  get_config = importlib.import_module("configs.beauty").get_config
  default, reference = (config_lib.flat(config_lib.from_dict(get_config(v))) for v in ("", "reference"))
  assert {
    "data.sampling",
    "data.bucket_lengths",
    "data.mix_users",
    "model.uniform_width",
    "model.init",
    "model.attention_dropout",
    "model.mlp_dropout",
    "reduction.positions",
    "reduction.score_dropout",
    "reduction.score_padded_queries",
    "train.optimizer",
    "train.schedule",
    "train.grad_accumulation_steps",
    "eval.constrained",
  } <= {name for name, value in reference.items() if value != default[name]}


@pytest.mark.parametrize(
  ("section", "field", "value", "sentence"),
  [
    ("reduction", "keep_ration", 0.5, "reduction.keep_ration is not a setting .* did you mean config.reduction.keep_r"),
    ("reductoin", "keep_ratio", 0.5, "config.reductoin is not a setting .* did you mean config.reduction"),
    ("reduction", "keep_ratio", 0.0, "too small: expected above 0 and at most 1"),
    ("reduction", "keep_ratio", 1.5, "too large: expected above 0 and at most 1"),
    ("reduction", "keep_tokens", 0, "too small: expected at least 1"),
    ("reduction", "keep_tokens", 146, "above the longest history's 145 positions"),
    ("reduction", "latent_queries", {"most": 0}, "latent_queries.most=0 is too small"),
    ("reduction", "after_block", 4, "lie between -1 and 3"),
    ("reduction", "after_block", (1, 2), "has 1 values for the 2 stages"),
    ("data", "dataset", "Beauty!", "is not a name for a dataset"),
    ("data", "bucket_lengths", (10, 5), "must rise"),
    ("data", "bucket_lengths", (5, 10), "end with at least data.max_items=29"),
    ("data", "mix_users", False, "needs data.sampling='subsequences'"),
    ("model", "num_heads", "six", "is of type str: expected int"),
    ("model", "d_model", 0, "too small: expected at least 1"),
    ("data", "max_items", 10**9, "too large: expected at least 1 and at most 8192"),
    ("semantic_ids", "levels", 27, "too large: expected at least 0 and at most 26"),
    ("semantic_ids", "embeddings", "model2vec", "all-MiniLM-L6-v2' is not a model of model2vec: name one, like"),
    ("model", "dropout", 1.0, "too large: expected at least 0 and below 1"),
    ("model", "relative_max_distance", 16, "expected more than 16, half of model.relative_buckets=32"),
    ("model", "relative_max_distance", 4, "relative_max_distance=4 leaves no distance to share a bucket"),
    ("model", "relative_buckets", 256, "expected more than 128, half of model.relative_buckets=256"),
    ("model", "architecture", "decoder", "is not known: expected one of encoder_decoder"),
    (
      "semantic_ids",
      "rqvae",
      {"latnt": 3},
      "semantic_ids.rqvae.latnt is not a setting .* config.semantic_ids.rqvae.la",
    ),
    ("semantic_ids", "rqvae", {"latent": 0}, "semantic_ids.rqvae.latent=0 is too small"),
    ("semantic_ids", "rqvae", 3, "semantic_ids.rqvae=3 is not a section of settings"),
    ("semantic_ids", "method", "kmeans", "is not known: expected one of .*residual_kmeans"),
    ("train", "length", "40 fortnights", "is not a duration"),
    ("train", "length", "40 minutes", "depend on the clock"),
    ("train", "length", "40 percent", "is a share of itself"),
    ("train", "log_every", "3 minutes", "cannot be converted to steps"),
    ("train", "optimizer", "sgd", "expected one of adamw, adam, adam_l2"),
    ("eval", "top_k", (5, 20), "between 1 and eval.beam_width=10"),
  ],
)
def test_values_that_make_no_sense_are_refused(section, field, value, sentence):
  with pytest.raises(InputError, match=sentence) as caught:
    config_lib.from_dict({section: {field: value}})
  message = str(caught.value)
  assert message.endswith((".", "?")) and "\n" not in message


@pytest.mark.parametrize("values", [{"data": None}, {"data": 3}, {"model": [1]}])
def test_a_section_that_is_none_is_refused(values):
  with pytest.raises(InputError, match="is not a section of settings"):
    config_lib.from_dict(values)


@pytest.mark.parametrize(
  ("text", "steps"),
  [("7 steps", 7), ("1 epoch", 100), ("2.5 epochs", 250), ("1e4 samples", 200), ("10 percent", 30), ("50%", 150)],
)
def test_durations(text, steps):
  duration = Duration.parse(text, "train.length")
  assert duration.steps(steps_per_epoch=100, samples_per_step=50.0, total_steps=300) == steps


def test_decoding_overrides_touch_nothing_else():
  config = runs.override(Config(), ["eval.beam_width=50", "reduction.method=none", "eval.top_k=(5, 50)"])
  assert (config.eval.beam_width, config.reduction.method, config.eval.top_k) == (50, "none", (5, 50))
  assert config.model == Config().model
  for text, sentence in (
    ("model.d_model=5", "would change what the weights were trained for"),
    ("beam_width", "expected .*=VALUE"),
    ("eval.beem_width=5", "did you mean config.eval.beam_width"),
  ):
    with pytest.raises(InputError, match=sentence):
      runs.override(Config(), [text])


def test_what_may_differ_where():
  """Each setting tells it itself; read the lists aloud."""
  resume, decode = config_lib.differing_settings(May.RESUME), config_lib.differing_settings(May.DECODE)
  seed, host = config_lib.differing_settings(May.SEED), config_lib.differing_settings(May.HOST)
  assert {"data.data_dir", "data.workers", "train.log_every", "train.patience", "mesh.fsdp", "eval.top_k"} <= resume
  assert not {"train.seed", "train.learning_rate", "model.d_model", "reduction.method", "data.max_items"} & resume
  assert decode == {"data.data_dir", "data.bucket_lengths"} | {
    name for name in config_lib.all_settings() if name.startswith(("eval.", "counts.", "reduction."))
  } - {"reduction.latent_queries.most", "reduction.slimming.most"}  # sizes of weights
  assert {"train.seed", "mesh.data", "train.log_every", "eval.batch_size"} <= seed
  assert not {"train.eval_every", "eval.beam_width", "train.length"} & seed  # these choose other checkpoints or beams
  assert host == {"data.data_dir"}


# --- Former names --------------------------------------------------------------------------------------------------

FORMER = {
  "pruning": {"criterion": "recent", "after_block": [0], "keep_ratio": [0.5]},
  "data": {"core": 2, "buckets": 3, "bucket_items": [5, 29]},
  "semantic_ids": {"width": 32, "behaviour": 0.5, "behaviour_dims": 8, "rqvae_latent": 16, "train_steps": 7},
  "train": {"accumulate": 2},
  "eval": {"ks": [5]},
}
CURRENT = {
  "reduction.method": "recent",
  "reduction.after_block": (0,),
  "data.k_core": 2,
  "data.num_buckets": 3,
  "data.bucket_lengths": (5, 29),
  "semantic_ids.codebook_size": 32,
  "semantic_ids.collaborative_weight": 0.5,
  "semantic_ids.collaborative_dims": 8,
  "semantic_ids.rqvae.latent": 16,
  "semantic_ids.rqvae.train_steps": 7,
  "semantic_ids.residual_vq.train_steps": 7,
  "train.grad_accumulation_steps": 2,
  "eval.top_k": (5,),
}


def holds(config, expected):
  flat = config_lib.flat(config)
  return {name: flat[name] for name in expected} == expected


def test_files_with_former_names_are_read():
  assert holds(config_lib.from_dict(FORMER), CURRENT)
  assert holds(
    config_lib.with_values(Config(), [("pruning.criterion", "none"), ("eval.ks", (5,))]), {"eval.top_k": (5,)}
  )


def test_todays_name_wins_over_a_former_one():
  both = {"data": {"core": 2, "k_core": 4}, "pruning": {"keep_ratio": [0.5]}, "reduction": {"method": "attention"}}
  assert holds(config_lib.from_dict(both), {"data.k_core": 4, "reduction.method": "attention"})


def test_config_files_with_former_names_are_read():
  """As somebody's own copy of configs/own.py has them."""
  values = config_lib.default_config_dict()
  values.data.core = 2
  values.pruning.criterion = "none"
  values.semantic_ids.rqvae_latent = 16
  values.eval.ks = (5,)
  assert values.data.core == values.data.k_core == 2 and values.pruning.criterion == "none"
  expected = {"data.k_core": 2, "reduction.method": "none", "semantic_ids.rqvae.latent": 16, "eval.top_k": (5,)}
  assert holds(config_lib.from_dict(values), expected)
  with pytest.raises(AttributeError):
    values.data.cores = 3


def test_flags_with_former_names_are_translated_and_told():
  told = []
  arguments = [
    "--config=x.py",
    "--config.pruning.criterion=none",
    "--config.train.length=2 epochs",
    "--config.eval.ks[0]=5",
  ]
  assert config_lib.translate_arguments(arguments, told.append) == [
    "--config=x.py",
    "--config.reduction.method=none",
    "--config.train.length=2 epochs",
    "--config.eval.top_k[0]=5",
  ]
  assert told == [
    "note: config.pruning.criterion is now called config.reduction.method.",
    "note: config.eval.ks is now called config.eval.top_k.",
  ]
  with pytest.raises(InputError, match="config.eval.kss is not a setting of this program"):
    config_lib.translate_arguments(["--config.eval.kss=5"], told.append)
  assert config_lib.translate_arguments(["--", "--config.x=1"], told.append) == ["--", "--config.x=1"]


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")
def test_flags_with_former_names_reach_the_config(monkeypatch):
  """ml_collections reads the command line by itself."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values)
  monkeypatch.setattr(cli.flags, "FLAGS", values)
  monkeypatch.setattr(sys, "argv", ["prepare"])
  cli._parse(["prepare", "--config=tiny", "--config.data.core=2", "--config.semantic_ids.width=16"])
  assert values.config.data.k_core == 2 and values.config.semantic_ids.codebook_size == 16


# --- Declared once -------------------------------------------------------------------------------------------------


def test_every_setting_says_what_it_is_and_its_default_is_sound():
  for name, setting in config_lib.all_settings().items():
    assert setting.facts.help and "\n" not in setting.facts.help, name
    config_lib.with_values(Config(), [(name, setting.default)])


def test_every_setting_is_read_somewhere():
  """A setting that nothing reads is a dead flag."""
  read = set()
  for path in [*ROOT.glob("rastp_jax/**/*.py")]:
    if path.parts[-2] != "config":
      read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
  checked = (ROOT / "rastp_jax" / "config" / "settings.py").read_text()
  for name in config_lib.all_settings():
    field = name.rpartition(".")[2]
    by_role = config_lib.all_settings()[name].facts.makes  # read all together, by what they make
    assert field in read or by_role or f"self.{field}" in checked, f"nothing reads {name}"


def test_help_lists_all_settings_with_their_text():
  done = subprocess.run(
    [sys.executable, "-m", "rastp_jax.prepare", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=300
  )
  shown = " ".join(done.stdout.split())
  for name, setting in config_lib.all_settings().items():
    assert f"--config.{name}=" in shown and " ".join(setting.facts.help.split()) in shown, name
  for method in ("rastp", "item_mean", "rqvae"):
    assert method in shown


@pytest.mark.parametrize("name", [name for name in __main__.find() if name != "experiment"])
def test_help_shows_every_flag_that_a_command_defines(name):
  source = (ROOT / "rastp_jax" / f"{name}.py").read_text()
  shared = re.findall(r"\bcli\.(define_\w+)\(", source)
  source += "".join(inspect.getsource(getattr(cli, function)) for function in shared)
  defined = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source)
  _, printed, _ = command(f"rastp_jax.{name}", "--help")
  shown = re.findall(r"^  --(?:\[no\])?(\w+): ", printed, re.MULTILINE)
  assert defined and not set(defined) - set(shown)


def test_configs_hold_values_and_nothing_else():
  """Frozen all the way down, and equal by value."""
  config = config_lib.from_dict({"semantic_ids": {"rqvae": {"latent": 16}}})
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.train.seed = 3
  assert config == config_lib.from_dict(config_lib.to_dict(config)) and config != Config()
