"""Generative recommendation with semantic IDs and token reduction (RASTP) in JAX.

from rastp_jax import Recommender
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from rastp_jax.serving.recommender import Recommender

__all__ = ["Recommender", "__version__"]

__version__ = "0.2.0"


def __getattr__(name: str):
  if name == "Recommender":  # not at import: commands configure JAX before anything imports it
    from rastp_jax.serving.recommender import Recommender

    return Recommender
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
