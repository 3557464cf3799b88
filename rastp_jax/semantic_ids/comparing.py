"""Several code sets of one dataset, side by side."""

import ast
import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import making
from rastp_jax.semantic_ids.making import Catalogue, Inputs


def compare(
  config: Config, catalogue: Catalogue, learn: Sequence[str], code_files: Sequence[str]
) -> list[dict[str, Any]]:
  """Learns or reads code sets in memory and measures each.

  Args:
    config: `semantic_ids` is what the sets to be learned start from.
    catalogue: the dataset.
    learn: one string a set, "field=value,field=value", fields of config.semantic_ids.
    code_files: codes of the user's own, one file a set.

  Returns:
    a row a set: name, provenance, and `health.measure`'s values as figures.

  Raises:
    InputError: a setting is unknown, a file cannot be used, or there is nothing to compare.
  """
  if not learn and not code_files:
    raise InputError("There is nothing to compare: give --learn=method=residual_kmeans, or --codes=FILE.")
  # All of them are read before the first is worked on: a misspelt last one should not cost minutes.
  settings = [with_settings(config, text) for text in learn]
  sets = [(text, changed, None) for text, changed in zip(learn, settings, strict=True)]
  sets += [(pathlib.Path(file).name, config, file) for file in code_files]
  for _, changed, file in sets:
    making.check(changed, file)
  opened = [(name, changed, Inputs.open(changed.semantic_ids, catalogue, file)) for name, changed, file in sets]
  rows = []
  for name, changed, inputs in opened:
    logging.info("%s", name)
    ids, _, errors = making.make(changed.semantic_ids, catalogue, inputs)
    figures = making.measure(ids, catalogue, errors)
    rows.append({"name": name, "provenance": dict(ids.provenance), "figures": figures})
  return rows


def with_settings(config: Config, text: str) -> Config:
  """The config with "field=value,field=value" of its semantic_ids section replaced and checked."""
  values = dataclasses.asdict(config)
  for part in text.split(","):
    name, equals, value = part.partition("=")
    if not equals:
      raise InputError(f"--learn={text!r} cannot be read at {part!r}: expected field=value, like method=rqvae.")
    with contextlib.suppress(ValueError, SyntaxError):  # a bare word is a string
      value = ast.literal_eval(value)
    values["semantic_ids"][name] = value
  return config_lib.from_config_dict(values)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as text: who collides least, and who says most about the items."""
  width = max(len(row["name"]) for row in rows)
  lines = [
    f"{'codes':{width}}  levels  colliding  entropy a level          same category        consecutive items    left",
    f"{'':{width}}                                              share  x shuffled    prefix  x random",
  ]
  for row in rows:
    f = row["figures"]
    entropy = " ".join(f"{value:.2f}" for value in f["entropy"])
    category, prefix, left = f["shared_category"], f["shared_prefix"], f["reconstruction_error"]
    cells = [
      f"{row['name']:{width}}  {f['levels']:6d}  {f['colliding_percent']:7.1f} %  {entropy:22}",
      _pair(100 * category["share"], category["ratio"], "%") if category else " " * 20,
      _pair(prefix["consecutive"], prefix["ratio"], "") if prefix else " " * 20,
      f"{left[-1]:.3f}" if left else "",
      "COLLAPSED" if f["collapsed"] else "",
    ]
    lines.append("  ".join(cells).rstrip())
  return "\n".join(lines)


def _pair(value: float, ratio: float | None, unit: str) -> str:
  shown = f"{value:6.1f} %" if unit else f"{value:8.3f}"
  return f"{shown}{'' if ratio is None else f'{ratio:10.1f}':>12}"
