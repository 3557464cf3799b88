"""The defaults that all datasets share, and the variants `beauty.py:cpu`, `beauty.py:reference`, `beauty.py:cpu,dense`.

(none)      paper-sized (d_model 128, 6 heads of 64, d_ff 1024, 4+4 blocks), the corrected behaviour
cpu         a model that trains usefully on 2 cores within half an hour; before the first block an item's tokens become
            one, their sum, which loses nothing that three datasets show and takes a third of dense's time
reference   the published code's behaviour, quirk by quirk
dense       no reduction, to compare with
rastp       RASTP where the CPU's model has room for it: half of the tokens after the first block, to compare with
items       after the first block one token per item, the sum of its tokens
best        what validation users liked best (docs/results.md): one token per item before the first block, and a vector
            of each item, with which all items are scored as well
repeats     with best: it learns whether users take items again, a number in the scores of the history's items
"""

from rastp_jax import config as config_lib


def get_config(variants: str = ""):
  return apply(variants, config_lib.default_config_dict())


def apply(variants: str, config, more=None):
  """Changes a config as these variants say, one after the other; returns it. `more`: variants of one dataset alone."""
  known = {**VARIANTS, **(more or {})}
  for name in filter(None, variants.split(",")):
    if name not in known:
      raise ValueError(f"there is no variant {name!r}, expected some of {', '.join(known)}")
    known[name](config)
  return config


def cpu(config):
  """Fewer and narrower blocks, the last 20 items, no separators; codes that know behaviour besides text."""
  config.data.max_items = 20
  config.semantic_ids.collaborative_weight = 0.35  # text alone lets 22 % of Beauty's items collide, this 8 %
  config.model.d_model = 128
  config.model.num_heads = 2
  config.model.head_dim = 64
  config.model.d_ff = 512
  config.model.encoder_blocks = 2
  config.model.decoder_blocks = 2
  config.model.mlp_hidden_layers = 1
  config.model.separator = False
  config.reduction.method = "item_sum"
  config.reduction.after_block = (-1,)
  config.reduction.keep_ratio = (1.0,)  # the method settles the budget
  config.reduction.positions = "item"
  config.model.dropout = config.model.mlp_dropout = 0.1
  config.model.dtype = "auto"
  config.train.batch_size = 96
  config.train.length = "16 epochs"
  config.train.log_every = "100 steps"
  config.train.eval_every = config.train.checkpoint_every = "2 epochs"


def reference(config):
  """What the published code does where ours differs by default; each line is one of its quirks."""
  config.data.sampling = "subsequences"
  config.data.mix_users = False  # a micro-batch is one draw from 32 users
  config.data.bucket_lengths = (30,)  # everything padded to 30 items; the last place stays empty
  config.model.uniform_width = True
  config.model.init = "reference"
  config.model.attention_dropout = 0.15
  config.model.mlp_dropout = 0.2775
  config.reduction.keep_ratio = (1 / 3,)
  config.reduction.positions = "none"
  config.reduction.score_dropout = True
  config.reduction.score_padded_queries = True
  config.train.batch_size = 417  # samples of one draw, on average
  config.train.grad_accumulation_steps = 16
  config.train.optimizer = "adam_l2"
  config.train.weight_decay = 1e-4
  config.train.warmup = "0 steps"
  config.train.schedule = "constant"
  config.train.clip_norm = 0.0
  config.train.eval_every = "1600 steps"  # 100 optimizer updates
  config.eval.constrained = False


def dense(config):
  config.reduction.method = "none"
  config.reduction.positions = "original"


def rastp(config):
  config.reduction.method = "rastp"
  config.reduction.after_block = (0,)
  config.reduction.keep_ratio = (1 / 2,)
  config.reduction.positions = "original"


def items(config):
  config.reduction.method = "item_sum"
  config.reduction.after_block = (0,)
  config.reduction.keep_ratio = (1.0,)  # the method settles the budget
  config.reduction.positions = "item"


def best(config):
  items(config)
  config.reduction.after_block = (-1,)
  config.model.item_scores = "vectors"
  config.eval.item_share = 0.9  # validation users chose 1, Sports' 0.5, Toys' 0.9 (docs/results/quality.json)
  config.model.dropout = config.model.mlp_dropout = 0.4
  config.train.length = "40 epochs"


def repeats(config):
  config.model.item_repeats = True


VARIANTS = {one.__name__: one for one in (cpu, reference, dense, rastp, items, best, repeats)}
