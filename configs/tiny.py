"""The generated dataset and a model that learns it in a minute: for a first look, and for the tests."""

from configs import base


def get_config(variants: str = ""):
  config = base.get_config("cpu")
  config.data.dataset = "synthetic"
  config.data.max_items = 16
  config.data.bucket_items = (8, 16)
  config.semantic_ids.width = 32
  config.model.d_model = 64
  config.model.num_heads = 2
  config.model.d_ff = 128
  config.model.dropout = config.model.mlp_dropout = 0.1
  config.train.length = "6 epochs"
  config.train.log_every = "1 epochs"
  config.train.learning_rate = 2e-3
  for name in filter(None, variants.split(",")):
    base.VARIANTS[name](config)
  return config
