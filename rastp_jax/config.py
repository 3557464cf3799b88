"""Typed, frozen settings: the one place where an ml_collections ConfigDict becomes dataclasses.

Every default below is the paper-sized, *corrected* behaviour. `configs/base.py` turns them into a ConfigDict and names
the variants (`cpu`, `reference`); nothing else holds a default. `from_config_dict` checks every value before anything
is compiled or written.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from rastp_jax.errors import InputError

QUANTIZERS = ("residual_kmeans", "residual_vq", "rqvae", "random")
# Datasets with a meaning of their own; any other name is a dataset of the user's own (docs/your_data.md).
DATASETS = ("beauty", "sports", "toys", "synthetic")


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training or an interval: an amount and its unit."""

  amount: float
  unit: str  # one of UNITS

  UNITS = ("steps", "epochs", "samples", "minutes", "percent")

  @classmethod
  def parse(cls, text: str, field: str) -> "Duration":
    """Reads '20 epochs', '5_000 steps', '1e6 samples', '40 minutes' or '2 percent'."""
    match = re.fullmatch(r"\s*([0-9][0-9_.]*(?:e[0-9]+)?)\s*([a-z%]+)\s*", str(text))
    unit = match[2].replace("%", "percent") if match else ""
    unit = unit if unit in cls.UNITS else unit + "s"  # "1 epoch"
    if unit not in cls.UNITS:
      raise InputError(
        f"config.{field}={text!r} is no duration: expected an amount and a unit out of {', '.join(cls.UNITS)}, like "
        "'20 epochs'."
      )
    return cls(float(match[1].replace("_", "")), unit)

  def steps(self, *, steps_per_epoch: int, samples_per_step: float, total_steps: int | None = None) -> int:
    """Converts to steps (batches); minutes have no fixed number of steps and are not accepted here."""
    per_unit = {"steps": 1.0, "epochs": float(steps_per_epoch), "samples": 1.0 / samples_per_step}
    if self.unit == "percent":
      if total_steps is None:
        raise InputError(
          f"'{self.amount:g} percent' needs a length of training that is known in steps: give train.length in steps, "
          "epochs or samples."
        )
      return round(self.amount / 100.0 * total_steps)
    if self.unit == "minutes":
      raise InputError(
        f"'{self.amount:g} minutes' cannot be converted to steps: give it in steps, epochs, samples or percent."
      )
    return max(1, round(self.amount * per_unit[self.unit]))


@dataclasses.dataclass(frozen=True)
class DataConfig:
  dataset: str = "beauty"  # one of DATASETS, or a name for your own data: a-z, 0-9 and _
  data_dir: str = "data"  # prepared datasets and semantic IDs live here
  max_items: int = 29  # history items a model reads at most (the most recent ones)
  bucket_items: tuple[int, ...] = ()  # batches come in these static lengths, in items; (): chosen to fit the data
  buckets: int = 5  # so many lengths are chosen, at most
  sampling: str = "prefixes"  # "prefixes": each user's every prefix; "subsequences": all contiguous ones, as published
  users_per_draw: int = 32  # subsequences: so many users share one draw of samples
  samples_per_draw: int = 512  # subsequences: drawn with replacement from a group of users, duplicates merged
  mix_users: bool = True  # False: a batch holds the samples of one draw only, as published (needs a single bucket)
  workers: int = 0  # Grain worker processes that make batches; 0: threads of this process
  # The rest is about a file of your own, interactions.csv, .jsonl or .parquet (docs/your_data.md).
  user_column: str = "user"
  item_column: str = "item"  # in the items file too
  time_column: str = "timestamp"
  title_column: str = "title"
  brand_column: str = "brand"
  categories_column: str = "categories"
  core: int = 5  # users and items with fewer interactions are left out, again and again; 1: none
  min_length: int = 3  # users with fewer items are left out
  repeats: str = "keep"  # "first": only a user's first interaction with an item; "keep": all at different times


