"""Evaluates a finished run: from a workdir to the metrics beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rastp_jax import config as config_lib
from rastp_jax.evaluation import results, tables
from rastp_jax.evaluation.breakdown import breakdowns
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.evaluation.results import Result
from rastp_jax.evaluation.user_ranks import UserRanks
from rastp_jax.runtime import buckets, terminal
from rastp_jax.training import runs
from rastp_jax.training.workdir import Workdir


def evaluate_run(
  workdir: str, split: str, overrides: Sequence[str] = (), output: str | None = None, *, origin: Mapping[str, Any]
) -> Result:
  """Evaluates a run's best checkpoint and writes its metrics and every user's rank.

  Args:
    workdir: of the run.
    split: "test" or "validation".
    overrides: see `runs.load_model`.
    output: JSON file for the metrics; None: the workdir's own.
    origin: command, versions, machine and the like, to stand beside the metrics.
  """
  saved = runs.load_model(workdir, overrides)
  terminal.say(f"{workdir}: decoding {split} items with the checkpoint of step {saved.step:,} …")
  ranks = UserRanks(saved.histories.num_users, saved.histories.num_items)
  evaluator = Evaluator(saved.config, saved.histories, saved.semantic_ids, saved.mesh)
  top_k = saved.config.eval.top_k
  values = {
    **evaluator.evaluate(saved.model, split, ranks=ranks),
    **ranks.coverage(top_k),
    "breakdowns": breakdowns(saved.histories, split, ranks.ranks, top_k),
    **results.training_summary(workdir),
    "step": saved.step,
    "split": split,
    "workdir": workdir,
    "dataset_fingerprint": saved.histories.fingerprint,
    "semantic_ids_fingerprint": saved.semantic_ids.fingerprint,
    **origin,
    "config": config_lib.to_dict(saved.config),
  }
  path = output or Workdir(workdir).evaluation(split)
  result = Result(workdir, values, ranks.ranks, ranks.answers)
  if jax.process_index() == 0:
    results.save(path, result)
  terminal.say(f"{buckets.shown(path)}: {tables.describe_evaluation(values)}")
  return result
