"""Makes a dataset ready to train on: reviews and items as TFDS tables, and the items' semantic IDs.

python -m rastp_jax.prepare --config=configs/beauty.py                   # downloads the published files
python -m rastp_jax.prepare --config=configs/beauty.py --raw_dir=DIR     # or takes them from a directory
python -m rastp_jax.prepare --config=configs/own.py --raw_dir=DIR        # your own data: docs/your_data.md
"""

import dataclasses

from absl import flags

from rastp_jax import cli, loading
from rastp_jax.config import Config
from rastp_jax.data import raw
from rastp_jax.data.amazon_reviews import Prepared
from rastp_jax.semantic_ids import codes, health, making
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.making import Made

_CONFIG = cli.define_config_flag()
flags.adopt_module_key_flags(cli)  # so that --help shows it
_RAW_DIR = flags.DEFINE_string(
  "raw_dir",
  None,
  "Directory of raw files: sequences.txt and items.jsonl, or reviews_CATEGORY_5.json and meta_CATEGORY.json, or "
  "interactions.csv, .jsonl or .parquet (docs/your_data.md). Without it, beauty, sports and toys are downloaded, if "
  "not prepared yet.",
)
_CODES = flags.DEFINE_string(
  "codes",
  None,
  "Semantic IDs of your own instead of learned ones: .npy (items x levels or levels x items), LETTER-style index.json, "
  "or an .npz of this program (docs/semantic_ids.md).",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What `prepare` left on disk.

  Attributes:
    dataset: the two prepared tables.
    made: the codes, their health and their files.
  """

  dataset: Prepared
  made: Made

  @property
  def semantic_ids(self) -> SemanticIds:
    return self.made.semantic_ids

  def describe(self) -> str:
    """Counts, health of the codes, and what lies where."""
    found, made = "found", "wrote"
    d = self.dataset
    return "\n".join(
      [
        d.describe(),
        health.describe(self.made.figures),
        f"{found if d.reused else made} {d.histories_dir}",
        f"{found if d.reused else made} {d.items_dir}",
        f"{found if self.made.reused else made} {self.made.path}",
        f"{found if self.made.reused else made} {making.beside(self.made.path, 'health.png')}",
      ]
    )


def prepare(config: Config, raw_dir: str | None = None, codes_file: str | None = None) -> Outcome:
  """Prepares the configured dataset and its semantic IDs under config.data.data_dir, or finds them there.

  Args:
    config: `data` and `semantic_ids` matter.
    raw_dir: directory of the raw files; without one, everything must be there already, be downloaded or be synthetic.
    codes_file: semantic IDs of the user's own, used instead of learned ones.

  Raises:
    InputError: the raw files are damaged or not this dataset's, or what is there was made from other files or with
      other settings. Nothing is overwritten.
  """
  making.check(config, codes_file)
  has_codes = codes.semantic_ids_path(config).exists()
  dataset, source = raw.prepare_dataset(config.data, raw_dir, needs_source=not has_codes)
  made = making.make_or_find(config, loading.catalogue(config, dataset, source), codes_file)
  return Outcome(dataset, made)


def main() -> None:
  print(prepare(cli.load_config(_CONFIG.value), _RAW_DIR.value, _CODES.value).describe())


if __name__ == "__main__":
  cli.run(main)
