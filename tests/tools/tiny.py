"""A config and data so small that a training run takes seconds."""

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.data.histories import Histories
from rastp_jax.semantic_ids.codes import SemanticIds


def make_config(**changes) -> config_lib.Config:
  """A tiny run; changes are given as section__field=value."""
  values = config_lib.default_config_dict().to_dict()
  values["data"] |= {"max_items": 6, "bucket_items": (6,)}
  values["model"] |= {"d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32, "encoder_blocks": 1}
  values["model"] |= {"decoder_blocks": 1, "mlp_hidden_layers": 1}
  values["pruning"] |= {"after_block": (0,)}
  values["train"] |= {"length": "12 steps", "batch_size": 16, "schedule": "constant", "warmup": "3 steps"}
  values["train"] |= {"log_every": "3 steps", "eval_every": "100 steps", "checkpoint_every": "5 steps"}
  for name, value in changes.items():
    section, field = name.split("__")
    values[section][field] = value
  return config_lib.from_config_dict(values)


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
