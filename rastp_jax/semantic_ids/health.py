"""What codes are worth before any training: figures, and a verdict with advice.

Everything is measured on the *learned* codes, before collisions were resolved.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rastp_jax.semantic_ids import collisions
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.embeddings import Item

# Below this normalised entropy, or above this share of items in collisions, codes tell items apart so badly that
# training on them is a waste of time. Healthy residual k-means on text embeddings shows above 0.9 and below 0.3.
COLLAPSED_ENTROPY = 0.5
COLLAPSED_COLLISIONS = 0.5
# Codes that beat shuffled ones by less than this factor say nothing about the items. Random codes show 1, any learned
# from text or behaviour more than 5.
UNINFORMATIVE = 1.5


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
  """What the codes are held against; what is not known is left out of the report.

  Attributes:
    items: the catalogue, row = item.
    history: int (interactions,), item rows, users end to end.
    spans: (first, stop) a user: the positions in `history` that may be looked at, held-out items left out.
    errors: share of the embeddings' variance that each level leaves, one value a level.
  """

  items: Sequence[Item] = ()
  history: np.ndarray | None = None
  spans: tuple[np.ndarray, np.ndarray] | None = None
  errors: Sequence[float] | None = None


def measure(ids: SemanticIds, evidence: Evidence = Evidence()) -> dict[str, Any]:
  """Measures a code table.

  Returns:
    JSON values: items, widths (of all levels), levels (learned ones), colliding_items (items sharing all learned codes
    with another), colliding_percent, largest_group (items with equal learned codes; 1 without collisions); one value a
    learned level: codes_in_use, entropy (of the code frequencies over its largest possible value, 0 to 1),
    items_a_code (mean and max over codes in use), reconstruction_error (None if unknown); shared_category and
    shared_prefix (see there; None if unknown); collapsed, uninformative, advice (sentences), and identity: the
    fingerprint of the codes.
  """
  learned, widths = ids.learned, ids.widths[: ids.learned.shape[1]]
  _, sizes, _, _ = collisions.group_rows(learned)
  colliding = int(sizes[sizes > 1].sum())
  in_use, entropy, items_a_code = [], [], []
  for counts in code_counts(ids):
    share = counts[counts > 0] / ids.num_items
    in_use.append(int((counts > 0).sum()))
    possible = math.log(min(len(counts), ids.num_items))
    entropy.append(float(-(share * np.log(share)).sum() / max(possible, 1e-9)))
    items_a_code.append({"mean": ids.num_items / in_use[-1], "max": int(counts.max())})
  figures = {
    "identity": ids.fingerprint,
    "items": ids.num_items,
    "widths": list(ids.widths),
    "levels": len(widths),
    "colliding_items": colliding,
    "colliding_percent": 100.0 * colliding / ids.num_items,
    "largest_group": int(sizes.max()),
    "codes_in_use": in_use,
    "entropy": entropy,
    "items_a_code": items_a_code,
    "reconstruction_error": None if evidence.errors is None else [float(error) for error in evidence.errors],
    "shared_category": shared_category(learned[:, 0], evidence.items) if len(evidence.items) else None,
    "shared_prefix": None,
  }
  if evidence.history is not None:
    figures["shared_prefix"] = shared_prefix(learned, evidence.history, *evidence.spans)
  return {**figures, **_verdict(figures)}


def shared_category(first_codes: np.ndarray, items: Sequence[Item]) -> dict[str, Any] | None:
  """How often two items of the same leaf category share their first code.

  Take any item and any other item of its leaf category (the whole path; an item listed in several counts in each):
  `share` is the probability that both have the same first code, `shuffled` what it would be if the same codes were
  dealt to the items at random, `ratio` the one over the other.

  Returns:
    These three and `items`, how many have company in a leaf category; None where no item has.
  """
  leaves: dict[str, int] = {}
  rows, leaf = [], []
  for row, item in enumerate(items):
    for path in dict.fromkeys(item.categories):
      rows.append(row)
      leaf.append(leaves.setdefault(path, len(leaves)))
  rows, leaf = np.array(rows, np.int64), np.array(leaf, np.int64)
  company = np.bincount(leaf, minlength=1)[leaf] - 1 if len(leaf) else leaf
  rows, leaf, company = rows[company > 0], leaf[company > 0], company[company > 0]
  if not len(rows):
    return None
  _, cell, cells = np.unique(np.stack([leaf, first_codes[rows]]), axis=1, return_inverse=True, return_counts=True)
  share = float(((cells[cell.reshape(-1)] - 1) / company).mean())
  counts = np.bincount(first_codes).astype(np.float64)
  shuffled = float((counts * (counts - 1)).sum() / (len(items) * (len(items) - 1)))
  return {"share": share, "shuffled": shuffled, "ratio": _ratio(share, shuffled), "items": len(np.unique(rows))}


def shared_prefix(learned: np.ndarray, history: np.ndarray, first: np.ndarray, stop: np.ndarray) -> dict[str, Any]:
  """How many leading codes consecutive items of a history share.

  Args:
    learned: (n_items, levels) codes.
    history: item rows, users end to end.
    first: each user's first position in `history`.
    stop: and the one after the last that may be looked at.

  Returns:
    consecutive_by_level: probability that two consecutive, different items share their first 1, 2, … codes;
    random_by_level: the same for two different items drawn at random, each as often as it occurs in these histories
    (exact, nothing is drawn); consecutive and random: their sums, the mean length of the shared prefix; difference
    and ratio of the two; pairs: how many there are. None where there are no pairs.
  """
  inside = np.zeros(len(history) + 1, np.int64)
  seen = first < stop
  np.add.at(inside, first[seen], 1)
  np.add.at(inside, stop[seen], -1)
  inside = np.cumsum(inside)[:-1] > 0
  ends = np.zeros(len(history) + 1, bool)
  ends[stop] = True  # a pair must not reach over to the next user
  pair = inside[:-1] & inside[1:] & ~ends[1 : len(history)]
  left, right = history[:-1][pair], history[1:][pair]
  left, right = left[left != right], right[left != right]
  share = np.bincount(history[inside], minlength=len(learned)) / max(inside.sum(), 1)
  other = 1 - (share**2).sum()  # probability that two draws are different items
  if not len(left) or other <= 0:
    return None
  consecutive, random = [], []
  for level in range(1, learned.shape[1] + 1):
    group = collisions.group_rows(learned[:, :level])[0]
    consecutive.append(float((group[left] == group[right]).mean()))
    random.append(float(((np.bincount(group, share) ** 2).sum() - (share**2).sum()) / other))
  return {
    "consecutive": sum(consecutive),
    "random": sum(random),
    "difference": sum(consecutive) - sum(random),
    "ratio": _ratio(sum(consecutive), sum(random)),
    "consecutive_by_level": consecutive,
    "random_by_level": random,
    "pairs": len(left),
  }


def _ratio(value: float, chance: float) -> float | None:
  return value / chance if chance > 0 else None


def code_counts(ids: SemanticIds) -> list[np.ndarray]:
  """Items of each code, one array of the level's width a learned level."""
  return [np.bincount(ids.learned[:, level], minlength=ids.widths[level]) for level in range(ids.learned.shape[1])]


