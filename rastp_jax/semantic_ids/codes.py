"""The semantic-ID table: every item's codes, their file, their health, and the way back from codes to items."""

import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rastp_jax import files
from rastp_jax.config import Config
from rastp_jax.errors import InputError

# Below this normalised entropy, or above this share of items in collisions, codes tell items apart so badly that
# training on them is a waste of time. Healthy residual k-means on text embeddings shows above 0.9 and below 0.3.
COLLAPSED_ENTROPY = 0.5
COLLAPSED_COLLISIONS = 0.5

_FIELDS = ("codes", "widths", "provenance")


def semantic_ids_path(config: Config) -> pathlib.Path:
  """Where `prepare` writes, and everybody else finds, the semantic IDs of the configured dataset."""
  return pathlib.Path(config.data.data_dir) / "semantic_ids" / f"{config.data.dataset}.npz"


def disambiguate(learned: np.ndarray) -> np.ndarray:
  """Appends the code that tells items with equal learned codes apart.

  It is 0 where the learned codes are unique, else 1, 2, … in item order (the published rule).

  Args:
    learned: (n_items, levels) integer codes.

  Returns:
    int32 (n_items, levels + 1).
  """
  group, sizes, order, first = _groups(learned)
  last = np.zeros(len(learned), np.int32)
  # The sort is stable, so the rank inside a group follows item order.
  rank = np.arange(len(learned)) - np.repeat(first, sizes)
  last[order] = rank + 1
  last[sizes[group] == 1] = 0
  return np.concatenate([learned.astype(np.int32), last[:, None]], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIds:
  """All items' codes.

  Attributes:
    codes: int32 (n_items, depth); row = item. The last level is the one that tells equal learned codes apart.
    widths: codes a level, one value a level; the last is the largest disambiguation code + 1.
    provenance: what made the codes (JSON values): method, seed, levels, width, dataset, dataset_fingerprint,
      embeddings (their source), embeddings_sha256, created_by.
  """

  codes: np.ndarray
  widths: tuple[int, ...]
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if math.prod(self.widths) >= 2**63:
      raise InputError(
        f"Semantic IDs of widths {self.widths} have more combinations than a 64-bit key can hold: use fewer levels or "
        "narrower ones (config.semantic_ids.levels, config.semantic_ids.width)."
      )

  @classmethod
  def from_learned(cls, learned: np.ndarray, width: int, provenance: Mapping[str, Any]) -> "SemanticIds":
    """Builds the table from learned codes (n_items, levels), each below `width`, by `disambiguate`."""
    codes = disambiguate(learned)
    return cls(codes, (width,) * learned.shape[1] + (int(codes[:, -1].max()) + 1,), dict(provenance))

  @property
  def num_items(self) -> int:
    return self.codes.shape[0]

  @property
  def depth(self) -> int:
    """Codes an item, the disambiguation code included."""
    return self.codes.shape[1]

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 over codes and widths: equal exactly when two tables map items to codes alike."""
    digest = hashlib.sha256(json.dumps([list(self.codes.shape), list(self.widths)]).encode())
    digest.update(np.ascontiguousarray(self.codes, "<i4").tobytes())
    return digest.hexdigest()

  @functools.cached_property
  def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
    keys = self._keys(self.codes)
    order = np.argsort(keys, kind="stable")
    return keys[order], order

  def _keys(self, codes: np.ndarray) -> np.ndarray:
    keys = np.zeros(codes.shape[:-1], np.int64)
    for level, width in enumerate(self.widths):
      keys = keys * width + codes[..., level]
    return keys

  def items_of(self, codes: np.ndarray) -> np.ndarray:
    """Finds the items that codes stand for.

    Args:
      codes: integers (..., depth); any value may occur.

    Returns:
      int32 (...): item rows, -1 where the codes are no item's.
    """
    codes = np.asarray(codes, np.int64)
    valid = ((codes >= 0) & (codes < np.asarray(self.widths))).all(-1)
    keys = self._keys(np.where(valid[..., None], codes, 0))
    known, order = self._lookup
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(valid & (known[place] == keys), order[place], -1).astype(np.int32)

  def health(self) -> dict[str, Any]:
    """Figures that show whether the learned codes tell items apart.

    Returns:
      items; colliding_items (items sharing all learned codes with another), colliding_percent, largest_group (items
      with equal learned codes; 1 without collisions); codes_in_use and entropy, one value a learned level (entropy of
      the code frequencies over its largest possible value, 0 to 1); collapsed.
    """
    learned = self.codes[:, :-1]
    _, sizes, _, _ = _groups(learned)
    colliding = int(sizes[sizes > 1].sum())
    in_use, entropy = [], []
    for level, width in enumerate(self.widths[:-1]):
      counts = np.bincount(learned[:, level], minlength=width)
      share = counts[counts > 0] / self.num_items
      in_use.append(int((counts > 0).sum()))
      entropy.append(float(-(share * np.log(share)).sum() / max(math.log(min(width, self.num_items)), 1e-9)))
    return {
      "items": self.num_items,
      "colliding_items": colliding,
      "colliding_percent": 100.0 * colliding / self.num_items,
      "largest_group": int(sizes.max()),
      "codes_in_use": in_use,
      "entropy": entropy,
      "collapsed": min(entropy) < COLLAPSED_ENTROPY or colliding > COLLAPSED_COLLISIONS * self.num_items,
    }

  def describe(self) -> str:
    """The health figures as a short text table, with a plain verdict."""
    health = self.health()
    lines = [
      f"{health['items']} items, {self.depth} codes each: {health['colliding_items']} "
      f"({health['colliding_percent']:.1f} %) share their learned codes with another item, largest group "
      f"{health['largest_group']}",
      "level   width   codes in use   entropy (1 = all codes equally often)",
    ]
    for level, (width, used, entropy) in enumerate(
      zip(self.widths, health["codes_in_use"], health["entropy"], strict=False)
    ):
      lines.append(f"{level:5d}   {width:5d}   {used:12d}   {entropy:.3f}")
    lines.append(f"{self.depth - 1:5d}   {self.widths[-1]:5d}   (tells equal learned codes apart)")
    if health["collapsed"]:
      lines.append(
        "These codes have COLLAPSED: too many items share codes for a model to learn from them. Look at the embeddings "
        "(are rows equal or nearly so?), or make them again with another semantic_ids.width, levels or seed."
      )
    return "\n".join(lines)

  def save(self, path: str | os.PathLike) -> None:
    """Writes one .npz, whole or not at all."""
    buffer = io.BytesIO()
    provenance = json.dumps(dict(self.provenance), sort_keys=True)
    np.savez_compressed(buffer, codes=self.codes, widths=np.asarray(self.widths, np.int64), provenance=provenance)
    files.write_whole(path, buffer.getvalue())


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
    InputError: the file is missing, torn, made for something else, or its codes are out of range or not unique.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise InputError(
      f"There are no semantic IDs at {path}: make them by `python -m rastp_jax.prepare` with the same --config, or "
      "point "
      "config.data.data_dir to where they are."
    )
  try:
    with np.load(path, allow_pickle=False) as file:
      codes, widths, provenance = (file[name] for name in _FIELDS)
    provenance = json.loads(str(provenance))
    widths = tuple(int(width) for width in widths)
  except Exception as error:  # zipfile, zlib, numpy and json each raise their own kinds on a torn file
    raise InputError(
      f"{path} cannot be read as semantic IDs ({type(error).__name__}: {error}): expected an .npz with "
      f"{', '.join(_FIELDS)}; remove it and run `python -m rastp_jax.prepare` again."
    ) from error
  _check_table(path, codes, widths)
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
  return SemanticIds(codes.astype(np.int32), widths, provenance)


def _check_table(path: pathlib.Path, codes: np.ndarray, widths: tuple[int, ...]) -> None:
  """Raises InputError unless codes are (n_items >= 1, depth >= 2) integers within widths and unique."""
  remedy = (
    "the file was not written by this program or is damaged; remove it and run `python -m rastp_jax.prepare` again"
  )
  if codes.ndim != 2 or not len(codes) or codes.shape[1] < 2 or not np.issubdtype(codes.dtype, np.integer):
    raise InputError(f"{path} has codes of shape {codes.shape} and type {codes.dtype}, not a table of codes: {remedy}.")
  if len(widths) != codes.shape[1]:
    raise InputError(f"{path} has {codes.shape[1]} codes an item but widths for {len(widths)} levels: {remedy}.")
  outside = (codes < 0) | (codes >= np.asarray(widths))
  if outside.any():
    row, level = np.argwhere(outside)[0]
    raise InputError(
      f"{path} gives item {row} the code {codes[row, level]} at level {level}, expected 0 to {widths[level] - 1}: "
      f"{remedy}."
    )
  _, sizes, order, first = _groups(codes)
  if sizes.max() > 1:
    one, other = order[first[sizes.argmax()] : first[sizes.argmax()] + 2]
    raise InputError(f"{path} gives items {one} and {other} the same codes {codes[one].tolist()}: {remedy}.")


def _groups(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Groups equal rows: each row's group, group sizes, rows sorted by group (stable), each group's start there."""
  _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
  group = group.reshape(-1)  # numpy 2.0 keeps a trailing axis here
  return group, sizes, np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes
