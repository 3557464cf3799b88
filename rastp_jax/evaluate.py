"""Evaluates trained models on every user's held-out item.

    python -m rastp_jax.evaluate --workdir=runs/beauty

restores the run's best checkpoint, predicts each user's last item (--split=validation: the one before) from all before
it, and writes the figures to runs/beauty/eval_test.json and each user's rank beside it. Several runs are compared user
by user; those that differ in nothing but their seed become one column with mean and standard deviation:

    python -m rastp_jax.evaluate --workdir=runs/dense --workdir=runs/pruned --markdown=comparison.md

Decoding may differ from the run's own settings, a pruned model may be decoded densely for instance; name an --output
then:

    python -m rastp_jax.evaluate --workdir=runs/pruned --override=pruning.criterion=none --output=dense.json
    python -m rastp_jax.evaluate --workdir=runs/pruned --override=eval.beam_width=50 --override="eval.ks=(5, 50)" \
      --output=wide.json
"""

import dataclasses
import pathlib
import sys

import jax
from absl import flags

from rastp_jax import cli, files, loading
from rastp_jax.errors import InputError
from rastp_jax.evaluation import report, results
from rastp_jax.evaluation.answers import Answers
from rastp_jax.evaluation.breakdown import breakdowns
from rastp_jax.evaluation.comparison import by_dataset
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.evaluation.results import Result

flags.adopt_module_key_flags(cli)  # so that --help shows them
_WORKDIR = flags.DEFINE_multi_string("workdir", [], "Directory of a training run; may be given several times.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which of each user's held-out items to predict.")
_OVERRIDE = flags.DEFINE_multi_string(
  "override",
  [],
  f"SECTION.FIELD=VALUE that shall differ from the run's own settings, within {', '.join(loading.OVERRIDABLE)}; "
  "pruning.criterion=none decodes a pruned model densely. May be given several times.",
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "JSON file for the figures of a single --workdir. Default: eval_SPLIT.json in the workdir."
)
_MARKDOWN = flags.DEFINE_string("markdown", None, "File that takes the printed tables as Markdown.")


def main():
  if not _WORKDIR.value:
    raise InputError("--workdir is missing: give the directory of a training run, like --workdir=runs/beauty.")
  if len(set(_WORKDIR.value)) < len(_WORKDIR.value):
    raise InputError("A --workdir is given twice: give each run once.")
  if _OVERRIDE.value and not _OUTPUT.value:
    raise InputError("--override needs --output=FILE, so that the run's own figures are not overwritten.")
  if _OUTPUT.value and len(_WORKDIR.value) > 1:
    raise InputError("--output takes the figures of one run: leave it out, or give a single --workdir.")
  if _OUTPUT.value and not _OUTPUT.value.endswith(".json"):
    raise InputError(f"--output={_OUTPUT.value} is no JSON file: give a name that ends in .json.")
  for path in filter(None, (_OUTPUT.value, _MARKDOWN.value)):
    files.check_writable(path)
  evaluated = [evaluate_workdir(workdir, _SPLIT.value, _OVERRIDE.value, _OUTPUT.value) for workdir in _WORKDIR.value]
  if jax.process_index() == 0:
    datasets = by_dataset(evaluated)
    print("\n" + report.text(datasets))
    if _MARKDOWN.value:
      files.write_whole(_MARKDOWN.value, report.text(datasets, markdown_tables=True) + "\n")


def evaluate_workdir(workdir: str, split: str, overrides: list[str], output: str | None) -> Result:
  """Evaluates a run and writes its results, with the settings and the command that produced them."""
  saved = loading.load_model(workdir, overrides)
  answers = Answers(saved.histories.num_users, saved.histories.num_items)
  evaluator = Evaluator(saved.config, saved.histories, saved.semantic_ids, saved.mesh)
  figures = evaluator.evaluate(saved.model, split, answers=answers)
  ks = saved.config.eval.ks
  figures |= answers.coverage(ks)
  figures |= {"breakdowns": breakdowns(saved.histories, split, answers.ranks, ks)}
  figures |= results.training_summary(workdir)
  figures |= {
    "step": saved.step,
    "split": split,
    "workdir": workdir,
    "dataset_fingerprint": saved.histories.fingerprint,
    "command": " ".join(["python", *sys.orig_argv[1:]]),
    "config": dataclasses.asdict(saved.config),
  }
  path = output or pathlib.Path(workdir) / f"eval_{split}.json"
  if jax.process_index() == 0:
    results.save(path, figures, answers.ranks)
    print(f"{path}: {report.setting(figures)}", flush=True)
  return Result(workdir, figures, answers.ranks)


if __name__ == "__main__":
  cli.run(main)
