"""The semantic-ID table: every item's codes, their file, and the way back from codes to items."""

import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.runtime import files
from rastp_jax.semantic_ids import collisions

_FIELDS = ("codes", "widths", "provenance")
_LEARNED = "learned"  # in a file only where it is not the codes without their last level


def semantic_ids_path(config: Config) -> pathlib.Path:
  """Where `prepare` writes, and everybody else finds, the semantic IDs of the configured dataset."""
  return files.below(config.data.data_dir, "semantic_ids") / f"{config.data.dataset}.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIds:
  """All items' codes.

  Attributes:
    codes: int32 (n_items, depth); row = item; no two rows are equal.
    widths: codes per level, one number for each level.
    provenance: what made the codes (JSON values): dataset, dataset_fingerprint, created_by, method and whatever else
      determines them (semantic_ids/pipeline.py), under today's names of settings.
    learned: int32 (n_items, levels), the codes before collisions were resolved, which health is measured on. Either
      `codes` without a last level that tells equal learned codes apart (the default), or `codes` except for items that
      were moved to a free code of the last level.
  """

  codes: np.ndarray
  widths: tuple[int, ...]
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  learned: np.ndarray = cast(np.ndarray, None)  # filled in below where it is not given

  def __post_init__(self):
    if self.learned is None:
      object.__setattr__(self, "learned", self.codes[:, :-1])
    if math.prod(self.widths) >= 2**63:
      raise InputError(
        f"Semantic IDs of widths {self.widths} have more combinations than a 64-bit key can hold: use fewer levels or "
        "narrower ones (config.semantic_ids.levels, config.semantic_ids.codebook_size)."
      )

  @classmethod
  def from_learned(
    cls, learned: np.ndarray, widths: int | Sequence[int], provenance: Mapping[str, Any]
  ) -> "SemanticIds":
    """Builds the table from learned codes (n_items, levels), with one more level that tells equal ones apart.

    Args:
      learned: integer codes.
      widths: codes per level: one number for each level, or the same number for all.
      provenance: see `SemanticIds`.
    """
    codes = collisions.disambiguate(learned)
    each = [widths] * learned.shape[1] if isinstance(widths, int) else widths
    return cls(codes, (*each, int(codes[:, -1].max()) + 1), dict(provenance))

  @property
  def num_items(self) -> int:
    return self.codes.shape[0]

  @property
  def depth(self) -> int:
    """Codes per item, one that only tells collisions apart included."""
    return self.codes.shape[1]

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 over codes and widths: equal exactly when two tables map items to codes alike."""
    digest = hashlib.sha256(json.dumps([list(self.codes.shape), list(self.widths)]).encode())
    digest.update(np.ascontiguousarray(self.codes, "<i4").tobytes())
    return digest.hexdigest()

  def save(self, path: str | os.PathLike) -> None:
    """Writes one .npz, whole or not at all."""
    buffer = io.BytesIO()
    provenance = json.dumps(dict(self.provenance), sort_keys=True)
    arrays = {"codes": self.codes, "widths": np.asarray(self.widths, np.int64), "provenance": provenance}
    if not np.array_equal(self.learned, self.codes[:, :-1]):
      arrays[_LEARNED] = self.learned
    np.savez_compressed(buffer, **arrays)
    files.write_atomic(path, buffer.getvalue())


def load(
  path: str | os.PathLike,
  *,
  dataset: str | None = None,
  fingerprint: str | None = None,
  num_items: int | None = None,
) -> SemanticIds:
  """Reads and checks a file written by `SemanticIds.save`.

  Args:
    path: the .npz.
    dataset: name the codes must have been made for.
    fingerprint: fingerprint of the dataset they must have been made from.
    num_items: items they must cover.

  Raises:
    InputError: the file is missing, damaged, made for something else, or its codes are out of range or not unique.
  """
  path = files.check_path(path)
  if not path.exists():
    raise InputError(
      f"There are no semantic IDs at {path.absolute()}: make them by `python -m rastp_jax.prepare` with the same "
      "--config, or say by --config.data.data_dir=DIR, or --override=data.data_dir=DIR for a trained run, where they "
      "are."
    )
  try:
    with files.open_npz(path) as file:
      codes, widths, provenance = (file[name] for name in _FIELDS)
      learned = file[_LEARNED] if _LEARNED in file else codes[:, :-1]
    provenance = _with_current_names(files.parse_json(str(provenance)))
    widths = tuple(int(width) for width in widths)
  except Exception as error:  # zipfile, zlib, numpy and json each raise their own kinds on a torn file
    raise InputError(
      f"{path} cannot be read as semantic IDs ({type(error).__name__}: {error}): expected an .npz with "
      f"{', '.join(_FIELDS)}; remove it and run `python -m rastp_jax.prepare` again."
    ) from error
  _check_table(path, codes, widths, learned)
  if dataset is not None and provenance.get("dataset") != dataset:
    raise InputError(
      f"{path} holds semantic IDs of dataset {provenance.get('dataset')!r}, expected {dataset!r}: set "
      "config.data.dataset or config.data.data_dir so that they fit."
    )
  if fingerprint is not None and provenance.get("dataset_fingerprint") != fingerprint:
    raise InputError(
      f"{path} was made from another version of the prepared dataset (fingerprint "
      f"{str(provenance.get('dataset_fingerprint'))[:12]}, expected {fingerprint[:12]}): remove the file and run "
      "`python -m rastp_jax.prepare` again."
    )
  if num_items is not None and len(codes) != num_items:
    raise InputError(
      f"{path} covers {len(codes)} items, expected the dataset's {num_items}: remove the file and run "
      "`python -m rastp_jax.prepare` again."
    )
  return SemanticIds(codes.astype(np.int32), widths, provenance, learned.astype(np.int32))


def _with_current_names(provenance: Mapping[str, Any]) -> dict[str, Any]:
  """Provenance as a file records it, its settings under today's names."""
  own = f"semantic_ids.{provenance.get('method')}."
  current = {}
  for name, value in provenance.items():
    names = config_lib.current_names(f"semantic_ids.{name}")
    # Several methods have what was one setting; the file's method decides.
    current |= {now: value for now in names if len(names) == 1 or now.startswith(own)}
  return {name.removeprefix("semantic_ids."): value for name, value in current.items()}


