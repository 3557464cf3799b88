"""Everything that comes before training: the prepared dataset and its semantic IDs."""

import dataclasses
from collections.abc import Sequence

from rastp_jax.config import Config
from rastp_jax.data.prepared import Prepared
from rastp_jax.data.sources import detect
from rastp_jax.semantic_ids import codes as codes_lib
from rastp_jax.semantic_ids import health, pipeline
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.pipeline import CodesOnDisk


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


def prepare(
  config: Config,
  raw_dir: str | None = None,
  codes_file: str | None = None,
  beam_options: Sequence[str] | None = None,
) -> PreparedRun:
  """Prepares the configured dataset and its semantic IDs under config.data.data_dir, or finds them there.

  Args:
    config: `data` and `semantic_ids` matter.
    raw_dir: directory of the raw files; without one, everything must be there already, be downloaded or be synthetic.
    codes_file: the user's own semantic IDs, used instead of learned ones.
    beam_options: see `data.preparation.prepare`.

  Raises:
    InputError: the raw files are damaged or not this dataset's, or what is there was made from other files or with
      other settings. Nothing is overwritten.
  """
  pipeline.check(config, codes_file)
  has_codes = codes_lib.semantic_ids_path(config).exists()
  dataset, source = detect.prepare_dataset(config.data, raw_dir, needs_source=not has_codes, beam_options=beam_options)
  return PreparedRun(dataset, pipeline.learn_or_load(config, dataset, source, codes_file))
