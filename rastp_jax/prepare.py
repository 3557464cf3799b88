"""Prepares a dataset for training: histories and items as TFDS tables, and the items' semantic IDs.

python -m rastp_jax.prepare --config=configs/beauty.py                   # downloads the published files
python -m rastp_jax.prepare --config=configs/beauty.py --raw_dir=DIR     # or takes them from a directory
python -m rastp_jax.prepare --config=configs/own.py --raw_dir=DIR        # your own data: docs/your_data.md
"""

from absl import flags

from rastp_jax.runtime import buckets, cli

_CONFIG = cli.define_config_flag()
flags.adopt_module_key_flags(cli)  # so that --help shows it
_RAW_DIR = flags.DEFINE_string(
  "raw_dir",
  None,
  "Directory of raw files: your own interactions.csv, .jsonl or .parquet, files of Amazon 2014, 2018 or 2023, of "
  "MovieLens or RecBole, or sequences.txt and items.jsonl (docs/your_data.md). Without it, beauty, sports and toys are "
  "downloaded, if not prepared yet.",
)
_CODES = flags.DEFINE_string(
  "codes",
  None,
  "Your own semantic IDs instead of learned ones: .npy (items x levels or levels x items), LETTER-style index.json, "
  "or an .npz of this program (docs/semantic_ids.md).",
)
_BEAM_OPTIONS = flags.DEFINE_list(
  "beam_options",
  None,
  "Has the workers of an Apache Beam pipeline write the histories, like runner=DirectRunner,direct_num_workers=4 "
  "(docs/scaling.md).",
)


def main() -> None:
  config = cli.load_config(_CONFIG.value)
  from rastp_jax.semantic_ids.preparation import prepare

  print(buckets.shown(prepare(config, _RAW_DIR.value, _CODES.value, _BEAM_OPTIONS.value).describe()))


if __name__ == "__main__":
  cli.run(main)