def _check_table(path: pathlib.Path, codes: np.ndarray, widths: tuple[int, ...], learned: np.ndarray) -> None:
  """Raises InputError unless codes are (n_items >= 1, depth >= 1) integers within widths and unique."""
  remedy = (
    "the file was not written by this program or is damaged; remove it and run `python -m rastp_jax.prepare` again"
  )
  if codes.ndim != 2 or not codes.size or not np.issubdtype(codes.dtype, np.integer):
    raise InputError(f"{path} has codes of shape {codes.shape} and type {codes.dtype}, not a table of codes: {remedy}.")
  if len(widths) != codes.shape[1]:
    raise InputError(f"{path} has {codes.shape[1]} codes per item but widths for {len(widths)} levels: {remedy}.")
  if max(widths) > 2**31 - 1:
    raise InputError(f"{path} has a level with {max(widths)} codes, more than an int32 can tell apart: {remedy}.")
  outside = (codes < 0) | (codes >= np.asarray(widths))
  if outside.any():
    row, level = np.argwhere(outside)[0]
    raise InputError(
      f"{path} gives item {row} the code {codes[row, level]} at level {level}, expected 0 to {widths[level] - 1}: "
      f"{remedy}."
    )
  _, sizes, order, first = collisions.group_rows(codes)
  if sizes.max() > 1:
    one, other = order[first[sizes.argmax()] : first[sizes.argmax()] + 2]
    raise InputError(f"{path} gives items {one} and {other} the same codes {codes[one].tolist()}: {remedy}.")
  levels = learned.shape[1] if learned.ndim == 2 and np.issubdtype(learned.dtype, np.integer) else 0
  if not levels or len(learned) != len(codes) or levels not in (codes.shape[1], codes.shape[1] - 1):
    raise InputError(f"{path} has learned codes of shape {learned.shape} beside codes of {codes.shape}: {remedy}.")
  if ((learned < 0) | (learned >= np.asarray(widths[:levels]))).any():
    raise InputError(f"{path} has learned codes outside of the widths {widths}: {remedy}.")
