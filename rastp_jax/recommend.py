"""Recommends items to the users of a file.

    python -m rastp_jax.recommend --workdir=runs/beauty --input=histories.jsonl --output=recs.jsonl -k 10

reads lines like {"user": "A1", "history": ["B004756YJA", "B004ZT0SSG"]}, item ids (the dataset's own, or ASINs) in time
order, and writes one line per user, in the same order: {"user": "A1", "recommendations": [{"item_id": …, "asin": …,
"title": …, "score": …}, …], "unknown_items": 0}; under a name like recs.csv, one row per recommendation:
user,rank,item_id,asin,title,score. `asin` is there where the catalogue has ASINs. The score is the log-probability of
the item as the user's next one.
Files whose name ends with .gz are compressed. Items that are not in the catalogue are left out and counted. With
--output=- the lines go to stdout, and with a device or a FIFO through it.

The users of the prepared dataset need no file: all of them with their whole history (with data.split=time, up to the
first interaction after data.time_cut), or each with the history before the held-out item:

    python -m rastp_jax.recommend --workdir=runs/beauty --users=all --output=recs.csv
    python -m rastp_jax.recommend --workdir=runs/beauty --split=test --output=recs.jsonl

Many users are answered in shards, recs-00000-of-00064.jsonl and so on, each written once it is complete: the same
command goes on with those that are missing. Several processes, started alike (docs/scaling.md), share them.

    python -m rastp_jax.recommend --workdir=runs/beauty --split=test --output=recs.jsonl --shards=64
    cat recs-*-of-00064.jsonl > recs.jsonl

The same from Python: rastp_jax/serving/recommender.py.
"""

import sys

from absl import flags

from rastp_jax.errors import InputError
from rastp_jax.runtime import cli, files

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a training run; its best checkpoint is used.")
_INPUT = flags.DEFINE_string("input", None, "Histories, JSON lines, plain or .gz.")
_SPLIT = flags.DEFINE_enum(
  "split",
  None,
  ["test", "validation"],
  "Instead of --input: all users of the run's dataset, each before that held-out item.",
)
_USERS = flags.DEFINE_enum(
  "users",
  None,
  ["all"],
  "Instead of --input: all users of the run's dataset, each with the whole history; with data.split=time, up to the "
  "first interaction after data.time_cut.",
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "File for the recommendations, JSON lines or .csv, plain or .gz; - is stdout."
)
_K = flags.DEFINE_integer("k", 10, "Recommendations per user; at most all items.")
_EXCLUDE_HISTORY = flags.DEFINE_bool(
  "exclude_history",
  None,
  "Never recommend an item of the history; decoding keeps more beams, so that k items remain. Default: as the run's "
  "eval.exclude_history.",
)
_SHARDS = flags.DEFINE_integer(
  "shards",
  None,
  "Files that the output is divided into, in the order of the users. Default: one, or one per process.",
)
cli.define_host_flags()
_OVERRIDE = cli.define_override_flag("like eval.beam_width=50 or data.data_dir=DIR")
flags.adopt_module_key_flags(cli)  # so that --help shows them


def main():
  workdir, output = cli.require(_WORKDIR, "runs/beauty"), cli.require(_OUTPUT, "recs.jsonl")
  if sum(map(bool, (_INPUT.value, _SPLIT.value, _USERS.value))) != 1:
    raise InputError(
      "Give one of --input=histories.jsonl, --users=all and --split=test: it says whose histories to use."
    )
  from rastp_jax.serving import recommendation_files

  summary = recommendation_files.recommend_to_file(
    workdir,
    output,
    input_path=_INPUT.value,
    split=_SPLIT.value or _USERS.value or "test",
    k=_K.value,
    exclude_history=_EXCLUDE_HISTORY.value,
    overrides=_OVERRIDE.value,
    shards=_SHARDS.value,
  )
  # Where the recommendations go to stdout, it holds nothing else.
  print(f"{output}: {summary.describe()}", file=sys.stderr if files.is_stdout(output) else sys.stdout)


if __name__ == "__main__":
  cli.run(main)
