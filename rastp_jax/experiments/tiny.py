"""A config and data so small that a training run takes seconds."""

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.semantic_ids.codes import SemanticIds

_SETTINGS = {
  "data.max_items": 6,
  "data.bucket_lengths": (6,),
  "model.d_model": 16,
  "model.num_heads": 2,
  "model.head_dim": 8,
  "model.d_ff": 32,
  "model.encoder_blocks": 1,
  "model.decoder_blocks": 1,
  "model.mlp_hidden_layers": 1,
  "reduction.after_block": (0,),
  "train.length": "12 steps",
  "train.batch_size": 16,
  "train.schedule": "constant",
  # Small: where rounding puts the input of a ReLU on the other side of zero, a gradient changes, and weights by this
  # much. So runs on other devices, or other processors, stay equal to the digits that tests compare.
  "train.learning_rate": 1e-4,
  "train.warmup": "3 steps",
  "train.log_every": "3 steps",
  "train.eval_every": "100 steps",
  "train.checkpoint_every": "5 steps",
}


def make_config(**changes) -> Config:
  """A tiny run; changes are given as section__field=value."""
  given = {name.replace("__", "."): value for name, value in changes.items()}
  return config_lib.with_values(Config(), {**_SETTINGS, **given}.items())


def make_data(seed=0) -> tuple[Histories, SemanticIds]:
  """60 users of 4 to 12 of 40 items."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(4, 13, 60)
  histories = Histories(
    items=rng.integers(0, 40, lengths.sum()).astype(np.int32),
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
    num_items=40,
    user_ids=[str(user) for user in range(60)],
    fingerprint="f" * 64,
  )
  return histories, SemanticIds.from_learned(np.random.default_rng(seed).integers(0, 8, (40, 3)), 8, {})
