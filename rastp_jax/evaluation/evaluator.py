"""Decodes held-out users and adds up how well their next item was found."""

import collections
import time

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rastp_jax import sharding
from rastp_jax.config import Config
from rastp_jax.data.batches import evaluation_batches
from rastp_jax.data.histories import Histories
from rastp_jax.decoding import make_decode
from rastp_jax.evaluation import metrics
from rastp_jax.evaluation.answers import Answers, from_all_hosts
from rastp_jax.model.beam_search import Beams
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.trie import build_transitions


class Evaluator:
  """Compiles decoding once a bucket and keeps it for every later evaluation.

  Args:
    config: its `data` and `eval` sections are used; the model brings its own pruning.
    histories: all users.
    semantic_ids: codes of every item.
    mesh: devices that share the users.
  """

  def __init__(self, config: Config, histories: Histories, semantic_ids: SemanticIds, mesh: Mesh):
    self._config, self._histories, self._semantic_ids, self._mesh = config, histories, semantic_ids, mesh
    devices = mesh.shape["data"]
    self._batch_size = -(-config.eval.batch_size // devices) * devices
    transitions = build_transitions(semantic_ids.codes) if config.eval.constrained else None
    self._transitions = jax.device_put(transitions, sharding.replicated(mesh))
    self._decode = make_decode(mesh, config.eval.beam_width, renormalize=config.eval.renormalize)
    self._compiled = set()  # batch shapes whose compilation is behind us, so that timing need not warm up

  def evaluate(
    self, model: EncoderDecoder, split: str, *, users: int = 0, answers: Answers | None = None
  ) -> dict[str, float]:
    """Recall, NDCG and MRR over users' held-out items.

    Args:
      model: the recommender, its parameters replicated over the mesh.
      split: "validation" or "test".
      users: so many of them, always the same ones; 0 for all.
      answers: takes what every user got, of all hosts; None where the means are enough, which is a little faster.

    Returns:
      recall@k, ndcg@k and mrr@k, means over users; users, beam_width, invalid_beams (no item), repeated_beams, and
      users_per_second (this host's clock, without compilation).
    """
    graph, params = nnx.split(model)
    batches = evaluation_batches(
      self._histories,
      self._semantic_ids,
      self._config.data,
      split,
      batch_size=self._batch_size,
      users=users,
      shard=(jax.process_index(), jax.process_count()),
    )
    sums = collections.Counter()
    pending = None  # one batch is being decoded while the one before it is counted
    seconds = 0.0
    for batch in batches:
      shape = batch["history"].shape
      history = sharding.place_batch({"history": batch["history"]}, self._mesh)["history"]
      if shape not in self._compiled:
        self._compiled.add(shape)
        jax.block_until_ready(self._decode(graph, params, self._transitions, history))
      start = time.perf_counter()
      decoded = self._decode(graph, params, self._transitions, history)
      if pending:
        sums.update(self._count(*pending, answers))
      pending = (decoded, batch)
      seconds += time.perf_counter() - start
    start = time.perf_counter()
    sums.update(self._count(*pending, answers))
    seconds += time.perf_counter() - start
    names = sorted(sums)
    values = from_all_hosts(np.asarray([sums[name] for name in names], np.float64)).sum(0)
    if answers is not None:
      answers.merge_hosts()
    result = dict(zip(names, values.tolist(), strict=True))
    counts = {name: int(result.pop(name)) for name in ("users", "invalid_beams", "repeated_beams")}
    means = {name: value / counts["users"] for name, value in result.items()}
    return {
      **means,
      **counts,
      "beam_width": self._config.eval.beam_width,
      "users_per_second": counts["users"] / seconds,
    }

  def _count(self, decoded: Beams, batch: dict[str, np.ndarray], answers: Answers | None) -> dict[str, float]:
    real = batch["user"] >= 0
    beams = sharding.local_rows(decoded.codes)[real]
    ranks = metrics.target_ranks(beams, batch["target"][real])
    items = self._semantic_ids.items_of(beams)
    if answers is not None:
      answers.add(batch["user"][real], ranks, items)
    return {
      "users": int(real.sum()),
      **metrics.ranking_sums(ranks, self._config.eval.ks),
      **metrics.beam_faults(items),
    }
