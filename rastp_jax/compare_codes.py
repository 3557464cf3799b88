"""Compares code sets of one dataset by their health, before any training: a table, and a JSON file.

python -m rastp_jax.compare_codes --config=configs/beauty.py --config.semantic_ids.embeddings=DIR/embeddings.npy \
  --learn=method=residual_kmeans --learn=method=rqvae,levels=4 --codes=DIR/their_codes.npy --output=codes.json
"""

import sys

from absl import flags

from rastp_jax import cli, files, loading
from rastp_jax.data import amazon_reviews
from rastp_jax.semantic_ids import comparing

_CONFIG = cli.define_config_flag()
flags.adopt_module_key_flags(cli)  # so that --help shows it
_LEARN = flags.DEFINE_multi_string(
  "learn", [], "Settings of config.semantic_ids to learn codes with, like method=rqvae,levels=4; give it several times."
)
_CODES = flags.DEFINE_multi_string("codes", [], "A file of codes, as for prepare --codes; give it several times.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for all figures.")


def main() -> None:
  config = cli.load_config(_CONFIG.value)
  dataset = amazon_reviews.open_prepared(config.data.data_dir, config.data.dataset)
  rows = comparing.compare(config, loading.catalogue(config, dataset), _LEARN.value, _CODES.value)
  print(comparing.table(rows))
  if _OUTPUT.value:
    command = " ".join(["python -m rastp_jax.compare_codes", *sys.argv[1:]])
    files.write_json(_OUTPUT.value, {"command": command, "dataset": config.data.dataset, "code_sets": rows})


if __name__ == "__main__":
  cli.run(main)
