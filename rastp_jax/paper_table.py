"""The paper's table from raw data: Beauty, Sports, Toys, each dense and pruned, three seeds, beside published numbers.

    python -m rastp_jax.paper_table --raw_dir=DIR

DIR holds beauty/, sports/ and toys/, each with sequences.txt(.gz), items.jsonl(.gz) and perhaps embeddings.npy. The
same command again goes on where it stopped: finished runs are skipped, an interrupted one is resumed. --dry_run only
prints the commands. The models are paper-sized, for a machine with an accelerator; `experiment quality` is for CPUs.
"""

from absl import flags

from rastp_jax.experiments import paper_table
from rastp_jax.experiments.commands import run_command
from rastp_jax.runtime import cli

_DEFAULTS = paper_table.TableRuns()
_RAW_DIR = flags.DEFINE_string(
  "raw_dir", "", "Directory that holds beauty/, sports/ and toys/; not needed where they are prepared already."
)
_DATA_DIR = flags.DEFINE_string("data_dir", _DEFAULTS.data_dir, "Directory for the prepared data.")
_RUNS_DIR = flags.DEFINE_string("runs_dir", _DEFAULTS.runs_dir, "Directory for the training runs.")
_OUTPUT = flags.DEFINE_string("output", "docs/results", "Directory for the table, as .json and .md.")
_DATASETS = flags.DEFINE_list("datasets", list(_DEFAULTS.datasets), "In this order.")
_LENGTH = flags.DEFINE_string("length", "", 'Length of every training, like "20 epochs", in place of the usual one.')
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print every command and run none.")


def main():
  runs = paper_table.TableRuns(_RAW_DIR.value, _DATA_DIR.value, _RUNS_DIR.value, tuple(_DATASETS.value), _LENGTH.value)
  if _DRY_RUN.value:
    print(paper_table.dry_run(runs))
    return
  for path in paper_table.execute(runs, _OUTPUT.value, run_command):
    print(f"wrote {path}")


if __name__ == "__main__":
  cli.run(main)
