"""Metrics that others published, to compare ours with."""

from collections.abc import Mapping

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")

# All on the Amazon 2014 5-core data, leave-one-out, all items ranked: dataset -> method -> values of METRICS.
# "RASTP": the results table of the README of github.com/Yuzt-zju/RASTP (commit 7525763), without and with pruning.
# "TIGER": Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023 (arXiv 2305.05065), table 1.
RESULTS: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
  "beauty": {
    "RASTP, dense": (0.0426, 0.0645, 0.0282, 0.0353),
    "RASTP, pruned": (0.0441, 0.0656, 0.0289, 0.0358),
    "TIGER": (0.0454, 0.0648, 0.0321, 0.0384),
  },
  "sports": {
    "RASTP, dense": (0.0196, 0.0289, 0.0128, 0.0158),
    "RASTP, pruned": (0.0187, 0.0278, 0.0123, 0.0153),
    "TIGER": (0.0264, 0.0400, 0.0181, 0.0225),
  },
  "toys": {
    "RASTP, dense": (0.0345, 0.0499, 0.0238, 0.0287),
    "RASTP, pruned": (0.0351, 0.0504, 0.0240, 0.0289),
    "TIGER": (0.0521, 0.0712, 0.0371, 0.0432),
  },
}

# arXiv 2511.16943: training time falls by 26.7 %, everything padded to 150 encoder positions.
RASTP_TRAINING_TIME_SAVED = 0.267

# Where each method's metrics are from, for a note under a table.
SOURCES = {
  "RASTP": "README of the published code, time from arXiv 2511.16943",
  "TIGER": "arXiv 2305.05065",
}
