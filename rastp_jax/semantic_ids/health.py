"""How good codes are, before any training: metrics, and a verdict with advice.

All is measured on the *learned* codes, before collisions were resolved.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rastp_jax.data.items import Item
from rastp_jax.runtime import text_tables
from rastp_jax.semantic_ids import collisions
from rastp_jax.semantic_ids.codes import SemanticIds

# Below this normalised entropy, or above this share of items in collisions, codes tell items apart so badly that
# training on them is of no use. Healthy residual k-means on text embeddings shows above 0.9 and below 0.3.
COLLAPSED_ENTROPY = 0.5
COLLAPSED_COLLISIONS = 0.5
# Codes that beat shuffled ones by less than this factor say nothing about the items. Random codes have 1, codes learned
# from text or histories more than 5.
UNINFORMATIVE = 1.5
# Share of the vectors' variance below which a further level has nothing to code.
NOTHING_LEFT = 0.01
STEADIEST = "residual_kmeans"  # the method whose codes collapse least

_NUMBERS = {1: "one", 2: "two", 3: "three"}


@dataclasses.dataclass(frozen=True, eq=False)
class HealthInputs:
  """What the codes are compared with; what is not known is left out of the report.

  Attributes:
    items: the catalogue, row = item.
    history: int (interactions,), item rows, users end to end.
    spans: (first, stop), int (users,) each: positions in `history` that may be used, without held-out items.
    errors: share of the embeddings' variance that each level leaves, one number for each level.
  """

  items: Sequence[Item] = ()
  history: np.ndarray | None = None
  spans: tuple[np.ndarray, np.ndarray] | None = None
  errors: Sequence[float] | None = None


def measure(ids: SemanticIds, inputs: HealthInputs = HealthInputs()) -> dict[str, Any]:
  """Measures a code table.

  Returns:
    JSON values: items, widths (of all levels), levels (learned ones), colliding_items (items sharing all learned codes
    with another), colliding_percent, largest_group (items with equal learned codes; 1 without collisions); one value
    per learned level: largest_group_by_level (by the codes up to this level), codes_in_use, entropy (of the code
    frequencies over its largest possible value, 0 to 1), items_a_code (mean and max over codes in use),
    reconstruction_error (None if unknown); shared_category and shared_prefix (see there; None if unknown);
    collapsed, uninformative, advice (sentences), and identity: the fingerprint of the codes.
  """
  learned, widths = ids.learned, ids.widths[: ids.learned.shape[1]]
  groups = [collisions.group_rows(learned[:, :level])[1] for level in range(1, len(widths) + 1)]
  sizes = groups[-1]
  colliding = int(sizes[sizes > 1].sum())
  in_use, entropy, items_a_code = [], [], []
  for counts in code_counts(ids):
    share = counts[counts > 0] / ids.num_items
    in_use.append(int((counts > 0).sum()))
    possible = math.log(min(len(counts), ids.num_items))
    entropy.append(float(-(share * np.log(share)).sum() / max(possible, 1e-9)))
    items_a_code.append({"mean": ids.num_items / in_use[-1], "max": int(counts.max())})
  metrics = {
    "identity": ids.fingerprint,
    "items": ids.num_items,
    "widths": list(ids.widths),
    "levels": len(widths),
    "colliding_items": colliding,
    "colliding_percent": 100.0 * colliding / ids.num_items,
    "largest_group": int(sizes.max()),
    "largest_group_by_level": [int(one.max()) for one in groups],
    "codes_in_use": in_use,
    "entropy": entropy,
    "items_a_code": items_a_code,
    "reconstruction_error": None if inputs.errors is None else [float(error) for error in inputs.errors],
    "shared_category": shared_category(learned[:, 0], inputs.items) if len(inputs.items) else None,
    "shared_prefix": None,
  }
  if inputs.history is not None and inputs.spans is not None:
    metrics["shared_prefix"] = shared_prefix(learned, inputs.history, *inputs.spans)
  return {**metrics, **_verdict(metrics, ids.provenance.get("method"))}


def shared_category(first_codes: np.ndarray, items: Sequence[Item]) -> dict[str, Any] | None:
  """How often two items of the same leaf category share their first code.

  Take any item and any other item of its leaf category (the whole path; an item listed in several counts in each):
  `share` is the probability that both have the same first code, `shuffled` the same if the codes were given to the
  items at random, `ratio` is share / shuffled.

  Returns:
    These three and `items`, the number of items that share a leaf category with another; None where there are none.
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


def shared_prefix(
  learned: np.ndarray, history: np.ndarray, first: np.ndarray, stop: np.ndarray
) -> dict[str, Any] | None:
  """How many leading codes consecutive items of a history share.

  Args:
    learned: (n_items, levels) codes.
    history: item rows, users end to end.
    first: each user's first position in `history`.
    stop: each user's position after the last that may be used.

  Returns:
    consecutive_by_level: probability that two consecutive, different items share their first 1, 2, … codes;
    random_by_level: the same for two different items drawn at random, each as often as it occurs in these histories
    (exact, nothing is drawn); consecutive and random: their sums, the mean length of the shared prefix; difference
    and ratio of the two; pairs: their number. None where there are no pairs.
  """
  inside = np.zeros(len(history) + 1, np.int64)
  seen = first < stop
  np.add.at(inside, first[seen], 1)
  np.add.at(inside, stop[seen], -1)
  inside = np.cumsum(inside)[:-1] > 0
  ends = np.zeros(len(history) + 1, bool)
  ends[stop] = True  # a pair must not join two users
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
  """Items of each code: one array per learned level, of the level's width."""
  return [np.bincount(ids.learned[:, level], minlength=ids.widths[level]) for level in range(ids.learned.shape[1])]


