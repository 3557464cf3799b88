"""The models there are. A new one is a file that offers `interface.GenerativeModel`, a line here and its lines in
`runtime/sharding.py`'s table."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from rastp_jax.config import Config
from rastp_jax.model.encoder_decoder import EncoderDecoder

MODELS: Mapping[str, Any] = {"encoder_decoder": EncoderDecoder}


def make_model(config: Config, widths: tuple[int, ...], *, num_items: int = 0, rngs: nnx.Rngs) -> Any:
  """A fresh model.

  Args:
    config: its `model` and `reduction`.
    widths: codes of each level.
    num_items: of the catalogue; only a model with vectors of items must know it.
    rngs: `nnx.Rngs` whose `params` stream initialises the weights.
  """
  return MODELS[config.model.architecture](config.model, config.reduction, widths, num_items=num_items, rngs=rngs)
