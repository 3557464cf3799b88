"""The interface of all methods of learning codes: fit, encode, save, load."""

import abc
import io
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from rastp_jax.config import SemanticIdsConfig
from rastp_jax.errors import InputError
from rastp_jax.runtime import files, sharding

# Rows on a device at a time: bounds its memory at _BATCH x (features + width) floats for any number of items.
_BATCH = 4096


class Quantizer(abc.ABC):
  """Turns vectors into `levels` codes each. A new method is one subclass and one line in `registry.py`.

  Attributes:
    method: the name in config.semantic_ids.method.
    summary: one sentence about it.
    options: its own settings, a dataclass of `config.setting`s that `settings.of(options)` gives; None without any. The
      codes' file records their values.
  """

  method: ClassVar[str]
  summary: ClassVar[str]
  options: ClassVar[type | None] = None

  @classmethod
  @abc.abstractmethod
  def fit(cls, embeddings: np.ndarray, settings: SemanticIdsConfig) -> Self:
    """Learns codebooks; the same arguments on the same hardware give the same ones.

    Args:
      embeddings: (n_items, features) floats of any type; may be a memory map, of which only parts are read at a time.
      settings: levels, codebook_size, seed, and the method's own options.
    """

  @property
  @abc.abstractmethod
  def widths(self) -> tuple[int, ...]:
    """Codes per level, one number for each level; the levels may differ."""

  @abc.abstractmethod
  def encode(self, embeddings: np.ndarray) -> np.ndarray:
    """Codes of (n, features) floats, also of items that `fit` never saw: int32 (n, levels), below `widths`."""

  @abc.abstractmethod
  def last_costs(self, embeddings: np.ndarray) -> np.ndarray:
    """The cost of each code of the last level for each vector, given its earlier codes: float32 (n, widths[-1])."""

  @abc.abstractmethod
  def squared_errors(self, embeddings: np.ndarray) -> np.ndarray | None:
    """Squared distance of each vector to its reconstruction from the first 1, 2, … codes: float32 (n, levels).

    None for methods that reconstruct nothing.
    """

  @abc.abstractmethod
  def arrays(self) -> dict[str, np.ndarray]:
    """Everything that `from_arrays` needs."""

  @classmethod
  @abc.abstractmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
    """Rebuilds the quantizer from `arrays`."""

  def save(self, path: str | os.PathLike) -> None:
    """Writes one .npz, whole or not at all; `registry.load` reads it."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"method": np.array(self.method), **self.arrays()}
    np.savez(buffer, **arrays)
    files.write_atomic(path, buffer.getvalue())


def check_features(embeddings: np.ndarray, features: int) -> None:
  """Raises InputError unless these are (n, features) vectors, which codebooks were learned from."""
  if np.ndim(embeddings) != 2 or np.shape(embeddings)[1] != features:
    raise InputError(
      f"Vectors of shape {np.shape(embeddings)} cannot be encoded: the codebooks were learned from vectors of "
      f"{features} features, so that (items, {features}) is expected; embed the items as those of the catalogue were "
      "(docs/semantic_ids.md)."
    )


def in_batches(function: Callable[[jax.Array], jax.Array], embeddings: np.ndarray) -> np.ndarray:
  """Applies a row-wise function to float32 batches of one static shape and puts the results end to end on the host.

  This process's devices share each batch's rows.
  """
  mesh = sharding.make_mesh(devices=jax.local_devices())
  devices = mesh.shape["data"]
  rows = max(len(embeddings), 1)  # of no vectors there is a batch, too, of padding
  size = min(_BATCH * devices, sharding.round_up(rows, devices))
  results = []
  for start in range(0, rows, size):
    batch = np.asarray(embeddings[start : start + size], np.float32)
    padded = np.pad(batch, ((0, size - len(batch)), (0, 0)))
    results.append(np.asarray(function(sharding.place_rows(padded, mesh)))[: len(batch)])
  return np.concatenate(results)


def sample(embeddings: np.ndarray, most: int, seed: int) -> np.ndarray:
  """At most `most` rows, drawn without replacement and in their order: float32 (min(n, most), features)."""
  if len(embeddings) <= most:
    return np.asarray(embeddings, np.float32)
  rows = np.sort(np.random.default_rng(seed).choice(len(embeddings), most, replace=False))
  return np.asarray(embeddings[rows], np.float32)
