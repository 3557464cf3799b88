"""Makes one HTML page of evaluated runs: what differs, by how much, for whom, and what it looks like.

    python -m rastp_jax.report --workdir=runs/dense --workdir=runs/pruned --output=runs/report

Each run must have been evaluated (`python -m rastp_jax.evaluate --workdir=…`). Runs of one dataset are compared with
the first of them; those that differ only in their seed form one group. index.html needs no other file; its plots are
beside it as SVG files. --baselines takes the JSON of `python -m rastp_jax.experiment baselines`, which then stands
beside the runs.
"""

from absl import flags

from rastp_jax.errors import InputError
from rastp_jax.runtime import buckets, cli, files, terminal

flags.adopt_module_key_flags(cli)  # so that --help shows them
_WORKDIR = flags.DEFINE_multi_string("workdir", [], "Directory of an evaluated run; may be given several times.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for index.html and its plots.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Which evaluation of the runs to report.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the prepared data is, if not where training found it.")

_BASELINES = flags.DEFINE_string("baselines", None, "JSON of simpler recommenders on the same dataset.")


def main():
  cli.require(_WORKDIR, "runs/beauty")
  output = cli.require(_OUTPUT, "runs/report")
  if len(set(_WORKDIR.value)) < len(_WORKDIR.value):
    raise InputError("A --workdir is given twice: give each run once.")
  terminal.say("Loading the program and the data …")
  from rastp_jax.evaluation import baselines, html_report, results
  from rastp_jax.evaluation.inspect_run import inspect_run
  from rastp_jax.training.workdir import Workdir

  evaluated = [results.load(Workdir(workdir).evaluation(_SPLIT.value), workdir) for workdir in _WORKDIR.value]
  logs = {workdir: Workdir(workdir).read_log() for workdir in _WORKDIR.value}
  simpler = baselines.read(_BASELINES.value, evaluated) if _BASELINES.value else None
  files.check_writable(files.check_path(output) / "index.html")
  page = html_report.write(
    output,
    evaluated,
    logs,
    lambda workdir: inspect_run(workdir, _SPLIT.value, _DATA_DIR.value),
    command=cli.command_line(),
    baselines=simpler,
  )
  print(f"{buckets.shown(page)}: open it in a browser")


if __name__ == "__main__":
  cli.run(main)
