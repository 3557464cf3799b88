"""Amazon Sports."""

from configs import base


def get_config(variants: str = ""):
  config = base.get_config(variants)
  config.data.dataset = "sports"
  return config
