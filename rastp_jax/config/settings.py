"""What users read: every setting with its default, its meaning, its bounds and where it may differ.

Every default is the paper-sized, *corrected* behaviour. `configs/base.py` names the variants (`cpu`, `reference`);
nothing else holds a default. What relates several settings is checked by the section's `check`.
"""

import dataclasses
import datetime
import math
import operator
import re
from typing import Any, ClassVar

from rastp_jax.config.fields import Duration, Makes, May, Methods, Section, WithMethods, one_of, setting
from rastp_jax.errors import InputError

_SMALL_CATALOGUE = 4096  # items
_SENTENCE_TRANSFORMER = "sentence-transformers/all-MiniLM-L6-v2"
ANYWHERE = May.RESUME | May.DECODE | May.SEED
LARGEST_SEED = 2**32 - 1  # JAX leaves out the bits above
WATCHING = May.RESUME | May.SEED  # what is looked at, and how often; no step's result

# What can be chosen by name; each is one line in its room's registry.
MODELS = Methods("rastp_jax.model.factory", "MODELS")
REDUCTIONS = Methods("rastp_jax.reduction.methods", "REDUCTIONS")
QUANTIZERS = Methods("rastp_jax.semantic_ids.quantizers.registry", "QUANTIZERS")


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
  """Which interactions are read, and in which batches."""

  dataset: str = setting(
    "beauty", "beauty, sports, toys, synthetic, synthetic_long, or a name of your own: a-z, 0-9, _"
  )
  data_dir: str = setting("data", "prepared datasets and semantic IDs are here", may=ANYWHERE | May.HOST)
  max_items: int = setting(
    29, "history items a model reads at most (the most recent ones)", at_least=1, at_most=8192
  )  # choosing batch lengths takes memory in proportion to its square
  bucket_lengths: tuple[int, ...] = setting(
    (), "batches come in these static lengths, in items; (): chosen to fit the data", at_least=1, may=May.DECODE
  )
  num_buckets: int = setting(5, "lengths to choose, at most", at_least=1)
  sampling: str = setting(
    "prefixes",
    "training samples: each user's every prefix, or all contiguous sub-sequences, as published",
    choices=("prefixes", "subsequences"),
  )
  users_per_draw: int = setting(32, "subsequences: users that share one draw of samples", at_least=1)
  samples_per_draw: int = setting(
    512, "subsequences: drawn with replacement from a group of users, duplicates merged", at_least=1
  )
  mix_users: bool = setting(
    True, "False: a batch holds the samples of one draw only, as published (needs a single bucket)"
  )
  workers: int = setting(
    0, "Grain worker processes that make batches; 0: threads of this process", at_least=0, may=WATCHING
  )
  user_column: str = setting("user", "your own files: column of the user's id", makes=Makes.ROWS)
  item_column: str = setting("item", "your own files: column of the item's id, in the items file too", makes=Makes.ROWS)
  time_column: str = setting("timestamp", "your own files: column of the time", makes=Makes.ROWS)
  title_column: str = setting("title", "your own items file: column of the title", makes=Makes.ROWS)
  brand_column: str = setting("brand", "your own items file: column of the brand", makes=Makes.ROWS)
  categories_column: str = setting("categories", "your own items file: column of the categories", makes=Makes.ROWS)
  k_core: int = setting(
    5,
    "your own files: users and items with fewer interactions are left out, again and again; 1: none",
    at_least=1,
    makes=Makes.ROWS,
  )
  min_length: int = setting(
    3, "your own files: users with fewer items are left out", at_least=3, makes=Makes.ROWS
  )  # a history of one item, and two held out
  repeats: str = setting(
    "keep",
    "your own files: keep all interactions at different times, or only a user's first one with an item, or only the "
    "first of consecutive ones with the same item",
    choices=("keep", "first", "consecutive"),
    makes=Makes.ROWS,
  )
  columns: tuple[str, ...] = setting(
    (), "your own interactions file without a header: the names of its columns, in order", makes=Makes.ROWS
  )
  item_file_columns: tuple[str, ...] = setting((), "the same of your own items file", makes=Makes.ROWS)
  separator: str = setting(
    "",
    "between the values of your own interactions in CSV: characters, or tab; '': recognised, as in the items file",
    makes=Makes.ROWS,
  )
  time_format: str = setting(
    "", "how your own files write times, like %d/%m/%Y %H:%M (strptime); '': numbers and ISO dates", makes=Makes.ROWS
  )
  extra_columns: tuple[str, ...] = setting(
    (),
    "further columns of the items file that semantic_ids.text_template may name (description, features and price may "
    "always be named)",
    makes=Makes.ROWS,
  )
  keep_all_items: bool = setting(
    False,
    "your own files: True: items of the items file without interactions are kept, as cold items",
    makes=Makes.ROWS,
  )
  split: str = setting(
    "leave_one_out",
    "what is held out: everybody's last two items, or what comes after data.time_cut",
    choices=("leave_one_out", "time"),
    makes=Makes.ROWS,
  )
  time_cut: str = setting(
    "0.1",
    "split='time': a date like 2024-03-01, a time in the unit of the file, or the last share of all interactions",
    makes=Makes.ROWS,
  )
  hold_out: int = setting(
    2, "items of each user that are held out, 2; 0: none, to train the model that is put to use", makes=Makes.ROWS
  )

  def check(self, config: "Config") -> None:
    if not re.fullmatch("[a-z0-9_]+", self.dataset):
      raise InputError(
        f"config.data.dataset={self.dataset!r} is not a name for a dataset: expected letters a to z, digits and _, "
        "because it becomes part of file names."
      )
    for name in ("user_column", "item_column"):
      if not getattr(self, name):
        raise InputError(f"config.data.{name}='' names no column: expected the name of one.")
    lengths = self.bucket_lengths
    if lengths and (list(lengths) != sorted(set(lengths)) or lengths[-1] < self.max_items):
      raise InputError(
        f"config.data.bucket_lengths={lengths} must rise and end with at least data.max_items={self.max_items}: give "
        f"lengths in items, like (5, 10, {self.max_items}), or ({self.max_items},) for one length, or () to have them "
        "chosen."
      )
    if self.hold_out not in (0, 2):
      raise InputError(
        f"config.data.hold_out={self.hold_out} is neither 2 (one item for validation and one for test) nor 0 (none)."
      )
    if not _is_cut(self.time_cut):
      raise InputError(
        f"config.data.time_cut={self.time_cut!r} is not a moment: expected a date like 2024-03-01, a time in the unit "
        "of the file, or a share between 0 and 1, like 0.1."
      )
    if not self.mix_users and (len(lengths) != 1 or self.sampling != "subsequences"):
      raise InputError(
        "config.data.mix_users=False keeps a draw's samples together, which needs data.sampling='subsequences' and a "
        "single length in data.bucket_lengths."
      )


