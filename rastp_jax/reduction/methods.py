"""The registry of reductions: a name is a score, and what becomes of the tokens that score least.

A new method is a function in `scores.py`, `select.py` or `merge.py` (or in a file of its own) and one entry here. The
settings' check, --help, the table in docs/reduction.md, the laboratory and the tests are made from this registry.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rastp_jax.config import ModelConfig, ReductionConfig
from rastp_jax.reduction import learned, merge, scores, select
from rastp_jax.reduction.tokens import ItemLayout, Seen, Tokens


class Need(NamedTuple):
  """A setting that must have one value for a method, and what the method does that needs it."""

  setting: str
  value: Any
  why: str


@dataclasses.dataclass(frozen=True)
class Method:
  """One way to make tokens fewer.

  Attributes:
    summary: one sentence for people.
    paper: where it comes from; "" for a control.
    score: (B, L) float32 from what is seen; higher is kept, or weighs more in a mean.
    merge: K tokens from what is seen, the scores and K; ends in `merge.keep`, `merge.merge_into` or `merge.mix`.
    kind: "drop", "merge" (hard: each token joins one) or "pool" (soft: each token counts in several).
    watch: a note on each token, renewed after every block up to the last stage; its earlier one is in `seen.tokens`.
    tokens: K by the length of the unreduced sequence, where the method settles that itself instead of the budget.
    before_blocks: whether it may stand before block 0, where nothing but the tokens is seen.
    unchanged: whether a row that fits into the budget comes out as it was.
    learned: weights that a stage owns, made of the model's settings, the layout and the options; `seen.learned` in the
      functions.
    options: settings of its own (a dataclass of `config.setting`s), `seen.settings.of(options)`; None without any.
    need: what another setting must be; None where any will do.
    positions: the value of `reduction.positions` that suits what is left: "original", "item" where a token stands for
      an item, "none" where it stands for no place. The laboratory trains with it.
  """

  summary: str
  paper: str
  score: Callable[[Seen], Float[Array, "B L"]]
  merge: Callable[[Seen, Float[Array, "B L"], int], Tokens] = merge.drop
  kind: str = "drop"
  watch: Callable[[Seen], Float[Array, "B L"]] | None = None
  tokens: Callable[[int, ItemLayout], int] | None = None
  before_blocks: bool = False
  unchanged: bool = True
  learned: Callable[..., Any] | None = None
  options: type | None = None
  need: Need | None = None
  positions: str = "original"

  def reduce(self, seen: Seen) -> Tokens:
    """Shortens L tokens to `seen.budget`."""
    return self.merge(seen, self.score(seen), seen.budget)

  def weights(self, config: ModelConfig, layout: ItemLayout, settings: ReductionConfig, *, rngs: nnx.Rngs) -> Any:
    """Fresh ones of a stage, for methods with `learned`."""
    assert self.learned is not None
    options = {} if self.options is None else vars(settings.of(self.options))
    return self.learned(config, layout, rngs=rngs, **options)

  def most(self, settings: ReductionConfig) -> int | None:
    """The largest K that there are weights for; None where weights do not depend on K."""
    options = None if self.options is None else settings.of(self.options)
    return options.most if isinstance(options, learned.SlotOptions) else None


def _alike(seen: Seen) -> Float[Array, "B L"]:
  return jnp.ones(seen.tokens.mask.shape, jnp.float32)


def _attention_share(seen: Seen) -> Float[Array, "B L"]:
  return scores.attention(seen) + 1e-6


def _everything(length: int, layout: ItemLayout) -> int:
  del layout
  return length


def _one_per_item(length: int, layout: ItemLayout) -> int:
  return length // layout.item_length


def _without_collision_codes(length: int, layout: ItemLayout) -> int:
  return length // layout.item_length * (layout.item_length - 1)


def _by_age(length: int, layout: ItemLayout) -> int:
  ages = range(length // layout.item_length)
  return sum(layout.item_length if age < 5 else min(2 if age < 15 else 1, layout.item_length) for age in ages)


def _no_collision_code(seen: Seen) -> Float[Array, "B L"]:
  return jnp.broadcast_to(seen.levels != seen.layout.depth - 1, seen.tokens.mask.shape).astype(jnp.float32)


def _items(summary: str, paper: str, score: Any = _alike, merged: Any = merge.pool_items, **facts: Any) -> Method:
  """A method that leaves one token per item."""
  common = {"kind": "merge", "tokens": _one_per_item, "unchanged": False, "positions": "item"}
  return Method(summary, paper, score, merged, **common | facts)


_COLLISION_CODES = Need(
  "semantic_ids.collisions", "extra_level", "treats the last level as codes that tell equal items apart"
)
_OWN_SEPARATORS = Need("reduction.prune_separators", True, "settles itself which separators stay")

RASTP, H2O = "RASTP, arXiv 2511.16943", "H2O, arXiv 2306.14048"

REDUCTIONS: Mapping[str, Method] = {
  "none": Method("a dense model: every token stays", "", _alike, tokens=_everything, before_blocks=True),
  # Scores: the best K tokens stay, the others are dropped.
  "rastp": Method("attention received x L1 norm of the state", RASTP, scores.rastp),
  "rastp_recent": Method("RASTP with a pinch of recency", RASTP, scores.rastp_recent, options=scores.RecencyOptions),
  "rastp_codes": Method(
    "RASTP, learned codes before separators and collision codes", RASTP, scores.rastp_codes, need=_COLLISION_CODES
  ),
  "rastp_items": Method("RASTP summed over an item: items are kept whole", RASTP, scores.rastp_items),
  "quota_by_age": Method("a quota per item by its age, inside it RASTP's order", RASTP, scores.quota_by_age),
  "attention": Method("attention received", H2O, scores.attention),
  "attention_of_others": Method(
    "attention received, no token voting for itself", "PoWER-BERT, arXiv 2001.08950", scores.attention_of_others
  ),
  "l1_norm": Method("L1 norm of the state", "", scores.l1_norm, before_blocks=True),
  "l2_norm": Method("L2 norm of the state", "", scores.l2_norm, before_blocks=True),
  "recent": Method("the most recent tokens", "", scores.recent, before_blocks=True),
  "random": Method("any tokens, by a hash of history and place", "", scores.random, before_blocks=True),
  "sinks": Method(
    "the first item and the most recent tokens",
    "StreamingLLM, arXiv 2309.17453",
    scores.sinks,
    before_blocks=True,
    options=scores.SinkOptions,
  ),
  "separators_first": Method("separators, then the most recent codes", "", scores.separators_first, before_blocks=True),
  "coarse_first": Method("coarse codes before fine ones", "", scores.coarse_first, before_blocks=True),
  "codes_first": Method(
    "learned codes, the most recent first", "", scores.codes_first, before_blocks=True, need=_COLLISION_CODES
  ),
  "no_collision_code": Method(
    "all but the code that tells equal items apart",
    "",
    _no_collision_code,
    merge.only,
    tokens=_without_collision_codes,
    before_blocks=True,
    unchanged=False,
    need=_COLLISION_CODES,
  ),
  "coarse_by_age": Method(
    "fewer levels the older an item is",
    "",
    scores.levels_by_age,
    merge.only,
    tokens=_by_age,
    before_blocks=True,
    unchanged=False,
    need=_OWN_SEPARATORS,
  ),
  "vatp": Method("attention received x L1 norm of the value", "VATP, arXiv 2406.12335", scores.vatp),
  "ats": Method("the newest token's attention x L2 norm of the value", "ATS, arXiv 2111.15667", scores.ats),
  "newest_attention": Method(
    "the newest token's attention, summed over the blocks so far",
    "VTC-CLS, arXiv 2412.05819",
    scores.newest_attention,
    watch=scores.watch_newest,
  ),
  "change": Method(
    "how far the blocks so far have moved a token",
    "TransPrune, arXiv 2507.20630",
    scores.change,
    watch=scores.watch_change,
  ),
  "transprune": Method(
    "that, and the newest item's attention",
    "TransPrune, arXiv 2507.20630",
    scores.transprune,
    watch=scores.watch_change,
  ),
  "head_vote": Method(
    "one vote per head, by the mean query",
    "TokenSelect, arXiv 2411.02886",
    scores.head_vote,
    options=scores.HeadVoteOptions,
  ),
  "hiprune": Method(
    "anchors of the first block, their neighbours, then the last block's attention",
    "HiPrune, arXiv 2508.00553",
    scores.hiprune,
    watch=scores.first_attention,
    options=scores.HiPruneOptions,
  ),
  "hired": Method(
    "a quota per item by the newest item's early attention, inside it late attention",
    "HiRED, arXiv 2408.10945",
    scores.hired,
    watch=scores.first_of_newest,
  ),
  "flowcut": Method(
    "the newest token's attention and likeness, over the blocks so far",
    "FlowCut, arXiv 2505.19536",
    scores.flowcut,
    watch=scores.watch_flow,
  ),
  "a2sf": Method(
    "attention received, older queries' votes count less",
    "A2SF, arXiv 2407.20485",
    scores.a2sf,
    options=scores.A2sfOptions,
  ),
  "given": Method("scores that the caller gives: the laboratory's oracles", "", scores.given, before_blocks=True),
  # Diverse selections.
  "divprune": Method(
    "tokens that lie farthest apart", "DivPrune, arXiv 2503.02175", select.farthest, before_blocks=True
  ),
  "max_sum": Method(
    "tokens with the largest sum of distances", "ToDRE, arXiv 2505.18757", select.spread, before_blocks=True
  ),
  "cdpruner": Method(
    "a determinantal point process, relevance by RASTP", "CDPruner, arXiv 2506.10967", select.determinant
  ),
  "dpp_recent": Method(
    "a determinantal point process, relevance falling with age",
    "CDPruner, arXiv 2506.10967",
    select.determinant_recent,
    before_blocks=True,
    options=select.DecayOptions,
  ),
  "learned_score": Method(
    "a small network's choice",
    "DynamicViT, arXiv 2106.02034",
    learned.keep_logit,
    learned.drop_through_gate,
    before_blocks=True,
    learned=learned.LearnedScore,
  ),
  # Merges.
  "fuse": Method(
    "RASTP's score; the rest becomes one token", "EViT, arXiv 2202.07800", scores.rastp, merge.fuse, kind="merge"
  ),
  "assign_recent": Method(
    "every other token joins the most similar of the most recent",
    "PruMerge, arXiv 2403.15388",
    scores.recent,
    merge.assign,
    kind="merge",
    before_blocks=True,
  ),
  "assign_rastp": Method(
    "every other token joins the most similar of RASTP's choice",
    "PruMerge, arXiv 2403.15388",
    scores.rastp,
    merge.assign,
    kind="merge",
  ),
  "clusters": Method(
    "every other token joins the most similar centre of a cluster",
    "DPC-KNN, arXiv 2204.08680",
    select.density_peaks,
    merge.assign,
    kind="merge",
    before_blocks=True,
  ),
  "tome": Method(
    "the most similar pairs of even and odd items merge",
    "ToMe, arXiv 2210.09461",
    _alike,
    merge.pairs,
    kind="merge",
    before_blocks=True,
  ),
  "average": Method(
    "runs of neighbours become their mean", RASTP, _alike, merge.average, kind="merge", before_blocks=True
  ),
  "foveated": Method(
    "the newest items whole, each older one as one token", "", _alike, merge.foveate, kind="merge", before_blocks=True
  ),
  # One token per item.
  "item_mean": _items("one token per item: the mean of its tokens", "RPG, arXiv 2506.05781", before_blocks=True),
  "item_sum": _items(
    "one token per item: the sum of its tokens, scaled", "", merged=merge.sum_items, before_blocks=True
  ),
  "item_attention": _items("one token per item, its tokens weighted by attention received", "", _attention_share),
  "item_query": _items(
    "one token per item, its tokens weighted by a learned query",
    "ACERec, arXiv 2602.13573",
    merged=learned.pool_by_query,
    before_blocks=True,
    learned=learned.ItemQuery,
  ),
  "item_projection": _items(
    "one token per item: a learned map of its tokens end to end",
    "LONGER, arXiv 2505.04421",
    merged=learned.pool_by_projection,
    before_blocks=True,
    learned=learned.ItemProjection,
  ),
  "super_tokens": _items(
    "one token per item, shared softly with neighbouring items",
    "super tokens, arXiv 2211.11167",
    merged=merge.super_tokens,
    kind="pool",
    before_blocks=True,
  ),
  "semantic_tokens": _items(
    "one token per item that attends to all", "STViT, arXiv 2303.08685", merged=merge.semantic_tokens, kind="pool"
  ),
  # Soft slots.
  "latent_queries": Method(
    "K learned queries over all tokens",
    "PatchMerger, arXiv 2202.12015",
    _alike,
    learned.pool_by_latents,
    kind="pool",
    before_blocks=True,
    unchanged=False,
    learned=learned.LatentQueries,
    options=learned.LatentOptions,
    positions="none",
  ),
  "slimming": Method(
    "K slots that a small network fills",
    "SiT, arXiv 2111.12624",
    _alike,
    learned.pool_by_slimming,
    kind="pool",
    before_blocks=True,
    unchanged=False,
    learned=learned.Slimming,
    options=learned.SlimmingOptions,
    positions="none",
  ),
}


def describe(method: Method) -> list[Any]:
  """A row of the table in docs/reduction.md: summary, paper, where it may stand, whether rows that fit stay."""
  place = "before block 0 too" if method.before_blocks else "after a block"
  return [method.summary, method.paper, place, _of_rows_that_fit(method)]


def _of_rows_that_fit(method: Method) -> str:
  if method.unchanged:
    return "unchanged"
  return "shortened" if method.kind == "drop" else "merged"
