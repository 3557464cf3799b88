"""Recommends items to the users of a file.

    python -m rastp_jax.recommend --workdir=runs/beauty --input=histories.jsonl --output=recs.jsonl -k 10

reads lines like {"user": "A1", "history": ["B004756YJA", "B004ZT0SSG"]}, item ids (the dataset's own, or ASINs) in time
order, and writes one line a user, in the same order: {"user": "A1", "recommendations": [{"item_id": …, "asin": …,
"title": …, "score": …}, …], "unknown_items": 0}. The score is the log-probability of the item as the user's next one.
Files that end with .gz are compressed. Items the catalogue lacks are left out and counted.

The users of the prepared dataset, each with the history before the held-out item, need no file:

    python -m rastp_jax.recommend --workdir=runs/beauty --split=test --output=recs.jsonl

The same from Python: rastp_jax/serving/recommender.py.
"""

from absl import flags

from rastp_jax import cli, loading
from rastp_jax.errors import InputError
from rastp_jax.serving import recommendation_files

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a training run; its best checkpoint is used.")
_INPUT = flags.DEFINE_string("input", None, "Histories, JSON lines, plain or .gz.")
_SPLIT = flags.DEFINE_enum(
  "split", None, ["test", "validation"], "Instead of --input: every user of the run's dataset, before that item."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the recommendations go, JSON lines, plain or .gz.")
_K = flags.DEFINE_integer("k", 10, "Recommendations a user.")
_EXCLUDE_HISTORY = flags.DEFINE_bool(
  "exclude_history", False, "Never recommend what is in the history; decoding takes more beams, so that k items remain."
)
_OVERRIDE = flags.DEFINE_multi_string(
  "override",
  [],
  f"SECTION.FIELD=VALUE that shall differ from the run's own settings, within {', '.join(loading.OVERRIDABLE)}, like "
  "eval.beam_width=50 or data.data_dir=DIR. May be given several times.",
)


def main():
  for flag, example in ((_WORKDIR, "runs/beauty"), (_OUTPUT, "recs.jsonl")):
    if not flag.value:
      raise InputError(f"--{flag.name} is missing: give it like --{flag.name}={example}.")
  if bool(_INPUT.value) == bool(_SPLIT.value):
    raise InputError("Give either --input=histories.jsonl or --split=test: the one says whose histories, or the other.")
  tally = recommendation_files.recommend_to_file(
    _WORKDIR.value,
    _OUTPUT.value,
    input_path=_INPUT.value,
    split=_SPLIT.value,
    k=_K.value,
    exclude_history=_EXCLUDE_HISTORY.value,
    overrides=_OVERRIDE.value,
  )
  print(f"{_OUTPUT.value}: {tally.describe()}")


if __name__ == "__main__":
  cli.run(main)