def _verdict(figures: Mapping[str, Any]) -> dict[str, Any]:
  """collapsed, uninformative, and advice: one sentence a finding."""
  advice = []
  flat = [level for level, entropy in enumerate(figures["entropy"]) if entropy < COLLAPSED_ENTROPY]
  for level in flat:
    advice.append(
      f"Level {level} has COLLAPSED: a few codes hold most items ({figures['codes_in_use'][level]} of "
      f"{figures['widths'][level]} are in use, one has {figures['items_a_code'][level]['max']} items); look whether "
      "rows of the embeddings are equal or nearly so, or learn with semantic_ids.method=residual_kmeans, another seed "
      "or a smaller width."
    )
  crowded = figures["colliding_items"] > COLLAPSED_COLLISIONS * figures["items"]
  if crowded:
    advice.append(
      f"The codes have COLLAPSED: {figures['colliding_percent']:.0f} % of the items share all learned codes with "
      "another, too many for a model to tell apart; use more levels or a greater width (semantic_ids.levels, "
      "semantic_ids.width), or embeddings that differ more from item to item."
    )
  known = [figures[name] for name in ("shared_category", "shared_prefix") if figures[name] is not None]
  uninformative = bool(known) and all(figure["ratio"] is None or figure["ratio"] < UNINFORMATIVE for figure in known)
  if uninformative:
    advice.append(
      "The codes say next to NOTHING about the items: like items share codes hardly more often than any two; if they "
      "are not random on purpose, check that their rows (or those of the embeddings) are in the order of the items."
    )
  return {"collapsed": bool(flat) or crowded, "uninformative": uninformative, "advice": advice}


def describe(figures: Mapping[str, Any]) -> str:
  """The figures as a short text table, with a plain verdict."""
  levels, depth = figures["levels"], len(figures["widths"])
  errors = figures["reconstruction_error"]
  extra = " and one that tells equal ones apart" if depth > levels else ""
  lines = [
    f"{figures['items']} items, {levels} learned codes each{extra}: {figures['colliding_items']} items "
    f"({figures['colliding_percent']:.1f} %) share all learned codes with another, largest group "
    f"{figures['largest_group']}",
    "level  width  codes in use  entropy  items a code: mean   most" + ("" if errors is None else "  variance left"),
  ]
  for level in range(levels):
    a_code = figures["items_a_code"][level]
    error = "" if errors is None else f"{errors[level]:15.3f}"
    lines.append(
      f"{level:5d}{figures['widths'][level]:7d}{figures['codes_in_use'][level]:14d}{figures['entropy'][level]:9.3f}"
      f"{a_code['mean']:20.1f}{a_code['max']:7d}{error}"
    )
  if depth > levels:
    lines.append(f"{levels:5d}{figures['widths'][-1]:7d}  (tells equal learned codes apart)")
  category, prefix = figures["shared_category"], figures["shared_prefix"]
  if category is not None:
    lines.append(
      f"items of one leaf category share their first code in {100 * category['share']:.1f} % of pairs, shuffled codes "
      f"in {100 * category['shuffled']:.1f} %: {_times(category['ratio'])}"
    )
  if prefix is not None:
    lines.append(
      f"consecutive items of a history share {prefix['consecutive']:.3f} leading codes, random ones "
      f"{prefix['random']:.3f}: {_times(prefix['ratio'])}"
    )
  return "\n".join(lines + figures["advice"])


def _times(ratio: float | None) -> str:
  return "never by chance" if ratio is None else f"{ratio:.1f} times as many"
