"""Decodes users' histories and measures how well their held-out items are ranked."""

import collections
import time

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rastp_jax.batches.batches import Batch, evaluation_batches, with_codes
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.evaluation import metrics
from rastp_jax.evaluation.user_ranks import UserRanks
from rastp_jax.generation.beam_search import Beams
from rastp_jax.generation.decode import make_decode
from rastp_jax.generation.trie import build_transitions
from rastp_jax.model.interface import GenerativeModel
from rastp_jax.runtime import processes, sharding
from rastp_jax.semantic_ids.codes import SemanticIds


class Evaluator:
  """Compiles decoding once per bucket and keeps it for every later evaluation.

  Args:
    config: its `data` and `eval` sections are used; the model brings its own reduction.
    histories: all users.
    semantic_ids: codes of every item.
    mesh: devices that share the users.
  """

  def __init__(self, config: Config, histories: Histories, semantic_ids: SemanticIds, mesh: Mesh):
    self._config, self._histories, self._semantic_ids, self._mesh = config, histories, semantic_ids, mesh
    self._lengths = bucket_lengths(config.data, histories)
    self._batch_size = sharding.round_up(config.eval.batch_size, mesh.shape["data"])
    transitions = build_transitions(semantic_ids.codes) if config.eval.constrained else None
    self._transitions = jax.device_put(transitions, sharding.replicated(mesh))
    self._decode = make_decode(mesh, config.eval.beam_width, renormalize=config.eval.renormalize)
    self._compiled = set()  # shapes of histories already compiled, so that compilation is not timed

  def evaluate(
    self, model: GenerativeModel, split: str, *, users: int = 0, ranks: UserRanks | None = None
  ) -> dict[str, float]:
    """Recall, NDCG and MRR over users' held-out items.

    Args:
      model: the recommender, its parameters replicated over the mesh.
      split: "validation" or "test".
      users: how many of them, the same ones at each call; 0 for all.
      ranks: records every user's recommendations, of all hosts; None where the means are enough, which is a little
        faster.

    Returns:
      recall@k, ndcg@k and mrr@k, means over users; users, beam_width, invalid_beams (not an item), repeated_beams, and
      users_per_second (this host's clock, without compilation).
    """
    graph, params = nnx.split(model)
    batches = evaluation_batches(
      self._histories,
      self._config.data,
      split,
      lengths=self._lengths,
      batch_size=self._batch_size,
      users=users,
      shard=(jax.process_index(), jax.process_count()),
    )
    sums = collections.Counter()
    # Batches on the devices; the previous one is counted meanwhile.
    decoding: collections.deque[tuple[Beams, Batch]] = collections.deque()
    seconds = 0.0
    for batch in batches:
      codes = with_codes(batch, self._semantic_ids)["history"]
      history = sharding.place_rows(codes, self._mesh)
      if codes.shape not in self._compiled:
        self._compiled.add(codes.shape)
        jax.block_until_ready(self._decode(graph, params, self._transitions, history))
      start = time.perf_counter()
      decoding.append((self._decode(graph, params, self._transitions, history), batch))
      if len(decoding) > 1:
        sums.update(self._count(*decoding.popleft(), ranks))
      seconds += time.perf_counter() - start
    start = time.perf_counter()
    sums.update(self._count(*decoding.popleft(), ranks))
    seconds += time.perf_counter() - start
    names = sorted(sums)
    values = processes.allgather(np.asarray([sums[name] for name in names], np.float64)).sum(0)
    if ranks is not None:
      ranks.merge_hosts()
    result = dict(zip(names, values.tolist(), strict=True))
    counts = {name: int(result.pop(name)) for name in ("users", "invalid_beams", "repeated_beams")}
    means = {name: value / counts["users"] for name, value in result.items()}
    return {
      **means,
      **counts,
      "beam_width": self._config.eval.beam_width,
      "users_per_second": counts["users"] / seconds,
    }

  def _count(self, decoded: Beams, batch: Batch, user_ranks: UserRanks | None) -> dict[str, float]:
    """Sums over the batch's real users."""
    real = batch["user"] >= 0
    items = self._semantic_ids.items_of(sharding.local_rows(decoded.codes)[real])
    ranks = metrics.target_ranks(items, batch["target"][real])
    if user_ranks is not None:
      user_ranks.add(batch["user"][real], ranks, items)
    return {
      "users": int(real.sum()),
      **metrics.ranking_sums(ranks, self._config.eval.top_k),
      **metrics.beam_faults(items),
    }
