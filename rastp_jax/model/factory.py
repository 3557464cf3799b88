"""The models there are. A new one is a file that offers `interface.GenerativeModel`, a line here and its lines in
`runtime/sharding.py`'s table."""

import functools
from collections.abc import Mapping
from typing import Any

from flax import nnx

from rastp_jax.config import Config, ModelConfig, ReductionConfig
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


def abstract_model(config: Config, widths: tuple[int, ...], num_items: int = 0) -> tuple[Any, Any]:
  """A model without its numbers, as of `make_model`: (`nnx.GraphDef`, `nnx.State` of `jax.ShapeDtypeStruct`s).

  Those of equal settings are made once, for all who ask, and are not to be changed: a run, its evaluation and its
  comparison with overrides ask for the same.
  """
  return _abstract(config.model, config.reduction, tuple(widths), num_items)


@functools.lru_cache(maxsize=64)
def _abstract(
  model: ModelConfig, reduction: ReductionConfig, widths: tuple[int, ...], num_items: int
) -> tuple[Any, Any]:
  make = lambda: MODELS[model.architecture](model, reduction, widths, num_items=num_items, rngs=nnx.Rngs(0))
  return nnx.split(nnx.eval_shape(make), nnx.Param)