@dataclasses.dataclass(frozen=True)
class SemanticIdsConfig:
  method: str = "residual_kmeans"  # one of QUANTIZERS
  levels: int = 3  # learned levels
  width: int = 256  # codes a level
  collisions: str = "extra_level"  # one more level tells items with equal codes apart (TIGER), or "reassign": items
  # move to the next free code of the last level, so that no extra level is needed
  seed: int = 0
  embeddings: str = "auto"  # "auto": the source's own, else "tfidf_svd"; "sentence_transformers"; or a .npy, .npz file
  text_template: str = "Title: {title}; Brand: {brand}; Categories: {categories}"  # fields of Item; what is embedded
  text_dims: int = 256  # tfidf_svd: dimensions
  text_model: str = "sentence-transformers/all-MiniLM-L6-v2"  # sentence_transformers: a model's name or directory
  behaviour: float = 0.0  # 0 to 1: how much of an item's vector comes from what users take next to it, not its text
  behaviour_dims: int = 64
  normalize_residuals: bool = True  # residual_kmeans, residual_vq: unit length before every level, as published
  train_steps: int = 2000  # residual_vq, rqvae: mini-batches
  train_batch: int = 1024  # residual_vq, rqvae: items a mini-batch
  rqvae_hidden: tuple[int, ...] = (256,)  # widths of the encoder's hidden layers; the decoder mirrors them
  rqvae_latent: int = 64  # dimensions that the codebooks quantise
  rqvae_learning_rate: float = 1e-3
  rqvae_commitment: float = 0.25  # weight of the latent's pull towards its codes


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  d_model: int = 128
  num_heads: int = 6
  head_dim: int = 64
  d_ff: int = 1024
  encoder_blocks: int = 4
  decoder_blocks: int = 4
  mlp_hidden_layers: int = 2
  dropout: float = 0.15  # on the inputs and outputs of both stacks, on what each layer adds, inside the MLP
  attention_dropout: float = 0.0  # on attention probabilities; 0.15 as published
  mlp_dropout: float = 0.15  # on what an MLP adds; 0.2775 as published (two dropouts of 0.15 in a row)
  separator: bool = True  # a learned token after every item's codes
  uniform_width: bool = False  # True: every level is as wide as the widest, as published
  relative_buckets: int = 32
  relative_max_distance: int = 128
  norm_eps: float = 1e-6
  init: str = "fan_in"  # normals: T5's for matrices, 1/sqrt(d_model) for embeddings; "reference": PyTorch's defaults
  dtype: str = "float32"  # compute dtype; parameters, softmax and loss stay float32


@dataclasses.dataclass(frozen=True)
class PruningConfig:
  criterion: str = "rastp"  # a name in model/pruning.py's registry, or "none" for a dense model
  after_block: tuple[int, ...] = (1,)  # prune after these encoder blocks (from 0), one stage each
  keep_ratio: tuple[float, ...] = (1 / 3,)  # share of the bucket's positions kept, one value a stage ...
  keep_tokens: tuple[int, ...] = ()  # ... or a fixed count, one value a stage; shorter buckets stay dense
  positions: str = (
    "original"  # later blocks see kept tokens at their "original" places, or at none ("none"), as published
  )
  score_dropout: bool = False  # True: scores see attention after dropout, as published
  score_padded_queries: bool = False  # True: rows of padded queries are summed too, as published
  prune_separators: bool = True  # False: separators always survive and codes share what is left of the budget


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  seed: int = 999
  length: str = "60 epochs"
  batch_size: int = 1024  # samples a step on average, over all devices (buckets get batches of about equal tokens)
  accumulate: int = 1  # batches averaged into one optimizer update
  steps_per_dispatch: int = 1  # steps the devices do before the host is asked again; intervals become multiples of it
  optimizer: str = "adamw"  # "adamw", "adam", or "adam_l2": torch Adam's L2 in the gradient, as published
  learning_rate: float = 1e-3
  weight_decay: float = 0.05
  warmup: str = "2 percent"
  schedule: str = "cosine"  # after warm-up: "cosine" to 0, or "constant"
  clip_norm: float = 1.0  # global gradient norm; 0 switches clipping off
  log_every: str = "50 steps"
  eval_every: str = "1 epochs"
  eval_users: int = 0  # validation users looked at during training; 0: all
  patience: int = 10  # evaluations without a better validation recall@5 before stopping; 0: never stop early
  checkpoint_every: str = "1 epochs"
  keep_checkpoints: int = 2  # latest ones kept; the best is kept besides
  max_nonfinite_steps: int = 10  # steps in a row with a NaN or infinite loss or gradient, all skipped, before it stops


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  beam_width: int = 10
  batch_size: int = 256  # users decoded at a time, over all devices
  constrained: bool = True  # False: beams may be no item, as published
  renormalize: bool = False  # True: at each level the codes that may follow share all probability, as published
  ks: tuple[int, ...] = (5, 10)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices at hand are arranged (rastp_jax/sharding.py); -1, in one of them: as many as are left."""

  data: int = -1  # devices that share each batch; each holds what the other two leave of the weights
  fsdp: int = 1  # devices that share each batch and keep a part of every weight and of its optimizer state
  tensor: int = 1  # devices that share the matrix products of each row, for layers and code books too wide for one


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything a run depends on. Build it with `from_config_dict`, which checks it."""

  data: DataConfig = DataConfig()
  semantic_ids: SemanticIdsConfig = SemanticIdsConfig()
  model: ModelConfig = ModelConfig()
  pruning: PruningConfig = PruningConfig()
  train: TrainConfig = TrainConfig()
  eval: EvalConfig = EvalConfig()
  mesh: MeshConfig = MeshConfig()


