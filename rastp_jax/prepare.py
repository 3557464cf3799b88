"""Prepares a dataset for training: histories and items as TFDS tables, and the items' semantic IDs.

python -m rastp_jax.prepare --config=configs/beauty.py                   # downloads the published files
python -m rastp_jax.prepare --config=configs/beauty.py --raw_dir=DIR     # or takes them from a directory
python -m rastp_jax.prepare --config=configs/own.py --raw_dir=DIR        # your own data: docs/your_data.md
"""

import dataclasses

from absl import flags

from rastp_jax.config import Config
from rastp_jax.data.prepared import Prepared
from rastp_jax.data.sources import detect
from rastp_jax.runtime import buckets, cli
from rastp_jax.semantic_ids import codes as codes_lib
from rastp_jax.semantic_ids import health, pipeline
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.pipeline import CodesOnDisk

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


@dataclasses.dataclass(frozen=True)
class PreparedRun:
  """What `prepare` left on disk.

  Attributes:
    dataset: the two prepared tables.
    codes: the semantic IDs, their health and their files.
  """

  dataset: Prepared
  codes: CodesOnDisk

  @property
  def semantic_ids(self) -> SemanticIds:
    return self.codes.semantic_ids

  def _how_codes_were_made(self) -> list[str]:
    lines = list(self.codes.metrics.get("notes", ()))
    provenance = self.semantic_ids.provenance
    if provenance.get("embeddings") == pipeline.WITHOUT_TEXT and provenance["method"] != "random":
      lines.append(
        "no item has a text: codes are made from what users take together (as with semantic_ids.collaborative_weight=1)"
      )
    return lines

  def describe(self) -> str:
    """Counts, health of the codes, and the files."""
    dataset = "found" if self.dataset.reused else "wrote"
    codes = "found" if self.codes.reused else "wrote"
    return "\n".join(
      [
        self.dataset.describe(),
        *self._how_codes_were_made(),
        health.describe(self.codes.metrics),
        f"{dataset} {self.dataset.histories_dir}",
        f"{dataset} {self.dataset.items_dir}",
        f"{codes} {self.codes.path}",
        f"{codes} {pipeline.beside(self.codes.path, 'health.png')}",
      ]
    )


def prepare(config: Config, raw_dir: str | None = None, codes_file: str | None = None) -> PreparedRun:
  """Prepares the configured dataset and its semantic IDs under config.data.data_dir, or finds them there.

  Args:
    config: `data` and `semantic_ids` matter.
    raw_dir: directory of the raw files; without one, everything must be there already, be downloaded or be synthetic.
    codes_file: the user's own semantic IDs, used instead of learned ones.

  Raises:
    InputError: the raw files are damaged or not this dataset's, or what is there was made from other files or with
      other settings. Nothing is overwritten.
  """
  pipeline.check(config, codes_file)
  has_codes = codes_lib.semantic_ids_path(config).exists()
  dataset, source = detect.prepare_dataset(config.data, raw_dir, needs_source=not has_codes)
  return PreparedRun(dataset, pipeline.learn_or_load(config, dataset, source, codes_file))


def main() -> None:
  print(buckets.shown(prepare(cli.load_config(_CONFIG.value), _RAW_DIR.value, _CODES.value).describe()))


if __name__ == "__main__":
  cli.run(main)
