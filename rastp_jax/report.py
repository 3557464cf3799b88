"""Makes one HTML page, and PNGs, of evaluated runs.

    python -m rastp_jax.report --workdir=runs/dense --workdir=runs/pruned --output=runs/report

Each run must have been evaluated (`python -m rastp_jax.evaluate --workdir=…`). Runs of one dataset are compared with
the first of them; those that differ only in their seed form one group. index.html contains its plots and needs no other
file; the same plots are beside it as PNG files.
"""

from absl import flags

from rastp_jax.data import histories
from rastp_jax.errors import InputError
from rastp_jax.evaluation import html_report, results
from rastp_jax.evaluation.html_report import SurvivalSection
from rastp_jax.evaluation.measure_survival import measure_survival
from rastp_jax.runtime import buckets, cli, files
from rastp_jax.training import runs
from rastp_jax.training.workdir import Workdir

_WORKDIR = flags.DEFINE_multi_string("workdir", [], "Directory of an evaluated run; may be given several times.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for index.html and the PNGs.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which evaluation of the runs to report.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the prepared data is, if not where training found it.")

# Every share on the page is then exact to about a percent, and encoding takes seconds, not minutes.
MEASURED_USERS = 10_000


def main():
  cli.require(_WORKDIR, "runs/beauty")
  output = cli.require(_OUTPUT, "runs/report")
  if len(set(_WORKDIR.value)) < len(_WORKDIR.value):
    raise InputError("A --workdir is given twice: give each run once.")
  evaluated = [results.load(Workdir(workdir).evaluation(_SPLIT.value), workdir) for workdir in _WORKDIR.value]
  logs = {workdir: Workdir(workdir).read_log() for workdir in _WORKDIR.value}
  files.check_writable(files.check_path(output) / "index.html")
  print(buckets.shown(html_report.write(output, evaluated, logs, survival_section, command=cli.command_line())))


def survival_section(workdir: str) -> SurvivalSection:
  """Encodes a run's users and finds which of their tokens survive."""
  print(f"Encoding users with {workdir} …", flush=True)
  saved = runs.load_model(workdir, [f"data.data_dir={_DATA_DIR.value}"] if _DATA_DIR.value else [])
  _, ends = saved.histories.spans(_SPLIT.value)
  survival = measure_survival(
    saved.model,
    saved.histories,
    saved.semantic_ids,
    saved.config,
    saved.mesh,
    _SPLIT.value,
    users=MEASURED_USERS,
  )
  items = histories.load_items(saved.config.data.data_dir, saved.config.data.dataset)
  return SurvivalSection(survival, [item.title for item in items], saved.histories.items[ends - 1])


if __name__ == "__main__":
  cli.run(main)
