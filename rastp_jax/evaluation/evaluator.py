"""Decodes users' histories and measures how well their held-out items are ranked."""

import collections
import time

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rastp_jax.batches.batches import Batch, evaluation_batches
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.evaluation import metrics
from rastp_jax.evaluation.user_ranks import UserRanks
from rastp_jax.generation.decode import item_tables, make_decode
from rastp_jax.generation.mixture import Answers
from rastp_jax.model.interface import GenerativeModel
from rastp_jax.runtime import processes, sharding, terminal
from rastp_jax.semantic_ids.codes import SemanticIds


class Evaluator:
  """Compiles decoding once per bucket and keeps it for every later evaluation.

  Args:
    config: its `data`, `eval` and `counts` sections are used; the model brings its own reduction.
    histories: all users.
    semantic_ids: codes of every item.
    mesh: devices that share the users.
  """

  def __init__(self, config: Config, histories: Histories, semantic_ids: SemanticIds, mesh: Mesh):
    self._config, self._histories, self._mesh = config, histories, mesh
    self._lengths = bucket_lengths(config.data, histories)
    self._batch_size = sharding.round_up(config.eval.batch_size, mesh.shape["data"])
    tables = item_tables(semantic_ids, histories, config)
    self._tables = jax.device_put(tables, sharding.replicated(mesh))
    self._decode = make_decode(mesh, config.eval, config.counts)
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
    decoding: collections.deque[tuple[Answers, Batch]] = collections.deque()
    seconds = 0.0
    bar = terminal.bar(users or self._histories.num_users, f"decoding {split} items", " users")
    for batch in batches:
      history = sharding.place_rows(batch["history"], self._mesh)
      if history.shape not in self._compiled:
        self._compiled.add(history.shape)
        jax.block_until_ready(self._decode(graph, params, self._tables, history))
      start = time.perf_counter()
      decoding.append((self._decode(graph, params, self._tables, history), batch))
      if len(decoding) > 1:
        sums.update(self._count(*decoding.popleft(), split, ranks))
      seconds += time.perf_counter() - start
      bar.update(int((batch["user"] >= 0).sum()))
    bar.close()
    start = time.perf_counter()
    sums.update(self._count(*decoding.popleft(), split, ranks))
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

  def _count(self, answers: Answers, batch: Batch, split: str, user_ranks: UserRanks | None) -> dict[str, float]:
    """Sums over the batch's real users."""
    real = batch["user"] >= 0
    items = sharding.local_rows(answers.items)[real]
    faults = metrics.beam_faults(sharding.local_rows(answers.beams)[real])
    if self._config.eval.exclude_history:
      items = self._without_history(items, batch["user"][real], split)
    ranks = metrics.target_ranks(items, batch["target"][real])
    if user_ranks is not None:
      user_ranks.add(batch["user"][real], ranks, items)
    return {
      "users": int(real.sum()),
      **metrics.ranking_sums(ranks, self._config.eval.top_k),
      **faults,
    }

  def _without_history(self, items: np.ndarray, users: np.ndarray, split: str) -> np.ndarray:
    """The answers (B, W) without items of the users' histories, also of what the model does not read; -1 at the end."""
    starts, ends = self._histories.spans(split)
    known = np.zeros(items.shape, bool)
    for row, user in enumerate(users):
      known[row] = np.isin(items[row], self._histories.items[starts[user] : ends[user] - 1])
    order = np.argsort(known, axis=1, kind="stable")
    return np.take_along_axis(np.where(known, -1, items), order, axis=1)
