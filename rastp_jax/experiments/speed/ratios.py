"""Ratios of the benchmark's measurements, and all of them as text."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rastp_jax.runtime.text_tables import align

_COLUMNS = (
  ("samples_per_second", "samples/s", "{:,.1f}", 1.0),
  ("real_tokens_per_second", "real tokens/s", "{:,.0f}", 1.0),
  ("milliseconds_a_step", "ms per step", "{:,.1f}", 1.0),
  ("padding_share", "padding", "{:.0%}", 1.0),
  ("flops_a_sample", "MFLOP per sample", "{:,.0f}", 1e-6),
  ("peak_bytes", "peak MB", "{:,.0f}", 1e-6),
  ("compile_seconds", "compile s", "{:.1f}", 1.0),
  ("flops_utilization", "MFU", "{:.1%}", 1.0),
  ("roofline_share", "of roofline", "{:.1%}", 1.0),
)


# Variants whose training samples per second are compared: the first one's over the second one's.
_COMPARED = (
  ("padded_pruned", "padded_dense"),
  ("bucketed_dense", "padded_dense"),
  ("bucketed_pruned", "padded_dense"),
  ("bucketed_keep50", "padded_pruned"),
  ("bucketed_pruned", "bucketed_dense"),
  ("last10_dense", "padded_dense"),
)


def make_ratios(result: Mapping[str, Any]) -> dict[str, float]:
  """Every ratio of a run, from that run's measurements only.

  Args:
    result: "training" (see `TrainingSpeed.results`), and "input", "decoding" and "transitions" where
      they were measured.
  """
  training = result["training"]
  speed = lambda name: training[name]["samples_per_second"]
  ratios = {f"{a}_vs_{b}": speed(a) / speed(b) for a, b in _COMPARED}
  flops = lambda name: training[name]["flops_a_sample"]
  if all(flops(name) is not None for name in training):  # some devices do not tell
    allowed = flops("padded_dense") / flops("padded_pruned")
    ratios["flop_limit_padded_pruned_vs_padded_dense"] = allowed
    ratios["share_of_flop_limit"] = ratios["padded_pruned_vs_padded_dense"] / allowed
    ratios["flop_limit_bucketed_pruned_vs_bucketed_dense"] = flops("bucketed_dense") / flops("bucketed_pruned")
  peak = lambda name: training[name]["peak_bytes"]
  ratios["peak_memory_pruned_vs_dense"] = peak("padded_pruned") / peak("padded_dense")
  if "input" in result:
    ratios["live_vs_constant_batch"] = result["input"]["live_vs_constant_batch"]
    ratios["compiles"], ratios["buckets"] = result["input"]["compiles"], result["input"]["buckets"]
  if "decoding" in result:
    tables = result["decoding"]["tables"]
    time = lambda name: 1 / tables[name]["users_per_second"]
    ratios["constrained_vs_unconstrained"] = time("constrained") / time("unconstrained")
    sizes = sorted(int(name.split()[0]) for name in tables if name.endswith(" items"))
    for size in sizes[1:]:
      ratios[f"decode_{_short(size)}_vs_{_short(sizes[0])}_items"] = time(f"{size} items") / time(f"{sizes[0]} items")
  for items, cost in result.get("transitions", {}).items():
    ratios[f"transitions_{_short(int(items))}_seconds"] = cost["seconds"]
    ratios[f"transitions_{_short(int(items))}_peak_gb"] = cost["peak_gb"]
  return ratios


def speed_intervals(training: Mapping[str, Any], draws: int = 1000) -> dict[str, tuple[float, float]]:
  """95 % bootstrap intervals over turns, of the ratios of training speed.

  Args:
    training: see `TrainingSpeed.results`; a variant's n-th timings of all shapes were taken in one turn.
    draws: bootstrap samples of the turns.

  Returns:
    Lower and upper end by the names of `make_ratios`.
  """
  turns = min(len(shape["seconds"]) for variant in training.values() for shape in variant["shapes"])
  drawn = np.random.default_rng(0).integers(0, turns, (draws, turns))

  def speed(name: str) -> np.ndarray:
    shapes, per_step = training[name]["shapes"], training[name]["samples_a_step"]
    steps = sum(shape["batches_an_epoch"] for shape in shapes)
    medians = [np.median(np.array(shape["seconds"])[drawn], axis=1) for shape in shapes]
    seconds = sum(shape["batches_an_epoch"] * median for shape, median in zip(shapes, medians, strict=True))
    return per_step * steps / seconds

  ends = {f"{a}_vs_{b}": np.quantile(speed(a) / speed(b), [0.025, 0.975]) for a, b in _COMPARED}
  return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def describe(result: Mapping[str, Any]) -> str:
  """The run as text: training variants, decoding, ratios."""
  columns = [c for c in _COLUMNS if all(v[c[0]] is not None for v in result["training"].values())]
  rows = [["training", *(heading for _, heading, _, _ in columns)]]
  for name, variant in result["training"].items():
    rows.append([name, *(form.format(variant[key] * scale) for key, _, form, scale in columns)])
  parts = [align(rows)]
  if "decoding" in result:
    decoding = result["decoding"]
    rows = [[f"decoding, {decoding['beam_width']} beams, {decoding['batch_size']} users per batch", "users/s"]]
    rows += [[name, f"{table['users_per_second']:,.0f}"] for name, table in decoding["tables"].items()]
    parts.append(align(rows))
  if "input" in result:
    parts.append(f"input pipeline alone: {result['input']['batches_per_second']:,.0f} batches/s")
  intervals = {name: f"{low:.3g} to {high:.3g}" for name, (low, high) in speed_intervals(result["training"]).items()}
  rows = [[name, f"{value:.3g}", intervals.get(name, "")] for name, value in result["ratios"].items()]
  parts.append(align([["ratio", "", "95 % interval"], *rows]))
  return "\n\n".join(parts)


def _short(number: int) -> str:
  """12101 -> '12k', 10_000_000 -> '10m'."""
  return f"{number // 1_000_000}m" if number >= 1_000_000 else f"{number // 1000}k"
