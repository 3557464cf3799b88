"""Evaluated runs without a model."""

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.evaluation import breakdown, metrics
from rastp_jax.evaluation.results import Result
from tests.helpers.data import make_data


def make_result(name, ranks, *, seed=0, method="none", **more) -> Result:
  """A result as the evaluator would leave it, with these ranks."""
  config = config_lib.to_dict(Config())
  config["train"]["seed"], config["reduction"]["method"] = seed, method
  ranks = np.asarray(ranks, np.int32)
  histories, _ = make_data([5, 9, 14, 40] * (len(ranks) // 4))
  sums = metrics.ranking_sums(ranks, config["eval"]["top_k"])
  values = {name: value / len(ranks) for name, value in sums.items()}
  values |= {"users": len(ranks), "beam_width": 10, "users_per_second": 100.0, "coverage@5": 0.5, "coverage@10": 0.6}
  values |= {"breakdowns": breakdown.breakdowns(histories, "test", ranks, (5, 10))}
  values |= {"invalid_beams": 0, "repeated_beams": 0, "step": 7, "split": "test", "dataset_fingerprint": "f"}
  return Result(name, {**values, "config": config, **more}, ranks)
