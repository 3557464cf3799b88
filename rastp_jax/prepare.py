"""Makes a dataset ready to train on: reviews and items as TFDS tables, and the items' semantic IDs.

python -m rastp_jax.prepare --config=configs/beauty.py                   # downloads the published files
python -m rastp_jax.prepare --config=configs/beauty.py --raw_dir=DIR     # or takes them from a directory
python -m rastp_jax.prepare --config=configs/own.py --raw_dir=DIR        # your own data: docs/your_data.md
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from rastp_jax import cli
from rastp_jax.config import Config
from rastp_jax.data import raw
from rastp_jax.data.amazon_reviews import Prepared
from rastp_jax.data.sources import Source
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import codes, embeddings, residual_kmeans
from rastp_jax.semantic_ids.codes import SemanticIds

_CONFIG = cli.define_config_flag()
flags.adopt_module_key_flags(cli)  # so that --help shows it
_RAW_DIR = flags.DEFINE_string(
  "raw_dir",
  None,
  "Directory of raw files: sequences.txt and items.jsonl, or reviews_CATEGORY_5.json and meta_CATEGORY.json, or "
  "interactions.csv, .jsonl or .parquet (docs/your_data.md). Without it, beauty, sports and toys are downloaded, if "
  "not prepared yet.",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What `prepare` left on disk.

  Attributes:
    dataset: the two prepared tables.
    semantic_ids: the codes.
    semantic_ids_path: their file.
    reused_semantic_ids: True when that file was there already.
  """

  dataset: Prepared
  semantic_ids: SemanticIds
  semantic_ids_path: pathlib.Path
  reused_semantic_ids: bool

  def describe(self) -> str:
    """Counts, health of the codes, and what lies where."""
    found, made = "found", "wrote"
    d = self.dataset
    return "\n".join(
      [
        d.describe(),
        self.semantic_ids.describe(),
        f"{found if d.reused else made} {d.histories_dir}",
        f"{found if d.reused else made} {d.items_dir}",
        f"{found if self.reused_semantic_ids else made} {self.semantic_ids_path}",
      ]
    )


def prepare(config: Config, raw_dir: str | None = None) -> Outcome:
  """Prepares the configured dataset and its semantic IDs under config.data.data_dir, or finds them there.

  Args:
    config: `data` and `semantic_ids` matter.
    raw_dir: directory of the raw files; without one, everything must be there already, be downloaded or be synthetic.

  Raises:
    InputError: the raw files are damaged or not this dataset's, or what is there was made from other files or with
      other settings. Nothing is overwritten.
  """
  name = config.data.dataset
  path = codes.semantic_ids_path(config)
  dataset, source = raw.prepare_dataset(config.data, raw_dir, needs_source=not path.exists())
  vectors = None if source is None else source.embeddings(dataset.num_items)
  if path.exists():
    ids = codes.load(path, dataset=name, fingerprint=dataset.fingerprint, num_items=dataset.num_items)
    _check_same(path, ids.provenance, _provenance(config, dataset, source, vectors))
    return Outcome(dataset, ids, path, reused_semantic_ids=True)
  if source is None:
    raise InputError(
      f"There are no semantic IDs at {path} yet: give --raw_dir, the directory {name!r} was prepared from."
    )
  provenance = _provenance(config, dataset, source, vectors)
  if vectors is None:
    texts = [embeddings.item_text(item) for item in dataset.items()]
    vectors = embeddings.tfidf_svd(texts, config.semantic_ids.text_dims, config.semantic_ids.seed)
  s = config.semantic_ids
  learned = residual_kmeans.encode(residual_kmeans.fit(vectors, s.levels, s.width, s.seed), vectors)
  ids = SemanticIds.from_learned(learned, s.width, provenance)
  ids.save(path)
  return Outcome(dataset, ids, path, reused_semantic_ids=False)


def _provenance(config: Config, dataset: Prepared, source: Source | None, vectors: np.ndarray | None) -> dict[str, Any]:
  """What determines the codes; without a source, what is known of it."""
  s = config.semantic_ids
  known = {
    "method": "residual_kmeans",
    "seed": s.seed,
    "levels": s.levels,
    "width": s.width,
    "dataset": config.data.dataset,
    "dataset_fingerprint": dataset.fingerprint,
    "created_by": "rastp_jax.prepare",
  }
  if source is None:
    return known
  if vectors is None:  # made from the text, which the dataset's fingerprint covers
    return {**known, "embeddings": f"tfidf_svd of {s.text_dims} dimensions", "embeddings_sha256": dataset.fingerprint}
  digest = hashlib.sha256(np.ascontiguousarray(vectors, "<f4").tobytes()).hexdigest()
  return {**known, "embeddings": "embeddings of the source", "embeddings_sha256": digest}


def _check_same(path: pathlib.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  for name, value in wanted.items():
    if stored.get(name) != value:
      raise InputError(
        f"{path} was made with {name}={stored.get(name)!r}, but now {name}={value!r} is asked for: remove the file to "
        "make the codes again, or choose another config.data.data_dir."
      )


def main() -> None:
  print(prepare(cli.load_config(_CONFIG.value), _RAW_DIR.value).describe())


if __name__ == "__main__":
  cli.run(main)
