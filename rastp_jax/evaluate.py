"""Evaluates trained models on every user's held-out item.

    python -m rastp_jax.evaluate --workdir=runs/beauty

restores the run's best checkpoint, predicts each user's last item (--split=validation: the one before) from all before
it, and writes the metrics to runs/beauty/eval_test.json and each user's rank beside it. Several runs are compared user
by user; those that differ in nothing but their seed become one column with mean and standard deviation:

    python -m rastp_jax.evaluate --workdir=runs/dense --workdir=runs/pruned --markdown=comparison.md

Decoding may differ from the run's own settings: a pruned model may be decoded densely, for example. That needs an
--output of its own:

    python -m rastp_jax.evaluate --workdir=runs/pruned --override=reduction.method=none --output=dense.json
    python -m rastp_jax.evaluate --workdir=runs/pruned --override=eval.beam_width=50 --override="eval.top_k=(5, 50)" \
      --output=wide.json
"""

import jax
from absl import flags

from rastp_jax.errors import InputError
from rastp_jax.runtime import cli, files, terminal

_WORKDIR = flags.DEFINE_multi_string("workdir", [], "Directory of a training run; may be given several times.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which of each user's held-out items to predict.")
_OVERRIDE = cli.define_override_flag("like reduction.method=none, which decodes a pruned model densely")
flags.adopt_module_key_flags(cli)  # so that --help shows them
_OUTPUT = flags.DEFINE_string(
  "output", None, "JSON file for the metrics of a single --workdir. Default: eval_SPLIT.json in the workdir."
)
_MARKDOWN = flags.DEFINE_string("markdown", None, "File for the printed tables as Markdown.")


def main():
  cli.require(_WORKDIR, "runs/beauty")
  if len(set(_WORKDIR.value)) < len(_WORKDIR.value):
    raise InputError("A --workdir is given twice: give each run once.")
  if _OVERRIDE.value and not _OUTPUT.value:
    raise InputError("--override needs --output=FILE, so that the run's own metrics are not overwritten.")
  if _OUTPUT.value and len(_WORKDIR.value) > 1:
    raise InputError("--output takes the metrics of one run: leave it out, or give a single --workdir.")
  if _OUTPUT.value and not _OUTPUT.value.endswith(".json"):
    raise InputError(f"--output={_OUTPUT.value} is not a JSON file: give a name that ends in .json.")
  terminal.say("Loading the program and the data …")
  from rastp_jax.evaluation import results, tables
  from rastp_jax.evaluation.comparison import by_dataset
  from rastp_jax.evaluation.evaluate_run import evaluate_run
  from rastp_jax.experiments.results import origin
  from rastp_jax.training.workdir import Workdir

  trained = [file for workdir in _WORKDIR.value for file in Workdir(workdir).files_of_training]
  outputs = [_OUTPUT.value] if _OUTPUT.value else [Workdir(one).evaluation(_SPLIT.value) for one in _WORKDIR.value]
  outputs += [results.ranks_path(path) for path in outputs]
  for one in _WORKDIR.value if not _OUTPUT.value else ():
    Workdir(one).read_config()  # before anything is made there
  for path in outputs:
    files.check_writable(path, inputs=trained)
  if _MARKDOWN.value:
    files.check_writable(_MARKDOWN.value, inputs=[*trained, *outputs])
  where = origin()
  evaluated = [
    evaluate_run(workdir, _SPLIT.value, _OVERRIDE.value, _OUTPUT.value, origin=where) for workdir in _WORKDIR.value
  ]
  if jax.process_index() == 0:
    datasets = by_dataset(evaluated)
    print("\n" + tables.text(datasets))
    if _MARKDOWN.value:
      files.write_atomic(_MARKDOWN.value, tables.text(datasets, markdown_tables=True) + "\n")


if __name__ == "__main__":
  cli.run(main)