def default_config_dict() -> ml_collections.ConfigDict:
  """All fields at their defaults, as the ConfigDict that `configs/*.py` edit."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config()), convert_dict=True)


def to_json(config: Config) -> str:
  return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def flat(config: Config, without: tuple[str, ...] = ()) -> dict[str, str]:
  """Every setting's value as text under its dotted name, like "config.train.seed", but for those in `without`."""
  return {
    f"config.{section}.{name}": repr(value)
    for section, values in dataclasses.asdict(config).items()
    for name, value in values.items()
    if f"{section}.{name}" not in without
  }


def from_json(text: str) -> Config:
  return from_config_dict(json.loads(text))


def from_config_dict(values: Mapping[str, Any]) -> Config:
  """Turns a ConfigDict (or a plain nested dict) into a checked `Config`.

  Raises:
    InputError: a field is unknown, has the wrong type, or its value makes no sense; the sentence names the field.
  """
  sections = {}
  known = {f.name: f.type for f in dataclasses.fields(Config)}
  for name, section in dict(values).items():
    if name not in known:
      raise InputError(_unknown(name, known))
    sections[name] = _section(known[name], name, dict(section))
  config = Config(**sections)
  _check(config)
  return config


def _section(cls, name: str, values: dict[str, Any]):
  fields = {f.name: f for f in dataclasses.fields(cls)}
  typed = {}
  for key, value in values.items():
    if key not in fields:
      raise InputError(_unknown(f"{name}.{key}", [f"{name}.{k}" for k in fields]))
    typed[key] = _cast(value, fields[key].type, f"{name}.{key}")
  return cls(**typed)


def _unknown(name: str, known) -> str:
  close = difflib.get_close_matches(name, list(known), n=1)
  hint = f"did you mean config.{close[0]}?" if close else f"the fields there are {', '.join(known)}."
  return f"config.{name} is no setting of this program: {hint}"


