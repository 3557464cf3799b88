"""The generated dataset and a model that learns it in half a minute: for a first look, and for the tests.

    python -m rastp_jax.prepare  --config=configs/tiny.py                        5 s
    python -m rastp_jax.train    --config=configs/tiny.py --workdir=runs/tiny    22 s of training on 2 cores
    python -m rastp_jax.evaluate --workdir=runs/tiny

Seen: test recall@10 0.858 with RASTP, 0.781 with `:dense`, 0.869 with `:items`, and others where the processor rounds
otherwise (docs/results.md; popularity, counts and the best possible predictor stand there too). `:long` has histories
of 50 to 200 items, in which old ones matter.
"""

from rastp_jax.configs import base


def get_config(variants: str = ""):
  config = base.get_config("cpu,rastp")
  config.data.dataset = "synthetic"
  config.data.max_items = 16
  config.data.num_buckets = 2
  config.semantic_ids.codebook_size = 32
  config.semantic_ids.collaborative_weight = 0.0  # the planted structure is in the text
  config.model.d_model = 64
  config.model.num_heads = 2
  config.model.d_ff = 128
  config.model.dropout = config.model.mlp_dropout = 0.1
  config.model.dtype = "float32"  # also where the device multiplies bfloat16
  config.model.item_ages = 16  # the planted rules are about places counted from the newest item
  config.train.length = "6 epochs"
  config.train.learning_rate = 2e-3
  return base.apply(variants, config, {"long": long})


def long(config):
  """Histories of 50 to 200 items, 100 on average, in which old ones matter."""
  config.data.dataset = "synthetic_long"
  config.semantic_ids.collisions = "reassign"  # there are none, and a fourth code would say nothing
  config.data.max_items = 200
  config.data.num_buckets = 4
