"""Random codes: the control that every learned method must beat."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np

from rastp_jax.config import SemanticIdsConfig
from rastp_jax.semantic_ids.quantizers.base import Quantizer


@dataclasses.dataclass(frozen=True)
class RandomCodes(Quantizer):
  """Independent uniform codes; the embeddings are ignored."""

  levels: int
  width: int
  seed: int
  method = "random"
  summary = "independent uniform codes: the control"

  @classmethod
  def fit(cls, embeddings: np.ndarray, settings: SemanticIdsConfig) -> Self:
    return cls(settings.levels, settings.codebook_size, settings.seed)

  @property
  def widths(self) -> tuple[int, ...]:
    return (self.width,) * self.levels

  def encode(self, embeddings: np.ndarray) -> np.ndarray:
    """The k-th vector's codes depend on the seed and k alone."""
    return np.random.default_rng(self.seed).integers(0, self.width, (len(embeddings), self.levels), np.int32)

  def last_costs(self, embeddings: np.ndarray) -> np.ndarray:
    return np.random.default_rng([self.seed, 1]).random((len(embeddings), self.width), np.float32)

  def squared_errors(self, embeddings: np.ndarray) -> None:
    return None

  def arrays(self) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in dataclasses.asdict(self).items()}

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
    return cls(*(int(arrays[field.name]) for field in dataclasses.fields(cls)))