def _cast(value, kind, field: str):
  element = {tuple[int, ...]: int, tuple[float, ...]: float}.get(kind)
  if element is not None:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(_cast(v, element, field) for v in values)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind is int and isinstance(value, float) and value == int(value):
    return int(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise InputError(f"config.{field}={value!r} is a {type(value).__name__}: expected {kind.__name__}.")
  return value


def _one_of(value, choices, field: str):
  if value not in choices:
    close = difflib.get_close_matches(str(value), choices, n=1)
    raise InputError(
      f"config.{field}={value!r} is not known: expected one of {', '.join(choices)}"
      + (f"; did you mean {close[0]!r}?" if close else ".")
    )


def _at_least(value, least, field: str):
  if not value >= least:
    raise InputError(f"config.{field}={value!r} is too small: expected at least {least}.")


def _check(config: Config):
  d, s, m, p, t, e = config.data, config.semantic_ids, config.model, config.pruning, config.train, config.eval
  _check_dataset_name(d.dataset)
  _one_of(d.repeats, ("keep", "first"), "data.repeats")
  _at_least(d.core, 1, "data.core")
  _at_least(d.min_length, 3, "data.min_length")  # a history of one item, and two held out
  _one_of(d.sampling, ("prefixes", "subsequences"), "data.sampling")
  for name in ("max_items", "buckets", "users_per_draw", "samples_per_draw"):
    _at_least(getattr(d, name), 1, f"data.{name}")
  _at_least(d.workers, 0, "data.workers")
  if d.bucket_items and (
    list(d.bucket_items) != sorted(set(d.bucket_items)) or d.bucket_items[0] < 1 or d.bucket_items[-1] < d.max_items
  ):
    raise InputError(
      f"config.data.bucket_items={d.bucket_items} must rise and end with at least data.max_items={d.max_items}: give "
      f"lengths in items, like (5, 10, {d.max_items}), or ({d.max_items},) for one length, or () to have them chosen."
    )
  if not d.mix_users and (len(d.bucket_items) != 1 or d.sampling != "subsequences"):
    raise InputError(
      "config.data.mix_users=False keeps a draw's samples together, which needs data.sampling='subsequences' and a "
      "single length in data.bucket_items."
    )
  _check_semantic_ids(s)
  for name in ("d_model", "num_heads", "head_dim", "d_ff", "encoder_blocks", "decoder_blocks", "mlp_hidden_layers"):
    _at_least(getattr(m, name), 1, f"model.{name}")
  _at_least(m.relative_buckets, 4, "model.relative_buckets")
  for name in ("dropout", "attention_dropout", "mlp_dropout"):
    if not 0 <= getattr(m, name) < 1:
      raise InputError(f"config.model.{name}={getattr(m, name)} must be at least 0 and below 1.")
  _one_of(m.init, ("fan_in", "reference"), "model.init")
  _one_of(m.dtype, ("float32", "bfloat16"), "model.dtype")
  item_length = s.levels + (s.collisions == "extra_level") + m.separator
  _check_pruning(p, m, max(d.bucket_items, default=d.max_items) * item_length)
  _one_of(t.optimizer, ("adamw", "adam", "adam_l2"), "train.optimizer")
  _one_of(t.schedule, ("cosine", "constant"), "train.schedule")
  for name in ("batch_size", "accumulate", "steps_per_dispatch", "keep_checkpoints"):
    _at_least(getattr(t, name), 1, f"train.{name}")
  for name in ("learning_rate", "weight_decay", "clip_norm", "eval_users", "patience", "max_nonfinite_steps"):
    _at_least(getattr(t, name), 0, f"train.{name}")
  length = Duration.parse(t.length, "train.length")
  if length.unit == "percent":
    raise InputError(
      f"config.train.length={t.length!r} is a share of itself: give it in steps, epochs, samples or minutes."
    )
  if length.unit == "minutes" and t.schedule != "constant":
    raise InputError(
      f"config.train.length={t.length!r} with train.schedule={t.schedule!r} would make the learning rate depend on "
      "the clock: use train.schedule='constant', or give the length in steps, epochs or samples."
    )
  for name in ("warmup", "log_every", "eval_every", "checkpoint_every"):
    unit = Duration.parse(getattr(t, name), f"train.{name}").unit
    if unit == "minutes" or (unit == "percent" and length.unit == "minutes"):
      raise InputError(
        f"config.train.{name}={getattr(t, name)!r} cannot be converted to steps: give it in steps, epochs or samples."
      )
  if not e.ks or min(e.ks) < 1 or max(e.ks) > e.beam_width:
    raise InputError(
      f"config.eval.ks={e.ks} must lie between 1 and eval.beam_width={e.beam_width}: a list of {e.beam_width} beams "
      "says nothing about more."
    )
  _at_least(e.batch_size, 1, "eval.batch_size")
  sizes = dataclasses.asdict(config.mesh)
  for name, size in sizes.items():
    if size != -1:
      _at_least(size, 1, f"mesh.{name}")
  if list(sizes.values()).count(-1) > 1:
    raise InputError(f"config.mesh={sizes} leaves more than one size open: give -1, for what is left, in one of them.")


def _check_dataset_name(name: str):
  if not re.fullmatch("[a-z0-9_]+", name):
    raise InputError(
      f"config.data.dataset={name!r} is no name for a dataset: expected letters a to z, digits and _, as it becomes "
      "part of file names."
    )
  # "beuty" is a slip, "beauty_2023" is not.
  close = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.8)
  if close and close[0] not in name:
    raise InputError(
      f"config.data.dataset={name!r} is not known, and too near a known name for a dataset of your own: did you mean "
      f"{close[0]!r}?"
    )


