"""Generative recommendation with semantic IDs, and RASTP token pruning, in JAX.

from rastp_jax import Recommender
"""

__all__ = ["Recommender"]


def __getattr__(name: str):
  if name == "Recommender":  # only now: binaries set up JAX before anything imports it
    from rastp_jax.serving.recommender import Recommender

    return Recommender
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