def _is_cut(text: str) -> bool:
  try:
    return float(text) > 0
  except ValueError:
    pass
  try:
    datetime.datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
  except ValueError:
    return False
  return True


@dataclasses.dataclass(frozen=True)
class SemanticIdsConfig(WithMethods):
  """How items become codes."""

  METHODS: ClassVar[Methods] = QUANTIZERS

  method: str = setting("residual_kmeans", "how codes are learned", choices=QUANTIZERS, makes=Makes.CODES)
  levels: int = setting(
    3, "learned levels; 0: chosen to fit the catalogue", at_least=0, at_most=26, makes=Makes.CODES
  )  # <a_0> to <z_0>, where codes are written as tokens
  codebook_size: int = setting(
    256, "codes per level; 0: chosen to fit the catalogue, as are the levels", at_least=0, makes=Makes.CODES
  )
  collisions: str = setting(
    "extra_level",
    "items with equal codes: one more level tells them apart (TIGER), or some move to other codes of the last level, "
    "together as little as they can, so that no extra level is needed",
    choices=("extra_level", "reassign"),
  )
  seed: int = setting(0, "of the learning", at_least=0, at_most=LARGEST_SEED, makes=Makes.CODES)
  embeddings: str = setting(
    "auto",
    "item vectors: auto (the source's own, else tfidf_svd), tfidf_svd, sentence_transformers, model2vec, a .npy or an "
    ".npz",
  )
  text_template: str = setting(
    "Title: {title}; Brand: {brand}; Categories: {categories}", "what is embedded of an item: text with its fields"
  )
  text_dims: int = setting(256, "tfidf_svd: dimensions", at_least=1)
  text_model: str = setting(
    _SENTENCE_TRANSFORMER,
    "sentence_transformers, model2vec: a model's name or directory; for model2vec like minishlab/potion-base-8M",
  )
  collaborative_weight: float = setting(
    0.0,
    "how much of an item's vector comes from what users take next to it, instead of its text",
    at_least=0,
    at_most=1,
    makes=Makes.CODES,
  )
  collaborative_dims: int = setting(64, "dimensions of that part", at_least=1)
  options: tuple[Any, ...] = ()

  def check(self, config: "Config") -> None:
    if not self.embeddings.endswith((".npy", ".npz")):
      choices = ("auto", "tfidf_svd", "sentence_transformers", "model2vec", "FILE.npy", "FILE.npz")
      one_of(self.embeddings, choices, "semantic_ids.embeddings")
    if self.embeddings == "model2vec" and self.text_model == _SENTENCE_TRANSFORMER:
      raise InputError(
        f"config.semantic_ids.text_model={self.text_model!r} is not a model of model2vec: name one, like "
        "minishlab/potion-base-8M, or the directory of a saved one."
      )
    if self.codebook_size == 1:
      raise InputError(
        "config.semantic_ids.codebook_size=1 tells no items apart: expected at least 2, or 0 to have it chosen."
      )

  def sized(self, num_items: int) -> "SemanticIdsConfig":
    """The same with levels and codebook_size settled, where they are 0, for a catalogue of this size.

    Up to 4,096 items two levels do, with about four times as many pairs of codes as items; above, 3 levels of 256.
    """
    small = num_items <= _SMALL_CATALOGUE
    fitting = 2 ** max(2, math.ceil(math.log2(math.sqrt(4 * max(num_items, 1))))) if small else 256
    return dataclasses.replace(
      self, levels=self.levels or (2 if small else 3), codebook_size=self.codebook_size or fitting
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
  """Sizes of the encoder-decoder, its regularisation and its arithmetic."""

  architecture: str = setting("encoder_decoder", "which model", choices=MODELS)
  d_model: int = setting(128, "width of the states", at_least=1)
  num_heads: int = setting(6, "attention heads", at_least=1)
  head_dim: int = setting(64, "width of a head", at_least=1)
  d_ff: int = setting(1024, "width of the MLP's hidden layers", at_least=1)
  encoder_blocks: int = setting(4, "blocks of the encoder", at_least=1)
  decoder_blocks: int = setting(4, "blocks of the decoder", at_least=1)
  mlp_hidden_layers: int = setting(2, "hidden layers of an MLP", at_least=1)
  dropout: float = setting(
    0.15, "on inputs and outputs of both stacks, on what each layer adds, inside the MLP", at_least=0, below=1
  )
  attention_dropout: float = setting(0.0, "on attention probabilities; 0.15 as published", at_least=0, below=1)
  mlp_dropout: float = setting(
    0.15, "on what an MLP adds; 0.2775 as published (two dropouts of 0.15 in a row)", at_least=0, below=1
  )
  separator: bool = setting(True, "a learned token after every item's codes")
  item_scores: str = setting(
    "none",
    "a second way to answer, which scores all items at once: set (all levels at once, from a learned query each), or "
    "vectors (one of each item beside its codes, read with the history and compared with what the encoder makes of "
    "the newest item's first token; they begin as what users take together, and memory grows with the catalogue)",
    choices=("none", "set", "vectors"),
  )
  item_repeats: bool = setting(
    False,
    "vectors: learn how much likelier or less likely an item of the history is than its score says, one number; the "
    "model then knows whether users take items again",
  )
  item_ages: int = setting(
    0,
    "learned vectors for as many ages of an item (the newest is one age, older ones than these share the last), added "
    "to its tokens; 0: none, as published",
    at_least=0,
  )
  uniform_width: bool = setting(False, "True: every level is as wide as the widest, as published")
  relative_buckets: int = setting(32, "buckets of relative positions", at_least=4)
  relative_max_distance: int = setting(128, "distances from here on share a bucket")
  norm_eps: float = setting(1e-6, "added to the mean square in RMSNorm")
  init: str = setting(
    "fan_in",
    "T5's normals for matrices and 1/sqrt(d_model) for embeddings, or PyTorch's defaults, as published",
    choices=("fan_in", "reference"),
  )
  dtype: str = setting(
    "float32",
    "compute dtype; parameters, softmax and loss stay float32. auto: bfloat16 on accelerators and on a CPU with "
    "instructions for its products (AMX), else float32; config.json records which",
    choices=("float32", "bfloat16", "auto"),
  )

  def check(self, config: "Config") -> None:
    exact = self.relative_buckets // 2
    if self.relative_max_distance <= exact:
      raise InputError(
        f"config.model.relative_max_distance={self.relative_max_distance} leaves no distance to share a bucket: "
        f"expected more than {exact}, half of model.relative_buckets={self.relative_buckets}, which go to one near "
        "distance each."
      )
    if self.item_repeats and self.item_scores != "vectors":
      raise InputError(
        f"config.model.item_repeats=True adds to scores by vectors of items, which model.item_scores="
        f"{self.item_scores!r} does not have: set model.item_scores to 'vectors', or item_repeats to False."
      )


@dataclasses.dataclass(frozen=True)
class ReductionConfig(WithMethods):
  """How a history's tokens become fewer on their way through the encoder."""

  METHODS: ClassVar[Methods] = REDUCTIONS

  method: str = setting(
    "rastp",
    "how tokens are dropped or merged, one for all stages or one per stage, joined by + (item_sum+rastp); none: a "
    "dense model",
    choices=REDUCTIONS,
    separator="+",
    may=May.DECODE,
  )
  after_block: tuple[int, ...] = setting(
    (1,), "reduce after these encoder blocks, one stage each; -1: before block 0", at_least=-1, may=May.DECODE
  )
  keep_ratio: tuple[float, ...] = setting(
    (1 / 3,), "share of the bucket's positions kept, one value per stage ...", above=0, at_most=1, may=May.DECODE
  )
  keep_tokens: tuple[int, ...] = setting(
    (), "... or a fixed count, one value per stage; shorter buckets stay dense", at_least=1, may=May.DECODE
  )
  random_keep_ratios: tuple[float, ...] = setting(
    (),
    "training draws the share that the stage keeps from these, one per dispatch, so that the model serves with any of "
    "them; (): always keep_ratio",
    above=0,
    at_most=1,
    may=May.DECODE,
  )
  positions: str = setting(
    "original",
    "what later blocks see as places: the original ones, those counted in items, or none at all, as published",
    choices=("original", "item", "none"),
    may=May.DECODE,
  )
  voters: str = setting(
    "all",
    "whose attention counts: every token's, the newest item's, or the newest token's",
    choices=("all", "last_item", "last"),
    may=May.DECODE,
  )
  score_dropout: bool = setting(False, "True: scores see attention after dropout, as published", may=May.DECODE)
  score_padded_queries: bool = setting(
    False, "True: rows of padded queries are summed too, as published", may=May.DECODE
  )
  prune_separators: bool = setting(
    True, "False: separators always survive, and codes share what is left of the budget", may=May.DECODE
  )
  proportional: bool = setting(
    False, "later attention counts a merged token as often as it stands for tokens (ToMe)", may=May.DECODE
  )
  options: tuple[Any, ...] = ()

  def methods(self) -> list[str]:
    """The names that `method` joins."""
    return self.method.split("+")

  def check(self, config: "Config") -> None:
    if self.method == "none":
      return
    stages, last = self.after_block, config.model.encoder_blocks - 1
    if not stages or list(stages) != sorted(set(stages)) or stages[-1] > last:
      raise InputError(
        f"config.reduction.after_block={stages} must rise and lie between -1 and {last}, the last of "
        f"model.encoder_blocks={last + 1} blocks; use reduction.method='none' for a dense model."
      )
    names = self.methods()
    if len(names) not in (1, len(stages)) or "none" in names:
      raise InputError(
        f"config.reduction.method={self.method!r} must be one method, or one for each of the {len(stages)} stages in "
        f"reduction.after_block={stages}, joined by +; none stands alone."
      )
    if stages[0] < 0 and not self.METHODS[names[0]].before_blocks:
      able = ", ".join(name for name, other in self.METHODS.items() if other.before_blocks and name != "none")
      raise InputError(
        f"config.reduction.after_block={stages} reduces before the first block, where reduction.method={names[0]!r} "
        f"has no attention to look at: give a block from 0 on, or one of the methods {able}."
      )
    self._check_needs(config)
    budgets, name = (self.keep_tokens, "keep_tokens") if self.keep_tokens else (self.keep_ratio, "keep_ratio")
    if len(budgets) != len(stages):
      raise InputError(
        f"config.reduction.{name}={budgets} has {len(budgets)} values for the {len(stages)} stages in "
        f"reduction.after_block={stages}: give one per stage."
      )
    if self.random_keep_ratios and (len(stages) > 1 or self.keep_tokens or self.METHODS[names[0]].tokens is not None):
      raise InputError(
        f"config.reduction.random_keep_ratios={self.random_keep_ratios} replaces the keep_ratio of a single stage: "
        f"leave keep_tokens empty, and give a single block and a method that takes a budget, not {self.method!r} after "
        f"blocks {stages}."
      )
    data, ids = config.data, config.semantic_ids
    positions = max(data.bucket_lengths, default=data.max_items) * config.item_length
    if self.keep_tokens and ids.levels and max(self.keep_tokens) > positions:
      raise InputError(
        f"config.reduction.keep_tokens={self.keep_tokens} is above the longest history's {positions} positions (the "
        "last of data.bucket_lengths x tokens per item): keep fewer, or use reduction.method='none' for a dense model."
      )
    if ids.levels:
      self._check_weights(positions)

  def _check_needs(self, config: "Config") -> None:
    """Raises InputError where a method needs another value of a setting."""
    for name in self.methods():
      need = self.METHODS[name].need
      if need is not None and (value := operator.attrgetter(need.setting)(config)) != need.value:
        raise InputError(
          f"config.{need.setting}={value!r} does not go with reduction.method={name!r}, which {need.why}: expected "
          f"{need.value!r}, or take another method."
        )

  def _check_weights(self, positions: int) -> None:
    """Raises InputError where a stage would leave more tokens of the longest history than it has weights for."""
    ratios = (*self.keep_ratio, *self.random_keep_ratios)  # what a model is evaluated with, and what it is trained with
    counts = self.keep_tokens or [int(positions * ratio + 1e-6) for ratio in ratios]
    names = self.methods()
    for name, count in zip(names * len(counts) if len(names) == 1 else names, counts, strict=True):
      most = self.METHODS[name].most(self)
      if most is not None and most < count < positions:  # with all positions kept it would be left out
        raise InputError(
          f"config.reduction.{name}.most={most} is below the {count} tokens that a stage leaves of the longest "
          f"history's {positions} positions: raise it to {count}, or keep fewer by reduction.keep_ratio or keep_tokens."
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
  """How long and how a model is trained, and how often it logs, validates and saves."""

  seed: int = setting(999, "of weights, samples and dropout", at_least=0, at_most=LARGEST_SEED, may=May.SEED)
  length: str = setting("60 epochs", "of training: steps, epochs, samples or minutes")
  batch_size: int = setting(
    1024, "samples per step on average, over all devices (buckets get batches of about equal tokens)", at_least=1
  )
  grad_accumulation_steps: int = setting(1, "batches averaged into one optimizer update", at_least=1)
  steps_per_dispatch: int = setting(
    1, "steps the devices do before the host is asked again; intervals become multiples of it", at_least=1
  )
  optimizer: str = setting(
    "adamw",
    "adamw, adam, or torch Adam's L2 in the gradient, as published",
    choices=("adamw", "adam", "adam_l2"),
  )
  learning_rate: float = setting(1e-3, "after warm-up", at_least=0)
  weight_decay: float = setting(0.05, "of matrices (adam_l2: of everything)", at_least=0)
  warmup: str = setting("2 percent", "the learning rate rises linearly for that long")
  schedule: str = setting("cosine", "after warm-up: to 0, or as it is", choices=("cosine", "constant"))
  clip_norm: float = setting(1.0, "global gradient norm; 0 switches clipping off", at_least=0)
  log_every: str = setting("50 steps", "a log line; more often where a run would show fewer than 20", may=WATCHING)
  eval_every: str = setting("1 epochs", "a validation", may=May.RESUME)
  eval_users: int = setting(
    0,
    "validation users looked at during training; 0: all; a few thousand choose the best checkpoint by chance",
    at_least=0,
  )
  patience: int = setting(
    10,
    "evaluations without a better validation recall@5 before stopping; 0: never stop early",
    at_least=0,
    may=May.RESUME,
  )
  checkpoint_every: str = setting("1 epochs", "a checkpoint", may=WATCHING)
  keep_checkpoints: int = setting(2, "latest ones kept; the best is kept besides", at_least=1, may=WATCHING)
  teacher: str = setting(
    "", "workdir of a trained run, whose probabilities are learned besides the targets; '': targets alone"
  )
  teacher_weight: float = setting(0.5, "share of the teacher's probabilities in what is learned", above=0, at_most=1)
  max_nonfinite_steps: int = setting(
    10,
    "steps in a row with a NaN or infinite loss or gradient, all skipped, before it stops",
    at_least=0,
    may=May.RESUME,
  )

  def check(self, config: "Config") -> None:
    length = Duration.parse(self.length, "train.length")
    if length.unit == "percent":
      raise InputError(
        f"config.train.length={self.length!r} is a share of itself: give it in steps, epochs, samples or minutes."
      )
    if length.unit == "minutes" and self.schedule != "constant":
      raise InputError(
        f"config.train.length={self.length!r} with train.schedule={self.schedule!r} would make the learning rate "
        "depend on the clock: use train.schedule='constant', or give the length in steps, epochs or samples."
      )
    for name in ("warmup", "log_every", "eval_every", "checkpoint_every"):
      unit = Duration.parse(getattr(self, name), f"train.{name}").unit
      if unit == "minutes" or (unit == "percent" and length.unit == "minutes"):
        raise InputError(
          f"config.train.{name}={getattr(self, name)!r} cannot be converted to steps: give it in steps, epochs or "
          "samples."
        )

  def length_is_free(self) -> bool:
    """Whether a resumed run may have another length: no step's learning rate depends on it."""
    return self.schedule == "constant" and Duration.parse(self.warmup, "train.warmup").unit != "percent"


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
  """How recommendations are searched for and counted."""

  beam_width: int = setting(10, "beams per user", at_least=1, may=May.RESUME | May.DECODE)
  batch_size: int = setting(256, "users decoded at a time, over all devices", at_least=1, may=ANYWHERE)
  constrained: bool = setting(True, "False: beams may miss the catalogue, as published", may=May.RESUME | May.DECODE)
  renormalize: bool = setting(
    False,
    "True: at each level the codes that may follow share all probability, as published",
    may=May.RESUME | May.DECODE,
  )
  top_k: tuple[int, ...] = setting((5, 10), "cut-offs of recall, NDCG and MRR", may=May.RESUME | May.DECODE)
  item_share: float = setting(
    0.7,
    "share of model.item_scores, where there are any, in the model's answers; 0: beams alone, 1: no beams",
    at_least=0,
    at_most=1,
    may=May.RESUME | May.DECODE,
  )
  exclude_history: bool = setting(
    False, "True: items of the user's history are not answers; papers do not do so", may=May.RESUME | May.DECODE
  )

  def check(self, config: "Config") -> None:
    if not self.top_k or min(self.top_k) < 1 or max(self.top_k) > self.beam_width:
      raise InputError(
        f"config.eval.top_k={self.top_k} must lie between 1 and eval.beam_width={self.beam_width}: a list of "
        f"{self.beam_width} beams says nothing about more."
      )
    needed = max(self.top_k) + config.data.max_items
    if self.exclude_history and self.beam_width < needed:
      raise InputError(
        f"config.eval.beam_width={self.beam_width} may leave fewer than {max(self.top_k)} answers without the items of "
        f"the history (eval.exclude_history=True): give at least {needed}, the largest of eval.top_k + data.max_items."
      )


@dataclasses.dataclass(frozen=True)
class CountsConfig(Section):
  """Co-occurrence counts of the training part, mixed into what the model answers (generation/counts.py).

  How they are counted by default is what Beauty's validation users chose (docs/results/baselines_beauty.json).
  """

  share: float = setting(
    0.0,
    "of the counts in every answer's probability; 0: the model alone",
    at_least=0,
    below=1,
    may=May.RESUME | May.DECODE,
  )
  window: int = setting(
    20, "two items of a user count as a pair up to this many steps apart", at_least=1, may=May.RESUME | May.DECODE
  )
  distance_power: float = setting(
    0.5, "a pair d steps apart weighs 1 / d to this power", at_least=0, may=May.RESUME | May.DECODE
  )
  backward: float = setting(
    0.0, "weight of pairs in which the answer came before the history's item", at_least=0, may=May.RESUME | May.DECODE
  )
  popularity_power: float = setting(
    0.1, "scores are divided by the answer's occurrences to this power", at_least=0, may=May.RESUME | May.DECODE
  )
  decay: float = setting(
    0.4, "each older item of a history weighs this much less", above=0, at_most=1, may=May.RESUME | May.DECODE
  )
  last_items: int = setting(
    5, "items of a history that are read, the most recent ones", at_least=1, may=May.RESUME | May.DECODE
  )
  neighbours: int = setting(256, "kept of each item, the strongest", at_least=1, may=May.RESUME | May.DECODE)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
  """How the devices at hand are arranged (rastp_jax/runtime/sharding.py); -1, in one of them: all that are left."""

  data: int = setting(
    -1, "devices that share each batch; each holds what the other two leave of the weights", may=WATCHING
  )
  fsdp: int = setting(
    1, "devices that share each batch and keep a part of every weight and of its optimizer state", may=WATCHING
  )
  tensor: int = setting(
    1, "devices that share each row's matrix products, for layers and codebooks too wide for one", may=WATCHING
  )

  def check(self, config: "Config") -> None:
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      if size != -1 and size < 1:
        raise InputError(f"config.mesh.{name}={size!r} is too small: expected at least 1, or -1 for what is left.")
    if list(sizes.values()).count(-1) > 1:
      raise InputError(f"config.mesh={sizes} leaves more than one size open: give -1, for what is left, once.")


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything a run depends on. Build it with `config.from_dict`, which checks it."""

  data: DataConfig = DataConfig()
  semantic_ids: SemanticIdsConfig = SemanticIdsConfig()
  model: ModelConfig = ModelConfig()
  reduction: ReductionConfig = ReductionConfig()
  train: TrainConfig = TrainConfig()
  eval: EvalConfig = EvalConfig()
  counts: CountsConfig = CountsConfig()
  mesh: MeshConfig = MeshConfig()

  @property
  def item_length(self) -> int:
    """Tokens per item, if the codes are learned as `semantic_ids` says."""
    return self.semantic_ids.levels + (self.semantic_ids.collisions == "extra_level") + self.model.separator
