"""Trains a recommender, or goes on with an interrupted run.

    python -m rastp_jax.train --config=configs/beauty.py --workdir=runs/beauty

needs the dataset and its semantic IDs, which `python -m rastp_jax.prepare --config=configs/beauty.py` makes. Run the
same command again after an interruption: training continues where the last checkpoint stands. Any setting can be
changed on the command line:

    --config.train.length="20 epochs" --config.reduction.method=none

In the workdir afterwards: config.json (the settings), metrics.jsonl (one JSON object per log line), tensorboard/ (the
same as curves), summary.json (once finished: speed, memory, best validation), and checkpoints/ (the latest ones and
the best by validation recall@5, which `python -m rastp_jax.evaluate --workdir=runs/beauty` reads).

Ctrl-C or SIGTERM end it after the step it is at, with a checkpoint and exit code 75: run the same command again. Exit
code 2 means that a person must act, and one sentence says on what. Several machines run the same command each, with
the same --workdir on a file system they share; docs/scaling.md tells more.
"""

from rastp_jax.runtime import preemption

if __name__ == "__main__":
  preemption.listen()  # first of all: the other imports take seconds

from absl import flags

from rastp_jax.errors import EXIT_RESUME
from rastp_jax.runtime import cli, processes, terminal

_CONFIG = cli.define_config_flag()
cli.define_host_flags()
flags.adopt_module_key_flags(cli)  # so that --help shows it
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run: made if new, continued if it holds one.")
_PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps", None, "FIRST:LAST, steps of which to leave a jax.profiler trace in the workdir, like 100:110."
)


def main() -> int:
  terminal.say("Loading the program and the data …")
  from rastp_jax.evaluation.evaluator import Evaluator
  from rastp_jax.runtime import sharding
  from rastp_jax.training import profiling, runs, trainer
  from rastp_jax.training.setup import make_setup
  from rastp_jax.training.workdir import Workdir

  with processes.raise_on_all():
    workdir = Workdir(cli.require(_WORKDIR, "runs/beauty"))
    config = cli.load_config(_CONFIG.value, workdir.begun)
    profile_steps = profiling.parse_steps(_PROFILE_STEPS.value)
  histories, semantic_ids = runs.load_data(config, begun=workdir.begun() is not None)
  held_out = histories.num_users > 0  # none where data.hold_out=0: the last checkpoint is the model
  setup = make_setup(config, histories, semantic_ids, validates=held_out)
  evaluator = Evaluator(config, histories, semantic_ids, sharding.whole_batch_mesh(setup.mesh))
  validate = lambda model: evaluator.evaluate(model, "validation", users=config.train.eval_users)
  result = trainer.train(setup, workdir, validate if held_out else None, profile_steps=profile_steps)
  return EXIT_RESUME if result.interrupted else 0


if __name__ == "__main__":
  cli.run(main)
