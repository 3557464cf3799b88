"""Evaluates trained models on every user's held-out item.

    python -m rastp_jax.evaluate --workdir=runs/beauty

restores the run's best checkpoint, predicts each user's last item (--split=validation: the one before) from all before
it, and writes the figures to runs/beauty/eval_test.json. Several runs are compared in one table:

    python -m rastp_jax.evaluate --workdir=runs/dense --workdir=runs/pruned

Decoding may differ from the run's own settings; name an --output then:

    python -m rastp_jax.evaluate --workdir=runs/pruned --override=eval.beam_width=50 --output=wide.json
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import flags

from rastp_jax import cli, files, loading
from rastp_jax.errors import InputError
from rastp_jax.evaluation import report
from rastp_jax.evaluation.evaluator import Evaluator

flags.adopt_module_key_flags(cli)  # so that --help shows them
_WORKDIR = flags.DEFINE_multi_string("workdir", [], "Directory of a training run; may be given several times.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which of each user's held-out items to predict.")
_OVERRIDE = flags.DEFINE_multi_string(
  "override",
  [],
  f"SECTION.FIELD=VALUE that shall differ from the run's own settings, within {', '.join(loading.OVERRIDABLE)}; "
  "pruning.criterion=none decodes a pruned model densely. May be given several times.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the figures. Default: eval_SPLIT.json in the workdir.")


def main():
  if not _WORKDIR.value:
    raise InputError("--workdir is missing: give the directory of a training run, like --workdir=runs/beauty.")
  if _OVERRIDE.value and not _OUTPUT.value:
    raise InputError("--override needs --output=FILE, so that the run's own figures are not overwritten.")
  if _OUTPUT.value and len(_WORKDIR.value) > 1:
    raise InputError("--output takes the figures of one run: leave it out, or give a single --workdir.")
  results = {}
  for workdir in _WORKDIR.value:
    figures = evaluate_workdir(workdir, _SPLIT.value, _OVERRIDE.value)
    output = pathlib.Path(_OUTPUT.value or pathlib.Path(workdir) / f"eval_{_SPLIT.value}.json")
    files.write_json(output, figures)
    print(f"{output}: {report.setting(figures)}")
    results[workdir] = figures
  print()
  print(report.comparison(results))


def evaluate_workdir(workdir: str, split: str, overrides: list[str]) -> dict[str, Any]:
  """A run's figures, with the settings and the command that produced them."""
  saved = loading.load_model(workdir, overrides)
  figures = Evaluator(saved.config, saved.histories, saved.semantic_ids, saved.mesh).evaluate(saved.model, split)
  summary = pathlib.Path(workdir) / "summary.json"  # a run that is still going on has none yet
  training = json.loads(summary.read_text()) if summary.exists() else {}
  return {
    **figures,
    **{
      f"training_{name}" if name in ("samples", "samples_per_second", "seconds") else name: value
      for name, value in training.items()
    },
    "step": saved.step,
    "split": split,
    "workdir": workdir,
    "command": " ".join(["python", *sys.orig_argv[1:]]),
    "config": dataclasses.asdict(saved.config),
  }


if __name__ == "__main__":
  cli.run(main)
