"""Compares code sets of one dataset by their health, before any training: a table, and a JSON file.

python -m rastp_jax.compare_codes --config=configs/beauty.py --config.semantic_ids.embeddings=DIR/embeddings.npy \
  --learn=method=residual_kmeans --learn=method=rqvae,levels=4 --codes=DIR/their_codes.npy --output=codes.json
"""

from absl import flags

from rastp_jax.runtime import cli, files

_CONFIG = cli.define_config_flag()
flags.adopt_module_key_flags(cli)  # so that --help shows it
_LEARN = flags.DEFINE_multi_string(
  "learn", [], "Settings of config.semantic_ids to learn codes with, like method=rqvae,levels=4; give it several times."
)
_CODES = flags.DEFINE_multi_string("codes", [], "A file of codes, as for prepare --codes; give it several times.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for all metrics.")


def main() -> None:
  config = cli.load_config(_CONFIG.value)
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value, inputs=_CODES.value)
  from rastp_jax.data import prepared
  from rastp_jax.semantic_ids import code_sets

  dataset = prepared.open_prepared(config.data.data_dir, config.data.dataset)
  rows = code_sets.compare(config, dataset, _LEARN.value, _CODES.value)
  print(code_sets.table(rows))
  if _OUTPUT.value:
    result = {"command": cli.command_line(), "dataset": config.data.dataset, "code_sets": rows}
    files.write_json(_OUTPUT.value, result)


if __name__ == "__main__":
  cli.run(main)
