"""Trains a recommender, or goes on with an interrupted run.

    python -m rastp_jax.train --config=configs/beauty.py --workdir=runs/beauty

needs the dataset and its semantic IDs, which `python -m rastp_jax.prepare --config=configs/beauty.py` makes. Run the
same command again after an interruption: training continues where the last checkpoint stands. Any setting can be
changed on the command line:

    --config.train.length="20 epochs" --config.pruning.criterion=none

In the workdir afterwards: config.json (the settings), metrics.jsonl (one JSON object a log line), tensorboard/ (the
same as curves), summary.json (once finished: speed, memory, best validation), and checkpoints/ (the latest ones and
the best by validation recall@5, which `python -m rastp_jax.evaluate --workdir=runs/beauty` reads).
"""

from absl import flags

from rastp_jax import cli, loading, sharding
from rastp_jax.data.buckets import with_bucket_items
from rastp_jax.errors import InputError
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.training import trainer

_CONFIG = cli.define_config_flag()
flags.adopt_module_key_flags(cli)  # so that --help shows it
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run: made if new, continued if it holds one.")


def main():
  if not _WORKDIR.value:
    raise InputError("--workdir is missing: give a directory for this run, like --workdir=runs/beauty.")
  config = cli.load_config(_CONFIG.value)
  histories, semantic_ids = loading.load_data(config)
  config = with_bucket_items(config, histories)
  evaluator = Evaluator(config, histories, semantic_ids, sharding.make_mesh())
  trainer.train(
    config,
    histories,
    semantic_ids,
    _WORKDIR.value,
    lambda model: evaluator.evaluate(model, "validation", users=config.train.eval_users),
  )


if __name__ == "__main__":
  cli.run(main)
