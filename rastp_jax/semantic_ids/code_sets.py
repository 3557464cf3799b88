"""Several code sets of one dataset, side by side."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.data.prepared import Prepared
from rastp_jax.errors import InputError
from rastp_jax.runtime import text_tables
from rastp_jax.semantic_ids import pipeline


def compare(config: Config, dataset: Prepared, learn: Sequence[str], code_files: Sequence[str]) -> list[dict[str, Any]]:
  """Learns or reads code sets in memory and measures each.

  Args:
    config: its `semantic_ids` are the settings that the learned sets start from.
    dataset: the prepared dataset.
    learn: one string per set, "field=value,field=value", fields of config.semantic_ids.
    code_files: the user's own codes, one file per set.

  Returns:
    one row per set: name, provenance, and the values of `health.measure` as metrics.

  Raises:
    InputError: a setting is unknown, a file cannot be used, or there is nothing to compare.
  """
  if not learn and not code_files:
    raise InputError("There is nothing to compare: give --learn=method=residual_kmeans, or --codes=FILE.")
  # All are read before the first is learned: a mistake in the last one must not cost minutes.
  sets = [(text, with_settings(config, text), None) for text in learn]
  sets += [(pathlib.Path(file).name, config, file) for file in code_files]
  for _, changed, file in sets:
    pipeline.check(changed, file)
  settled = [(name, changed.semantic_ids.sized(dataset.num_items), file) for name, changed, file in sets]
  found = [
    (name, settings, pipeline.find_inputs(settings, dataset, codes_file=file)) for name, settings, file in settled
  ]
  for name, settings, inputs in found:
    if isinstance(inputs, pipeline.UnknownVectors) and pipeline.needs_content(settings):
      raise InputError(
        f"The code set {name!r} is made from vectors of the items, and {dataset.dataset}'s own are not at hand: set "
        "config.semantic_ids.embeddings to a file, tfidf_svd, sentence_transformers or model2vec."
      )
  rows = []
  for name, settings, inputs in found:
    logging.info("%s", name)
    new = inputs.make(settings, dataset)
    metrics = pipeline.measure(new.semantic_ids, dataset, new.errors)
    rows.append({"name": name, "provenance": dict(new.semantic_ids.provenance), "metrics": metrics})
  return rows


def with_settings(config: Config, text: str) -> Config:
  """The config with "field=value,field=value" of its semantic_ids section replaced and checked."""
  assignments = [config_lib.read_assignment(part, "--learn", "method=rqvae") for part in text.split(",")]
  return config_lib.with_values(config, [(f"semantic_ids.{name}", value) for name, value in assignments])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as text: how many items collide, and how much the codes say about the items."""
  heading = ["codes", "levels", "colliding", "entropy per level", "same category", "x shuffled", "consecutive items"]
  cells = [[*heading, "x random", "variance left", ""]]
  for row in rows:
    metrics = row["metrics"]
    category, prefix, left = metrics["shared_category"], metrics["shared_prefix"], metrics["reconstruction_error"]
    cells.append(
      [
        row["name"],
        str(metrics["levels"]),
        f"{metrics['colliding_percent']:.1f} %",
        " ".join(f"{value:.2f}" for value in metrics["entropy"]),
        f"{100 * category['share']:.1f} %" if category else "",
        _ratio(category),
        f"{prefix['consecutive']:.3f}" if prefix else "",
        _ratio(prefix),
        f"{left[-1]:.3f}" if left else "",
        "COLLAPSED" if metrics["collapsed"] else "",
      ]
    )
  return "\n".join(line.rstrip() for line in text_tables.align(cells).splitlines())


def _ratio(metric: Mapping[str, Any] | None) -> str:
  return f"{metric['ratio']:.1f}" if metric and metric["ratio"] is not None else ""