def _check_semantic_ids(s: SemanticIdsConfig):
  _one_of(s.method, QUANTIZERS, "semantic_ids.method")
  _one_of(s.collisions, ("extra_level", "reassign"), "semantic_ids.collisions")
  if not s.embeddings.endswith((".npy", ".npz")):
    choices = ("auto", "tfidf_svd", "sentence_transformers", "FILE.npy", "FILE.npz")
    _one_of(s.embeddings, choices, "semantic_ids.embeddings")
  _at_least(s.width, 2, "semantic_ids.width")
  if not 0 <= s.behaviour <= 1:
    raise InputError(f"config.semantic_ids.behaviour={s.behaviour} must be at least 0 and at most 1.")
  for name in ("levels", "text_dims", "behaviour_dims", "train_steps", "train_batch", "rqvae_latent"):
    _at_least(getattr(s, name), 1, f"semantic_ids.{name}")
  for width in s.rqvae_hidden:
    _at_least(width, 1, "semantic_ids.rqvae_hidden")
  for name in ("seed", "rqvae_learning_rate", "rqvae_commitment"):
    _at_least(getattr(s, name), 0, f"semantic_ids.{name}")


def _check_pruning(p: PruningConfig, m: ModelConfig, positions: int):
  _one_of(p.positions, ("original", "none"), "pruning.positions")
  if p.criterion == "none":
    return
  stages = len(p.after_block)
  if (
    not stages
    or list(p.after_block) != sorted(set(p.after_block))
    or p.after_block[0] < 0
    or p.after_block[-1] >= m.encoder_blocks
  ):
    raise InputError(
      f"config.pruning.after_block={p.after_block} must rise and lie between 0 and {m.encoder_blocks - 1}, the last "
      f"of model.encoder_blocks={m.encoder_blocks} blocks; use pruning.criterion='none' for a dense model."
    )
  budgets = p.keep_tokens or p.keep_ratio
  name = "keep_tokens" if p.keep_tokens else "keep_ratio"
  if len(budgets) != stages:
    raise InputError(
      f"config.pruning.{name}={budgets} has {len(budgets)} values for the {stages} stages in "
      f"pruning.after_block={p.after_block}: give one a stage."
    )
  if p.keep_tokens and min(p.keep_tokens) < 1:
    raise InputError(f"config.pruning.keep_tokens={p.keep_tokens} would keep nothing: give at least 1 token a stage.")
  if p.keep_tokens and max(p.keep_tokens) > positions:
    raise InputError(
      f"config.pruning.keep_tokens={p.keep_tokens} is above the longest history's {positions} positions (the last of "
      "data.bucket_items x tokens an item): keep fewer, or use pruning.criterion='none' for a dense model."
    )
  if not p.keep_tokens and not all(0 < r <= 1 for r in p.keep_ratio):
    raise InputError(
      f"config.pruning.keep_ratio={p.keep_ratio} must be above 0 and at most 1: it is the share of a history's "
      "positions that survives."
    )