def _enough_levels(metrics: Mapping[str, Any]) -> int:
  """The levels after which every item has codes of its own, or nothing of the vectors is left; at least 1."""
  errors = metrics["reconstruction_error"] or [1.0] * metrics["levels"]
  for level, (group, error) in enumerate(zip(metrics["largest_group_by_level"], errors, strict=True), 1):
    if group == 1 or error < NOTHING_LEFT:
      return level
  return metrics["levels"]


def _verdict(metrics: Mapping[str, Any], method: str | None) -> dict[str, Any]:
  """collapsed, uninformative, and advice: one sentence per finding, which never names the method in use."""
  advice = []
  other = "" if method == STEADIEST else f"semantic_ids.method={STEADIEST}, "
  room = math.prod(metrics["widths"][: metrics["levels"]]) >= metrics["items"]
  alike = room and metrics["reconstruction_error"] and metrics["reconstruction_error"][-1] < NOTHING_LEFT
  enough = _enough_levels(metrics)
  if enough < metrics["levels"]:
    advice.append(
      f"Level {enough} has nothing left to code: {_NUMBERS.get(enough, enough)} "
      f"{'level is' if enough == 1 else 'levels are'} enough (semantic_ids.levels={enough})."
    )
  flat = [level for level, entropy in enumerate(metrics["entropy"][:enough]) if entropy < COLLAPSED_ENTROPY]
  for level in flat:
    advice.append(
      f"Level {level} has COLLAPSED: a few codes have most of the items ({metrics['codes_in_use'][level]} of "
      f"{metrics['widths'][level]} are in use, one has {metrics['items_a_code'][level]['max']} items); check whether "
      f"rows of the embeddings are equal or almost equal, or learn with {other}another seed or a smaller "
      "semantic_ids.codebook_size."
    )
  crowded = metrics["colliding_items"] > COLLAPSED_COLLISIONS * metrics["items"]
  if crowded:
    advice.append(
      f"The codes have COLLAPSED: {metrics['colliding_percent']:.0f} % of the items share all learned codes with "
      "another, too many for a model to tell apart; "
      + (
        "almost nothing of their vectors is left to code, so that more codes would hardly help: give texts, embeddings "
        "or histories that tell items apart better."
        if alike
        else "use more levels or codes per level (semantic_ids.levels, semantic_ids.codebook_size), or embeddings that "
        "differ more from item to item."
      )
    )
  known = [metrics[name] for name in ("shared_category", "shared_prefix") if metrics[name] is not None]
  uninformative = bool(known) and all(metric["ratio"] is None or metric["ratio"] < UNINFORMATIVE for metric in known)
  if uninformative:
    advice.append(
      "The codes say almost NOTHING about the items: similar items share codes hardly more often than any two; if they "
      "are not random on purpose, check that their rows (or those of the embeddings) are in the order of the items."
    )
  return {"collapsed": bool(flat) or crowded, "uninformative": uninformative, "advice": advice}


def describe(metrics: Mapping[str, Any]) -> str:
  """The metrics as a short text table, with a plain verdict."""
  levels, depth = metrics["levels"], len(metrics["widths"])
  errors = metrics["reconstruction_error"]
  extra = " and one that tells equal ones apart" if depth > levels else ""
  summary = (
    f"{metrics['items']} items, {levels} learned codes each{extra}: {metrics['colliding_items']} items "
    f"({metrics['colliding_percent']:.1f} %) share all learned codes with another, largest group "
    f"{metrics['largest_group']}"
  )
  rows = [["level", "width", "codes in use", "entropy", "items per code: mean", "most", "variance left"]]
  for level in range(levels):
    per_code = metrics["items_a_code"][level]
    rows.append(
      [
        str(level),
        str(metrics["widths"][level]),
        str(metrics["codes_in_use"][level]),
        f"{metrics['entropy'][level] + 0.0:.3f}",  # -0.0 becomes 0.0
        f"{per_code['mean']:.1f}",
        str(per_code["max"]),
        "unknown" if errors is None else f"{errors[level]:.3f}",
      ]
    )
  lines = [summary, text_tables.align(rows)]
  if depth > levels:
    lines.append(f"level {levels}, {metrics['widths'][-1]} wide, tells equal learned codes apart")
  category, prefix = metrics["shared_category"], metrics["shared_prefix"]
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
  return "\n".join(lines + metrics["advice"])


def _times(ratio: float | None) -> str:
  return "never by chance" if ratio is None else f"{ratio:.1f} times as many"
