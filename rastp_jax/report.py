"""Makes one HTML page, and PNGs, of evaluated runs.

    python -m rastp_jax.report --workdir=runs/dense --workdir=runs/pruned --output=runs/report

Each run must have been evaluated (`python -m rastp_jax.evaluate --workdir=…`). Runs of one dataset are compared with
the first of them; those that differ only in their seed are taken together. index.html holds its pictures and needs
nothing else; the same pictures lie beside it as PNG files.
"""

import pathlib

from absl import flags

from rastp_jax import cli, files, loading
from rastp_jax.data import histories
from rastp_jax.errors import InputError
from rastp_jax.evaluation import page, results, survival

_WORKDIR = flags.DEFINE_multi_string("workdir", [], "Directory of an evaluated run; may be given several times.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for index.html and the PNGs.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which evaluation of the runs to report.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the prepared data is, if not where training found it.")

# Enough for every share on the page to be exact to about a percent, and seconds rather than minutes of encoding.
SURVEYED_USERS = 10_000


def main():
  if not _WORKDIR.value or not _OUTPUT.value:
    raise InputError(
      "--workdir or --output is missing: give evaluated runs, and a directory like --output=runs/report."
    )
  if len(set(_WORKDIR.value)) < len(_WORKDIR.value):
    raise InputError("A --workdir is given twice: give each run once.")
  evaluated = [results.load(pathlib.Path(workdir) / f"eval_{_SPLIT.value}.json", workdir) for workdir in _WORKDIR.value]
  logs = {workdir: results.training_log(workdir) for workdir in _WORKDIR.value}
  files.check_writable(pathlib.Path(_OUTPUT.value) / "index.html")
  print(page.write(_OUTPUT.value, evaluated, logs, survey))


def survey(workdir: str) -> page.Survey:
  """Encodes a run's users and looks at what survives."""
  print(f"Encoding users with {workdir} …", flush=True)
  saved = loading.load_model(workdir, [f"data.data_dir={_DATA_DIR.value}"] if _DATA_DIR.value else [])
  _, ends = saved.histories.spans(_SPLIT.value)
  found = survival.survey(
    saved.model,
    saved.histories,
    saved.semantic_ids,
    saved.config,
    saved.mesh,
    _SPLIT.value,
    users=SURVEYED_USERS,
  )
  items = histories.load_items(saved.config.data.data_dir, saved.config.data.dataset)
  return page.Survey(found, [item.title for item in items], saved.histories.items[ends - 1])


if __name__ == "__main__":
  cli.run(main)
