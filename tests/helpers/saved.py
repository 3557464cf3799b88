"""A trained model without a workdir."""

import numpy as np
from flax import nnx

from rastp_jax.config import Config, DataConfig, EvalConfig, ModelConfig, ReductionConfig
from rastp_jax.data.items import Item
from rastp_jax.model.factory import make_model
from rastp_jax.runtime import sharding
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.runs import SavedModel
from tests.helpers.data import make_data

LENGTHS = np.random.default_rng(2).integers(3, 20, 90).tolist()


def make_saved(method: str = "rastp") -> tuple[SavedModel, list[Item]]:
  """A small random model with its catalogue, as if loaded from a workdir."""
  histories, _ = make_data(LENGTHS)
  # Two levels: half the program to compile.
  codes = SemanticIds.from_learned(np.random.default_rng(0).integers(0, 16, (50, 1)), 16, {})
  config = Config(
    data=DataConfig(max_items=12, bucket_lengths=(4, 12)),
    model=ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=2, decoder_blocks=1),
    reduction=ReductionConfig(method=method, after_block=(0,)),
    eval=EvalConfig(batch_size=8, constrained=False),
  )
  model = make_model(config, codes.widths, num_items=codes.num_items, rngs=nnx.Rngs(0))
  items = [Item(str(row + 1), f"B{row:03d}" if row else "", f"Title {row}") for row in range(50)]
  saved = SavedModel(
    config=config,
    histories=histories,
    semantic_ids=codes,
    lengths=(4, 12),
    mesh=sharding.make_mesh(),
    model=model,
    step=1,
  )
  return saved, items
